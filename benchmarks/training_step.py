"""How long a training step takes, and what each choice in it gives; docs/decisions.md quotes it.

    .venv/bin/python benchmarks/training_step.py [--threads 2] [--repeats 7]

Transformer-tiny (recipes/translate/multi30k-en-de.yaml) on batches of about 4096 padded target tokens: the lengths of
Multi30k, random words. Each choice is measured in turn with its alternative in one process; the table gives the median
of the ratios and their spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.inputs.embeddings import EmbeddingConfig
from regard.layers import dropout as dropout_module
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.training.objective import cross_entropy

VOCAB, SENTENCES, LONGEST = 6_000, 240, 17


class Step:
    """One model with its optimiser and one batch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        attention, feed_forward = AttentionConfig(heads=4), FeedForwardConfig(width=256)
        norm, embedding = NormConfig(placement="post"), EmbeddingConfig(dropout=0.3)
        shared = {"norm": norm, "embedding": embedding, "dropout": 0.3}
        config = EncoderDecoderConfig(
            TransformerEncoderConfig(128, 4, attention, feed_forward, **shared),
            TransformerDecoderConfig(128, 4, attention, feed_forward, **shared),
            tie="all",
        )
        self.model = EncoderDecoder(VOCAB, VOCAB, config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.source = torch.randint(4, VOCAB, (SENTENCES, LONGEST))
        self.lengths = torch.randint(LONGEST - 4, LONGEST + 1, (SENTENCES,))
        self.target = torch.randint(4, VOCAB, (SENTENCES, LONGEST))

    def run(self, dtype: torch.dtype = torch.bfloat16, *, plain_loss: bool = False) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = self.model(self.source, self.lengths, self.target)
        flat, wanted = hidden.flatten(0, 1).float(), self.target.flatten()
        if plain_loss:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = self.model.decoder.head(flat)
            objective = F.cross_entropy(logits.float(), wanted, label_smoothing=0.1, reduction="sum")
        else:
            objective = cross_entropy(flat, self.model.decoder.head, wanted, smoothing=0.1, dtype=dtype).objective
        (objective / wanted.numel()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@contextmanager
def torch_dropout() -> Iterator[None]:
    """Within the context regard's dropout is torch's."""

    def forward(self: dropout_module.Dropout, values: Tensor) -> Tensor:
        return F.dropout(values, self.threshold / dropout_module.LEVELS, self.training)

    original = dropout_module.Dropout.forward
    dropout_module.Dropout.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        dropout_module.Dropout.forward = original  # type: ignore[method-assign]


@contextmanager
def torch_attention() -> Iterator[None]:
    """Within the context short rows go to torch's kernel, widened to float32."""
    os.environ["REGARD_NATIVE"] = "0"
    try:
        yield
    finally:
        del os.environ["REGARD_NATIVE"]


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    step = Step()

    def with_torch_dropout() -> None:
        with torch_dropout():
            step.run()

    def with_torch_attention() -> None:
        with torch_attention():
            step.run()

    alternatives: dict[str, Callable[[], None]] = {
        "float32 in place of bfloat16 products": lambda: step.run(torch.float32),
        "torch's dropout in place of byte dropout": with_torch_dropout,
        "torch's attention in place of the kernel for short rows": with_torch_attention,
        "a plain loss in place of the chunked one": lambda: step.run(plain_loss=True),
    }
    print(f"{arguments.threads} threads, torch {torch.__version__}, {arguments.repeats} pairs each\n")
    print("| alternative | its step, s | regard's step, s | ratio, median | spread |\n|---|---|---|---|---|")
    for name, alternative in alternatives.items():
        step.run(), alternative()
        pairs = [(seconds(alternative), seconds(step.run)) for _ in range(arguments.repeats)]
        ratios = [slow / fast for slow, fast in pairs]
        print(
            f"| {name} | {statistics.median(a for a, _ in pairs):.3f} | {statistics.median(b for _, b in pairs):.3f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )


if __name__ == "__main__":
    main()
