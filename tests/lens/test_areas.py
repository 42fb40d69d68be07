"""Areas of maps of any length: exact where they fit, pooled alike from whatever was kept where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regard.attention.observation import Observation, Observe
from regard.attention.pair_scores import PairScores
from regard.attention.records.record import AttentionRecord, Axis
from regard.attention.second_pass import second_pass
from regard.errors import ObservationError
from regard.lens import areas
from regard.lens.areas import area_of, mean_area

QUERIES, KEYS = 53, 67


def pairs_of(query_len: int = QUERIES, key_len: int = KEYS, heads: int = 3, seed: int = 0) -> PairScores:
    """Causal, aligned bottom-right."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, heads, length, 5, generator=generator).double() for length in (query_len, key_len))
    ends = torch.arange(query_len) + key_len - query_len + 1
    ranges = torch.stack([torch.zeros_like(ends), ends.clamp(min=0)], -1).int().view(1, -1, 1, 2)
    return PairScores(query, key, 0.7, ranges=ranges)


def weights_of(pairs: PairScores) -> Tensor:
    return second_pass(pairs, Observe(rows="all")).rows.float()  # type: ignore[union-attr]


def shares_of(weights: Tensor, rows: int, columns: int) -> Tensor:
    """By hand: mass of a cell over its number of queries."""
    num_queries, num_keys = weights.shape
    found, counts = torch.zeros(rows, columns), torch.zeros(rows, 1)
    for i in range(num_queries):
        counts[i * rows // num_queries] += 1
        for j in range(num_keys):
            found[i * rows // num_queries, j * columns // num_keys] += weights[i, j]
    return found / counts


def test_what_fits_is_exact() -> None:
    pairs = pairs_of()
    weights = weights_of(pairs)
    for observation in (second_pass(pairs, Observe(trace=True, pooled=(8, 8))), Observation(rows=weights)):
        record = AttentionRecord({"a": observation})
        whole = area_of(record, "a", 2, item=1)
        assert (whole.queries, whole.keys, whole.exact) == ((0, QUERIES), (0, KEYS), True)
        torch.testing.assert_close(whole.shares, weights[1, 2])
        part = area_of(record, "a", queries=(7, 11), keys=slice(-9, None))
        assert (part.queries, part.keys, part.exact) == ((7, 11), (58, 67), True)
        torch.testing.assert_close(part.shares, weights[0, :, 7:11, 58:].mean(0))
        assert part.shares.dtype == torch.float32


def test_what_does_not_fit_is_pooled_alike_from_rows_and_from_traces() -> None:
    pairs = pairs_of()
    weights = weights_of(pairs)
    for observation in (second_pass(pairs, Observe(trace=True)), Observation(rows=weights)):
        record = AttentionRecord({"a": observation})
        whole = area_of(record, "a", 2, most=20)
        assert not whole.exact
        torch.testing.assert_close(whole.shares, shares_of(weights[0, 2], 18, 17))
        part = area_of(record, "a", queries=(3, 44), keys=(5, 66), item=1, most=20)
        assert (part.queries, part.keys) == ((3, 44), (5, 66))
        torch.testing.assert_close(part.shares, shares_of(weights[1, :, 3:44, 5:66].mean(0), 14, 16))


def test_the_pooled_map_is_taken_where_it_was_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of()
    weights = weights_of(pairs)
    both = second_pass(pairs, Observe(pooled=(16, 32), trace=True))
    monkeypatch.setattr(areas.trace, "pooled", lambda *_: pytest.fail("no second pass where the map is there"))
    for observation in (both, replace(both, trace=None)):
        record = AttentionRecord({"a": observation})
        for most, rows, columns in ((32, 16, 32), (31, 8, 16), (8, 4, 8), (1, 1, 1)):
            area = area_of(record, "a", 1, most=most)
            assert (area.queries, area.keys, area.exact) == ((0, QUERIES), (0, KEYS), False) or observation is not both
            torch.testing.assert_close(area.shares, shares_of(weights[0, 1], rows, columns))
    alone = AttentionRecord({"a": Observation(pooled=both.pooled)})
    area = area_of(alone, "a", 1, most=8)
    assert (area.queries, area.keys) == ((0, 16), (0, 32)), "counted in cells where nothing tells the lengths"
    torch.testing.assert_close(area.shares.sum(1), torch.ones(4))
    named = alone.about(*(Axis("", ("x",) * length, ((0, 0),) * length) for length in (QUERIES, KEYS)))
    assert area_of(named, "a", 1).keys == (0, KEYS)


def test_areas_that_are_not_there_are_told() -> None:
    pairs = pairs_of()
    pooled = second_pass(pairs, Observe(pooled=(4, 4), heads=(2,)))
    layers = {"a": second_pass(pairs, Observe(trace=True)), "b": pooled, "c": second_pass(pairs, Observe(rows=(3,)))}
    record = AttentionRecord(layers)
    with pytest.raises(
        ObservationError, match="layer `a` has heads 0 to 2, head 3 was asked for; queries 0 to 53, not"
    ):
        area_of(record, "a", 3, queries=(50, 54))
    with pytest.raises(ObservationError, match="layer `b`: an area is drawn from a trace or rows; observe with trace="):
        area_of(record, "b", 2, queries=(0, 3))
    with pytest.raises(ObservationError, match="layer `b` has heads 2 alone, head 0 was asked for"):
        area_of(record, "b", 0)
    with pytest.raises(ObservationError, match="layer `c` holds no map to draw; observe with trace=True, pooled="):
        area_of(record, "c")
    with pytest.raises(ObservationError, match=r"differ in size \(`a` 53 x 67, `b` 53 x 5\); choose one layer"):
        mean_area(AttentionRecord({"a": layers["a"], "b": Observation(rows=torch.ones(1, 1, 53, 5))}), "ab", most=99)


def test_pooling_what_would_take_minutes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = AttentionRecord({"a": second_pass(pairs_of(), Observe(trace=True))})
    monkeypatch.setattr(areas, "MOST_PAIRS", 3 * QUERIES * KEYS - 1)
    with pytest.raises(ObservationError, match=r"would go through 10653 pairs .* observe with pooled=\(256, 256\), or"):
        mean_area(record, ["a"], most=20)
    assert mean_area(record, ["a"], 1, most=20).shares.shape == (18, 17)
    assert mean_area(record, ["a"], most=67).exact


def test_layers_called_again_are_each_themselves(tmp_path: Path) -> None:
    first, second = (second_pass(pairs_of(seed=seed), Observe(trace=True)) for seed in (0, 1))
    record = AttentionRecord({"a": first, "a#1": second})
    found = mean_area(record, ["a", "a#1"], most=99).shares
    both = [AttentionRecord({"a": one}).rows("a") for one in (first, second)]
    torch.testing.assert_close(found, (both[0] + both[1]) / 2)
