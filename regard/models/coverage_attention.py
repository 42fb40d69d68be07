"""A score that knows what each source word has received so far, so that a decoder can turn to others.

Source: See et al. 2017, sec. 2.3, eq. 10 and 11.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.attention.scores import CoverageAware
from regard.models.recurrent_attention import ReadMemory


class Coverage(nn.Module):
    """The score's own parameters: its vector v, and w_c, which starts from 0: at first coverage says nothing."""

    def __init__(self, attention_dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.empty(1, attention_dim).uniform_(-(attention_dim**-0.5), attention_dim**-0.5))
        self.weight = nn.Parameter(torch.zeros(1, attention_dim))

    def first(self, memory: ReadMemory) -> Tensor:
        """The coverage before the first look, [rows, 1, 1, source_len]: none."""
        return memory.values.new_zeros(memory.values.shape[0], 1, 1, memory.values.shape[2])

    def score(self, attended: Tensor) -> CoverageAware:
        """attended: [rows, 1, 1, source_len], the sum of all weights so far."""
        return CoverageAware(self.vector, self.weight, attended)

    def next(self, attended: Tensor, weights: Tensor) -> Tensor:
        """What the next score reads: the sum of all weights."""
        return attended + weights
