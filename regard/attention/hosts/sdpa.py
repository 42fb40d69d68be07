"""A call of `F.scaled_dot_product_attention`, lowered to `PairScores`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

from regard.attention.hosts.masks_of import with_mask
from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError


@dataclass(frozen=True, eq=False)
class Sdpa:
    """The arguments, named as torch names them; value is not needed."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def pairs(self) -> PairScores:
        """query [..., query_len, head_dim] over key: leading axes are the batch, but for the last of them, the heads.

        Inputs of three axes are a batch of single heads, of two a single one. Torch's causal mask is aligned top-left.
        Raises: ObservationError for nested tensors and for tensors inside a function transform.
        """
        refuse_wrapped(self.query, self.key)
        query, key = as_computed(self.query), as_computed(self.key)
        leading = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3]) if query.ndim > 3 else ()
        mask: Tensor | None = None
        if isinstance(self.attn_mask, CausalBias):
            ranges: Tensor | None = causal(query, key, last=self.attn_mask.variant is CausalVariant.LOWER_RIGHT)
        else:
            mask = None if self.attn_mask is None else _four(self.attn_mask, query.ndim, leading)
            ranges = causal(query, key) if self.is_causal else None
        query, key = _four_axes(query, leading), _four_axes(key, leading)
        if query.shape[1] < key.shape[1]:
            query = query.expand(-1, key.shape[1], -1, -1)
        scale = query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)
        return with_mask(PairScores(query, key, scale, ranges=ranges), mask)


def causal(query: Tensor, key: Tensor, *, last: bool = False) -> Tensor:
    """Ranges of a causal mask whose first query stands at the first key, or whose last stands at the last."""
    query_len, key_len = query.shape[-2], key.shape[-2]
    ends = torch.arange(1, query_len + 1, device=query.device, dtype=torch.int32)
    ends = (ends + (key_len - query_len) if last else ends).clamp(0, key_len)
    return torch.stack([torch.zeros_like(ends), ends], -1).view(1, query_len, 1, 2)


def as_computed(tensor: Tensor) -> Tensor:
    """In the dtype to which autocast takes a product's operand."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64 or not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def refuse_wrapped(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.is_nested:
            raise ObservationError("it attends over nested tensors, whose lengths differ by item; pad them")
        if hasattr(tensor, "_local_tensor"):
            raise ObservationError(f"it attends over {type(tensor).__name__}, of which this process holds a part")
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise ObservationError("it runs inside torch.func (vmap, grad); call the model itself")


def _four_axes(tensor: Tensor, leading: Sequence[int]) -> Tensor:
    if tensor.ndim == 4:
        return tensor.expand(leading[0], -1, -1, -1)
    if tensor.ndim < 4:
        return tensor.view(-1, 1, *tensor.shape[-2:]) if tensor.ndim == 2 else tensor[:, None]
    return tensor.expand(*leading, *tensor.shape[-3:]).flatten(0, -4)


def _four(mask: Tensor, axes: int, leading: Sequence[int]) -> Tensor:
    """The mask of inputs with so many axes, as one that broadcasts to [batch, heads, query_len, key_len]."""
    while mask.ndim < axes:
        mask = mask[None]
    if axes <= 3:
        return mask[:, None] if axes == 3 else mask[None, None]
    if axes == 4:
        return mask
    if all(size == 1 for size in mask.shape[:-3]):
        return mask.view(1, *mask.shape[-3:])
    return mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4)
