"""What a transcript is: text, score, tokens, words with their times, and what was attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from regard.attention.records.record import AttentionRecord
from regard.tasks.transcribe.word_times import Heads

Timestamps = Literal["word", "segment"]

# A segment ends at a pause this long, or before it grows beyond what a subtitle can hold.
PAUSE_SECONDS = 0.6
SEGMENT_SECONDS = 7.0
SEGMENT_CHARACTERS = 84  # two lines of 42


@dataclass(frozen=True)
class Word:
    """begin, end: seconds from the beginning of the sound."""

    text: str
    begin: float
    end: float

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "begin": round(self.begin, 3), "end": round(self.end, 3)}


@dataclass(frozen=True)
class Transcript:
    """One sound's transcript.

    source: the sound's name. seconds: its length. score: what the search ranked by, nats, summed over windows. tokens:
    the subwords of the output. words: with times, empty unless asked for. timestamps: how these were found, "ctc" or
    "attention". attentions: cross-attention of the decoder, a record for each window of the sound, empty unless asked
    for. finished: False where the length limit cut an output off. heads: (layer, number) of those by which attention
    found the times, where they were chosen.
    """

    source: str
    text: str
    score: float
    tokens: tuple[str, ...]
    seconds: float
    words: tuple[Word, ...] = ()
    timestamps: str | None = None
    attentions: tuple[AttentionRecord, ...] = field(default=(), compare=False, repr=False)
    finished: bool = True
    heads: Heads | None = None

    @property
    def attention(self) -> AttentionRecord | None:
        """The record of a sound of one window; of a longer one the first window's, see `attentions`."""
        return self.attentions[0] if self.attentions else None

    def segments(self) -> tuple[Word, ...]:
        """The words put together to what is said in one breath, at most a subtitle's length."""
        return segments(self.words)

    def to_json(self, timestamps: Timestamps | None = None) -> dict[str, Any]:
        """Plain values, without the attention."""
        values: dict[str, Any] = {
            "source": self.source,
            "text": self.text,
            "score": round(self.score, 6),
            "tokens": list(self.tokens),
            "seconds": round(self.seconds, 3),
            "finished": self.finished,
        }
        if timestamps is not None:
            parts = self.words if timestamps == "word" else self.segments()
            values["timestamps"] = self.timestamps
            if self.heads is not None:
                values["heads"] = [list(head) for head in self.heads]
            values["words" if timestamps == "word" else "segments"] = [part.to_json() for part in parts]
        return values


def segments(words: Sequence[Word]) -> tuple[Word, ...]:
    """Words in an order of time, put together."""
    found: list[list[Word]] = []
    for word in words:
        if found:
            open_one = found[-1]
            length = sum(len(one.text) + 1 for one in open_one) + len(word.text)
            pause = word.begin - open_one[-1].end
            lasts = word.end - open_one[0].begin
            if pause < PAUSE_SECONDS and lasts <= SEGMENT_SECONDS and length <= SEGMENT_CHARACTERS:
                open_one.append(word)
                continue
        found.append([word])
    return tuple(Word(" ".join(one.text for one in part), part[0].begin, part[-1].end) for part in found)
