"""The words of a text, and which word each token of an axis belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis, Span
from regard.attention.words import words_of

WordSplitter = Callable[[str], Sequence[Span]]


def axis_words(axis: Axis, words: WordSplitter = words_of) -> list[Span]:
    """The words of an axis: those of its text, and each token that touches none of them but is not blank."""
    found = [(begin, end) for begin, end in words(axis.text)]
    covered: set[int] = set()
    for begin, end in found:
        covered.update(range(begin, end))
    lone = {
        (begin, end)
        for begin, end in axis.spans
        if axis.text[begin:end].strip() and covered.isdisjoint(range(begin, end))
    }
    return sorted(found + list(lone))


@dataclass(frozen=True)
class Grouping:
    """An axis over words.

    axis: the words, special tokens among them as words of their own; as `AttentionRecord.over_words` orders them.
    owner: per token the position of its word in `axis`.
    number: per position of `axis` its index among the words asked for; None for what is none of them.
    """

    axis: Axis
    owner: tuple[int, ...]
    number: tuple[int | None, ...]


def group(axis: Axis, words: Sequence[Span]) -> Grouping:
    """The words of `axis` and what belongs to each, by the same rule as `AttentionRecord.over_words`."""
    # The map of every token to itself, with its columns put together, says in which column each token went.
    itself = Observation(rows=torch.eye(len(axis))[None, None], row_index=torch.arange(len(axis)))
    grouped = AttentionRecord({"itself": itself}, query=axis, key=axis).over_words([], list(words))
    assert grouped.key is not None
    owner = grouped.rows("itself").argmax(1).tolist() if len(axis) else []
    return Grouping(grouped.key, tuple(owner), numbers(grouped.key, words))


def numbers(axis: Axis, words: Sequence[Span]) -> tuple[int | None, ...]:
    """Per position of an axis over words its index in `words`; None for special tokens and what is no word."""
    index = {tuple(span): number for number, span in enumerate(words)}
    return tuple(index.get(span) if span[1] > span[0] else None for span in axis.spans)
