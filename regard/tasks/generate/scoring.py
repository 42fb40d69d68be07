"""How well a language model predicts a text: nats, perplexity per token and per word, bits per byte.

A model's tokens are its own, so its perplexity per token is comparable among models of one vocabulary only; that per
word and the bits per byte divide the same total by what the text itself has, and are comparable among all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from regard.data.windows import INPUTS, WindowBudget, document_begins, evaluation_batches
from regard.inputs.text import Tokenizer
from regard.models.language_model import Documents, LanguageModel
from regard.tasks.metrics import Metric, draws_of, interval, metrics_json
from regard.training.objective import CHUNK_TOKENS


@dataclass(frozen=True)
class Scores:
    """nats: of all predictions, summed. num_tokens: predictions, the end of every document among them. num_words: runs
    of anything but white space. num_bytes: of the text in UTF-8. window_nats, window_tokens: the same by window, for
    the interval."""

    nats: float
    num_tokens: int
    num_words: int
    num_bytes: int
    window_tokens: int
    by_window: tuple[tuple[float, int], ...]  # (nats, tokens) of each window

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def token_perplexity(self) -> float:
        return _exp(self.nats_per_token)

    @property
    def word_perplexity(self) -> float:
        """Infinite for a text without a word."""
        return _exp(self.nats / self.num_words) if self.num_words else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2.0) / self.num_bytes

    def interval(self, samples: int = 1000, seed: int = 12345) -> tuple[float, float] | None:
        """95 % of nats per token over resampled windows; None of no samples."""
        nats, tokens = (np.array(values, dtype=np.float64) for values in zip(*self.by_window, strict=True))
        draws = draws_of(len(nats), samples, seed)
        return interval(nats[draws].sum(1) / tokens[draws].sum(1))

    def signature(self) -> str:
        """What the figures depend on beside model and text."""
        return f"windows:{self.window_tokens}|overlap:none|ends:counted"

    def _metric(self, name: str) -> Metric:
        return Metric(name, self.nats_per_token, self.interval(), self.signature())

    def lines(self) -> list[str]:
        """What to print."""
        return [
            self._metric("nats per token").line(4),
            f"perplexity per token {self.token_perplexity:.3f}, per word {self.word_perplexity:.2f}; "
            f"bits per byte {self.bits_per_byte:.4f}",
            f"{self.num_tokens:,} tokens, {self.num_words:,} words, {self.num_bytes:,} bytes",
        ]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "scoring": "likelihood",
            "metrics": metrics_json([self._metric("nats_per_token")]),
            "token_perplexity": self.token_perplexity,
            "word_perplexity": self.word_perplexity if self.num_words else None,
            "bits_per_byte": self.bits_per_byte,
            "num_tokens": self.num_tokens,
            "num_words": self.num_words,
            "num_bytes": self.num_bytes,
        }


@torch.no_grad()
def score(model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str], budget: WindowBudget) -> Scores:
    """Every token of every text predicted once, in windows that do not overlap.

    A window's first token is predicted from the one before it alone, so that longer windows score better: figures are
    comparable at one length of window.
    """
    device = model.embedding.weight.device
    by_window: list[tuple[float, int]] = []
    for batch in evaluation_batches(tokenizer.encode_ids(texts), budget):
        batch = batch.to(device)
        inputs, targets = batch[INPUTS].values, batch.target_outputs
        hidden = model(inputs, Documents.beginning_at(document_begins(inputs)))
        real = targets != Tokenizer.PAD
        nats = torch.zeros(targets.shape, dtype=torch.float64, device=device)
        nats[real] = torch.cat(
            [
                -model.head.log_probs(vectors).gather(1, wanted[:, None])[:, 0].double()
                for vectors, wanted in zip(
                    hidden[real].split(CHUNK_TOKENS), targets[real].split(CHUNK_TOKENS), strict=True
                )
            ]
        )
        by_window += zip(nats.sum(1).tolist(), real.sum(1).tolist(), strict=True)
    return Scores(
        nats=math.fsum(nats for nats, _ in by_window),
        num_tokens=sum(tokens for _, tokens in by_window),
        num_words=sum(len(text.split()) for text in texts),
        num_bytes=sum(len(text.encode()) for text in texts),
        window_tokens=budget.window_tokens,
        by_window=tuple(by_window),
    )


def _exp(nats: float) -> float:
    """e to the power; infinite past what a number holds, as of a model that has learnt nothing."""
    return math.exp(nats) if nats < 700.0 else math.inf
