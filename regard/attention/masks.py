"""The masks: which keys a query may attend to. What they all answer, and how they join, is in `regard.attention.mask`.

All but `Dense` are carried in memory that grows linearly with the length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention.mask import Both as Both
from regard.attention.mask import Either as Either
from regard.attention.mask import (
    Kind,
    OneRange,
    Range,
    as_integers,
    check_counts,
    extremes,
    is_integer,
    is_readable,
    misfits,
)
from regard.attention.mask import Mask as Mask
from regard.attention.packed import Packed as Packed
from regard.errors import ConfigError, ShapeError, suggestion

BEYOND = 2**31 - 1  # behind every key
KNOWN = ("causal", "window", "global", "prefix", "padding", "packed", "dense", "and", "or")  # what a record may name
MOST_LEVELS = 256  # of masks joined within each other: a damaged file must not exhaust the stack


@dataclass(frozen=True)
class Causal(OneRange):
    """A query sees its own position and everything before it; aligned bottom-right."""

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        end = query_index[None] + 1
        return torch.zeros_like(end), end

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        if key_range[1] - 1 <= query_range[0]:
            return "full"
        return "empty" if key_range[0] > query_range[1] - 1 else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "causal"}


@dataclass(frozen=True)
class Window(OneRange):
    """A query sees its own position, `left` keys before it and `right` keys after it. Beltagy et al. 2020, sec. 3.1.

    Raises: ConfigError when either is below 0.
    """

    left: int
    right: int

    def __post_init__(self) -> None:
        check_counts("Window", left=self.left, right=self.right)

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        return query_index[None] - self.left, query_index[None] + (self.right + 1)

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        (first, last), (begin, end) = (query_range[0], query_range[1] - 1), key_range
        if last - self.left <= begin and end - 1 <= first + self.right:
            return "full"
        return "empty" if begin > last + self.right or end - 1 < first - self.left else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "window", "left": self.left, "right": self.right}


@dataclass(frozen=True)
class Global(OneRange):
    """The first `num_tokens` positions see everything and are seen by all. Beltagy et al. 2020, sec. 3.1.

    Joined with a window: `Window(256, 256) | Global(4)`. Raises: ConfigError when num_tokens is below 0.
    """

    num_tokens: int

    def __post_init__(self) -> None:
        check_counts("Global", num_tokens=self.num_tokens)

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        sees_all = (query_index >= 0) & (query_index < self.num_tokens)
        end = torch.where(sees_all, BEYOND, self.num_tokens)[None]
        return torch.zeros_like(end), end

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        if key_range[1] <= self.num_tokens or (query_range[0] >= 0 and query_range[1] <= self.num_tokens):
            return "full"
        sees_all = query_range[0] < self.num_tokens and query_range[1] > 0
        return "empty" if key_range[0] >= self.num_tokens and not sees_all else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "global", "num_tokens": self.num_tokens}


@dataclass(frozen=True, eq=False, init=False)
class Prefix(OneRange):
    """Causal but for the first `lengths[b]` keys of sequence b, which every query sees. Raffel et al. 2020, sec. 3.2.1.

    lengths: [batch] or [1], integers; a number stands for all sequences.
    """

    lengths: Tensor

    def __init__(self, lengths: Tensor | Sequence[int] | int) -> None:
        object.__setattr__(
            self, "lengths", as_integers("Prefix.lengths", [lengths] if is_integer(lengths) else lengths)
        )

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        lengths = self.lengths.to(query_index.device, torch.int64)
        end = torch.maximum(query_index[None] + 1, lengths[:, None])
        return torch.zeros_like(end), end

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        shortest, longest = extremes(self.lengths) or (0, BEYOND)
        if key_range[1] <= max(query_range[0] + 1, shortest):
            return "full"
        return "empty" if key_range[0] >= max(query_range[1], longest) else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "prefix", "lengths": self.lengths}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        return misfits("Prefix.lengths", self.lengths, batch)


@dataclass(frozen=True, eq=False, init=False)
class Padding(OneRange):
    """Only real keys: sequence b of the batch has `lengths[b]` of them, at the front or from `begins[b]` on.

    lengths: [batch] or [1], integers.
    shortest: the least of the lengths, known when the batch is made; lets a tile be called full without reading the
        device. Lengths on a CPU are simply read.
    begins: [batch] or [1], integers, the first real key; 0 unless given. Left padding: `begins=key_len - lengths`.
    """

    lengths: Tensor
    shortest: int | None
    begins: Tensor | None

    def __init__(
        self,
        lengths: Tensor | Sequence[int],
        shortest: int | None = None,
        *,
        begins: Tensor | Sequence[int] | None = None,
    ) -> None:
        object.__setattr__(self, "lengths", as_integers("Padding.lengths", lengths))
        object.__setattr__(self, "shortest", shortest)
        object.__setattr__(self, "begins", None if begins is None else as_integers("Padding.begins", begins))

    def bounds(self, query_index: Tensor) -> tuple[Tensor, Tensor]:
        lengths = self.lengths.to(query_index.device, torch.int64)[:, None]
        if self.begins is None:
            return torch.zeros_like(lengths), lengths
        begins = self.begins.to(query_index.device, torch.int64)[:, None]
        return begins, begins + lengths

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        begins, ends = (0, 0) if self.begins is None else extremes(self.begins), extremes(self.lengths)
        if self.begins is not None and begins is not None:
            ends = extremes(self.begins + self.lengths) if ends is not None else None
        if self.shortest is not None and begins == (0, 0) and ends is None:
            ends = (self.shortest, BEYOND)
        if begins is None or ends is None:
            return "partial"
        if begins[1] <= key_range[0] and key_range[1] <= ends[0]:
            return "full"
        return "empty" if key_range[0] >= ends[1] or key_range[1] <= begins[0] else "partial"

    def to_record(self) -> dict[str, Any]:
        return {"mask": "padding", "lengths": self.lengths, "shortest": self.shortest, "begins": self.begins}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        problems = misfits("Padding.lengths", self.lengths, batch)
        return problems if self.begins is None else problems + misfits("Padding.begins", self.begins, batch)


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """Any boolean tensor, True where attending is allowed; takes the memory that it takes.

    tensor: bool, broadcastable to [batch, heads, query_len, key_len]; aligned as it stands, its last row being the
        last query's. One that differs from query to query has every key, if only as a view (`Tensor.expand`).
    """

    tensor: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.tensor, Tensor):
            raise ShapeError(f"Dense.tensor is {type(self.tensor).__name__}, expected a tensor of booleans")

    def _whole(self) -> Tensor:
        """With all four axes."""
        return self.tensor[(None,) * (4 - self.tensor.ndim)]

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        tensor = self._whole().to(query_index.device)
        query_len, key_len = tensor.shape[2:]
        if key_len > 1:
            tensor = tensor[..., key_index]
        if query_len == 1:
            return tensor
        row = query_index - (key_len - query_len)
        inside = (row >= 0) & (row < query_len)
        return tensor[:, :, torch.where(inside, row, 0)] & inside[:, None]

    def kind(self, query_range: Range, key_range: Range) -> Kind:
        tensor = self._whole()
        if not is_readable(tensor):
            return "partial"
        query_len, key_len = tensor.shape[2:]
        first, last = 0, 1
        if query_len > 1:
            first, last = (bound - (key_len - query_len) for bound in query_range)
        tile = tensor[:, :, max(first, 0) : max(last, 0), slice(*key_range) if key_len > 1 else slice(None)]
        if not tile.any():
            return "empty"
        return "full" if first >= 0 and last <= query_len and tile.all() else "partial"

    def dense(self, query_len: int, key_len: int, device: torch.device | str | None = None) -> Tensor:
        return self._whole().to(device)

    def to_record(self) -> dict[str, Any]:
        return {"mask": "dense", "tensor": self.tensor}

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        problems = []
        shape = tuple(self.tensor.shape)
        wanted = {"batch": batch, "heads": heads, "query_len": query_len, "key_len": key_len}
        sizes = zip(reversed(shape), reversed(wanted.values()), strict=False)
        if len(shape) > 4 or any(size not in (1, full) for size, full in sizes if full is not None):
            names = ", ".join(name if size is None else str(size) for name, size in wanted.items())
            problems.append(f"Dense.tensor has shape {shape}, expected one that broadcasts to ({names})")
        elif len(shape) > 1 and shape[-1] == 1 and shape[-2] > 1 and key_len > 1:
            problems.append(
                f"Dense.tensor has shape {shape}, one key for {shape[-2]} queries; "
                f"expand it: tensor.expand({', '.join(map(str, shape[:-1]))}, {key_len})"
            )
        if self.tensor.dtype != torch.bool:
            problems.append(
                f"Dense.tensor is {self.tensor.dtype}, expected torch.bool, True where attending is allowed"
            )
        return problems


def mask_from_record(record: Mapping[str, Any]) -> Mask:
    """The mask that `Mask.to_record` described; tensors may have become lists on the way.

    Raises: ConfigError when the description is of no known mask, or of one with missing or unusable parts.
    """
    return _mask(record, 0)


def _mask(record: Any, level: int) -> Mask:
    if not isinstance(record, Mapping):
        raise ConfigError(f"mask record: {type(record).__name__} was found, expected a mapping that names a mask")
    if level > MOST_LEVELS:
        raise ConfigError(f"mask record: masks are joined more than {MOST_LEVELS} levels deep; join fewer")
    name = record.get("mask")
    try:
        match name:
            case "causal":
                return Causal()
            case "window":
                return Window(record["left"], record["right"])
            case "global":
                return Global(record["num_tokens"])
            case "prefix":
                return Prefix(_tensor(record, "lengths"))
            case "padding":
                begins = None if record.get("begins") is None else _tensor(record, "begins")
                return Padding(_tensor(record, "lengths"), _whole_number(record, "shortest"), begins=begins)
            case "packed":
                return Packed(_tensor(record, "documents"), bool(record.get("contiguous")) or None)
            case "dense":
                return Dense(_tensor(record, "tensor"))
            case "and":
                return Both(_mask(record["first"], level + 1), _mask(record["second"], level + 1))
            case "or":
                return Either(_mask(record["first"], level + 1), _mask(record["second"], level + 1))
    except KeyError as missing:
        raise ConfigError(f"mask record: `{name}` lacks `{missing.args[0]}`; the record is damaged") from None
    raise ConfigError(f"mask record: `{name}` is not known{suggestion(str(name), KNOWN)}; known: {', '.join(KNOWN)}")


def _tensor(record: Mapping[str, Any], field: str) -> Tensor:
    value = record[field]
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise ConfigError(f"mask record: `{field}` is {kind}, expected a tensor; the record is damaged") from None


def _whole_number(record: Mapping[str, Any], field: str) -> int | None:
    value = record.get(field)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"mask record: `{field}` is {value!r}, expected a whole number; the record is damaged")
