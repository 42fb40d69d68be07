"""The residual block that every Transformer layer is made of: x + dropout(f(norm(x))), or norm(x + dropout(f(x)))."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from regard.layers.dropout import Dropout
from regard.layers.norm import NormConfig


class Residual(nn.Module):
    """One norm, one dropout and their placement; the function between them is handed in at the call."""

    def __init__(self, model_dim: int, norm: NormConfig, dropout: float) -> None:
        super().__init__()
        self.norm = norm.build(model_dim)
        self.is_pre = norm.placement == "pre"
        self.dropout = Dropout(dropout)

    def forward(self, vectors: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """[batch, length, model_dim] -> the same shape."""
        if self.is_pre:
            result: Tensor = vectors + self.dropout(function(self.norm(vectors)))
        else:
            result = self.norm(vectors + self.dropout(function(vectors)))
        return result


def final_norm(model_dim: int, norm: NormConfig) -> nn.Module:
    """What follows the last block: a norm where blocks are pre-norm, as their sum is not normalised; else nothing."""
    return norm.build(model_dim) if norm.placement == "pre" else nn.Identity()
