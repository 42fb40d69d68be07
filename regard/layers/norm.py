"""Normalisation of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn


@dataclass(frozen=True)
class NormConfig:
    """Which norm, and where a residual block puts it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "layer": Ba et al. 2016. "rms": Zhang and Sennrich 2019, no mean and no bias.
    kind: Literal["layer", "rms"] = "layer"
    # "pre": x + f(norm(x)) with one more norm after the last block (Xiong et al. 2020).
    # "post": norm(x + f(x)) (Vaswani et al. 2017).
    placement: Literal["pre", "post"] = "pre"
    eps: float = 1e-5  # added to the variance (or mean square) before the root

    def build(self, model_dim: int) -> nn.Module:
        """A fresh norm over the last axis."""
        if self.kind == "layer":
            return nn.LayerNorm(model_dim, eps=self.eps)
        return nn.RMSNorm(model_dim, eps=self.eps)
