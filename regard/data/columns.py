"""Columns: how the field of a record becomes the array that a corpus keeps, one class a kind of data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from regard.inputs.text import Tokenizer


class Refused(str):
    """Why a single record cannot be used, in words that end before the name of its role ("unreadable")."""


class Column(Protocol):
    """One role of a corpus. All of its arrays have the same number format and the same shape of a position."""

    @property
    def dtype(self) -> np.dtype:
        """In which numbers are kept."""
        ...

    @property
    def position_shape(self) -> tuple[int, ...]:
        """Of one position of an array: () of ids, (bins,) of frames of speech, (width, channels) of a picture's row."""
        ...

    @property
    def records_at_once(self) -> int:
        """How many arrays may be held in memory together."""
        ...

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        """The array [length, *position_shape] of each field, or why there is none."""
        ...

    def fingerprint(self) -> str:
        """Equal for two columns exactly when they make the same arrays of the same fields."""
        ...

    def about(self) -> dict[str, Any]:
        """What a corpus's description says of this role, beside what it says of every role."""
        ...


class TextColumn:
    """Ids of text, ended by the end token."""

    position_shape: tuple[int, ...] = ()
    records_at_once = 4096

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u2" if len(self.tokenizer) <= 1 << 16 else "<u4")

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        end = Tokenizer.EOS
        return [
            np.array([*ids, end], dtype=self.dtype) if ids else Refused("once normalised, empty")
            for ids in self.tokenizer.encode_ids(fields)
        ]

    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint()

    def about(self) -> dict[str, Any]:
        return {"vocab_size": len(self.tokenizer), "tokenizer": self.fingerprint()}


class LabelColumn:
    """Classes: the place of a label among those that are known, an array of one position."""

    position_shape: tuple[int, ...] = ()
    records_at_once = 4096
    dtype = np.dtype("<u2")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._places = {label: place for place, label in enumerate(self.labels)}

    def arrays(self, fields: Sequence[str]) -> list[np.ndarray | Refused]:
        return [
            np.array([self._places[label]], dtype=self.dtype)
            if label in self._places
            else Refused(f"unknown label {label[:40]!r} in")
            for label in fields
        ]

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}
