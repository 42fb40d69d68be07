"""Step 4, first half: which keys a query may attend to.

A mask is a small object, not a tensor. It answers three questions: which pairs of a tile are `allowed`, of what
`kind` a range of queries and keys is, and what `to_record` stores. Masks join with ``&`` and ``|``; a backend
materialises only the tiles that it must.

Positions: both indices count on the *key* axis and the axes are aligned bottom-right, so that the last of `query_len`
queries stands at the last key. Query row ``i`` therefore has ``query_index = key_len - query_len + i``, and a causal
mask is ``key_index <= query_index`` whether the keys are cached or not. With more queries than keys the first queries
stand before the first key, at negative positions, and a causal mask allows them nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard.errors import ConfigError, suggestion

KNOWN = ("causal", "padding", "and", "or")  # the masks that a record may name
Kind = Literal["empty", "full", "partial"]


class Mask:
    """What every mask answers. Abstract: the classes below are final."""

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        """True where attending is allowed.

        query_index: [query_tile] and key_index: [key_tile], both positions on the key axis.
        Returns a boolean tensor that broadcasts to [batch, heads, query_tile, key_tile].
        """
        raise TypeError(f"{type(self).__name__} does not say what it allows")

    def kind(self, query_range: tuple[int, int], key_range: tuple[int, int]) -> Kind:
        """Whether all, none or some pairs of the half-open ranges are allowed, for every sequence of the batch.

        'partial' is always a safe answer; a backend skips empty tiles and drops the mask from full ones.
        """
        return "partial"

    def to_record(self) -> dict[str, Any]:
        """A description out of plain values and tensors, enough to build the mask again."""
        raise TypeError(f"{type(self).__name__} cannot be recorded")

    def check(self, batch: int, key_len: int) -> list[str]:
        """Every way in which the mask does not fit scores of this size."""
        return []

    def __and__(self, other: Mask) -> Mask:
        return Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Either(self, other)

    def dense(self, query_len: int, key_len: int, device: torch.device | str | None = None) -> Tensor:
        """The whole mask, bool, broadcastable to [batch, heads, query_len, key_len]."""
        query_index = torch.arange(key_len - query_len, key_len, device=device)
        return self.allowed(query_index, torch.arange(key_len, device=device))


@dataclass(frozen=True)
class Causal(Mask):
    """A query sees its own position and everything before it; aligned bottom-right."""

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return (key_index[None, :] <= query_index[:, None])[None, None]

    def kind(self, query_range: tuple[int, int], key_range: tuple[int, int]) -> Kind:
        if key_range[1] - 1 <= query_range[0]:
            return "full"
        return "empty" if key_range[0] > query_range[1] - 1 else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "causal"}


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Only real keys: sequence b of the batch has `lengths[b]` of them, at the front.

    lengths: [batch] or [1], integers. `shortest` (the least of them, known when the batch is made) lets a tile be
    called full without reading the device; lengths on a CPU are simply read.
    """

    lengths: Tensor
    shortest: int | None = None

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return (key_index[None, :] < self.lengths.to(key_index.device)[:, None])[:, None, None, :]

    def kind(self, query_range: tuple[int, int], key_range: tuple[int, int]) -> Kind:
        shortest = self.shortest
        if shortest is None and self.lengths.device.type == "cpu" and self.lengths.numel():
            shortest = int(self.lengths.min())
        return "full" if shortest is not None and key_range[1] <= shortest else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "padding", "lengths": self.lengths, "shortest": self.shortest}

    def check(self, batch: int, key_len: int) -> list[str]:
        problems = []
        if self.lengths.ndim != 1 or self.lengths.shape[0] not in (1, batch):
            problems.append(f"Padding.lengths has shape {tuple(self.lengths.shape)}, expected ({batch},)")
        if self.lengths.dtype.is_floating_point or self.lengths.dtype == torch.bool:
            problems.append(f"Padding.lengths is {self.lengths.dtype}, expected integers")
        return problems


@dataclass(frozen=True)
class Both(Mask):
    """What the first and the second mask allow: `first & second`."""

    first: Mask
    second: Mask

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return self.first.allowed(query_index, key_index) & self.second.allowed(query_index, key_index)

    def kind(self, query_range: tuple[int, int], key_range: tuple[int, int]) -> Kind:
        kinds = {self.first.kind(query_range, key_range), self.second.kind(query_range, key_range)}
        if "empty" in kinds:
            return "empty"
        return "full" if kinds == {"full"} else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "and", "first": self.first.to_record(), "second": self.second.to_record()}

    def check(self, batch: int, key_len: int) -> list[str]:
        return self.first.check(batch, key_len) + self.second.check(batch, key_len)


@dataclass(frozen=True)
class Either(Mask):
    """What the first or the second mask allows: `first | second`."""

    first: Mask
    second: Mask

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return self.first.allowed(query_index, key_index) | self.second.allowed(query_index, key_index)

    def kind(self, query_range: tuple[int, int], key_range: tuple[int, int]) -> Kind:
        kinds = {self.first.kind(query_range, key_range), self.second.kind(query_range, key_range)}
        if "full" in kinds:
            return "full"
        return "empty" if kinds == {"empty"} else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "or", "first": self.first.to_record(), "second": self.second.to_record()}

    def check(self, batch: int, key_len: int) -> list[str]:
        return self.first.check(batch, key_len) + self.second.check(batch, key_len)


def mask_from_record(record: dict[str, Any]) -> Mask:
    """The mask that `to_record` described. Raises: ConfigError when the description is of no known mask."""
    match record:
        case {"mask": "causal"}:
            return Causal()
        case {"mask": "padding", "lengths": lengths}:
            return Padding(torch.as_tensor(lengths), record.get("shortest"))
        case {"mask": "and", "first": first, "second": second}:
            return Both(mask_from_record(first), mask_from_record(second))
        case {"mask": "or", "first": first, "second": second}:
            return Either(mask_from_record(first), mask_from_record(second))
    name = str(record.get("mask"))
    raise ConfigError(f"mask record: `{name}` is not known{suggestion(name, KNOWN)}; known: {', '.join(KNOWN)}")
