"""What can be observed of one call of attention, as a request (`Observe`) and as its answer (`Observation`).

Every statistic excludes dropout and the keys that the mask excludes, and is kept per query head. A mask knows nothing
of padded *queries*: `Observe.queries` says which are real, as the Transformer encoder does of its own accord.
Everything but `rows` is detached: rows carry gradient, because copying and coverage learn through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores
from regard.errors import ObservationError


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

    Raises: ObservationError, naming every field that is of the wrong kind.
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

    def __post_init__(self) -> None:
        problems = _misunderstood(self)
        if problems:
            raise ObservationError("; ".join(problems))

    def __bool__(self) -> bool:
        wanted = (self.logsumexp, self.entropy, self.max_logit, self.received is not False, self.sink_mass, self.top_k)
        return any(wanted) or any(map(_is_given, (self.rows, self.columns, self.pooled))) or self.trace

    @property
    def asks_rows_alone(self) -> bool:
        """Whether every row is wanted and nothing else, be it of all heads or of some."""
        return self.rows == "all" and not self.beside_rows

    @property
    def beside_rows(self) -> list[str]:
        """The names of the fields, but for `rows` and `heads`, that ask for something."""
        asked = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        return [
            name
            for name, (value, nothing) in asked.items()
            if name not in ("rows", "heads") and (isinstance(value, Tensor) or value != nothing)
        ]


def _is_given(request: object) -> bool:
    return request is not None


@dataclass(frozen=True, eq=False, repr=False)
class Observation:
    """One call's statistics; a field that was not asked for is None. `heads` are those asked for.

    logsumexp, entropy, max_logit, sink_mass: [batch, heads, query_len]
    received: [batch, heads, key_len]
    top_weights, top_index: [batch, heads, query_len, top_k], largest first, equal ones in any order; where a query may
        attend to fewer keys the rest have weight 0 and index -1
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


def problems_of(request: Observe, batch: int, heads: int, query_len: int, key_len: int) -> list[str]:
    """Every way in which a request does not fit a call of this size."""
    problems = []
    for name, bound, what in (("rows", query_len, "queries"), ("columns", key_len, "keys"), ("heads", heads, "heads")):
        chosen = getattr(request, name)
        if chosen is None or chosen == "all":
            continue
        if outside := [index for index in chosen if not -bound <= index < bound]:
            problems.append(f"observe.{name}: {outside} asked for, but there are {bound} {what}; ask within them")
    per_query = {(batch, query_len), (1, query_len)}
    if isinstance(request.received, Tensor) and tuple(request.received.shape) not in per_query:
        shape = tuple(request.received.shape)
        problems.append(f"observe.received has weights of shape {shape}, expected ({batch}, {query_len}): one a query")
    if request.queries is not None:
        shape, dtype = tuple(request.queries.shape), request.queries.dtype
        if shape not in per_query or dtype != torch.bool:
            problems.append(
                f"observe.queries is {dtype} of shape {shape}, expected torch.bool of ({batch}, {query_len}): "
                "which queries are real"
            )
    return problems


