"""Records that the tests of pictures share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis

HOSTILE_SOURCE = "1 < 2 && </script><b>bold</b> <!-- x -->"
HOSTILE_TARGET = '<img src=x onerror=alert(1)> "quoted" $x_1$ ${title} 100% \\d'


def axis_of(text: str, end: str = "</s>") -> Axis:
    """White-space pieces as tokens, long ones in two, and a special token at the end."""
    tokens, spans = [], []
    for match in re.finditer(r"\S+", text):
        begin, stop = match.span()
        cuts = [begin, (begin + stop) // 2, stop] if stop - begin > 6 else [begin, stop]
        for left, right in itertools.pairwise(cuts):
            tokens.append(("\u2581" if left == begin else "") + text[left:right])
            spans.append((left, right))
    return Axis(text, (*tokens, end), (*spans, (len(text), len(text))))


def record_of(source: str, target: str, *, heads: tuple[int, ...] = (3, 2), seed: int = 0) -> AttentionRecord:
    """A record with random attention: one layer for each number of heads."""
    key, query = axis_of(source), axis_of(target)
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for number, count in enumerate(heads):
        scores = 3 * torch.randn(1, count, len(query), len(key), generator=generator)
        layers[f"decoder.layers.{number}.cross"] = Observation(
            rows=scores.softmax(-1), row_index=torch.arange(len(query))
        )
    return AttentionRecord(layers, query, key)


@pytest.fixture
def make_record() -> Callable[..., AttentionRecord]:
    return record_of


@pytest.fixture
def dogs() -> AttentionRecord:
    return record_of("twenty-three dogs are running .", "dreiundzwanzig Hunde laufen .")


@pytest.fixture
def hostile() -> AttentionRecord:
    return record_of(HOSTILE_SOURCE, HOSTILE_TARGET, seed=1)


@pytest.fixture
def foreign() -> AttentionRecord:
    """Scripts that the shipped font has and has not, a lone surrogate, control characters and joiners."""
    return record_of(
        "犬が 走っている 。 \U00013000 \U0001f642 नमस्ते", "мир مرحبا שלום a\u200db \ud800 \x07 e\u0301", seed=2
    )
