"""Torch's fused kernels, each as a function that yields the logsumexp beside the output, and one for gradients.

A kernel knows rectangles, squares below their diagonal and additive masks. What torch's public function hides is what
is needed here: the logsumexp, by which parts are merged and statistics computed; a mask beside the causal one; and
gradients for an output that was merged out of several calls.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)

_ATEN = torch.ops.aten


class Inputs(NamedTuple):
    """What one call of a kernel reads; no axis is empty.

    query: [batch, heads, query_len, head_dim]; key, value: [batch, kv_heads, key_len, head_dim], rows contiguous.
    causal: query i sees the first i + 1 keys.
    mask: added to the scaled scores, [batch or 1, heads or 1, query_len or 1, key_len] in `mask_dtype`; None for none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    causal: bool = False
    mask: Tensor | None = None


class Kernel(Protocol):
    name: str

    def usable(self, inputs: Inputs) -> bool:
        """Whether it computes this."""
        ...

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """(output, logsumexp [batch, heads, query_len]); differentiable.

        Of a query that may attend to nothing the output may be no number and the logsumexp means nothing.
        """
        ...

    def backward(
        self, inputs: Inputs, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value. Output and logsumexp are those of all parts together, and finite."""
        ...


class CpuFlash:
    """Every floating dtype, equal widths. A query that may attend to nothing has output 0 and logsumexp 0."""

    name = "flash on the CPU"

    def usable(self, inputs: Inputs) -> bool:
        return inputs.query.device.type == "cpu"

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        output, logsumexp = _ATEN._scaled_dot_product_flash_attention_for_cpu.default(
            *inputs[:3], 0.0, inputs.causal, attn_mask=inputs.mask, scale=inputs.scale
        )
        return output, logsumexp

    def backward(
        self, inputs: Inputs, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward.default(
            gradient,
            *inputs[:3],
            output,
            logsumexp,
            0.0,
            inputs.causal,
            attn_mask=inputs.mask,
            scale=inputs.scale,
        )
        return found


class CudnnAttention:
    """cuDNN's: half precision; masks in the query's dtype."""

    name = "cuDNN"

    def usable(self, inputs: Inputs) -> bool:
        return bool(can_use_cudnn_attention(_torch_params(inputs)))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        found = _ATEN._scaled_dot_product_cudnn_attention.default(
            *inputs[:3], _of_all_pairs(inputs), True, 0.0, inputs.causal, False, scale=inputs.scale
        )
        return found[0], found[1].view(inputs.query.shape[:3])

    def backward(
        self, inputs: Inputs, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        random_state = torch.zeros((), dtype=torch.int64, device=gradient.device)  # nothing draws from it
        found: tuple[Tensor, Tensor, Tensor] = _ATEN._scaled_dot_product_cudnn_attention_backward.default(
            gradient.contiguous(),
            *inputs[:3],
            output.contiguous(),
            logsumexp.contiguous()[..., None],
            random_state,
            random_state,
            _of_all_pairs(inputs),
            None,
            None,
            inputs.query.shape[2],
            inputs.key.shape[2],
            0.0,
            inputs.causal,
            scale=inputs.scale,
        )
        return found


class CudaFlash:
    """FlashAttention-2: half precision, no mask. Widths are padded to a multiple of 8, as torch's own function does."""

    name = "flash"

    def usable(self, inputs: Inputs) -> bool:
        return inputs.mask is None and bool(can_use_flash_attention(_torch_params(inputs)))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        sides = [_padded(side, 8) for side in inputs[:3]]
        found = _ATEN._scaled_dot_product_flash_attention.default(*sides, 0.0, inputs.causal, False, scale=inputs.scale)
        return found[0][..., : inputs.value.shape[-1]], found[1]

    def backward(
        self, inputs: Inputs, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        random_state = torch.zeros(2, dtype=torch.uint64, device=gradient.device)  # nothing draws from it
        found = _ATEN._scaled_dot_product_flash_attention_backward.default(
            _padded(gradient, 8).contiguous(),
            *(_padded(side, 8) for side in inputs[:3]),
            _padded(output, 8).contiguous(),
            logsumexp.contiguous(),
            None,
            None,
            inputs.query.shape[2],
            inputs.key.shape[2],
            0.0,
            inputs.causal,
            random_state,
            random_state[0],
            scale=inputs.scale,
        )
        of_query, of_key, of_value = (wide[..., : side.shape[-1]] for wide, side in zip(found, inputs[:3], strict=True))
        return of_query, of_key, of_value


class CudaEfficient:
    """The memory-efficient kernel: float32 too, masks. It knows no grouped heads: keys and values are repeated."""

    name = "efficient"

    def usable(self, inputs: Inputs) -> bool:
        return bool(can_use_efficient_attention(_torch_params(self._ungrouped(inputs))))

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        inputs = self._ungrouped(inputs)
        found = _ATEN._scaled_dot_product_efficient_attention.default(
            *inputs[:3], self._aligned(inputs), True, 0.0, inputs.causal, scale=inputs.scale
        )
        return found[0], found[1][..., : inputs.query.shape[2]]

    def backward(
        self, inputs: Inputs, gradient: Tensor, output: Tensor, logsumexp: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads, inputs = inputs.key.shape[1], self._ungrouped(inputs)
        random_state = torch.zeros((), dtype=torch.int64, device=gradient.device)  # nothing draws from it
        of_query, of_key, of_value, _ = _ATEN._scaled_dot_product_efficient_attention_backward.default(
            gradient.contiguous(),
            *inputs[:3],
            self._aligned(inputs),
            output.contiguous(),
            F.pad(logsumexp, (0, -logsumexp.shape[2] % 32)),  # kept in steps of 32 queries
            random_state,
            random_state,
            0.0,
            [True, True, True, False],
            inputs.causal,
            scale=inputs.scale,
        )
        of_key, of_value = (side.unflatten(1, (kv_heads, -1)).sum(2) for side in (of_key, of_value))
        return of_query, of_key, of_value

    def _ungrouped(self, inputs: Inputs) -> Inputs:
        group = inputs.query.shape[1] // inputs.key.shape[1]
        if group == 1:
            return inputs
        key, value = (side.repeat_interleave(group, dim=1) for side in (inputs.key, inputs.value))
        return inputs._replace(key=key, value=value)

    def _aligned(self, inputs: Inputs) -> Tensor | None:
        """The mask of all pairs and heads, its rows beginning at multiples of 16 elements."""
        mask = _of_all_pairs(inputs)
        if mask is None:
            return None
        batch, heads, _, _ = inputs.query.shape
        return _padded(mask, 16).contiguous()[..., : mask.shape[-1]].expand(batch, heads, -1, -1)


CPU = CpuFlash()
KERNELS: tuple[Kernel, ...] = (CPU, CudnnAttention(), CudaFlash(), CudaEfficient())  # the fastest first


def kernel_for(inputs: Inputs) -> Kernel | None:
    """The fastest kernel that computes this; None where there is none."""
    if inputs.query.device.type == "cpu":
        return CPU
    if inputs.query.device.type != "cuda":
        return None
    return next((kernel for kernel in KERNELS if kernel.usable(inputs)), None)


def mask_dtype(query: Tensor) -> torch.dtype:
    """Of an additive mask: on a CPU float32 at least, elsewhere the query's own."""
    return torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype


def _torch_params(inputs: Inputs) -> SDPAParams:
    grouped = inputs.query.shape[1] != inputs.key.shape[1]
    return SDPAParams(*inputs[:3], _of_all_pairs(inputs), 0.0, inputs.causal, grouped)


def _of_all_pairs(inputs: Inputs) -> Tensor | None:
    if inputs.mask is None:
        return None
    return inputs.mask.expand(-1, -1, inputs.query.shape[2], inputs.key.shape[2])


def _padded(side: Tensor, multiple: int) -> Tensor:
    missing = -side.shape[-1] % multiple
    return F.pad(side, (0, missing)) if missing else side
