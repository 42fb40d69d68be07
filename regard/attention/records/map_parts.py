"""Parts of one layer's attention map, from whatever was kept of it: rows, a trace, or a map pooled over a grid.

A head is a query head by its number in the model, also where only some were observed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.attention import trace
from regard.attention.observation import Observation
from regard.attention.records.record_file import coarser
from regard.errors import ObservationError

# Whole maps made out of a trace hold at most so many weights (64 MiB in float32): what is larger is asked for in parts.
MOST_WEIGHTS = 2**24
MOST_SHOWN = 8  # positions or layers that an error lists

Range = tuple[int, int] | slice  # half-open range of positions


def tile(layer: str, observation: Observation, head: int, queries: Range, keys: Range, item: int) -> Tensor:
    """See `AttentionRecord.tile`."""
    pairs, stored = observation.trace, observation.rows
    if pairs is None and stored is None:
        raise ObservationError(f"layer `{layer}` holds neither a trace nor rows; observe with trace=True")
    place, rows, columns = area(layer, observation, head, queries, keys, item)
    if pairs is not None and observation.logsumexp is not None:
        return trace.tile(pairs, observation.logsumexp, item, place, rows, columns)
    if stored is None:
        raise ObservationError(f"layer `{layer}` holds a trace without its logsumexp; observe with trace=True")
    places = _stored_places(layer, observation, range(*rows))
    found = stored[item, place, places, columns[0] : columns[1]]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def area(
    layer: str, observation: Observation, head: int, queries: Range, keys: Range, item: int
) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Where a head stands among the observed ones, and the ranges of queries and keys as (begin, end).

    Raises: ObservationError, listing all that the layer does not have.
    """
    place, wrong = place_of_head(observation, head)
    query_len, key_len = lengths(observation)
    found = []
    for side, asked, length in (("queries", queries, query_len or 0), ("keys", keys, key_len or 0)):
        begin, end, step = asked.indices(length) if isinstance(asked, slice) else (*asked, 1)
        if isinstance(asked, slice):
            end = max(begin, end)
        if step != 1:
            wrong.append(f"{side} in steps of 1, not of {step}")
        if not 0 <= begin <= end <= length:
            wrong.append(f"{side} 0 to {length}, not {begin} to {end}")
        found.append((begin, end))
    per_item = (tensor.shape[0] for name, tensor in observation.tensors().items() if not is_index(name))
    batch = next(per_item, 0) if observation.trace is None else observation.trace.batch
    _check(layer, wrong + _wrong_item(item, batch))
    return place, found[0], found[1]


def rows(layer: str, observation: Observation, head: int | None, queries: Sequence[int] | None, item: int) -> Tensor:
    """Rows of one layer, [num_rows, key_len] as float32: stored ones where they suffice, otherwise the trace's."""
    stored, pairs, logsumexp = observation.rows, observation.trace, observation.logsumexp
    place, wrong = (None, []) if head is None else place_of_head(observation, head)
    if stored is not None and (queries is None or pairs is None):
        _check(layer, wrong + _wrong_item(item, stored.shape[0]))
        weights = stored[item].float()
        if queries is not None:
            weights = weights[:, _stored_places(layer, observation, queries)]
        return weights.mean(0) if place is None else weights[place]
    if pairs is None or logsumexp is None:
        raise ObservationError(f"layer `{layer}` holds no rows; observe with rows='all'")
    index = range(pairs.query_len) if queries is None else queries
    outside = [query for query in index if not -pairs.query_len <= query < pairs.query_len]
    if outside:
        wrong.append(f"queries 0 to {pairs.query_len - 1}, not {_listed(outside)}")
    _check(layer, wrong + _wrong_item(item, pairs.batch))
    _check_size(layer, len(index), pairs.key_len, 1)
    places = torch.tensor([query % pairs.query_len for query in index], dtype=torch.int64, device=logsumexp.device)
    heads = range(pairs.heads) if place is None else [place]
    return torch.stack([trace.rows(pairs, logsumexp, item, one, places).float() for one in heads]).mean(0)


def whole_rows(layer: str, observation: Observation, items: Sequence[int] | None = None) -> Tensor:
    """[batch, heads, num_rows, key_len] as float32: the stored rows, or the whole maps of a trace.

    items: of the batch; all unless given. Raises: ObservationError for more than MOST_WEIGHTS weights of a trace.
    """
    pairs, logsumexp, stored = observation.trace, observation.logsumexp, observation.rows
    if stored is None and (pairs is None or logsumexp is None):
        raise ObservationError(f"layer `{layer}` holds no rows; observe with rows='all'")
    batch = pairs.batch if stored is None and pairs is not None else len(stored) if stored is not None else 0
    items = range(batch) if items is None else items
    _check(layer, [problem for item in items for problem in _wrong_item(item, batch)])
    if stored is not None:
        return stored[list(items)].float()
    assert pairs is not None and logsumexp is not None
    _check_size(layer, pairs.query_len, pairs.key_len, len(items) * pairs.heads)
    found = logsumexp.new_zeros((len(items), pairs.heads, pairs.query_len, pairs.key_len), dtype=torch.float32)
    for place, item in enumerate(items):
        for head in range(pairs.heads):
            area = (0, pairs.query_len), (0, pairs.key_len)
            found[place, head] = trace.tile(pairs, logsumexp, item, head, *area)
    return found


