from __future__ import annotations

import pytest
import torch

from regard.attention.observation import Observation
from regard.attention.records.record import AttentionRecord, Axis
from regard.errors import ObservationError
from regard.lens.maps import choice_name, chosen_map, maps_of


def test_sides_that_nobody_described_are_numbered() -> None:
    maps = maps_of(AttentionRecord({"a": Observation(rows=torch.ones(2, 3, 5, 7) / 7)}))
    assert maps.target.tokens == ("0", "1", "2", "3", "4")
    assert len(maps.source) == 7
    assert maps.layers["a"].shape == (3, 5, 7)


def test_chosen_rows_take_their_tokens_along() -> None:
    query = Axis("a b c", ("a", "b", "c"), ((0, 1), (2, 3), (4, 5)))
    rows = torch.ones(1, 1, 2, 3, dtype=torch.bfloat16, requires_grad=True)
    maps = maps_of(AttentionRecord({"a": Observation(rows=rows, row_index=torch.tensor([2, 0]))}, query))
    assert maps.target.tokens == ("c", "a")
    assert maps.target.spans == ((4, 5), (0, 1))
    assert maps.layers["a"].dtype == torch.float32
    assert not maps.layers["a"].requires_grad


def test_a_choice_is_the_mean_over_what_was_not_chosen(dogs: AttentionRecord) -> None:
    maps = maps_of(dogs)
    first, last = maps.layers.values()
    torch.testing.assert_close(chosen_map(maps, None, None), (first.mean(0) + last.mean(0)) / 2)
    torch.testing.assert_close(chosen_map(maps, "mean", None), dogs.rows())
    torch.testing.assert_close(chosen_map(maps, "last", 1), last[1])
    torch.testing.assert_close(chosen_map(maps, None, 1), dogs.rows(head=1))
    assert choice_name(maps, None, None) == "mean of 2 layers, mean of all heads"
    assert choice_name(maps, "last", None) == "decoder.layers.1.cross, mean of 2 heads"
    assert choice_name(maps, None, 1) == "mean of 2 layers, head 1"
    with pytest.raises(ObservationError, match=r"layer `x` was not observed; observed: decoder\.layers\.0\.cross, "):
        chosen_map(maps, "x", None)
    with pytest.raises(ObservationError, match=r"`decoder\.layers\.1\.cross` has heads 0 to 1, head 2 was asked for"):
        chosen_map(maps, None, 2)


def test_every_layer_that_cannot_be_drawn_is_named_at_once() -> None:
    layers = {"a": Observation(entropy=torch.ones(1, 1, 2)), "b": Observation(rows=torch.full((1, 1, 2, 2), torch.nan))}
    with pytest.raises(
        ObservationError, match=r"^cannot draw the record: `a` holds no rows .*; `b` holds weights that"
    ):
        maps_of(AttentionRecord(layers))
    with pytest.raises(ObservationError, match="holds no layer"):
        maps_of(AttentionRecord({}))


def test_layers_and_axes_of_other_lengths_are_refused() -> None:
    layers = {"a": Observation(rows=torch.ones(1, 1, 2, 3)), "self": Observation(rows=torch.ones(1, 1, 2, 2))}
    with pytest.raises(ObservationError, match="`self` maps 2 x 2 positions, not those of `a`; keep the layers that"):
        maps_of(AttentionRecord(layers))
    axis = Axis("a", ("a",), ((0, 1),))
    with pytest.raises(ObservationError, match="rows up to 1 but 1 query tokens; 3 columns but 1 key tokens"):
        maps_of(AttentionRecord({"a": layers["a"]}, axis, axis))
