"""Looks that know where the last one went: location-aware attention for a recurrence over frames.

Frames that sound alike are told apart by where they stand: filters run over the previous weights say how far each frame
lies before or behind the last look. Source: Chorowski et al. 2015, sec. 2.1, eq. 8 and 9.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.observation import Observe
from regard.attention.scores import LocationAware
from regard.errors import ConfigError
from regard.models.recurrent_attention import Looks, ReadMemory, query_request


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


def first_attended(memory: ReadMemory) -> Tensor:
    """The weights before the first look, [rows, 1, 1, source_len]: all on the first vector, where reading begins.

    The paper leaves them open. A look that always starts from somewhere is the same step at every token.
    """
    weights = memory.values.new_zeros(memory.values.shape[0], 1, 1, memory.values.shape[2])
    weights[..., :1] = 1.0
    return weights


class LocatedLooks(Looks):
    """The looks of `num_queries` steps, each scored with the weights of the one before.

    attended: [rows, 1, 1, source_len], before the first step and, after each, its own; carries gradient.
    """

    def __init__(
        self,
        name: str,
        memory: ReadMemory,
        filters: LocationFilters,
        attended: Tensor,
        num_queries: int,
        observe: Observe | None,
    ) -> None:
        super().__init__(name, memory, filters.score(attended), num_queries, observe)
        self.filters, self.attended = filters, attended

    def at(self, query: Tensor) -> Tensor:
        """The context [rows, memory_dim] of the next step's query [rows, key_dim]."""
        memory, request = self._memory, self._request
        query = query[:, None, None].to(memory.keys.dtype)
        score = self.filters.score(self.attended)
        asked = None if request is None else query_request(request, len(self._seen), self._num_queries)
        # The weights are asked for in the same call, unless what is asked hides some of them.
        hides = asked is not None and (asked.queries is not None or asked.heads is not None)
        together = Observe(rows="all") if asked is None or hides else replace(asked, rows="all")
        attended = attend(query, memory.keys, memory.values, score=score, mask=self._mask, observe=together)
        assert attended.observation.rows is not None
        self.attended = attended.observation.rows
        seen = attended.observation
        if asked is not None and hides:
            seen = attend(query, memory.keys, memory.values, score=score, mask=self._mask, observe=asked).observation
        elif asked is not None and asked.rows is None:
            seen = replace(seen, rows=None, row_index=None)
        elif asked is not None and asked.rows is not None and asked.rows != "all":
            kept = slice(len(asked.rows))  # the one row, or none
            seen = replace(seen, rows=self.attended[:, :, kept], row_index=None)
        if asked is not None:
            self._seen.append(seen)
        return attended.output[:, 0, 0]
