"""What can be observed of one call of attention, as a request (`Observe`) and as its answer (`Observation`).

Every statistic excludes dropout and the keys that the mask excludes, and is kept per query head. A mask knows nothing
of padded *queries*: their entries of the per-query statistics mean nothing, and `received` leaves them out when they
are given the weight 0, as the Transformer encoder does. Everything but `rows` is detached: rows carry gradient, because
copying and coverage learn through them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from regard.errors import ObservationError, ShapeError


@dataclass(frozen=True)
class Observe:
    """Which statistics of an attention call are wanted.

    logsumexp: of the allowed scores, per query; recovers any weight as exp(score - logsumexp).
    entropy: in nats, per query.
    max_logit: the largest allowed score, per query.
    received: the attention mass that each key gets, summed over queries; or, given weights [batch, query_len] in place
        of True, summed with these weights.
    rows: full distributions of chosen queries: their indices, or 'all'. Linear only in the number of rows asked for.
    """

    logsumexp: bool = False
    entropy: bool = False
    max_logit: bool = False
    received: bool | Tensor = False
    rows: tuple[int, ...] | Literal["all"] | None = None

    def __bool__(self) -> bool:
        return self.logsumexp or self.entropy or self.max_logit or self.received is not False or self.rows is not None


@dataclass(frozen=True, eq=False, repr=False)
class Observation:
    """One call's statistics; a field that was not asked for is None.

    logsumexp, entropy, max_logit: [batch, heads, query_len]
    received: [batch, heads, key_len]
    rows: [batch, heads, num_rows, key_len]; row_index: [num_rows], the queries that the rows belong to
    """

    logsumexp: Tensor | None = None
    entropy: Tensor | None = None
    max_logit: Tensor | None = None
    received: Tensor | None = None
    rows: Tensor | None = None
    row_index: Tensor | None = None

    def __repr__(self) -> str:
        shapes = (f"{name}={list(tensor.shape)}" for name, tensor in self.tensors().items())
        return f"Observation({', '.join(shapes)})"

    def tensors(self) -> dict[str, Tensor]:
        """The statistics that are there, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


def observe_rows(request: Observe, query_len: int, device: torch.device) -> Tensor:
    """Indices of the asked-for rows; negative ones count from the end.

    Raises: ObservationError when an index lies outside the queries.
    """
    if request.rows == "all":
        return torch.arange(query_len, device=device)
    wrong = [row for row in request.rows or () if not -query_len <= row < query_len]
    if wrong:
        raise ObservationError(f"observe: rows {wrong} asked for, but there are {query_len} queries; ask within them")
    return torch.tensor([row % query_len for row in request.rows or ()], dtype=torch.int64, device=device)


def observe_materialised(
    request: Observe, scores: Tensor, weights: Tensor, logsumexp: Tensor | None, allowed: Tensor | None
) -> Observation:
    """Every statistic read off a materialised distribution: the oracle that faster passes are held to.

    scores, weights: [batch, heads, query_len, key_len]; logsumexp: [batch, heads, query_len] or None where the
    distribution has none.

    Raises: ObservationError for logsumexp of a distribution that has none; ShapeError for weights of `received` that do
    not fit the queries.
    """
    if request.logsumexp and logsumexp is None:
        raise ObservationError("observe: logsumexp asked for, but this distribution has none; ask for rows instead")
    rows = row_index = None
    if request.rows is not None:
        row_index = observe_rows(request, weights.shape[-2], weights.device)
        rows = weights if request.rows == "all" else weights[:, :, row_index]
    with torch.no_grad():
        return Observation(
            logsumexp=logsumexp.detach() if request.logsumexp and logsumexp is not None else None,
            entropy=torch.special.entr(weights).sum(-1) if request.entropy else None,
            max_logit=_max_logit(scores, allowed) if request.max_logit else None,
            received=None if request.received is False else _received(request.received, weights),
            rows=rows,
            row_index=row_index,
        )


def _max_logit(scores: Tensor, allowed: Tensor | None) -> Tensor:
    if scores.shape[-1] == 0:
        return scores.new_full(scores.shape[:-1], float("-inf"))
    return (scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))).amax(-1)


def _received(of_queries: bool | Tensor, weights: Tensor) -> Tensor:
    if isinstance(of_queries, bool):
        return weights.sum(-2)
    batch, _, query_len, _ = weights.shape
    if of_queries.shape not in {(batch, query_len), (1, query_len)}:
        shape = tuple(of_queries.shape)
        raise ShapeError(
            f"observe: received has weights of shape {shape}, expected ({batch}, {query_len}): one a query"
        )
    return (of_queries.to(weights)[:, None, None, :] @ weights)[:, :, 0]
