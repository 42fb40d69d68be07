"""Long text becomes pieces that a model can take in one go, and knows where each piece stood.

Where sentences end is decided by `sentencex` (rules and abbreviations of some 300 languages); what to do with a
sentence that is still too long is decided here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from regard.errors import RegardError

# Where a sentence may be cut when it must: behind the mark that closes a clause (full-width marks stand without white
# space).
_CLAUSE = re.compile(r"[,;:–—]\s+|[，、；：]\s*")
_SPACE = re.compile(r"\s+")
# White space of several bytes (U+0085, U+00A0, U+2028, ...) before a full stop makes sentencex 1.0 cut inside a
# character.
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")

Piece = tuple[int, str]  # (where it begins, in characters; the text from there)


def sentences(text: str, language: str = "en") -> list[Piece]:
    """(where it begins, sentence) of each sentence, outer white space left out.

    language: ISO 639-1 code; one that sentencex does not know is read by its general rules.
    """
    try:
        library = importlib.import_module("sentencex")
    except ModuleNotFoundError:
        raise RegardError("splitting long text into sentences needs a package: pip install sentencex") from None
    # One character for another, half a surrogate pair included: every place stays what it was.
    readable = _WIDE_SPACE.sub(" ", text).encode("utf-8", "replace").decode("utf-8")
    found = library.get_sentence_boundaries(language, readable)
    return list(_stripped(text, 0, (boundary["end_index"] for boundary in found)))


def are_single_sentences(texts: Sequence[str], language: str = "en") -> bool:
    """Whether nearly all of these texts (nine in ten of the first thousand) are one sentence each."""
    looked_at = texts[:1000]
    return sum(len(sentences(text, language)) <= 1 for text in looked_at) >= 0.9 * len(looked_at)


def split_long(
    text: str,
    count: Callable[[str], int],
    limit: int | None,
    language: str = "en",
    *,
    each_sentence: bool = False,
) -> list[Piece]:
    """(where it begins, piece) of pieces whose `count` is at most `limit`, in order: text[begin:begin + len(piece)]
    == piece.

    A text within the limit stays whole, as does any with limit None; else it is cut into sentences, and a sentence
    that is still too long at its clauses, then at white space, into as few pieces as fit greedily. A single word over
    the limit stays as it is. White space alone gives no piece. language: of the text, as in `sentences`.
    each_sentence: sentences are cut apart even where the text is within the limit.
    """
    if not text.strip():
        return []
    if limit is None or (not each_sentence and count(text) <= limit):
        return [(0, text)]
    found = sentences(text, language)
    if len(found) == 1 and count(text) <= limit:
        return [(0, text)]
    return [piece for begin, sentence in found for piece in _fitting(begin, sentence, count, limit, [_CLAUSE, _SPACE])]


def _fitting(
    begin: int, text: str, count: Callable[[str], int], limit: int, cuts: list[re.Pattern[str]]
) -> list[Piece]:
    """`text`, which stands at `begin`, cut at the first pattern, what is still too long at the next."""
    if not cuts or count(text) <= limit:
        return [(begin, text)]
    pattern, *finer = cuts
    pieces: list[Piece] = []
    for place, part in _stripped(text, begin, (match.end() for match in pattern.finditer(text))):
        if pieces:
            first = pieces[-1][0]
            longer = text[first - begin : place - begin + len(part)]
            if count(longer) <= limit:
                pieces[-1] = (first, longer)
                continue
        pieces.append((place, part))
    return [fit for place, piece in pieces for fit in _fitting(place, piece, count, limit, finer)]


def _stripped(text: str, begin: int, ends: Iterable[int]) -> Iterator[Piece]:
    """The parts of `text` between `ends`, without outer white space; `begin` is where the text itself stands."""
    start = 0
    for end in [*ends, len(text)]:
        piece = text[start:end]
        if piece.strip():
            yield begin + start + len(piece) - len(piece.lstrip()), piece.strip()
        start = end
