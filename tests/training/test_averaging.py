"""Averages of weights against their closed forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regard.training.averaging import MovingAverage, load_weights, mean_of, swapped_in, weights_of


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.second = nn.Linear(3, 5)
        self.second.weight = self.first.weight
        self.inside = nn.Dropout(0.5)


def test_the_moving_average_of_constant_weights_is_those_weights() -> None:
    model = Tied()
    average = MovingAverage(model, 0.9)
    for step in range(1, 8):
        average.update(model, step)
    for name, tensor in average.weights.items():
        torch.testing.assert_close(tensor, dict(model.named_parameters())[name], rtol=1e-6, atol=0)


def test_the_moving_average_in_closed_form() -> None:
    """Weights k at update k: a_k = a_{k-1} + (1 - d_k) (k - a_{k-1}), with d_k = min(d, (1 + k) / (10 + k))."""
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, 0.5)
    expected = 0.0
    for step in range(1, 31):
        nn.init.constant_(model.weight, float(step))
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.weights["weight"], torch.full((1, 2), expected, dtype=torch.float64))
    first = 1 - 2 / 11  # the first update forgets the initial zero soon
    again = MovingAverage(nn.Linear(2, 1, bias=False), 0.5)
    nn.init.zeros_(again.weights["weight"])
    one = nn.Linear(2, 1, bias=False)
    nn.init.ones_(one.weight)
    again.update(one, 1)
    torch.testing.assert_close(again.weights["weight"], torch.full((1, 2), first))
    # Late, with a constant decay, weights that grow by one a step are seen 1 / (1 - d) - 1 = 1 step late.
    assert expected == pytest.approx(30 - 1, abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=7))
def test_the_mean_of_several(values: list[float]) -> None:
    many = [{"a": torch.full((2, 3), value), "b": torch.tensor(value, dtype=torch.float64)} for value in values]
    mean = mean_of(iter(many))
    exact = sum(torch.tensor(values, dtype=torch.float32).double()) / len(values)
    assert mean["a"].dtype == torch.float32
    assert mean["b"].dtype == torch.float64
    torch.testing.assert_close(mean["a"], torch.full((2, 3), float(exact)).float(), rtol=1e-6, atol=1e-6)


def test_the_mean_is_summed_in_float64() -> None:
    many = [{"a": torch.tensor([value])} for value in (1e8, 1.0, -1e8)]
    assert mean_of(many)["a"].item() == pytest.approx(1 / 3)  # float32 would lose the one


def test_weights_are_copies_with_shared_ones_once() -> None:
    model = Tied()
    weights = weights_of(model)
    assert list(weights) == ["first.weight", "first.bias", "second.bias"]
    weights["first.weight"].zero_()
    assert model.first.weight.abs().sum() > 0
    before = model.first.weight
    load_weights(model, weights)
    assert model.first.weight is before
    assert model.second.weight.abs().sum() == 0


@pytest.mark.parametrize("fails", [False, True])
def test_swapped_in_puts_everything_back(fails: bool) -> None:
    model = Tied().train()
    own = weights_of(model)
    others = {name: tensor + 1 for name, tensor in own.items()}

    def within() -> None:
        with swapped_in(model, others):
            assert not model.inside.training
            assert torch.equal(model.second.bias, others["second.bias"])
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            within()
    else:
        within()
    assert model.inside.training
    assert all(torch.equal(tensor, own[name]) for name, tensor in weights_of(model).items())
    with swapped_in(model, None):
        assert not model.training
        assert torch.equal(model.first.weight, own["first.weight"])
    assert model.training
