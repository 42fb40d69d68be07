"""`struct pairs` of pairs.h, made of `PairScores`: what both C kernels read."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}  # as pairs.h numbers them
LONGEST = 2**31 - 2**10  # keys are counted in 32 bits, a panel beyond the last included

POINTER, COUNT, STRIDES = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64 * 4


class Pairs(ctypes.Structure):
    _fields_ = [
        *((name, COUNT) for name in ("batch", "heads", "kv_heads", "query_len", "key_len", "head_dim")),
        *((f"{name}_strides", STRIDES) for name in ("query", "key", "bias", "allowed")),
        ("ranges_batch_stride", COUNT),
        ("num_ranges", COUNT),
        *((name, POINTER) for name in ("query", "key", "bias", "offset_bias", "ranges", "allowed", "sink")),
        ("scale", ctypes.c_double),
        ("soft_cap", ctypes.c_double),
        ("inputs_type", ctypes.c_int32),
        ("bias_type", ctypes.c_int32),
    ]


def refuses(pairs: PairScores) -> str | None:
    """Why C cannot read these, or None."""
    query, key = pairs.query, pairs.key
    if query.device.type != "cpu":
        return f"it runs on a CPU, not on {query.device.type}"
    if query.dtype not in (torch.float32, torch.bfloat16) or key.dtype != query.dtype:
        return f"it reads float32 and bfloat16, not {query.dtype}"
    if any(tensor.layout != torch.strided for tensor in pairs.tensors().values()):
        return "it reads strided tensors"
    if query.shape[3] == 0:
        return "there is nothing to multiply"
    if max(pairs.query_len, pairs.key_len) > LONGEST:
        return "it counts queries and keys in 32 bits"
    return None


class Reading:
    """Addresses of tensors, which stay alive as long as this does."""

    def __init__(self) -> None:
        self._alive: list[Tensor] = []

    def address(self, tensor: Tensor | None, dtype: torch.dtype | None = None) -> int | None:
        """Of a tensor as it is; or, given a dtype, of one that is contiguous and of that dtype."""
        if tensor is None:
            return None
        if dtype is not None:
            tensor = tensor.to(dtype).contiguous()
        self._alive.append(tensor)
        return tensor.data_ptr()

    def pairs(self, pairs: PairScores) -> Pairs:
        """Nothing that grows with query_len x key_len is copied: broadcast axes have a stride of 0."""
        shape = (pairs.batch, pairs.heads, pairs.query_len, pairs.key_len)

        def spread(tensor: Tensor | None) -> ctypes.Array[ctypes.c_int64]:
            return STRIDES() if tensor is None else STRIDES(*tensor.expand(shape).stride())

        ranges = pairs.ranges
        return Pairs(
            batch=pairs.batch,
            heads=pairs.heads,
            kv_heads=pairs.key.shape[1],
            query_len=pairs.query_len,
            key_len=pairs.key_len,
            head_dim=pairs.query.shape[3],
            query_strides=STRIDES(*pairs.query.stride()),
            key_strides=STRIDES(*pairs.key.stride()),
            bias_strides=spread(pairs.bias),
            allowed_strides=spread(pairs.allowed),
            ranges_batch_stride=0 if ranges is None or ranges.shape[0] == 1 else ranges[0].numel(),
            num_ranges=0 if ranges is None else ranges.shape[2],
            query=self.address(pairs.query),
            key=self.address(pairs.key),
            bias=self.address(pairs.bias),
            offset_bias=self.address(pairs.offset_bias, torch.float32),
            ranges=self.address(ranges, torch.int32),
            allowed=self.address(pairs.allowed),
            sink=self.address(pairs.sink, torch.float32),
            scale=pairs.scale,
            soft_cap=pairs.soft_cap or 0.0,
            inputs_type=DTYPES[pairs.query.dtype],
            bias_type=0 if pairs.bias is None else DTYPES[pairs.bias.dtype],
        )
