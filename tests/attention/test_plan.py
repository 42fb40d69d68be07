"""A plan says of every pair exactly what the ranges say, whatever the mask and wherever tiles begin and end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from backend_cases import COMPACT, LENGTHS, small_tiles
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from regard.attention.backends import plan as planning
from regard.attention.backends.plan import Abilities, Block, Tile, plan
from regard.attention.masks import Causal, Global, Mask, Packed, Padding, Window


def allowed_by(ranges: NDArray[np.int32], batch: int, key_len: int) -> NDArray[np.bool_]:
    keys = np.arange(key_len)
    within = (keys >= ranges[..., :1]) & (keys < ranges[..., 1:])
    return np.broadcast_to(within.any(-2), (batch, *within.shape[1:2], key_len))


def covered_by(blocks: list[Block], batch: int, query_len: int, key_len: int) -> NDArray[np.bool_]:
    """What the tiles allow. Raises: AssertionError where blocks or the tiles of one overlap, or a query is left out."""
    found = np.zeros((batch, query_len, key_len), dtype=bool)
    times = np.zeros((batch, query_len), dtype=int)
    for block in blocks:
        items, rows = slice(block.first_item, block.last_item), slice(block.begin, block.end)
        times[items, rows] += 1
        taken = np.zeros(key_len, dtype=bool)
        for tile in block.tiles:
            assert 0 <= tile.begin < tile.end <= key_len
            assert not taken[tile.begin : tile.end].any(), "tiles of a block overlap"
            taken[tile.begin : tile.end] = True
            shape = (block.end - block.begin, tile.end - tile.begin)
            if tile.kind == "causal":
                assert shape[0] == shape[1], "no square"
                found[items, rows, tile.begin : tile.end] = np.tri(*shape, dtype=bool)
            elif tile.pattern() is None:
                found[items, rows, tile.begin : tile.end] = True
            else:
                assert tile.kind == "masked"
                found[items, rows, tile.begin : tile.end] = tile.pattern()
    assert (times == 1).all(), "a query stands in no block, or in several"
    return found


ABILITIES = [Abilities(), Abilities(causal=False, biased=True), Abilities(dense=True)]


@pytest.mark.parametrize("abilities", ABILITIES, ids=str)
@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("mask", COMPACT)
def test_a_plan_is_the_mask(mask: str, size: str, abilities: Abilities, monkeypatch: pytest.MonkeyPatch) -> None:
    query_len, key_len = LENGTHS[size]
    chosen = COMPACT[mask](query_len, key_len)
    ranges = None if chosen is None else chosen.lowered(3, query_len, key_len)[0]
    for small in (False, True):
        if small:
            small_tiles(monkeypatch)
        blocks = plan(None if ranges is None else ranges.numpy(), 3, query_len, key_len, abilities)
        found = covered_by(blocks, 3, query_len, key_len)
        wanted = np.ones_like(found) if ranges is None else allowed_by(ranges.numpy(), 3, key_len)
        assert (found == wanted).all()


@st.composite
def any_ranges(draw: st.DrawFn) -> tuple[NDArray[np.int32], int]:
    """(ranges [batch, query_len, 3, 2], key_len), with runs of equal and of growing ones among what is random."""
    key_len = draw(st.integers(1, 12))
    rows: list[list[tuple[int, int]]] = []
    for _ in range(draw(st.integers(1, 6))):
        ends = sorted(draw(st.lists(st.integers(0, key_len), min_size=6, max_size=6)))
        row = [(begin, end) for begin, end in zip(ends[::2], ends[1::2], strict=True) if end > begin]
        row = [one for place, one in enumerate(row) if place == 0 or one[0] > row[place - 1][1]]
        for step in range(draw(st.integers(1, 5))):
            grown = draw(st.booleans()) and bool(row) and row[-1][1] + step <= key_len
            rows.append([*row[:-1], (row[-1][0], row[-1][1] + step)] if grown else row)
    padded = [[*row, *[(0, 0)] * (3 - len(row))] for row in rows]
    batch = draw(st.integers(1, 2))
    items = [padded if draw(st.booleans()) else padded[::-1] for _ in range(batch)]
    return np.array(items, dtype=np.int32), key_len


@settings(deadline=None, max_examples=300)
@given(case=any_ranges(), abilities=st.sampled_from(ABILITIES), shortest=st.integers(1, 4), rows=st.integers(1, 5))
def test_law_any_ranges_are_planned(
    case: tuple[NDArray[np.int32], int], abilities: Abilities, shortest: int, rows: int
) -> None:
    ranges, key_len = case
    before = {name: getattr(planning, name) for name in ("SHORTEST_RUN", "BLOCK_ROWS", "WIDEST_GAP", "SPLIT_FROM")}
    try:
        for name, value in zip(before, (shortest, rows, 1, 2), strict=True):
            setattr(planning, name, value)
        blocks = plan(ranges, len(ranges), ranges.shape[1], key_len, abilities)
    finally:
        for name, value in before.items():
            setattr(planning, name, value)
    found = covered_by(blocks, len(ranges), ranges.shape[1], key_len)
    assert (found == allowed_by(ranges, len(ranges), key_len)).all()


def of(mask: Mask, query_len: int, key_len: int, batch: int = 1) -> list[Block]:
    ranges, allowed = mask.lowered(batch, query_len, key_len)
    assert ranges is not None
    assert allowed is None
    return plan(ranges.numpy(), batch, query_len, key_len)


def shown(blocks: list[Block]) -> list[list[tuple[str, int, int]]]:
    return [[(tile.kind, tile.begin, tile.end) for tile in block.tiles] for block in blocks]


def test_a_continued_causal_sequence_is_a_rectangle_and_a_square() -> None:
    assert shown(of(Causal(), 1000, 5000)) == [[("full", 0, 4000), ("causal", 4000, 5000)]]
    assert shown(of(Causal(), 1000, 1000)) == [[("causal", 0, 1000)]]
    # Queries before the first key see nothing; the first that sees a key stands alone, before the square.
    assert shown(of(Causal(), 1000, 300)) == [[], [("causal", 0, 300)]]


def test_padding_is_a_rectangle_an_item() -> None:
    assert shown(of(Padding([700, 700, 0, 1000]), 1000, 1000, batch=4)) == [
        [("full", 0, 700)],
        [],
        [("full", 0, 1000)],
    ]
    causal = of(Padding([700]) & Causal(), 1000, 1000)
    assert shown(causal) == [[("causal", 0, 700)], [("full", 0, 700)]]
    assert [(block.begin, block.end) for block in causal] == [(0, 700), (700, 1000)]


def test_documents_are_squares() -> None:
    packed = Packed(torch.arange(1000)[None] // 300)
    squares = [(0, 300), (300, 600), (600, 900), (900, 1000)]
    assert shown(of(packed, 1000, 1000)) == [[("full", *square)] for square in squares]
    assert shown(of(packed & Causal(), 1000, 1000)) == [[("causal", *square)] for square in squares]


def test_windows_are_narrow_tiles_whose_masks_repeat() -> None:
    blocks = of(Causal() & Window(200, 0), 4096, 4096)
    assert shown(blocks)[0] == [("causal", 0, 201)]
    assert {len(block.tiles) for block in blocks} == {1}
    patterns = {block.tiles[0].ranges.tobytes() for block in blocks[1:-1]}  # type: ignore[union-attr]
    assert len(patterns) == 1
    widths = {block.tiles[0].end - block.tiles[0].begin for block in blocks[1:-1]}
    assert widths == {200 + planning.BLOCK_ROWS}
    # Of wide windows only the edges are masked.
    wide = of(Window(2000, 2000), 8192, 8192)
    middle = wide[len(wide) // 2].tiles
    assert [tile.kind for tile in middle] == ["masked", "full", "masked"]
    assert middle[0].end - middle[0].begin < planning.BLOCK_ROWS_FAR


def test_global_tokens_are_a_tile_of_their_own() -> None:
    blocks = of(Window(200, 200) | Global(16), 4096, 4096)
    assert shown(blocks)[0] == [("full", 0, 4096)]
    kinds = shown(blocks)[len(blocks) // 2]
    assert [kind for kind, _, _ in kinds] == ["full", "masked"]
    assert kinds[0] == ("full", 0, 16)


def test_the_check_of_plans_can_fail() -> None:
    whole = Block(0, 1, 0, 3, (Tile(0, 5),))
    assert covered_by([whole], 1, 3, 5).all()
    with pytest.raises(AssertionError, match="in no block, or in several"):
        covered_by([whole, whole], 1, 3, 5)
    with pytest.raises(AssertionError, match="in no block, or in several"):
        covered_by([Block(0, 1, 0, 2, (Tile(0, 5),))], 1, 3, 5)
    with pytest.raises(AssertionError, match="overlap"):
        covered_by([Block(0, 1, 0, 3, (Tile(0, 3), Tile(2, 5)))], 1, 3, 5)
    with pytest.raises(AssertionError, match="no square"):
        covered_by([Block(0, 1, 0, 3, (Tile(0, 5, "causal"),))], 1, 3, 5)
