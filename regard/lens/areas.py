"""Areas of attention maps of any length, in no more cells than a picture can show.

A cell holds the share of the attention of its queries that fell on its keys: where a cell is one query and one key, the
weight; where it is many, the mass in it divided by its number of queries. So each row of cells sums to 1 over the whole
of the keys, whatever the grid, unless a sink without a value or an empty query takes something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention import trace
from regard.attention.records import map_parts
from regard.attention.records.map_parts import Range
from regard.attention.records.record import AttentionRecord
from regard.attention.records.record_file import coarser
from regard.errors import ObservationError

MOST_CELLS = 1024  # a side
# Pairs of a query and a key that are gone through again for a view of a whole record: some ten seconds on two cores.
MOST_PAIRS = 2**32


@dataclass(frozen=True)
class Area:
    """A part of one map, or of the mean of several.

    shares: [rows, columns], float32 on the CPU. queries, keys: the half-open ranges of positions that it covers.
    exact: whether a cell is one query and one key.
    """

    shares: Tensor
    queries: tuple[int, int]
    keys: tuple[int, int]
    exact: bool


def area_of(
    record: AttentionRecord,
    layer: str,
    head: int | None = None,
    *,
    queries: Range | None = None,
    keys: Range | None = None,
    item: int = 0,
    most: int = MOST_CELLS,
) -> Area:
    """An area of one layer's map; everything unless queries and keys are given, the mean over heads unless head is.

    most: cells a side, at most. What fits is exact, from the trace or from rows. What does not is pooled: the whole map
    from the pooled one where that was observed, otherwise by a second pass over the trace for each head.
    Raises: ObservationError where the layer holds none of them, for an area that is not there, and for weights that are
    not finite.
    """
    found = _area(record, layer, head, queries, keys, item, most)
    if not torch.isfinite(found.shares).all():
        raise ObservationError(f"layer `{layer}` holds weights that are not finite; look for NaN in the model")
    return found


def _area(
    record: AttentionRecord,
    layer: str,
    head: int | None,
    queries: Range | None,
    keys: Range | None,
    item: int,
    most: int,
) -> Area:
    observation = record[layer]
    everything = queries is None and keys is None
    heads = map_parts.head_numbers(observation) if head is None else [head]
    if observation.trace is None and not map_parts.is_whole(observation):
        if observation.pooled is None:
            raise ObservationError(
                f"layer `{layer}` holds no map to draw; observe with trace=True, pooled=(256, 256) or rows='all'"
            )
        if not everything:
            raise ObservationError(f"layer `{layer}`: an area is drawn from a trace or rows; observe with trace=True")
        return _observed(record, layer, head, item, most)
    if not heads:
        raise ObservationError(f"layer `{layer}` holds no heads to draw")
    for one in heads:  # checks them all before anything is computed
        _, rows, columns = map_parts.area(layer, observation, one, queries or slice(None), keys or slice(None), item)
    if max(rows[1] - rows[0], columns[1] - columns[0]) <= most:
        tiles = (record.tile(layer, one, rows, columns, item) for one in heads)
        return Area(_mean(tiles), rows, columns, True)
    if everything and observation.pooled is not None:
        return _observed(record, layer, head, item, most)
    maps = (_pooled(record, layer, one, rows, columns, most, item) for one in heads)
    return Area(_mean(maps), rows, columns, False)


def mean_area(record: AttentionRecord, layers: Sequence[str], head: int | None = None, *, most: int) -> Area:
    """The mean over layers of their whole maps.

    Raises: ObservationError where their maps differ in size, or where their traces are too long to be pooled now.
    """
    check_cost(record, layers, head, most)
    areas = [area_of(record, very(layer), head, most=most) for layer in layers]
    if len({(area.queries, area.keys, area.shares.shape) for area in areas}) > 1:
        sizes = ", ".join(
            f"`{layer}` {area.queries[1]} x {area.keys[1]}" for layer, area in zip(layers, areas, strict=True)
        )
        raise ObservationError(f"cannot draw the mean of maps that differ in size ({sizes}); choose one layer")
    return replace(areas[0], shares=torch.stack([area.shares for area in areas]).mean(0))


def very(layer: str) -> str:
    """The name of the very call that `record.layers` has under this name, also where the layer was called again."""
    return f"{layer}#0"


def check_cost(record: AttentionRecord, layers: Sequence[str], head: int | None, most: int) -> None:
    """Raises: ObservationError where pooling traces now, which were not pooled when observed, would take too long."""
    total = 0
    for layer in layers:
        observation = record.layers[layer]
        pairs = observation.trace
        if pairs is not None and observation.pooled is None and max(pairs.query_len, pairs.key_len) > most:
            total += pairs.query_len * pairs.key_len * (pairs.heads if head is None else 1)
    if total > MOST_PAIRS:
        raise ObservationError(
            f"cannot draw the record: pooling its traces would go through {total} pairs of queries and keys (at most "
            f"{MOST_PAIRS}); observe with pooled=(256, 256), or draw one map with record.plot(layer, head)"
        )


def _observed(record: AttentionRecord, layer: str, head: int | None, item: int, most: int) -> Area:
    """The whole map at the finest level of the pooled one that has at most so many cells a side."""
    observation = record[layer]
    assert observation.pooled is not None
    cells = tuple(observation.pooled.shape[-2:])
    level = (-(-max(*cells, 1) // most) - 1).bit_length()
    mass = record.pooled(layer, head, level, item).detach().float().cpu()
    # Lengths that nothing else tells are those of the axes; failing these, positions are counted in cells.
    axes = (record.query, record.key)
    query_len, key_len = (
        len(axis) if known is None and axis is not None else known
        for known, axis in zip(map_parts.lengths(observation), axes, strict=True)
    )
    if query_len is None:
        counts = mass.sum(1, keepdim=True)
        counts[counts == 0] = 1.0
    else:
        counts = torch.bincount(_cell_of(query_len, cells[0]), minlength=cells[0])[:, None].float()
        for _ in range(level):
            counts = coarser(counts)
        counts = counts.clamp(min=1)
    sides = [count if length is None else length for length, count in zip((query_len, key_len), cells, strict=True)]
    return Area(mass / counts, (0, sides[0]), (0, sides[1]), False)


def _pooled(
    record: AttentionRecord,
    layer: str,
    head: int,
    queries: tuple[int, int],
    keys: tuple[int, int],
    most: int,
    item: int,
) -> Tensor:
    """An area of one head pooled now: in a second pass over its trace, or from the rows that were kept."""
    observation = record[layer]
    num_queries, num_keys = queries[1] - queries[0], keys[1] - keys[0]
    grid = (_cells(num_queries, most), _cells(num_keys, most))
    row = _cell_of(num_queries, grid[0])
    if observation.trace is not None and observation.logsumexp is not None:
        place, _ = map_parts.place_of_head(observation, head)
        mass = trace.pooled(observation.trace, observation.logsumexp, item, place, queries, keys, grid).float().cpu()
    else:
        weights = record.tile(layer, head, queries, keys, item).detach().cpu()
        by_column = weights.new_zeros(num_queries, grid[1]).index_add_(1, _cell_of(num_keys, grid[1]), weights)
        mass = weights.new_zeros(grid).index_add_(0, row, by_column).float()
    return mass / torch.bincount(row, minlength=grid[0])[:, None].clamp(min=1)


def _cells(length: int, most: int) -> int:
    """So many cells that all of them hold the same number of positions, or nearly: uneven cells would draw stripes."""
    return -(-length // -(-length // most)) if length else 1


def _cell_of(length: int, cells: int) -> Tensor:
    """The cell that each position falls into, as `Observation.pooled` has it."""
    return torch.arange(length) * cells // max(length, 1)


def _mean(maps: Iterable[Tensor]) -> Tensor:
    total, count = torch.zeros(()), 0
    for one in maps:
        total, count = total + one.detach().float().cpu(), count + 1
    return total / count