def _misunderstood(request: Observe) -> list[str]:
    """Every field of a request that is of the wrong kind, whatever call it is made of."""
    problems = []
    for name in ("logsumexp", "entropy", "max_logit", "trace"):
        if not isinstance(getattr(request, name), bool):
            problems.append(f"observe.{name} is {_told(getattr(request, name))}, expected True or False")
    if not isinstance(request.received, bool | Tensor):
        told = type(request.received).__name__
        problems.append(f"observe.received is {told}, expected True, or a tensor of weights [batch, query_len]")
    for name in ("sink_mass", "top_k"):
        count = getattr(request, name)
        if not _is_integer(count) or count < 0:
            problems.append(f"observe.{name} is {_told(count)}, expected a number of keys, 0 for none")
    for name in ("rows", "columns", "heads"):
        chosen = getattr(request, name)
        if chosen is None or (name == "rows" and chosen == "all"):
            continue
        if not isinstance(chosen, tuple | list | range) or not all(map(_is_integer, chosen)):
            wanted = "their indices, or 'all'" if name == "rows" else "their indices"
            problems.append(f"observe.{name} is {_told(chosen)}, expected {wanted}")
        elif name == "heads" and not chosen:
            problems.append("observe.heads names none; leave it out for all heads")
    grid = request.pooled
    if grid is not None:
        sides = grid if isinstance(grid, tuple | list) else ()
        if len(sides) != 2 or not all(_is_integer(side) and side > 0 for side in sides):
            problems.append(f"observe.pooled is {_told(grid)}, expected (grid rows, grid columns), each at least 1")
    if request.queries is not None and not isinstance(request.queries, Tensor):
        told = type(request.queries).__name__
        problems.append(f"observe.queries is {told}, expected a bool tensor [batch, query_len]: which queries are real")
    return problems


def _told(value: object) -> str:
    """A value in one line."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
    request: Observe,
    scores: Tensor,
    weights: Tensor,
    logsumexp: Tensor | None,
    allowed: Tensor | None,
    *,
    sink: Tensor | None = None,
    pairs: PairScores | None = None,
    begin: int = 0,
    query_len: int | None = None,
) -> Observation:
    """Every statistic read off a materialised distribution: the oracle that faster passes are held to.

    scores, weights: [batch, heads, query_tile, key_len], of all queries or, where `query_len` counts all, of those from
        `begin` on; what is asked for is always asked of all. Such blocks are put together by `joined`.
    logsumexp: [batch, heads, query_tile], or None where the distribution has none.
    sink: [heads], the logsumexp of a query that may attend to nothing; -inf unless given.
    pairs: what a trace holds, of all queries.

    Raises: ObservationError for logsumexp of a distribution that has none, and for a trace of scores that have none.
    """
    if (request.logsumexp or request.trace) and logsumexp is None:
        raise ObservationError("observe: logsumexp asked for, but this distribution has none; ask for rows instead")
    if request.trace and pairs is None:
        raise ObservationError("observe: trace asked for, but these scores are no products; ask for rows instead")
    index = torch.arange(begin, begin + weights.shape[2], device=weights.device)
    scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
    if request.queries is not None:
        hidden = ~request.queries.to(weights.device)[:, None, index, None]
        scores, weights = scores.masked_fill(hidden, float("-inf")), weights.masked_fill(hidden, 0.0)
        if logsumexp is not None:
            nothing = logsumexp.new_tensor(float("-inf")) if sink is None else sink.to(logsumexp)[None, :, None]
            logsumexp = torch.where(hidden[..., 0], nothing, logsumexp)
    head_index = None
    if request.heads is not None:
        head_index = torch.tensor(request.heads, dtype=torch.int64, device=weights.device) % weights.shape[1]
        scores, weights = scores[:, head_index], weights[:, head_index]
        logsumexp = None if logsumexp is None else logsumexp[:, head_index]
    rows, row_index = _chosen_rows(request, weights, begin, query_len)
    query_len = weights.shape[2] if query_len is None else query_len
    with torch.no_grad():
        weights = weights.detach()
        found = _per_query(request, scores.detach(), weights, logsumexp) | _per_key(request, weights, index, query_len)
        if request.trace and pairs is not None:
            found["trace"] = _trace(request, pairs)
    return Observation(rows=rows, row_index=row_index, head_index=head_index, **found)


def _per_query(request: Observe, scores: Tensor, weights: Tensor, logsumexp: Tensor | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if logsumexp is not None and (request.logsumexp or request.trace):
        found["logsumexp"] = logsumexp.detach()
    if request.entropy:
        found["entropy"] = torch.special.entr(weights).sum(-1)
    if request.max_logit:
        none = scores.new_full(scores.shape[:-1], float("-inf"))
        found["max_logit"] = scores.amax(-1) if scores.shape[-1] else none
    if request.sink_mass:
        found["sink_mass"] = weights[..., : request.sink_mass].sum(-1)
    if request.top_k:
        kept = min(request.top_k, weights.shape[-1])
        found["top_weights"] = weights.new_zeros(*weights.shape[:-1], request.top_k)
        found["top_index"] = torch.full_like(found["top_weights"], -1, dtype=torch.int64)
        largest, place = weights.topk(kept, dim=-1)
        found["top_weights"][..., :kept] = largest
        found["top_index"][..., :kept] = torch.where(largest > 0, place, -1)
    if request.columns is not None:
        key_len = weights.shape[-1]
        chosen = [column % key_len for column in request.columns]
        found["column_index"] = torch.tensor(chosen, dtype=torch.int64, device=weights.device)
        found["columns"] = weights[..., found["column_index"]]
    return found


def _per_key(request: Observe, weights: Tensor, index: Tensor, query_len: int) -> dict[str, Any]:
    """index: [query_tile], which of all queries these are."""
    found: dict[str, Any] = {}
    if isinstance(request.received, Tensor):
        of_queries = request.received.to(weights)[:, index]
        found["received"] = (of_queries[:, None, None, :] @ weights)[:, :, 0]
    elif request.received:
        found["received"] = weights.sum(-2)
    if request.pooled is not None:
        grid_rows, grid_columns = request.pooled
        key_len = weights.shape[-1]
        row = index * grid_rows // max(query_len, 1)
        column = torch.arange(key_len, device=weights.device) * grid_columns // max(key_len, 1)
        by_column = weights.new_zeros(*weights.shape[:-1], grid_columns).index_add_(-1, column, weights)
        pooled = weights.new_zeros(*weights.shape[:2], grid_rows, grid_columns)
        found["pooled"] = pooled.index_add_(2, row, by_column)
    return found


def _chosen_rows(
    request: Observe, weights: Tensor, begin: int, query_len: int | None
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(rows, which of all queries they are): in the order asked, or of a block of queries in their own order."""
    if request.rows is None:
        return None, None
    end = begin + weights.shape[2]
    if query_len is None or request.rows == "all":
        index = observe_rows(request, end if query_len is None else query_len, weights.device)
        index = index[begin:end] if request.rows == "all" else index
        return (weights if request.rows == "all" else weights[:, :, index]), index
    inside = sorted(row for row in {row % query_len for row in request.rows} if begin <= row < end)
    index = torch.tensor(inside, dtype=torch.int64, device=weights.device)
    return weights[:, :, index - begin], index


