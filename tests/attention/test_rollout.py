"""Rollout against the product of the matrices in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from second_pass_cases import CASES, causal, inputs, materialised

from regard.attention.observation import Observation, Observe
from regard.attention.pair_scores import PairScores
from regard.attention.records.record import AttentionRecord
from regard.attention.second_pass import second_pass
from regard.errors import ObservationError

LENGTH = 43


def layer(seed: int, case: str = "causal", dtype: torch.dtype = torch.float64) -> PairScores:
    pairs = inputs(query_len=LENGTH, key_len=LENGTH, dtype=dtype)
    shift = torch.randn(pairs.query.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return CASES[case](replace(pairs, query=pairs.query + shift))


def product(layers: list[PairScores], item: int) -> torch.Tensor:
    """The definition: (A + I) / 2 of every layer, multiplied up from the first."""
    found = torch.eye(LENGTH, dtype=torch.float64)
    for pairs in layers:
        weights = materialised(pairs)[1][item].mean(0)
        found = (weights + torch.eye(LENGTH, dtype=torch.float64)) / 2 @ found
    return found


def record_of(layers: list[PairScores]) -> AttentionRecord:
    return AttentionRecord(
        {f"layers.{place}.self": second_pass(pairs, Observe(trace=True)) for place, pairs in enumerate(layers)}
    )


@settings(deadline=None, max_examples=25)
@given(
    cases=st.lists(st.sampled_from(sorted(CASES)), min_size=1, max_size=4),
    queries=st.lists(st.integers(-LENGTH, LENGTH - 1), max_size=3),
    item=st.integers(0, 1),
)
def test_rollout_is_the_product_of_the_matrices(cases: list[str], queries: list[int], item: int) -> None:
    layers = [layer(place, case) for place, case in enumerate(cases)]
    expected = product(layers, item)
    record = record_of(layers)
    found = record.rollout(queries, item=item)
    assert found.shape == (len(queries), LENGTH)
    torch.testing.assert_close(found.double(), expected[queries] if queries else torch.zeros(0, LENGTH).double())
    torch.testing.assert_close(record.rollout(item=item), expected[-1])


def test_float32_and_a_saved_record(tmp_path: Path) -> None:
    layers = [layer(place, dtype=torch.float32) for place in range(3)]
    record = AttentionRecord.load(record_of(layers).save(tmp_path / "a.safetensors"))
    found = record.rollout(-1, layers="layers.*")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), product(layers, 0)[-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))


def test_stored_rows_serve_as_well_as_a_trace() -> None:
    layers = [layer(place) for place in range(3)]
    found = {f"layers.{place}": second_pass(pairs, Observe(rows="all")) for place, pairs in enumerate(layers)}
    found["layers.1"] = second_pass(layers[1], Observe(trace=True))
    torch.testing.assert_close(AttentionRecord(found).rollout([5, 7]), product(layers, 0)[[5, 7]])
    low = AttentionRecord({"a": Observation(rows=materialised(layers[0])[1].bfloat16())}).rollout(7)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), product(layers[:1], 0)[7], rtol=0.01, atol=0.01)


def test_the_order_of_the_layers_matters_and_can_be_chosen() -> None:
    layers = [layer(place, "plain") for place in range(2)]
    record = record_of(layers)
    forwards, backwards = record.rollout(), record.rollout(layers=["layers.1.self", "layers.0.self"])
    torch.testing.assert_close(backwards, product(layers[::-1], 0)[-1])
    assert (forwards - backwards).abs().max() > 1e-4


def test_every_layer_that_cannot_take_part_is_named() -> None:
    whole = second_pass(layer(0), Observe(trace=True))
    some = second_pass(layer(0), Observe(trace=True, heads=(1,)))
    cross = inputs(query_len=LENGTH, key_len=7)
    layers = {
        "layers.0": whole,
        "layers.1": some,
        "layers.2": second_pass(layer(0), Observe(rows=(3, 1))),
        "layers.3": second_pass(layer(0), Observe(entropy=True)),
        "layers.4": second_pass(replace(cross, ranges=causal(cross)), Observe(trace=True)),
    }
    with pytest.raises(ObservationError) as caught:
        AttentionRecord(layers).rollout(item=2)
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "`layers.0` holds items 0 to 1, not 2",
        "`layers.1` holds chosen heads alone (observe all heads)",
        "`layers.2` holds chosen rows alone (observe with trace=True)",
        "`layers.3` holds neither a trace nor rows (observe with trace=True)",
        "`layers.4` attends from 43 to 7 positions, expected 43 to 43",
        "choose the self-attention of one stack of layers with `layers=`",
    ):
        assert part in text


def test_stacks_are_not_mixed_and_calls_are_chosen() -> None:
    whole = second_pass(layer(0), Observe(trace=True))
    two = AttentionRecord({"encoder.layers.0.self": whole, "decoder.layers.0.self": whole})
    with pytest.raises(
        ObservationError, match=r"layers of 2 kinds \(encoder\.layers\.\*\.self, decoder\.layers\.\*\.self\); choose"
    ):
        two.rollout()
    torch.testing.assert_close(two.rollout(layers="encoder.*"), two.rollout(layers=["decoder.layers.0.self"]))
    twice = AttentionRecord({"layers.0": whole, "layers.0#1": whole})
    with pytest.raises(ObservationError, match=r"layer `layers\.0` was called 2 times; choose one call"):
        twice.rollout()
    torch.testing.assert_close(twice.rollout(layers=["layers.0#1"]), two.rollout(layers="encoder.*"))
    with pytest.raises(ObservationError, match=r"queries \[43\] asked for, but there are 43; ask within them"):
        twice.rollout(43, layers=["layers.0#1"])
    with pytest.raises(ObservationError, match="no layer was chosen"):
        twice.rollout(layers=[])
