"""How documents and summaries become ids: cut to what a model reads, unknown words kept apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from regard.data.columns import Refused
from regard.inputs.text import Tokenizer
from regard.inputs.tokenizers import AnyTokenizer
from regard.inputs.words import NUM_UNKNOWN, WordTokenizer
from regard.models.copying import with_temporary_ids

# Characters a token that are looked at: whatever a document's length, reading it takes time by what is read of it.
CHARACTERS_A_TOKEN = 64


class Reading(NamedTuple):
    """What a model reads of a document.

    ids, tokens, spans: of its tokens without the end; characters of the document, end exclusive. unknown: the output id
    that a search gives to each word beyond the vocabulary -> the token. is_cut: the document goes on after it.
    """

    ids: list[int]
    tokens: list[str]
    spans: list[tuple[int, int]]
    unknown: dict[int, str]
    is_cut: bool


def read_document(text: str, tokenizer: AnyTokenizer, longest: int) -> Reading:
    """The first tokens of `text`, with their end `longest` at most. Raises: DataError for what is no Unicode text."""
    begin = len(text) - len(text.lstrip())
    seen = text[: begin + longest * CHARACTERS_A_TOKEN]
    [found] = tokenizer.encode([seen])
    count = len(found.ids)
    if len(seen) < len(text) and count > 1:
        count -= 1  # the last one may be half a word
    count = min(count, longest - 1)
    rest = text[found.offsets[count - 1][1] :] if count else ""
    ids = list(found.ids[:count])
    return Reading(ids, found.tokens[:count], found.offsets[:count], _unknown(seen, ids, tokenizer), bool(rest.strip()))


def _unknown(text: str, ids: Sequence[int], tokenizer: AnyTokenizer) -> dict[int, str]:
    if not isinstance(tokenizer, WordTokenizer):
        return {}
    words = tokenizer.unknown_words(text)
    _, numbers = with_temporary_ids(torch.tensor([ids], dtype=torch.int64), len(tokenizer))
    return {len(tokenizer) + place: words[number] for place, number in enumerate(numbers[0].tolist())}


class DocumentColumn:
    """Ids of documents as models read them, ended by the end token; as `regard.data.columns.Column`.

    longest: most ids of one, its end included; None: all are kept, and a corpus refuses what is too long.
    """

    position_shape: tuple[int, ...] = ()
    records_at_once = 4096

    def __init__(self, tokenizer: AnyTokenizer, longest: int | None = None) -> None:
        self.tokenizer, self.longest = tokenizer, longest

    @property
    def dtype(self) -> np.dtype:
        most = len(self.tokenizer) + (NUM_UNKNOWN if isinstance(self.tokenizer, WordTokenizer) else 0)
        return np.dtype("<u2" if most <= 1 << 16 else "<u4")

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        """The array [length] of each field."""
        end, most = Tokenizer.EOS, None if self.longest is None else self.longest - 1
        return [
            np.array([*ids[:most], end], dtype=self.dtype) if ids else Refused("once normalised, empty")
            for ids in self.tokenizer.encode_ids(fields)
        ]

    def fingerprint(self) -> str:
        return f"{self.tokenizer.fingerprint()} {self.longest}"

    def about(self) -> dict[str, Any]:
        """What a corpus says of the role."""
        return {"vocab_size": len(self.tokenizer), "tokenizer": self.tokenizer.fingerprint(), "longest": self.longest}