def _trace(request: Observe, pairs: PairScores) -> PairScores:
    if request.queries is not None:
        pairs = pairs.of_real_queries(request.queries)
    if request.heads is not None:
        pairs = pairs.select_heads(
            torch.tensor(request.heads, dtype=torch.int64, device=pairs.query.device) % pairs.heads
        )
    return pairs.detach()


def joined(blocks: Sequence[Observation], request: Observe, query_len: int) -> Observation:
    """The observation of all queries out of those of consecutive blocks of them, at least one."""
    first = blocks[0]
    found: dict[str, Any] = {
        name: torch.cat([getattr(block, name) for block in blocks], 2)
        for name in ("logsumexp", "entropy", "max_logit", "sink_mass", "top_weights", "top_index", "columns", "rows")
        if getattr(first, name) is not None
    }
    for name in ("received", "pooled"):
        if getattr(first, name) is not None:
            found[name] = sum((getattr(block, name) for block in blocks[1:]), getattr(first, name))
    if request.rows is not None:
        found["row_index"] = observe_rows(request, query_len, found["rows"].device)
        if request.rows != "all":  # they stand in the order of the queries
            order = sorted({row % query_len for row in request.rows})
            found["rows"] = found["rows"][:, :, [order.index(row % query_len) for row in request.rows]]
    return replace(first, **found)
