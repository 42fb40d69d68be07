"""Which kernel torch ran for a call of scaled dot-product attention, and the logsumexp that it kept.

`F.scaled_dot_product_attention` chooses a kernel by itself and returns its output alone. The kernels' own operators
return the logsumexp beside it: a dispatch mode around the one call sees them, changes nothing, and spares the second
pass a sweep over the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operator -> (what `seen.backend` calls it, where its logsumexp stands among its results). Signatures: native_functions
# of torch 2.13. The first axes of each logsumexp are [batch, heads, query_len]; some kernels pad the last or add one.
KERNELS: dict[str, tuple[str, int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": ("torch flash (cpu)", 1),
    "aten::_scaled_dot_product_flash_attention": ("torch flash (cuda)", 1),
    "aten::_scaled_dot_product_efficient_attention": ("torch memory-efficient (cuda)", 1),
    "aten::_scaled_dot_product_cudnn_attention": ("torch cuDNN (cuda)", 1),
    "aten::_scaled_dot_product_fused_attention_overrideable": ("torch fused (device's own)", 1),
    "aten::_native_multi_head_attention": ("torch fast path", -1),
}
ENCODER_LAYER = "aten::_transformer_encoder_layer_fwd"  # the fast path of a whole layer
SOFTMAXES = ("aten::_softmax", "aten::softmax.int", "aten::_safe_softmax")
WHOLE = torch.ops.aten.scaled_dot_product_attention.default


class KernelCapture(TorchDispatchMode):
    """Remembers the last fused kernel that ran inside the context.

    backend: its name, None where none ran (torch materialised the weights).
    logsumexp: [batch, heads, query_len] as the kernel returned it, or None.
    on_attention: called with the name of every operator that attends, or takes a softmax as over keys.
    """

    def __init__(self, on_attention: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self._on_attention = on_attention
        self.backend: str | None = None
        self.logsumexp: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is WHOLE:
            # Under inference mode the call arrives unopened; opened inside the mode, its kernel shows.
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.name() in KERNELS:
            self.backend, place = KERNELS[func.name()]
            self.logsumexp = result[place] if place >= 0 else None
        if self._on_attention is not None and _attends(func.name(), args):
            self._on_attention(func.name())
        return result

    def logsumexp_of(self, batch: int, heads: int, query_len: int) -> Tensor | None:
        """[batch, heads, query_len], float32 or float64; None where the kernel kept none that can be used."""
        found = self.logsumexp
        if found is None or found.ndim < 3 or found.shape[:2] != (batch, heads) or found.shape[2] < query_len:
            return None
        return found.detach().flatten(2)[:, :, :query_len]


def _attends(name: str, args: tuple[Any, ...]) -> bool:
    if name in SOFTMAXES:
        return args[0].ndim >= 4 and args[1] in (-1, args[0].ndim - 1)
    return name in KERNELS or name == ENCODER_LAYER


def backend_of(capture: KernelCapture, dropout: float) -> str:
    """What ran, in the words of `AttentionRecord.backend`."""
    if capture.backend is not None:
        return capture.backend
    return "torch math: dropout" if dropout > 0.0 else "torch math"
