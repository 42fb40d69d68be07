"""What a summary is: text, score, what was attended to, and where each word came from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regard.attention.records.record import AttentionRecord
from regard.inputs.word_splitting import words

COPIED = 0.5  # of a word's probability: with more than this from copying it counts as copied


@dataclass(frozen=True)
class SummaryWord:
    """One word or mark of a summary. span: its characters in the summary, end exclusive.

    copied: which part of its probability was that of copying, 0 to 1, the least of its tokens'; None where the model
    does not copy. source_span: the characters of the document that it was copied from; None where it was not.
    """

    text: str
    span: tuple[int, int]
    copied: float | None
    source_span: tuple[int, int] | None

    @property
    def is_copied(self) -> bool:
        return self.source_span is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = {"text": self.text, "span": list(self.span)}
        if self.copied is not None:
            found["copied"] = round(self.copied, 4)
            found["source_span"] = None if self.source_span is None else list(self.source_span)
        return found


@dataclass(frozen=True)
class Summary:
    """One document's summary.

    score: length-normalised log-probability, what the search ranked by; nats. tokens: of the output, end token included
    where the model produced it. words: each with where it came from. attention: of the winning hypothesis, rows [1,
    heads, summary_len, source_len] a layer; row t is where the model looked when it produced token t; float32, on the
    CPU. None unless asked for, and for an empty document. pointing: the layer that words are copied by; None where the
    model does not copy. finished: False where the length limit cut the output off. num_read: the document's characters
    up to which the model read; is_cut: whether it goes on after them. alternatives: the further hypotheses of an n-best
    list, best first.
    """

    source: str
    text: str
    score: float
    tokens: tuple[str, ...]
    words: tuple[SummaryWord, ...]
    attention: AttentionRecord | None = field(compare=False, repr=False)
    pointing: str | None = None
    finished: bool = True
    num_read: int = 0
    is_cut: bool = False
    alternatives: tuple[Summary, ...] = ()

    @property
    def copy_rate(self) -> float | None:
        """The share of words that were copied; None where the model does not copy."""
        known = [word for word in self.words if word.copied is not None]
        return None if not known else sum(word.is_copied for word in known) / len(known)

    def pointed(self) -> AttentionRecord | None:
        """The attention that words are copied by, alone; all of it where the model does not copy."""
        record = self.attention
        if record is None or self.pointing is None:
            return record
        return AttentionRecord({self.pointing: record.layers[self.pointing]}, record.query, record.key)

    def origins(self) -> list[str]:
        """A line a word: the word, and what it was copied from."""
        lines = []
        for word in self.words:
            if word.copied is None:
                lines.append(word.text)
            elif word.source_span is None:
                lines.append(f"{word.text}: generated (copying {word.copied:.0%})")
            else:
                lines.append(f"{word.text}: copied ({word.copied:.0%}) from {_around(self.source, word.source_span)}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the attention and without the document."""
        values: dict[str, Any] = {
            "text": self.text,
            "score": round(self.score, 6),
            "tokens": list(self.tokens),
            "finished": self.finished,
            "words": [word.to_json() for word in self.words],
            "copy_rate": None if self.copy_rate is None else round(self.copy_rate, 4),
            "num_read": self.num_read,
            "is_cut": self.is_cut,
        }
        if self.alternatives:
            values["alternatives"] = [
                {"text": other.text, "score": round(other.score, 6), "finished": other.finished}
                for other in self.alternatives
            ]
        return values


def empty_summary(source: str) -> Summary:
    """Of a document without a word."""
    return Summary(source, "", 0.0, (), (), None)


def words_of_summary(
    text: str,
    spans: Sequence[tuple[int, int]],
    copied: Sequence[float] | None,
    places: Sequence[tuple[int, int] | None],
) -> tuple[SummaryWord, ...]:
    """The words of a summary out of its tokens.

    spans: of the tokens, characters of `text`. copied: each token's part of copying; None where nothing is copied.
    places: the characters of the document that each token was copied from, None where it was not.
    """
    found = []
    for begin, end in words(text):
        mine = [place for place, (first, last) in enumerate(spans) if first < end and last > begin]
        part = None if copied is None or not mine else min(copied[place] for place in mine)
        sources = [span for place in mine if (span := places[place]) is not None]
        source = None
        if part is not None and part > COPIED and len(sources) == len(mine):
            source = _together(sources)
        found.append(SummaryWord(text[begin:end], (begin, end), part, source))
    return tuple(found)


def with_alternatives(summaries: Sequence[Summary]) -> Summary:
    """The best hypothesis, with the rest as its alternatives."""
    best, *others = summaries
    return replace(best, alternatives=tuple(others))


def _together(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """What the pieces of a word came from: the stretch that they make, or where the first stood if they make none."""
    ordered = all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    return (spans[0][0], spans[-1][1]) if ordered and spans[-1][1] - spans[0][0] <= 64 else spans[0]


def _around(source: str, span: tuple[int, int], width: int = 24) -> str:
    """The characters of the document with what stands around them: "... it was [Anna] who ..."."""
    begin, end = max(span[0] - width, 0), min(span[1] + width, len(source))
    before, after = source[begin : span[0]], source[span[1] : end]
    shown = f"{'...' if begin else ''}{before}[{source[span[0] : span[1]]}]{after}{'...' if end < len(source) else ''}"
    return f"characters {span[0]} to {span[1]}: {' '.join(shown.split())}"
