"""What a mask answers, and how two of them join; the masks themselves are in `regard.attention.masks`.

A mask is a small object, not a tensor. It answers four questions: which pairs of a tile are `allowed`, of what `kind`
a range of queries and keys is, how it is carried in linear memory (`lowered`), and what `to_record` stores. Masks join
with ``&`` and ``|``.

Positions: both indices count on the *key* axis and the axes are aligned bottom-right, so that the last of `query_len`
queries stands at the last key. Query row ``i`` therefore has ``query_index = key_len - query_len + i``, and a causal
mask is ``key_index <= query_index`` whether the keys are cached or not. With more queries than keys the first queries
stand before the first key, at negative positions, and a causal mask allows them nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from regard.attention.intervals import intersection, one_range, trimmed, union
from regard.errors import ConfigError, ShapeError

Kind = Literal["empty", "full", "partial"]
Range = tuple[int, int]  # half-open
Lowered = tuple[Tensor | None, Tensor | None]  # (ranges, allowed)


class Mask:
    """What every mask answers. Abstract: the classes below are final."""

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        """True where attending is allowed.

        query_index: [query_tile] and key_index: [key_tile], both positions on the key axis.
        Returns a boolean tensor that broadcasts to [batch, heads, query_tile, key_tile].
        """
        raise TypeError(f"{type(self).__name__} does not say what it allows")

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        """Whether all, none or some pairs of the half-open ranges are allowed, for every sequence of the batch.

        'partial' is always a safe answer; a backend skips empty tiles and drops the mask from full ones.
        """
        return "partial"

    def lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None = None) -> Lowered:
        """(ranges, allowed) as `PairScores` wants them, each None where it disallows nothing; both hold at once.

        ranges: int32 [batch or 1, query_len, num_ranges, 2], see `regard.attention.intervals`.
        allowed: bool, broadcastable to [batch, heads, query_len, key_len]. Only what holds a `Dense` mask has it, and
        `Packed` with documents in many pieces: all else takes memory that grows linearly with the length.
        """
        if self.kind((key_len - query_len, key_len), (0, key_len)) == "full":
            return None, None
        return self._lowered(batch, query_len, key_len, device)

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None) -> Lowered:
        """As `lowered`, of a mask that is not known to allow everything."""
        return None, self.dense(query_len, key_len, device)

    def to_record(self) -> dict[str, Any]:
        """A description out of plain values and tensors, enough to build the mask again."""
        raise TypeError(f"{type(self).__name__} cannot be recorded")

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        """Every way in which the mask does not fit scores of this size; what is None is not checked."""
        return []

    def __and__(self, other: Mask) -> Mask:
        return Both(self, _joinable(other, "&"))

    def __or__(self, other: Mask) -> Mask:
        return Either(self, _joinable(other, "|"))

    def dense(self, query_len: int, key_len: int, device: torch.device | str | None = None) -> Tensor:
        """The whole mask, bool, broadcastable to [batch, heads, query_len, key_len]."""
        query_index = torch.arange(key_len - query_len, key_len, device=device)
        return self.allowed(query_index, torch.arange(key_len, device=device))


class OneRange(Mask):
    """A mask that shows each query one range of keys. Abstract: final are `Causal`, `Window` and others below."""

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        """(begin, end) of each query's range, broadcastable to [batch, query_tile]; they may lie beyond the keys."""
        raise TypeError(f"{type(self).__name__} does not say what it allows")

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        begin, end = self.bounds(query_index)
        return ((begin[..., None] <= key_index) & (key_index < end[..., None]))[:, None]

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None) -> Lowered:
        begin, end = self.bounds(torch.arange(key_len - query_len, key_len, device=device))
        return one_range(begin, end, query_len, key_len), None


