"""Columns of a corpus of pictures: the pictures themselves, decoded by processes of their own, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regard.data.columns import Refused
from regard.inputs.pictures import PictureError, PictureSize, load_pictures
from regard.inputs.text import Tokenizer


class PictureColumn:
    """uint8 [height, width, 3] of the file that a field names; a picture's positions are its rows.

    workers: processes that decode; 0: this one does.
    """

    dtype = np.dtype("uint8")

    def __init__(self, size: PictureSize, workers: int = 0) -> None:
        self.size = size
        self.workers = workers

    @property
    def position_shape(self) -> tuple[int, ...]:
        return (self.size.width, 3)

    @property
    def records_at_once(self) -> int:
        """Some 64 MB of pixels, so that no worker waits long for the next."""
        return max((64 << 20) // (3 * self.size.height * self.size.width), 16)

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        return [
            Refused(found.reason) if isinstance(found, PictureError) else found.pixels
            for found in load_pictures([Path(field) for field in fields], self.size, self.workers)
        ]

    def fingerprint(self) -> str:
        return repr(self.size)

    def about(self) -> dict[str, Any]:
        return {"height": self.size.height, "width": self.size.width, "fit": self.size.fit}


class CaptionsColumn:
    """The captions of one picture, a line each: their ids one after the other, each caption ended by the end token.

    max_tokens: of one caption, its end included; a record with a longer one is refused.
    """

    position_shape: tuple[int, ...] = ()
    records_at_once = 4096

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if len(self.tokenizer) <= 1 << 16 else "<u4")

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        texts = [field.split("\n") for field in fields]
        encoded = iter(self.tokenizer.encode_ids([text for several in texts for text in several]))
        return [self._joined([next(encoded) for _ in several]) for several in texts]

    def _joined(self, captions: list[list[int]]) -> np.ndarray | Refused:
        if any(not ids for ids in captions):
            return Refused("once normalised, empty")
        if any(len(ids) >= self.max_tokens for ids in captions):
            return Refused(f"over {self.max_tokens} tokens in")
        return np.array([token for ids in captions for token in (*ids, Tokenizer.EOS)], dtype=self.dtype)

    def fingerprint(self) -> str:
        return f"captions of {self.max_tokens}, {self.tokenizer.fingerprint()}"

    def about(self) -> dict[str, Any]:
        return {"vocab_size": len(self.tokenizer), "tokenizer": self.tokenizer.fingerprint()}
