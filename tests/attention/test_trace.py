"""Parts of a map out of a trace against the materialised weights in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_pass_cases import CASES, SIZES, inputs, materialised, padded, random, window_and_global

from regard.attention import trace
from regard.attention.observation import Observe
from regard.attention.pair_scores import PairScores
from regard.attention.records.record import AttentionRecord
from regard.attention.second_pass import second_pass

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 5e-6}


def recorded(pairs: PairScores, path: Path) -> AttentionRecord:
    """The record of one call, saved and loaded."""
    observation = second_pass(pairs, Observe(trace=True))
    return AttentionRecord.load(AttentionRecord({"a": observation}).save(path / "a.safetensors"))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_tiles_of_a_saved_record_are_the_weights(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pairs = CASES[case](inputs(dtype=dtype))
    _, weights, _ = materialised(pairs)
    record = recorded(pairs, tmp_path)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for item, head, queries, keys in (
        (0, 0, (0, 53), (0, 67)),
        (1, 5, (7, 41), (5, 64)),
        (1, 2, (48, 53), (60, 67)),
        (0, 4, (52, 53), (66, 67)),
    ):
        found = record.tile("a", head, queries, keys, item)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        expected = weights[item, head, slice(*queries), slice(*keys)]
        torch.testing.assert_close(found.double(), expected, **close)
    rows = record.rows("a", 3, queries=[52, 0, -3], item=1)
    torch.testing.assert_close(rows.double(), weights[1, 3][[52, 0, 50]], rtol=5e-6, atol=5e-6)
    torch.testing.assert_close(record.rows("a").double(), weights[0].mean(0), rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_every_size(size: str, tmp_path: Path) -> None:
    pairs = inputs(**SIZES[size], dtype=torch.float64)
    _, weights, _ = materialised(pairs)
    record = recorded(pairs, tmp_path)
    torch.testing.assert_close(record.tile("a", 1, slice(None), slice(None), item=1), weights[1, 1])


area = st.tuples(st.integers(0, 53), st.integers(0, 53)).map(lambda ends: (min(ends), max(ends)))
keys_area = st.tuples(st.integers(0, 67), st.integers(0, 67)).map(lambda ends: (min(ends), max(ends)))


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(sorted(CASES)), item=st.integers(0, 1), head=st.integers(0, 5), queries=area, keys=keys_area
)
def test_any_area_is_a_call_of_its_own(
    case: str, item: int, head: int, queries: tuple[int, int], keys: tuple[int, int]
) -> None:
    pairs = CASES[case](inputs(dtype=torch.float64))
    _, weights, logsumexp = materialised(pairs)
    expected = weights[item, head, slice(*queries), slice(*keys)]
    torch.testing.assert_close(trace.tile(pairs, logsumexp, item, head, queries, keys), expected)
    if expected.numel():
        # The same through a kernel of the second pass, which relies on what `PairScores` promises of ranges.
        cut = trace.cut(pairs, item, head, queries, keys)
        if cut.ranges is not None:
            used = cut.ranges[..., 0] < cut.ranges[..., 1]
            assert (used[..., 1:] <= used[..., :-1]).all(), "unused ranges stand at the end"
            assert (cut.ranges[~used] == 0).all()
        found = trace.pooled(pairs, logsumexp, item, head, queries, keys, (3, 2))
        assert found.shape == (3, 2)
        torch.testing.assert_close(found.sum(), expected.sum())
        whole = trace.pooled(pairs, logsumexp, item, head, queries, keys, tuple(expected.shape))  # type: ignore[arg-type]
        torch.testing.assert_close(whole, expected)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = CASES["everything"](inputs(dtype=torch.float64))
    _, weights, logsumexp = materialised(pairs)
    monkeypatch.setattr(trace, "BLOCK_ELEMENTS", 67 * 5)
    torch.testing.assert_close(trace.tile(pairs, logsumexp, 1, 2, (3, 50), (0, 67)), weights[1, 2, 3:50])
    index = torch.tensor([9, 51, 3, 3, 0, 17, 44])
    torch.testing.assert_close(trace.rows(pairs, logsumexp, 1, 2, index), weights[1, 2, index])


@pytest.mark.parametrize("case", CASES)
def test_weighted_column_sums(case: str) -> None:
    pairs = CASES[case](inputs(dtype=torch.float64))
    _, weights, logsumexp = materialised(pairs)
    of_queries = random(pairs, pairs.query_len)
    torch.testing.assert_close(trace.received(pairs, logsumexp, 1, of_queries), of_queries @ weights[1])


def test_chosen_heads_keep_their_numbers(tmp_path: Path) -> None:
    pairs = CASES["everything"](inputs(dtype=torch.float64))
    _, weights, _ = materialised(pairs)
    observation = second_pass(pairs, Observe(trace=True, heads=(4, 1)))
    record = AttentionRecord.load(AttentionRecord({"a": observation}).save(tmp_path / "a.safetensors"))
    for head in (1, 4):
        torch.testing.assert_close(record.tile("a", head, (0, 53), (0, 67), item=1), weights[1, head])
    torch.testing.assert_close(record.rows("a").double(), weights[0, [1, 4]].mean(0), rtol=1e-6, atol=1e-6)


def test_a_tile_costs_what_it_holds() -> None:
    """Nothing as long as the sequence is copied or converted: the storage behind a cut is that of the whole."""
    pairs = replace(inputs(), bias=torch.zeros(2, 1, 53, 67).expand(2, 6, 53, 67), ranges=padded(inputs()))
    cut = trace.cut(pairs, 1, 5, (7, 11), (3, 17))
    for name in ("query", "key", "bias"):
        whole, part = getattr(pairs, name), getattr(cut, name)
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), name
    assert cut.ranges is not None
    assert cut.ranges.shape == (1, 4, 1, 2)


def test_a_cut_between_the_ranges_of_a_row() -> None:
    pairs = replace(inputs(), ranges=window_and_global(inputs()))
    cut = trace.cut(pairs, 0, 0, (40, 53), (2, 40))
    _, weights, logsumexp = materialised(pairs)
    found = trace.tile(pairs, logsumexp.float(), 0, 0, (40, 53), (2, 40))
    torch.testing.assert_close(found.double(), weights[0, 0, 40:53, 2:40], rtol=1e-5, atol=1e-6)
    assert cut.ranges is not None
    assert cut.ranges[0, -1].tolist() == [[0, 1], [0, 0]]