@dataclass(frozen=True)
class Both(Mask):
    """What the first and the second mask allow: `first & second`."""

    first: Mask
    second: Mask

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return self.first.allowed(query_index, key_index) & self.second.allowed(query_index, key_index)

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        kinds = {self.first.kind(query_range, key_range), self.second.kind(query_range, key_range)}
        if "empty" in kinds:
            return "empty"
        return "full" if kinds == {"full"} else "partial"

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None) -> Lowered:
        first, first_allowed = self.first.lowered(batch, query_len, key_len, device)
        second, second_allowed = self.second.lowered(batch, query_len, key_len, device)
        ranges = second if first is None else first
        if first is not None and second is not None:
            ranges = trimmed(intersection(first, second))
        allowed = second_allowed if first_allowed is None else first_allowed
        if first_allowed is not None and second_allowed is not None:
            allowed = first_allowed & second_allowed
        return ranges, allowed

    def to_record(self) -> dict[str, Any]:
        return {"mask": "and", "first": self.first.to_record(), "second": self.second.to_record()}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        first = self.first.check(batch, key_len, heads=heads, query_len=query_len)
        return first + self.second.check(batch, key_len, heads=heads, query_len=query_len)


@dataclass(frozen=True)
class Either(Mask):
    """What the first or the second mask allows: `first | second`."""

    first: Mask
    second: Mask

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        return self.first.allowed(query_index, key_index) | self.second.allowed(query_index, key_index)

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        kinds = {self.first.kind(query_range, key_range), self.second.kind(query_range, key_range)}
        if "full" in kinds:
            return "full"
        return "empty" if kinds == {"empty"} else "partial"

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None) -> Lowered:
        first, first_allowed = self.first.lowered(batch, query_len, key_len, device)
        second, second_allowed = self.second.lowered(batch, query_len, key_len, device)
        if (first is None and first_allowed is None) or (second is None and second_allowed is None):
            return None, None
        if first is not None and second is not None and first_allowed is None and second_allowed is None:
            return trimmed(union(first, second)), None
        return None, self.dense(query_len, key_len, device)

    def to_record(self) -> dict[str, Any]:
        return {"mask": "or", "first": self.first.to_record(), "second": self.second.to_record()}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        first = self.first.check(batch, key_len, heads=heads, query_len=query_len)
        return first + self.second.check(batch, key_len, heads=heads, query_len=query_len)


def _joinable(other: object, sign: str) -> Mask:
    if isinstance(other, Mask):
        return other
    remedy = "wrap a boolean tensor in Dense(tensor)" if isinstance(other, Tensor) else "give a mask such as Causal()"
    raise ShapeError(f"mask {sign} {type(other).__name__}: two masks are expected; {remedy}")


# -- what the masks' fields are held to --------------------------------------------------------------------------------


def check_counts(name: str, **fields: object) -> None:
    """Raises ConfigError naming every field that is no integer of at least 0."""
    wrong = [f"{field} is {count!r}" for field, count in fields.items() if not is_integer(count) or count < 0]  # type: ignore[operator]
    if wrong:
        raise ConfigError(f"{name}: {'; '.join(wrong)}, expected an integer of at least 0")


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def as_integers(name: str, values: Tensor | Sequence[Any] | int) -> Tensor:
    """A list as a tensor; a tensor as it is. Raises: ShapeError for what is neither."""
    if isinstance(values, Tensor):
        return values
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ShapeError(f"{name} is {type(values).__name__}, expected a tensor or list of integers") from None
    return found if found.numel() else found.to(torch.int64)


def misfits(name: str, integers: Tensor, batch: int, *sizes: int) -> list[str]:
    """What is wrong with integers of shape [batch or 1, *sizes]."""
    problems, shape = [], tuple(integers.shape)
    if shape not in {(batch, *sizes), (1, *sizes)}:
        wanted = ", ".join(map(str, (batch, *sizes)))
        problems.append(f"{name} has shape {shape}, expected ({wanted}{'' if sizes else ','})")
    if integers.dtype.is_floating_point or integers.dtype == torch.bool:
        problems.append(f"{name} is {integers.dtype}, expected integers")
    return problems


def is_readable(tensor: Tensor) -> bool:
    """Whether its values can be asked for without waiting for a device or breaking a graph that is being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def extremes(integers: Tensor) -> tuple[int, int] | None:
    """(least, greatest); None of what is not readable, and of nothing."""
    if not is_readable(integers) or not integers.numel():
        return None
    least, greatest = integers.aminmax()
    return int(least), int(greatest)
