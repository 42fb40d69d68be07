"""Long text becomes pieces that a model can take in one go, and knows where each piece stood."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# The end of a sentence: closing punctuation with any closing quotes or brackets, white space, and then something that can begin a
# sentence. Full-width marks end one without white space.
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*\s+(?=[\"'“‘„«(\[]*[\w¿¡])(?![a-zà-öø-ÿа-я])|[。！？]+[」』”]*\s*|\n+")
_CLAUSE = re.compile(r"[,;:–—]\s+")
_SPACE = re.compile(r"\s+")
# A full stop after these ends no sentence.
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|cf|ca|bzw|Nr|Abb|Hr|Fr|Mme|Mlle|[A-Za-zÄÖÜäöü])|\b[A-Za-z]\.[A-Za-z])\.\s+$"
)


def sentences(text: str) -> list[tuple[int, str]]:
    """(where it begins, sentence) of each sentence, outer white space left out."""
    return list(_stripped(text, 0, [match.end() for match in _END.finditer(text) if not _abbreviates(text, match)]))


def split_long(text: str, count: Callable[[str], int], limit: int | None) -> list[tuple[int, str]]:
    """(where it begins, piece) of pieces whose `count` is at most `limit`, in order.

    A text within the limit stays whole; else it is cut into sentences, and a sentence that is still too long at its clauses, then at
    white space, into as few pieces as fit greedily. A single word over the limit stays as it is. White space alone gives no piece.
    """
    stripped = text.strip()
    if not stripped:
        return []
    if limit is None or count(text) <= limit:
        return [(0, text)]
    pieces = []
    for begin, sentence in sentences(text):
        pieces += _fitting(begin, sentence, count, limit, [_CLAUSE, _SPACE])
    return pieces


def _fitting(
    begin: int, text: str, count: Callable[[str], int], limit: int, cuts: list[re.Pattern[str]]
) -> list[tuple[int, str]]:
    if not cuts or count(text) <= limit:
        return [(begin, text)]
    pattern, *finer = cuts
    parts = list(_stripped(text, begin, [match.end() for match in pattern.finditer(text)]))
    pieces: list[tuple[int, str]] = []
    for place, part in parts:
        if pieces:
            first, held = pieces[-1]
            longer = text[first - begin : place - begin + len(part)]
            if count(longer) <= limit:
                pieces[-1] = (first, longer)
                continue
        pieces.append((place, part))
    return [fit for place, piece in pieces for fit in _fitting(place, piece, count, limit, finer)]


def _stripped(text: str, begin: int, ends: list[int]) -> Iterator[tuple[int, str]]:
    start = 0
    for end in [*ends, len(text)]:
        piece = text[start:end]
        if piece.strip():
            yield begin + start + len(piece) - len(piece.lstrip()), piece.strip()
        start = end


def _abbreviates(text: str, match: re.Match[str]) -> bool:
    return match[0].startswith(".") and _ABBREVIATION.search(text[max(0, match.start() - 12) : match.end()]) is not None
