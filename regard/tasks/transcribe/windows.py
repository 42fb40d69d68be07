"""Long sounds in windows that overlap, so that memory does not grow with the length, and the joining of what they say.

A model hears sounds of the length that it was trained on. A longer one is cut into windows; a word in an overlap is
heard twice and counts once: it is the earlier window's where its middle is before the overlap's quietest place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from regard.tasks.transcribe.result import Word

OVERLAP_SHARE = 0.25  # of a window that its successor hears, too
MOST_OVERLAP_SECONDS = 4.0
SMOOTHING_FRAMES = 5  # odd: a frame's energy is the mean of so many around it
# The same word of both windows around a cut, if their beginnings lie as near as this, was said once.
SAME_SECONDS = 0.25


@dataclass(frozen=True)
class Window:
    """samples: of the sound from `begin_seconds` on. is_last: nothing follows."""

    samples: np.ndarray
    begin_seconds: float
    is_last: bool


def windows(blocks: Iterable[np.ndarray], sample_rate: int, window_seconds: float) -> Iterator[Window]:
    """The windows of a sound that comes in blocks. A sound up to a quarter longer than a window stays whole."""
    size = max(int(window_seconds * sample_rate), 1)
    overlap = int(min(OVERLAP_SHARE * window_seconds, MOST_OVERLAP_SECONDS) * sample_rate)
    longest = size + size // 4
    held, begin = np.zeros(0, dtype=np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > longest:
            yield Window(held[:size], begin / sample_rate, False)
            held, begin = held[size - overlap :], begin + size - overlap
    yield Window(held, begin / sample_rate, True)


def quietest_place(energy: np.ndarray, begin_seconds: float, end_seconds: float, shift_seconds: float) -> float:
    """Seconds from the sound's begin: the middle of the quietest frame of an overlap; energy: of its frames."""
    if not len(energy):
        return (begin_seconds + end_seconds) / 2
    # The frames at both ends stand for those beyond them: with zeros there, an end looks quiet, or loud.
    padded = np.pad(energy, SMOOTHING_FRAMES // 2, mode="edge")
    place = int(np.argmin(np.convolve(padded, np.full(SMOOTHING_FRAMES, 1 / SMOOTHING_FRAMES), "valid")))
    return begin_seconds + (place + 0.5) * shift_seconds


def joined(parts: Sequence[Sequence[Word]], cuts: Sequence[float]) -> list[Word]:
    """The words of successive windows; cuts: seconds, one between each two windows.

    A word at a cut that its two windows place differently is neither lost nor doubled.
    """
    assert len(cuts) == max(len(parts) - 1, 0), "one cut between each two windows"
    result: list[Word] = []
    beyond: Word | None = None  # the first word that the window before left to this one
    for place, words in enumerate(parts):
        low = cuts[place - 1] if place else float("-inf")
        high = cuts[place] if place < len(cuts) else float("inf")
        kept = [word for word in words if low <= _middle(word) < high]
        behind = next((word for word in reversed(words) if _middle(word) < low), None)
        if result and kept and _is_same(result[-1], kept[0]):
            kept = kept[1:]
        elif beyond is not None and behind is not None and _is_same(beyond, behind):
            # Each window left it to the other. The one heard all that is before it, the other all that is behind.
            kept.insert(0, Word(behind.text, beyond.begin, behind.end))
        result += kept
        beyond = next((word for word in words if _middle(word) >= high), None)
    return result


def _middle(word: Word) -> float:
    return (word.begin + word.end) / 2


def _is_same(one: Word, other: Word) -> bool:
    return one.text == other.text and abs(one.begin - other.begin) <= SAME_SECONDS
