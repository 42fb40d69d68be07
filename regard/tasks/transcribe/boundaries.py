"""How near the times of words come to the true ones, beside what chance comes to; and the way of finding them that is
nearest.

Measured on utterances whose true times are known, with their reference texts forced, so that an error of the text is
none of time. For chance the memory's vectors are shuffled: what said a word then stands anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.inputs.text import Tokenizer
from regard.lens.warping import followed
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.memory import Memory
from regard.tasks.transcribe.assembly import word_cores
from regard.tasks.transcribe.search import Found, cross_attention
from regard.tasks.transcribe.transcriber import Transcriber
from regard.tasks.transcribe.word_times import PLACEMENTS, Heads, Method, Times, Timing, edges, energy_of

TOLERANCE_SECONDS = 0.06


@dataclass(frozen=True)
class Timed:
    """One utterance with its reference text forced, its energy, and the true (begin, end) of each word, seconds.

    shuffled: the same once the memory's vectors are in random order. words, spans: characters of words and of tokens.
    """

    forced: Found
    shuffled: Found
    words: list[tuple[int, int]]
    spans: list[tuple[int, int]]
    energy: Tensor
    true: list[tuple[float, float]]


@dataclass(frozen=True)
class Boundaries:
    """within: share of boundaries (beginnings and ends) within the tolerance; shuffled: the same with the memory's
    vectors in random order. median_seconds: of the distances. num: boundaries measured."""

    timing: Timing
    within: float
    shuffled: float
    median_seconds: float
    num: int

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.timing.method,
            "placement": dataclasses.asdict(self.timing.placement),
            "heads": self.timing.heads,
            "tolerance_seconds": TOLERANCE_SECONDS,
            "within": self.within,
            "shuffled": self.shuffled,
            "median_seconds": self.median_seconds,
            "num": self.num,
        }

    def line(self) -> str:
        heads = (
            ""
            if self.timing.heads is None
            else f" ({', '.join(f'{layer} {head}' for layer, head in self.timing.heads)})"
        )
        return (
            f"word boundaries by {self.timing.method}{heads}: {self.within:.1%} of {self.num} within "
            f"{TOLERANCE_SECONDS * 1000:.0f} ms (median {self.median_seconds * 1000:.0f} ms); with shuffled vectors "
            f"{self.shuffled:.1%}"
        )


@torch.no_grad()
def timed(
    transcriber: Transcriber,
    frames: Sequence[np.ndarray],
    texts: Sequence[str],
    words: Sequence[str],
    method: Method,
    *,
    seed: int = 1,
) -> list[Timed]:
    """frames [frames, bins], reference texts, and true places of the words (JSON, as records have them) of utterances.

    Empty where the model cannot tell times by this method.
    """
    model, front_end = transcriber.model, transcriber.config.front_end
    if (model.ctc is None) if method == "ctc" else not isinstance(model, EncoderDecoder):
        return []
    chance = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    found = []
    for one, text, places in zip(frames, texts, words, strict=True):
        true = [(begin, end) for _, begin, end in json.loads(places)]
        [ids] = transcriber.tokenizer.encode_ids([text])
        said, spans = transcriber.tokenizer.spans(ids)
        said_words = [match.span() for match in re.finditer(r"\S+", said)]
        if len(said_words) != len(true):
            continue
        memories, _ = model.encode(torch.from_numpy(one)[None].to(device), torch.tensor([len(one)], device=device))
        memory = memories["source"]
        forced = _forced(transcriber, memory, ids, method)
        order = torch.randperm(forced.num_vectors, generator=chance)
        mixed = Found(
            ids,
            0.0,
            True,
            {layer: rows[:, :, order] for layer, rows in forced.attention.items()},
            None if forced.ctc is None else forced.ctc[order],
            forced.num_vectors,
            forced.stride,
        )
        energy = energy_of(torch.from_numpy(one), front_end.kind == "mfcc")
        found.append(Timed(forced, mixed, said_words, spans, energy, true))
    return found


def measured(
    found: Sequence[Timed], timing: Timing, shift_seconds: float, *, begins_alone: bool = False
) -> Boundaries | None:
    """How near these come. shift_seconds: from frame to frame. begins_alone: leaves ends out, for truths that know
    beginnings only. None without any utterance."""
    return _compared(found, _cores(found, timing), timing, shift_seconds, begins_alone=begins_alone)


def nearest(found: Sequence[Timed], method: Method, shift_seconds: float) -> Boundaries | None:
    """The heads that follow the sound, and the placement that comes nearest, on these utterances: validation's, never a
    test set's."""
    heads = following([one.forced for one in found]) if method == "attention" else None
    cores = _cores(found, Timing(method, heads=heads))
    every = (Timing(method, placement, heads) for placement in PLACEMENTS)
    tried = [one for timing in every if (one := _compared(found, cores, timing, shift_seconds)) is not None]
    return max(tried, key=lambda one: (one.within, -one.median_seconds), default=None)


