"""The position-wise feed-forward block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.dropout import Dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True)
class FeedForwardConfig:
    """activation(x W1) W2, or (activation(x W1) * (x V)) W2 when gated (Shazeer 2020)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    width: int  # inner width
    activation: Literal["relu", "gelu", "silu"] = "relu"
    gated: bool = False
    bias: bool = True
    dropout: float = 0.0  # on the inner activation


class FeedForward(nn.Module):
    """Vaswani et al. 2017, eq. 2."""

    def __init__(self, model_dim: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(model_dim, config.width * (2 if config.gated else 1), bias=config.bias)
        self.outer = nn.Linear(config.width, model_dim, bias=config.bias)
        self.dropout = Dropout(config.dropout)
        for linear in (self.inner, self.outer):
            # Glorot and Bengio 2010; gate and values of a gated block are one stacked matrix, with its smaller bound.
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """[batch, length, model_dim] -> the same shape."""
        activation = ACTIVATIONS[self.config.activation]
        hidden = self.inner(vectors)
        if self.config.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = activation(gate) * hidden
        else:
            hidden = activation(hidden)
        result: Tensor = self.outer(self.dropout(hidden))
        return result
