"""The final scores of all query-key pairs, unmaterialised: what a kernel reads to make any of them.

A dot-like score, its modifiers, the mask and the sink of a call come down to a few tensors that grow linearly with the
length. Every pass over the scores (fused forward, second pass, a tile of a stored record) starts from this one form:

    score[b, h, i, j] = soft_cap(scale * query[b, h, i] . key[b, h // group, j]) + offset_bias[h, j - i + query_len - 1]
                        + bias[b, h, i, j]        where (i, j) is allowed, else -inf

with soft_cap(s) = cap * tanh(s / cap). Here i counts query rows and j keys, both from 0: the alignment of the two axes
is settled where the form is made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PairScores:
    """Queries, keys and all that decides their final scores.

    query: [batch, heads, query_len, head_dim]; key: [batch, kv_heads, key_len, head_dim].
    scale: factor of the product. soft_cap: bound of the scaled product (Gemma Team 2024); None for none.
    offset_bias: [heads, query_len + key_len - 1], float32 or float64, added by the offset of key and query (ALiBi, T5).
    bias: added as it is, broadcastable to [batch, heads, query_len, key_len], floating point; a value at or below half
        of its dtype's lowest disallows the pair, as does -inf. What foreign models build; never copied or expanded.
    ranges: int32 [batch or 1, query_len, num_ranges, 2], half-open ranges of keys that a query may attend to, ascending
        and disjoint, an unused one being (0, 0) at the end; None allows every key.
    allowed: bool, broadcastable to [batch, heads, query_len, key_len], within the ranges; None allows all of them.
    sink: [heads], the score of a key without a value that takes part in the normalisation; None for none.
    """

    query: Tensor
    key: Tensor
    scale: float
    soft_cap: float | None = None
    offset_bias: Tensor | None = None
    bias: Tensor | None = None
    ranges: Tensor | None = None
    allowed: Tensor | None = None
    sink: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def query_len(self) -> int:
        return self.query.shape[2]

    @property
    def key_len(self) -> int:
        return self.key.shape[2]

    @property
    def group(self) -> int:
        """How many query heads share one key head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """In which scores and statistics are computed: float32, or float64 for float64 inputs."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def detach(self) -> PairScores:
        detached: dict[str, Any] = {name: tensor.detach() for name, tensor in self.tensors().items()}
        return replace(self, **detached)

    def select_heads(self, heads: Tensor) -> PairScores:
        """Of chosen query heads alone, each with a key head of its own; heads: int64 [num_heads]."""
        of_heads = {
            name: tensor if tensor.shape[1] == 1 else tensor[:, heads]
            for name in ("bias", "allowed")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(
            self,
            query=self.query[:, heads],
            key=self.key[:, heads // self.group],
            offset_bias=None if self.offset_bias is None else self.offset_bias[heads],
            sink=None if self.sink is None else self.sink[heads],
            **of_heads,
        )

    def select_item(self, item: int) -> PairScores:
        """Of one item of the batch alone."""
        kept: dict[str, Any] = {
            name: tensor if tensor.shape[0] == 1 else tensor[item : item + 1]
            for name in ("query", "key", "bias", "allowed", "ranges")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **kept)

    def of_real_queries(self, queries: Tensor) -> PairScores:
        """The same with nothing allowed to the queries that are not real; queries: bool [batch, query_len]."""
        ranges = self.ranges
        if ranges is None:
            ranges = torch.tensor([0, self.key_len], dtype=torch.int32, device=self.query.device).view(1, 1, 1, 2)
        real = queries.to(ranges.device)[:, :, None, None]
        return replace(self, ranges=(ranges * real).contiguous())

    def allowed_pairs(self, rows: Tensor, keys: Tensor) -> Tensor | None:
        """bool, broadcastable to [batch, heads, num_rows, num_keys]; None where all are. Reads no scores' bias."""
        found = None
        if self.ranges is not None:
            ranges = self.ranges[:, rows]  # [batch or 1, num_rows, num_ranges, 2]
            begins, ends = ranges[..., 0, None], ranges[..., 1, None]
            found = ((begins <= keys) & (keys < ends)).any(-2)[:, None]
        if self.allowed is not None:
            dense = _take(self.allowed, rows, keys)
            found = dense if found is None else found & dense
        return found

    def of_queries(self, rows: Tensor, keys: Tensor | None = None) -> Tensor:
        """The final scores of chosen query rows, [batch, heads, num_rows, num_keys] in `dtype`; -inf where disallowed.

        rows: int64 [num_rows]; keys: int64 [num_keys], all keys unless given. Differentiable.
        """
        key = self.key if keys is None else self.key[:, :, keys]
        keys = torch.arange(self.key_len, device=self.key.device) if keys is None else keys
        # A key head serves its group of query heads in one product, without being repeated.
        query = self.query[:, :, rows].to(self.dtype).unflatten(1, (self.key.shape[1], self.group)).flatten(2, 3)
        scores = (query @ key.to(self.dtype).transpose(-2, -1)) * self.scale
        scores = scores.unflatten(2, (self.group, len(rows))).flatten(1, 2)
        if self.soft_cap is not None:
            scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
        if self.offset_bias is not None:
            offsets = keys[None, :] - rows[:, None] + (self.query_len - 1)
            scores = scores + self.offset_bias[:, offsets].to(self.dtype)
        allowed = self.allowed_pairs(rows, keys)
        if self.bias is not None:
            bias = _take(self.bias, rows, keys)
            scores = scores + bias.to(self.dtype)
            real = bias > torch.finfo(bias.dtype).min / 2
            allowed = real if allowed is None else allowed & real
        masked: Tensor = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
        return masked


def _take(tensor: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """Rows and keys of a tensor that may be broadcast along either."""
    if tensor.shape[-2] != 1:
        tensor = tensor[..., rows, :]
    return tensor if tensor.shape[-1] == 1 else tensor[..., keys]