def following(forced: Sequence[Found], *, share_of_best: float = 0.5) -> Heads | None:
    """The heads of cross-attention that follow the sound (`followed`) at least half as well as the best one does.

    No true times are needed. None where nothing attends.
    """
    attending = [one for one in forced if one.attention and one.tokens]
    if not attending:
        return None
    layers = attending[0].attention
    shares = {
        layer: torch.stack([followed(one.attention[layer][:, : len(one.tokens)]) for one in attending]).mean(0)
        for layer in layers
    }
    least = share_of_best * max(float(of_layer.max()) for of_layer in shares.values())
    return tuple(
        (layer, head) for layer, of in shares.items() for head, share in enumerate(of.tolist()) if share >= least
    )


def _cores(found: Sequence[Timed], timing: Timing) -> list[tuple[list[Times], list[Times]]]:
    """Of each utterance the frames that said each word, and the same with its vectors shuffled."""
    return [
        (word_cores(one.forced, one.words, one.spans, timing), word_cores(one.shuffled, one.words, one.spans, timing))
        for one in found
    ]


def _compared(
    found: Sequence[Timed],
    all_cores: Sequence[tuple[list[Times], list[Times]]],
    timing: Timing,
    shift_seconds: float,
    *,
    begins_alone: bool = False,
) -> Boundaries | None:
    distances: dict[bool, list[float]] = {False: [], True: []}
    for one, both in zip(found, all_cores, strict=True):
        for is_shuffled, cores in enumerate(both):
            for (first, last), (begin, end) in zip(edges(cores, one.energy, timing.placement), one.true, strict=True):
                distances[bool(is_shuffled)].append(abs(first * shift_seconds - begin))
                if not begins_alone:
                    distances[bool(is_shuffled)].append(abs(last * shift_seconds - end))
    if not distances[False]:
        return None
    within = {key: float(np.mean(np.array(values) <= TOLERANCE_SECONDS)) for key, values in distances.items()}
    median = float(np.median(distances[False]))
    return Boundaries(timing, within[False], within[True], median, len(distances[False]))


def _forced(transcriber: Transcriber, memory: Memory, ids: list[int], method: Method) -> Found:
    """The reference as if it had been found."""
    model, count = transcriber.model, int(memory.lengths)
    ctc = model.ctc(memory.vectors)[0, :count].cpu() if method == "ctc" and model.ctc is not None else None
    rows: dict[str, Tensor] = {}
    if method == "attention" and isinstance(model, EncoderDecoder):
        outputs = torch.tensor([[*ids, Tokenizer.EOS]], device=memory.vectors.device)
        forced = force(model.decoder, {"source": memory}, outputs, bos=Tokenizer.BOS, observe=Observe(rows="all"))
        [rows] = cross_attention(forced.attention, memory, [len(ids) + 1])
    return Found(ids, 0.0, True, rows, ctc, count, memory.stride)
