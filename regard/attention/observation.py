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

from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError, ShapeError


@dataclass(frozen=True, eq=False)
class Observe:
    """Which statistics of an attention call are wanted. docs/observation.md says what each means and costs.

    logsumexp: of the allowed scores, per query; recovers any weight as exp(score - logsumexp).
    entropy: in nats, per query.
    max_logit: the largest allowed score, per query.
    received: the attention mass that each key gets, summed over queries; or, given weights [batch, query_len] in place
        of True, summed with these weights.
    sink_mass: the mass that each query gives to the first so many keys; 0 for none.
    top_k: the so many largest weights of each query and their keys; 0 for none.
    rows: full distributions of chosen queries: their indices, or 'all'. Linear only in the number of rows asked for.
    columns: what every query gives to chosen keys: their indices.
    pooled: (grid rows, grid columns): the mass summed over the cells of a grid laid over queries and keys.
    trace: queries, keys, logsumexp and mask as they are, from which any tile is recomputed exactly later.
    heads: only these query heads; all unless given.
    queries: bool [batch, query_len], which queries are real: the others count nowhere, and their own entries are those
        of a query that may attend to nothing.
    """

    logsumexp: bool = False
    entropy: bool = False
    max_logit: bool = False
    received: bool | Tensor = False
    sink_mass: int = 0
    top_k: int = 0
    rows: tuple[int, ...] | Literal["all"] | None = None
    columns: tuple[int, ...] | None = None
    pooled: tuple[int, int] | None = None
    trace: bool = False
    heads: tuple[int, ...] | None = None
    queries: Tensor | None = None

    def __bool__(self) -> bool:
        wanted = (self.logsumexp, self.entropy, self.max_logit, self.received is not False, self.sink_mass, self.top_k)
        return any(wanted) or any(map(_is_given, (self.rows, self.columns, self.pooled))) or self.trace


def _is_given(request: object) -> bool:
    return request is not None


@dataclass(frozen=True, eq=False, repr=False)
class Observation:
    """One call's statistics; a field that was not asked for is None. `heads` are those asked for.

    logsumexp, entropy, max_logit, sink_mass: [batch, heads, query_len]
    received: [batch, heads, key_len]
    top_weights, top_index: [batch, heads, query_len, top_k], largest first; where a query may attend to fewer keys the
        rest have weight 0 and index -1
    rows: [batch, heads, num_rows, key_len]; row_index: [num_rows], the queries that the rows belong to
    columns: [batch, heads, query_len, num_columns]; column_index: [num_columns], the keys that they belong to
    pooled: [batch, heads, grid rows, grid columns]; cell (r, c) holds the mass from the queries i with
        i * grid_rows // query_len == r to the keys j with j * grid_columns // key_len == c
    head_index: [heads], where only some were asked for
    trace: from which `regard.attention.trace` recomputes any tile; it needs `logsumexp`, which comes with it
    """

    logsumexp: Tensor | None = None
    entropy: Tensor | None = None
    max_logit: Tensor | None = None
    received: Tensor | None = None
    sink_mass: Tensor | None = None
    top_weights: Tensor | None = None
    top_index: Tensor | None = None
    rows: Tensor | None = None
    row_index: Tensor | None = None
    columns: Tensor | None = None
    column_index: Tensor | None = None
    pooled: Tensor | None = None
    head_index: Tensor | None = None
    trace: PairScores | None = None

    def __repr__(self) -> str:
        shapes = [f"{name}={list(tensor.shape)}" for name, tensor in self.tensors().items()]
        shapes += [] if self.trace is None else [f"trace of {list(self.trace.query.shape)}"]
        return f"Observation({', '.join(shapes)})"

    def tensors(self) -> dict[str, Tensor]:
        """The statistics that are there, by name; not the trace."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


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
