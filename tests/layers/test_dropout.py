from __future__ import annotations

import math

import pytest
import torch

from regard.errors import ConfigError
from regard.layers.dropout import LEVELS, Dropout


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9, 0.999, 1 / 256])
def test_keep_rate_and_expectation(probability: float) -> None:
    torch.manual_seed(0)
    count = 100_003
    quantised = min(round(probability * LEVELS), LEVELS - 1) / LEVELS
    assert abs(quantised - probability) <= 0.5 / LEVELS + (probability > 0.99) / LEVELS
    dropped = Dropout(probability)(torch.ones(count))
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - quantised)))
    spread = math.sqrt(quantised * (1 - quantised) / count)
    assert abs(len(kept) / count - (1 - quantised)) < 5 * spread
    assert abs(dropped.mean().item() - 1.0) < 5 * spread / (1 - quantised)


def test_neighbouring_bytes_are_independent() -> None:
    """Eight mask bytes share one draw: each of the eight places, and each pair of neighbours, keeps at its own rate."""
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(8 * 20_011)) != 0).double().view(-1, 8)
    assert (kept.mean(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(kept))
    correlation = torch.corrcoef(kept.T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(len(kept))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 5)])
def test_the_gradient_has_the_mask_of_the_output(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    values = torch.randn(shape).to(dtype).requires_grad_()
    output = Dropout(0.4)(values)
    assert output.dtype == dtype
    assert output.shape == shape
    goal = torch.randn(shape).to(dtype)
    (output * goal).sum().backward()
    scale = LEVELS / (LEVELS - round(0.4 * LEVELS))
    mask = (output != 0).to(dtype)
    torch.testing.assert_close(output, values * mask * scale)
    torch.testing.assert_close(values.grad, goal * mask * scale)


def test_strided_values() -> None:
    torch.manual_seed(3)
    values = torch.randn(5, 7).T.requires_grad_()
    output = Dropout(0.5)(values)
    (gradient,) = torch.autograd.grad(output.sum(), values)
    assert torch.equal(gradient != 0, output != 0)


def test_identity_outside_training_and_at_nought() -> None:
    values = torch.randn(3, 5)
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0)(values) is values


def test_reproducible_from_the_global_seed() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.5)(torch.ones(2, 101))

    assert torch.equal(draw(4), draw(4))
    assert not torch.equal(draw(4), draw(5))


@pytest.mark.parametrize("probability", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_out_of_range_is_told(probability: float) -> None:
    with pytest.raises(ConfigError, match=f"dropout is {probability}, expected at least 0 and below 1"):
        Dropout(probability)


def test_it_says_what_it_is() -> None:
    assert repr(Dropout(0.1)) == "Dropout(probability=0.1016)"
