"""A score and a mask as a foreign model hands them over: numbers and tensors, aligned to nothing but each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.attention.mask import Lowered, Mask
from regard.attention.pair_scores import PairScores
from regard.attention.scores import Score
from regard.errors import ConfigError, ShapeError


@dataclass(frozen=True, eq=False)
class ModelScore(Score):
    """soft_cap(scale * q . k) + offset_bias + bias; see `PairScores`.

    offset_bias: [heads, query_len + key_len - 1]. bias: broadcastable to [batch, heads, query_len, key_len]; carries
    gradient.
    """

    scale: float
    soft_cap: float | None = None
    offset_bias: Tensor | None = None
    bias: Tensor | None = None

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        return PairScores(query, key, self.scale, self.soft_cap, self.offset_bias, self.bias)

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        scores = self.scale * (query @ key.transpose(-2, -1))
        if self.soft_cap is not None:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        key_len = key.shape[2]
        rows = torch.arange(query.shape[2], device=key.device)
        if query_index is not None and (self.bias is not None or self.offset_bias is not None):
            rows = query_index - (key_len - self._query_len(key_len, query.shape[2]))
        if self.offset_bias is not None:
            query_len = self.offset_bias.shape[1] + 1 - key_len
            offsets = torch.arange(key_len, device=key.device) - rows[:, None] + (query_len - 1)
            scores = scores + self.offset_bias[:, offsets].to(scores.dtype)
        if self.bias is None:
            return scores
        bias = self.bias if self.bias.shape[-2] == 1 else self.bias[..., rows, :]
        disallowed = bias <= torch.finfo(bias.dtype).min / 2
        return (scores + bias.to(scores.dtype)).masked_fill(disallowed, float("-inf"))

    def _query_len(self, key_len: int, rows: int) -> int:
        """Of all queries, where a block of them is scored."""
        if self.offset_bias is not None:
            return self.offset_bias.shape[1] + 1 - key_len
        assert self.bias is not None
        return self.bias.shape[-2] if self.bias.shape[-2] != 1 else rows


@dataclass(frozen=True, eq=False)
class Rows(Mask):
    """The ranges of keys that each query may attend to, as `PairScores` carries them.

    ranges: int32 [batch or 1, query_len, num_ranges, 2], of key_len keys.
    """

    ranges: Tensor
    key_len: int

    def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
        ranges = self.ranges.to(key_index.device)[:, query_index - (self.key_len - self.ranges.shape[1])]
        begins, ends = ranges[..., 0, None], ranges[..., 1, None]
        return ((begins <= key_index) & (key_index < ends)).any(-2)[:, None]

    def _lowered(self, batch: int, query_len: int, key_len: int, device: torch.device | str | None = None) -> Lowered:
        return self.ranges.to(device), None

    def check(self, batch: int, key_len: int, *, heads: int | None = None, query_len: int | None = None) -> list[str]:
        found = (self.ranges.shape[0], self.ranges.shape[1], self.key_len)
        if found[0] in (1, batch) and query_len in (None, found[1]) and found[2] == key_len:
            return []
        return [
            f"the model's mask is of {found}, expected (1 or {batch}, {query_len}, {key_len}): batch, queries, keys"
        ]

    def to_record(self) -> dict[str, Any]:
        raise ShapeError("a model's mask of ranges is kept in the trace, not described")


class CompactMask(Tensor):
    """A mask in the guise of the tensor that a model expects, [batch, 1, query_len, key_len]: one element, repeated.

    Models pass their mask on and look at its shape, nothing more; what reads or changes it gets an error, because the
    element says nothing. mask: what it stands for.
    """

    mask: Mask

    @staticmethod
    def of(mask: Mask, shape: tuple[int, int, int, int], device: torch.device | str) -> CompactMask:
        made = torch.zeros((), dtype=torch.bool, device=device).expand(shape).as_subclass(CompactMask)
        made.mask = mask
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("contiguous", "detach", "to"):
            return args[0]
        if name in ("__get__", "size", "dim", "is_floating_point", "untyped_storage"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise ConfigError(
            f'attention "regard": the model computes with its mask ({name}), which is kept as ranges of keys; '
            'choose attn_implementation="sdpa" for it'
        )
