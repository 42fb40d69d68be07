"""The output head: hidden vectors become scores over the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadConfig:
    """The last linear map of a decoder."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    bias: bool = False  # one number an output, zero at the start


class OutputHead(nn.Module):
    """logits = h W^T + b. `weight` may be the embedding's own (Press and Wolf 2017)."""

    def __init__(self, weight: nn.Parameter, config: HeadConfig) -> None:
        super().__init__()
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(weight.shape[0])) if config.bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., model_dim] -> [..., vocab]."""
        return F.linear(hidden, self.weight, self.bias)

    def log_probs(self, hidden: Tensor) -> Tensor:
        """[..., model_dim] -> log-probabilities [..., vocab], in float32 at least."""
        logits = self(hidden)
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
