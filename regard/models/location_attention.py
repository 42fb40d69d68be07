"""Scores that know where the last look went: location-aware attention for a recurrence over frames.

Frames that sound alike are told apart by where they stand: filters run over the previous weights say how far each frame
lies before or behind the last look. Source: Chorowski et al. 2015, sec. 2.1, eq. 8 and 9.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.attention.scores import LocationAware
from regard.errors import ConfigError
from regard.models.recurrent_attention import ReadMemory


class LocationFilters(nn.Module):
    """The score's own parameters: its vector w, the filters F, and U, which turns what they see into the score's width.

    num_filters; width: of a filter, in memory vectors, odd. Raises: ConfigError when they cannot be.
    """

    def __init__(self, num_filters: int, width: int, attention_dim: int) -> None:
        super().__init__()
        if num_filters < 1 or width < 1 or width % 2 == 0:
            raise ConfigError(
                f"attention-rnn: location_filters is {num_filters} and location_width {width}, expected at least one "
                "filter of an odd width"
            )
        self.vector = nn.Parameter(torch.empty(1, attention_dim).uniform_(-(attention_dim**-0.5), attention_dim**-0.5))
        self.filters = nn.Parameter(torch.empty(1, num_filters, width).uniform_(-(width**-0.5), width**-0.5))
        self.location = nn.Parameter(torch.empty(1, num_filters, attention_dim))
        nn.init.xavier_uniform_(self.location[0])

    def score(self, attended: Tensor) -> LocationAware:
        """attended: [rows, 1, 1, source_len], the weights of the last look."""
        return LocationAware(self.vector, self.filters, self.location, attended)

    def first(self, memory: ReadMemory) -> Tensor:
        """The weights before the first look, [rows, 1, 1, source_len]: all on the first vector, where reading begins.

        The paper leaves them open. A look that always starts from somewhere is the same step at every token.
        """
        weights = memory.values.new_zeros(memory.values.shape[0], 1, 1, memory.values.shape[2])
        weights[..., :1] = 1.0
        return weights

    def next(self, attended: Tensor, weights: Tensor) -> Tensor:
        """What the next score reads: the last weights."""
        return weights
