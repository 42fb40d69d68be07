"""CTC by enumeration of all alignments: what every fast way of this folder is compared with."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

BLANK = 0
Output = tuple[int, ...]


def said(alignment: Sequence[int]) -> Output:
    """The output that an alignment stands for."""
    return tuple(label for label, _ in itertools.groupby(alignment) if label != BLANK)


def output_log_probs(log_probs: Tensor) -> dict[Output, float]:
    """log p of every output that frames [frames, vocab] can say."""
    frames, vocab = log_probs.shape
    rows = log_probs.double().tolist()
    sums: dict[Output, float] = defaultdict(float)
    for alignment in itertools.product(range(vocab), repeat=frames):
        sums[said(alignment)] += math.exp(sum(row[label] for row, label in zip(rows, alignment, strict=True)))
    return {output: math.log(total) for output, total in sums.items()}


def prefix_log_prob(outputs: dict[Output, float], prefix: Output) -> float:
    """log p of all outputs that begin so."""
    total = sum(math.exp(value) for output, value in outputs.items() if output[: len(prefix)] == prefix)
    return math.log(total) if total else -math.inf


def best_alignment(log_probs: Tensor, output: Output) -> tuple[int, ...]:
    """The likeliest alignment of an output."""
    frames, vocab = log_probs.shape
    rows = log_probs.double().tolist()
    fitting = (path for path in itertools.product(range(vocab), repeat=frames) if said(path) == output)
    return max(fitting, key=lambda path: sum(row[label] for row, label in zip(rows, path, strict=True)))


def random_log_probs(batch: int, frames: int, vocab: int, seed: int, sharpness: float = 1.5) -> Tensor:
    """Float64 [batch, frames, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, vocab, generator=generator, dtype=torch.float64) * sharpness
    return logits.log_softmax(-1)


def prefix_beam_by_dictionaries(log_probs: Tensor, beam_size: int) -> list[tuple[Output, float]]:
    """Prefix beam search as it is usually written: a dictionary of prefixes. log_probs: [frames, vocab]."""
    beam: dict[Output, tuple[float, float]] = {(): (1.0, 0.0)}  # mass that ends in a blank, in the last token
    for row in log_probs.double().exp().tolist():
        grown: dict[Output, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for prefix, (blank, token) in beam.items():
            grown[prefix][0] += (blank + token) * row[BLANK]
            if prefix:
                grown[prefix][1] += token * row[prefix[-1]]
            for label, probability in enumerate(row):
                if label != BLANK:
                    entering = blank if prefix and prefix[-1] == label else blank + token
                    grown[(*prefix, label)][1] += entering * probability
        best = sorted(grown, key=lambda prefix: -sum(grown[prefix]))[:beam_size]
        beam = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [(prefix, math.log(sum(mass))) for prefix, mass in beam.items()]
