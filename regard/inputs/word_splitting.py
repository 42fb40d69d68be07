"""Where the words and marks of a text are."""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

# Numbers with inner separators; French elision before a vowel ("l'" of "l'eau"); words with inner apostrophes and
# hyphens; one mark or symbol repeated.
_WORDS = (
    r"\p{N}+(?:[.,:]\p{N}+)+"
    r"|(?<![\p{L}\p{M}\p{N}_])(?i:[cdjlmnst]|qu|jusqu|lorsqu|puisqu)['’](?=[aàâeéèêëhiîïoôuùûyœæAÀÂEÉÈÊËHIÎÏOÔUÙÛYŒÆ])"
    r"|[\p{L}\p{M}\p{N}_]+(?:['’\-][\p{L}\p{M}\p{N}_]+)*"
    r"|([^\s\p{L}\p{M}\p{N}_])\1*"
)


def words(text: str) -> list[tuple[int, int]]:
    """Character spans of the words and marks of `text`, end exclusive, in order.

    "dog." is two, "3,5" and "12:30" one, "well-known" and "don't" one. A French article or pronoun elided before a
    vowel is its own word ("l'" and "eau"). A mark repeated is one ("..."). White space is in no span. Writing without
    spaces (Chinese, Thai) is not cut into words.
    """
    return [span for _, span in _word_splitter.pre_tokenize_str(text)]


_word_splitter = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
