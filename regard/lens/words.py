"""The words of a text, and which word each token of an axis belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from regard.attention.observation import Observation
from regard.attention.record import AttentionRecord, Axis, Span

WordSplitter = Callable[[str], Sequence[Span]]

# Scripts written without spaces: Thai and Lao, Myanmar, Khmer, Hiragana and Katakana, Han (with its extensions).
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]+"
)


def words_of(text: str) -> list[Span]:
    """Character spans of the words, in order of their place.

    Words stand between white space; punctuation at either end of one is a word of its own (a run of the same mark is
    one word), punctuation inside one ("don't", "3.5", "twenty-three") stays. Scripts written without spaces yield no
    words here: where words begin in them is not visible, so their tokens are left to stand for themselves.
    """
    spans: list[Span] = []
    for chunk in re.finditer(r"\S+", text):
        begin = chunk.start()
        for gap in [*_UNSPACED.finditer(text, chunk.start(), chunk.end()), None]:
            spans += _peeled(text, begin, gap.start() if gap else chunk.end())
            begin = gap.end() if gap else begin
    return spans


def _peeled(text: str, begin: int, end: int) -> list[Span]:
    """The spans of one chunk without white space: marks before, what they surround, marks after."""
    head, tail = begin, end
    while head < end and _is_mark(text[head]):
        head += 1
    while tail > head and _is_mark(text[tail - 1]):
        tail -= 1
    runs = [match.span() for match in re.compile(r"(.)\1*", re.DOTALL).finditer(text, begin, head)]
    body = [(head, tail)] if tail > head else []
    return runs + body + [match.span() for match in re.compile(r"(.)\1*", re.DOTALL).finditer(text, tail, end)]


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


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
