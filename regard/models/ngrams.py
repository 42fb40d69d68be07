"""Counting beside attention: a linear model of the tokens of a text and of what stands side by side in it.

A vector takes many examples to learn; that a pair of words stands in texts of one label alone is seen by counting. Each
distinct n-gram has a weight for each label, which begins at what naive Bayes gives it and is learned from there.

Source: Wang and Manning 2012, "Baselines and Bigrams" (sec. 2.1: the log-count ratios of binarised n-grams; sec. 2.3:
weights that begin with them); hashed as in Weinberger et al. 2009.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from regard.errors import ConfigError

SHARE = 0.2  # of the ratios that weights begin with: n-grams overlap, and their sum is surer than it is right
_MULTIPLIER = 0x5851F42D4C957F2D  # of a linear congruential generator of 64 bits (Knuth's MMIX)


@dataclass(frozen=True)
class NgramsConfig:
    """Which n-grams are told apart."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    longest: int = 2  # tokens of an n-gram, at most
    buckets: int = 1 << 18  # rows of weights; n-grams of one hash share a row

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected 1 or more"
            for name in ("longest", "buckets")
            if getattr(self, name) < 1
        ]
        if problems:
            raise ConfigError("ngrams: " + "; ".join(problems))


class Ngrams(nn.Module):
    """Scores of labels, each the sum of the weights of a text's distinct n-grams. All weights 0 before `count`."""

    def __init__(self, num_labels: int, config: NgramsConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.Parameter(torch.zeros(config.buckets, num_labels))
        self.prior = nn.Parameter(torch.zeros(num_labels))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids [batch, length], of which the first `lengths` [batch] of each row are real -> scores [batch, labels]."""
        rows, distinct = distinct_ngrams(ids, lengths, self.config)
        weights = nn.functional.embedding(rows, self.weights)
        return (weights * distinct[..., None]).sum(1) + self.prior

    @torch.no_grad()
    def count(self, texts: Iterable[np.ndarray], labels: Iterable[int]) -> None:
        """Begins from the training texts' ids and their labels' places: the log of how often an n-gram's texts have a
        label, smoothed by one, less the mean over labels; 0 for an n-gram that no text has."""
        counts = torch.zeros(self.weights.shape, dtype=torch.float64)
        texts_of = torch.zeros(len(self.prior), dtype=torch.float64)
        for ids, label in zip(texts, labels, strict=True):
            row = torch.as_tensor(ids, dtype=torch.int64)[None]
            found, distinct = distinct_ngrams(row, torch.tensor([row.shape[1]]), self.config)
            counts[found[distinct], label] += 1
            texts_of[label] += 1
        seen = counts.sum(1) > 0
        ratios = ((counts + 1) / (counts.sum(0) + seen.sum())).log()
        prior = (texts_of + 1).log()
        self.weights.copy_(SHARE * (ratios - ratios.mean(1, keepdim=True)) * seen[:, None])
        self.prior.copy_(SHARE * (prior - prior.mean()))


def distinct_ngrams(ids: Tensor, lengths: Tensor, config: NgramsConfig) -> tuple[Tensor, Tensor]:
    """(buckets [batch, n], sorted; whether each is the first of its kind and of a real n-gram, bool [batch, n])."""
    place = torch.arange(ids.shape[1], device=ids.device)
    found = []
    hashed = torch.zeros_like(ids)
    for size in range(1, min(config.longest, ids.shape[1]) + 1):
        hashed = (hashed[:, : ids.shape[1] - size + 1] + ids[:, size - 1 :] + 1) * _MULTIPLIER
        bucket = (hashed >> 20) % config.buckets  # the low bits of a product are its worst
        real = place[size - 1 :] < lengths[:, None]
        found.append(bucket.masked_fill(~real, config.buckets))
    buckets = torch.cat(found, 1).sort(1).values
    first = torch.ones_like(buckets, dtype=torch.bool)
    first[:, 1:] = buckets[:, 1:] != buckets[:, :-1]
    real = buckets < config.buckets
    return buckets.where(real, 0), first & real
