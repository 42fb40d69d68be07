from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from regard.errors import ConfigError
from regard.models.ngrams import SHARE, Ngrams, NgramsConfig, distinct_ngrams

VOCAB, LABELS = 11, 3


def texts(number: int, seed: int) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(1, VOCAB, draw.integers(1, 9)).tolist() for _ in range(number)]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()) + 2, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, lengths


def by_hand(row: list[int], longest: int) -> set[tuple[int, ...]]:
    return {tuple(row[at : at + size]) for size in range(1, longest + 1) for at in range(len(row) - size + 1)}


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_each_distinct_ngram_is_found_once_and_padding_never(longest: int) -> None:
    rows = texts(40, seed=1)
    config = NgramsConfig(longest)

    def found(given: list[list[int]]) -> list[set[int]]:
        return [set(row[one].tolist()) for row, one in zip(*distinct_ngrams(*padded(given), config), strict=True)]

    ngrams = sorted(set().union(*(by_hand(row, longest) for row in rows)), key=len)  # parts come before their whole
    bucket_of: dict[tuple[int, ...], int] = {}
    for ngram, alone in zip(ngrams, found([list(ngram) for ngram in ngrams]), strict=True):
        parts = {bucket_of[part] for part in by_hand(list(ngram), longest) if part != ngram}
        [bucket_of[ngram]] = alone - parts
    assert len(set(bucket_of.values())) == len(ngrams)  # none of these few share a bucket
    for row, buckets, distinct in zip(rows, found(rows), distinct_ngrams(*padded(rows), config)[1], strict=True):
        assert buckets == {bucket_of[ngram] for ngram in by_hand(row, longest)}
        assert int(distinct.sum()) == len(buckets)


def test_counts_are_those_of_naive_bayes() -> None:
    rows, draw = texts(60, seed=2), np.random.default_rng(3)
    labels = draw.integers(0, LABELS, len(rows)).tolist()
    model = Ngrams(LABELS, NgramsConfig(2)).double()
    model.count([np.array(row) for row in rows], labels)
    seen = [Counter() for _ in range(LABELS)]
    for row, label in zip(rows, labels, strict=True):
        seen[label].update(by_hand(row, 2))
    known = set().union(*seen)
    for row in [*texts(20, seed=4), [VOCAB + 5, VOCAB + 6]]:
        scores = [
            math.log(labels.count(label) + 1)
            + sum(
                math.log((seen[label][ngram] + 1) / (seen[label].total() + len(known)))
                for ngram in by_hand(row, 2)
                if ngram in known
            )
            for label in range(LABELS)
        ]
        wanted = SHARE * (torch.tensor(scores, dtype=torch.float64) - sum(scores) / LABELS)
        torch.testing.assert_close(model(*padded([row]))[0], wanted, rtol=0, atol=1e-10)


def test_gradients_are_those_of_a_sum() -> None:
    model = Ngrams(LABELS, NgramsConfig(2, buckets=50)).double()  # some n-grams share a bucket: each counts once
    torch.nn.init.normal_(model.weights)
    ids, lengths = padded(texts(5, seed=5))
    torch.autograd.gradcheck(
        lambda weights, prior: torch.func.functional_call(model, {"weights": weights, "prior": prior}, (ids, lengths)),
        (model.weights, model.prior),
    )


def test_a_size_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="ngrams: longest is 0, expected 1 or more; buckets is 0"):
        NgramsConfig(0, 0)


@pytest.mark.parametrize("length", [1, 2])
def test_a_text_shorter_than_the_longest_ngram(length: int) -> None:
    buckets, distinct = distinct_ngrams(torch.arange(length)[None] + 1, torch.tensor([length]), NgramsConfig(5))
    assert int(distinct.sum()) == len(by_hand(list(range(length)), 5))
    assert buckets.shape == distinct.shape
