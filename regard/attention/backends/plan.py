"""Planning a mask as few calls of a kernel that knows no masks but causal ones and small dense ones.

What each query may attend to comes as ranges of keys (see `PairScores.ranges`). Consecutive queries with something in
common make a block, and what a block attends to is a few tiles, each one call of a kernel: rectangles, squares below
their diagonal, and narrow tiles with a mask of their own. Tiles of one block are merged by their logsumexp.

    equal ranges (padding, documents, prefixes)     a rectangle a range, however long
    ranges whose end grows with the query (causal)  a rectangle and a causal square
    anything else (windows)                         blocks of few queries over what they reach, masked at the
                                                    edges; the masks repeat from block to block

The plan is made on the host, out of numbers alone, in O(query_len); no tensor is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ranges = NDArray[np.int64]  # [queries, num_ranges, 2], half-open ranges of keys; (0, 0) is none

# Queries of a block whose ranges differ: more of them waste on masked pairs, fewer on small products. The second is for
# queries that reach `FAR` keys or more.
BLOCK_ROWS, BLOCK_ROWS_FAR, FAR = 128, 256, 1024
SHORTEST_RUN = 16  # fewer queries in a row with something in common are no block of their own
WIDEST_GAP = 64  # keys between two ranges that are masked rather than left out, at most
SPLIT_FROM = 1024  # so many keys that all queries of a block attend to are a tile without a mask
SPLIT_FROM_BIASED = 256  # the same where a mask is joined with a bias of every head, and is that much larger


@dataclass(frozen=True, eq=False)
class Tile:
    """Keys [begin, end) for the queries of a block.

    "full": every query attends to all of them. "causal": query i of the block to the first i + 1. "masked": where
    `ranges`, counted from `begin`, say so, and the call's dense mask, if there is one.
    """

    begin: int
    end: int
    kind: Literal["full", "causal", "masked"] = "full"
    ranges: Ranges | None = None

    def pattern(self) -> NDArray[np.bool_] | None:
        """bool [queries, end - begin], what `ranges` allow; None where that is all."""
        if self.ranges is None:
            return None
        keys = np.arange(self.end - self.begin)
        allowed = np.zeros((len(self.ranges), len(keys)), dtype=bool)
        for slot in range(self.ranges.shape[1]):  # one at a time needs no [queries, num_ranges, keys]
            allowed |= (keys >= self.ranges[:, slot, :1]) & (keys < self.ranges[:, slot, 1:])
        return allowed


@dataclass(frozen=True, eq=False)
class Block:
    """Items [first_item, last_item) of the batch, queries [begin, end), and what they attend to; nothing: no tiles."""

    first_item: int
    last_item: int
    begin: int
    end: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Abilities:
    """What tiles may be, and what they are joined with.

    causal: squares below their diagonal may be asked for. dense: a mask of all pairs is cut into the tiles, so that
    every tile is masked and every block short. biased: a masked tile is as many times larger as there are heads.
    """

    causal: bool = True
    dense: bool = False
    biased: bool = False


def plan(
    ranges: NDArray[np.integer] | None,
    batch: int,
    query_len: int,
    key_len: int,
    abilities: Abilities | None = None,
) -> list[Block]:
    """The blocks of a call: disjoint, and all of its queries.

    ranges: [batch or 1, query_len, num_ranges, 2] as in `PairScores`; None allows every key.
    """
    abilities = abilities or Abilities()
    if not batch or not query_len:
        return []
    if ranges is None:
        ranges = np.array([0, key_len]).reshape(1, 1, 1, 2).repeat(query_len, 1)
    blocks = []
    for first, last in _equal_items(ranges, batch):
        of_item = ranges[first if len(ranges) > 1 else 0].astype(np.int64)
        for begin, end, kind in _segments(of_item, abilities):
            tiles = _TILES[kind](of_item[begin:end], abilities)
            blocks.append(Block(first, last, begin, end, tuple(tiles)))
    return blocks


def _equal_items(ranges: NDArray[np.integer], batch: int) -> Iterator[tuple[int, int]]:
    """Neighbours in the batch with the same ranges, as [first, last)."""
    if len(ranges) == 1:
        yield 0, batch
        return
    changes = 1 + np.flatnonzero((ranges[1:] != ranges[:-1]).any(axis=(1, 2, 3)))
    borders = [0, *changes.tolist(), batch]
    yield from pairwise(borders)


def _segments(ranges: Ranges, abilities: Abilities) -> Iterator[tuple[int, int, str]]:
    """Cuts the queries of one item into [begin, end) that are "equal", "growing" or "mixed".

    Growing: from query to query the end of the last range moves on by one key, and nothing else moves.
    """
    query_len = len(ranges)
    kinds = _steps(ranges) if not abilities.dense else np.full(query_len - 1, _MIXED)
    if not abilities.causal:
        kinds[kinds == _GROWING] = _MIXED
    borders = [0, *(1 + np.flatnonzero(np.diff(kinds))).tolist(), query_len - 1]
    done = 0
    for first_step, last_step in pairwise(borders):
        # Steps [first, last) join the queries [first, last]; the first of them may belong to the run before.
        begin, end = max(first_step, done), last_step + 1
        if first_step == last_step or kinds[first_step] == _MIXED or end - begin < min(SHORTEST_RUN, query_len):
            continue
        yield from _blocks(ranges, done, begin)
        yield begin, end, "equal" if kinds[first_step] == _EQUAL else "growing"
        done = end
    yield from _blocks(ranges, done, query_len)


_EQUAL, _GROWING, _MIXED = 0, 1, 2


def _steps(ranges: Ranges) -> NDArray[np.int64]:
    """What becomes of the ranges from each query to the next: [query_len - 1]."""
    steps = np.diff(ranges, axis=0)
    num_used = (ranges[..., 1] > ranges[..., 0]).sum(-1)
    last = np.maximum(num_used[:-1] - 1, 0)  # unused ranges stand at the end
    moved = np.abs(steps).sum(axis=(1, 2))
    grown = np.take_along_axis(steps[..., 1], last[:, None], 1)[:, 0]
    grows = (moved == 1) & (grown == 1) & (num_used[:-1] > 0)
    return np.where(moved == 0, _EQUAL, np.where(grows, _GROWING, _MIXED))


def _blocks(ranges: Ranges, begin: int, end: int) -> Iterator[tuple[int, int, str]]:
    """Short blocks of queries that see about the same stretch of keys."""
    if begin == end:
        return
    used = ranges[begin:end, :, 1] > ranges[begin:end, :, 0]
    firsts, lasts = ranges[begin:end, 0, 0], ranges[begin:end, :, 1].max(-1)
    jumps = np.abs(np.diff(firsts)) + np.abs(np.diff(lasts)) > BLOCK_ROWS
    jumps |= np.diff(used.any(-1))
    cuts = begin + 1 + np.flatnonzero(jumps)
    if len(cuts) > (end - begin) // SHORTEST_RUN:  # no two queries alike: blocks of one would be too many
        cuts = cuts[:0]
    for first_row, last_row in pairwise([begin, *cuts.tolist(), end]):
        reach = (ranges[first_row:last_row, :, 1] - ranges[first_row:last_row, :, 0]).sum(-1).max()
        num_rows = BLOCK_ROWS if reach < FAR else BLOCK_ROWS_FAR
        for first in range(first_row, last_row, num_rows):
            yield first, min(first + num_rows, last_row), "mixed"


def _equal_tiles(rows: Ranges, abilities: Abilities) -> Iterator[Tile]:
    yield from (Tile(begin, end) for begin, end in rows[0].tolist() if end > begin)


def _growing_tiles(rows: Ranges, abilities: Abilities) -> Iterator[Tile]:
    """What the first query attends to is for all, but for its last key, where the square stands."""
    *others, (begin, end) = (one for one in rows[0].tolist() if one[1] > one[0])
    yield from (Tile(*one) for one in others)
    if end - 1 > begin:
        yield Tile(begin, end - 1)
    yield Tile(end - 1, end - 1 + len(rows), "causal")


def _mixed_tiles(rows: Ranges, abilities: Abilities) -> Iterator[Tile]:
    """What a block reaches, each stretch of it masked at both ends or all over."""
    begins, ends = rows[..., 0], rows[..., 1]
    used = ends > begins
    widest = SPLIT_FROM_BIASED if abilities.biased else SPLIT_FROM
    for first, last in _stretches(begins[used], ends[used]):
        within = used & (begins >= first) & (ends <= last)
        core = first, first  # keys that every query attends to; not looked for where one has two ranges in here
        if (within.sum(-1) == 1).all():
            core = int(begins[within].max()), int(ends[within].min())
        if abilities.dense:
            yield _masked(rows, first, last)
        elif core == (first, last):
            yield Tile(first, last)
        elif core[1] - core[0] >= widest:
            yield from (_masked(rows, *edge) for edge in [(first, core[0])] if edge[1] > edge[0])
            yield Tile(*core)
            yield from (_masked(rows, *edge) for edge in [(core[1], last)] if edge[1] > edge[0])
        else:
            yield _masked(rows, first, last)


def _stretches(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """The union of ranges, gaps of up to `WIDEST_GAP` closed, as [first, last) in order."""
    if not len(begins):
        return
    order = np.argsort(begins, kind="stable")
    starts, reached = begins[order], np.maximum.accumulate(ends[order])
    apart = 1 + np.flatnonzero(starts[1:] > reached[:-1] + WIDEST_GAP)
    for part in np.split(np.arange(len(order)), apart):
        yield int(starts[part[0]]), int(reached[part[-1]])


def _masked(rows: Ranges, begin: int, end: int) -> Tile:
    ranges = np.clip(rows, begin, end) - begin
    whole = ((ranges[..., 0] == 0) & (ranges[..., 1] == end - begin)).any(-1).all()
    return Tile(begin, end, "masked", None if whole else ranges)


_TILES = {"equal": _equal_tiles, "growing": _growing_tiles, "mixed": _mixed_tiles}