def pooled(
    layer: str,
    observation: Observation,
    head: int | None,
    level: int,
    item: int,
    stored: Callable[[int], Tensor | None],
) -> Tensor:
    """See `AttentionRecord.pooled`. stored: level -> all items' and heads' map at it, where a file holds that."""
    if observation.pooled is None:
        raise ObservationError(f"layer `{layer}` holds no pooled map; observe with pooled=(rows, columns)")
    place, wrong = (None, []) if head is None else place_of_head(observation, head)
    levels = max(max(observation.pooled.shape[-2:]) - 1, 0).bit_length()
    if not 0 <= level <= levels:
        wrong.append(f"levels 0 to {levels}, not {level}")
    _check(layer, wrong + _wrong_item(item, observation.pooled.shape[0]))
    finer = ((reached, found) for reached in range(level, 0, -1) if (found := stored(reached)) is not None)
    reached, weights = next(finer, (0, observation.pooled))
    weights = weights[item] if place is None else weights[item, place : place + 1]
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).mean(0)
    for _ in range(reached, level):
        weights = coarser(weights)
    return weights


def lengths(observation: Observation) -> tuple[int | None, int | None]:
    """(query_len, key_len), each None where nothing that was kept tells it."""
    pairs, rows = observation.trace, observation.rows
    if pairs is not None:
        return pairs.query_len, pairs.key_len
    per_query = ("logsumexp", "entropy", "max_logit", "sink_mass", "top_weights", "columns")
    tensors = observation.tensors()
    query_len = next((tensors[name].shape[2] for name in per_query if name in tensors), None)
    if query_len is None and rows is not None:
        query_len = max(row_index(observation), default=-1) + 1
    key_len = next((tensors[name].shape[-1] for name in ("received", "rows") if name in tensors), None)
    return query_len, key_len


def is_whole(observation: Observation) -> bool:
    """Whether the rows of every query were kept."""
    if observation.rows is None:
        return False
    return row_index(observation) == list(range(lengths(observation)[0] or 0))


def row_index(observation: Observation) -> list[int]:
    """The queries that the stored rows belong to."""
    assert observation.rows is not None
    index = observation.row_index
    return list(range(observation.rows.shape[2])) if index is None else [int(query) for query in index]


def head_numbers(observation: Observation) -> list[int]:
    """The numbers of the heads that were observed."""
    if observation.head_index is not None:
        return [int(head) for head in observation.head_index]
    heads = (tensor.shape[1] for name, tensor in observation.tensors().items() if not is_index(name))
    return list(range(next(heads, 0)))


def is_index(statistic: str) -> bool:
    """Whether a statistic is a list of positions or heads, with no axis of items."""
    return statistic in ("row_index", "column_index", "head_index")


def place_of_head(observation: Observation, head: int) -> tuple[int, list[str]]:
    """Where a head stands among those that were observed, and what is wrong where it does not."""
    heads = head_numbers(observation)
    if head in heads:
        return heads.index(head), []
    known = f"heads 0 to {len(heads) - 1}" if observation.head_index is None else f"heads {_listed(heads)} alone"
    known = known if heads else "no heads"
    return 0, [f"{known}, head {head} was asked for"]


def _stored_places(layer: str, observation: Observation, queries: Sequence[int]) -> list[int]:
    """Where the rows of these queries stand among the stored ones."""
    place_of = {query: place for place, query in enumerate(row_index(observation))}
    missing = [query for query in queries if query not in place_of]
    if missing:
        raise ObservationError(
            f"layer `{layer}` holds the rows of {len(place_of)} queries, not of {_listed(missing)}; "
            "observe with trace=True"
        )
    return [place_of[query] for query in queries]


def _listed(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions[:MOST_SHOWN])) + (" ..." if len(positions) > MOST_SHOWN else "")


def _wrong_item(item: int, batch: int) -> list[str]:
    known = f"items 0 to {batch - 1}" if batch else "no items"
    return [] if 0 <= item < batch else [f"{known}, item {item} was asked for"]


def _check(layer: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise ObservationError(f"layer `{layer}` has {'; '.join(wrong)}")


def _check_size(layer: str, query_len: int, key_len: int, maps: int) -> None:
    if query_len * key_len * maps > MOST_WEIGHTS:
        count = f"{maps} maps of " if maps > 1 else ""
        raise ObservationError(
            f"layer `{layer}`: {count}{query_len} x {key_len} weights are too many to make at once (at most "
            f"{MOST_WEIGHTS}); choose rows with queries=, an area with record.tile, or a picture with record.plot"
        )
