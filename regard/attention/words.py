"""Where the words of a text are: what attention over tokens is put together into."""

from __future__ import annotations

import re
import unicodedata

Span = tuple[int, int]  # half-open range of characters

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
