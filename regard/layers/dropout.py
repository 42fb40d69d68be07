"""Dropout whose random numbers cost one byte an element.

Torch's dropout on a CPU draws a float an element, which takes a fifth of a small model's training step. Here eight mask
bytes come out of one 64-bit draw, so the probability is a multiple of 1/256; the kept values are scaled by the inverse
of the quantised keep rate, so that the expectation is exact. Source of dropout: Srivastava et al. 2014.

The draws come from torch's global generator. Training seeds it from (seed, step, part), see `regard.training`, which
makes every mask a pure function of its place in the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.errors import ConfigError

LEVELS = 256


class _ByteDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, threshold: int) -> Tensor:
        count = values.numel()
        draws = torch.empty((count + 7) // 8, dtype=torch.int64, device=values.device)
        # The full range needs both signs: random_() alone leaves the top bit, hence a byte's top bit, at zero.
        draws.random_(-(2**63), 2**63 - 1)
        keep = (draws.view(torch.uint8)[:count] >= threshold).view(values.shape)
        ctx.save_for_backward(keep)
        ctx.scale = LEVELS / (LEVELS - threshold)
        return (values * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Zeroes each value with `probability` and scales the rest up; the identity outside training.

    The probability is rounded to the nearest multiple of 1/256, but to 255/256 at most: below 1, something is kept.

    Raises: ConfigError when the probability is not in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ConfigError(f"dropout is {probability}, expected at least 0 and below 1")
        self.threshold = min(round(probability * LEVELS), LEVELS - 1)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.threshold == 0:
            return values
        result: Tensor = _ByteDropout.apply(values, self.threshold)
        return result

    def extra_repr(self) -> str:
        return f"probability={self.threshold / LEVELS:.4g}"
