from __future__ import annotations

import pytest
import torch

from regard.attention.distributions import Distribution, Softmax


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_softmax_over_the_allowed_keys(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(2, 3, 5, 7, generator=generator) * 30).to(dtype)
    allowed = torch.rand(2, 1, 5, 7, generator=generator) < 0.5
    allowed[:, :, :, 0] = True
    weights, logsumexp = Softmax().weights(scores, allowed)
    assert weights.dtype == logsumexp.dtype == torch.promote_types(dtype, torch.float32)
    exact = scores.double().masked_fill(~allowed, float("-inf"))
    torch.testing.assert_close(weights.double(), exact.softmax(-1), rtol=2e-5, atol=1e-30)
    torch.testing.assert_close(logsumexp.double(), exact.logsumexp(-1), rtol=1e-6, atol=1e-6)
    free, _ = Softmax().weights(scores, None)
    torch.testing.assert_close(free.double(), scores.double().softmax(-1), rtol=2e-5, atol=1e-30)


def test_an_empty_row_weighs_nothing_and_learns_nothing() -> None:
    scores = torch.randn(1, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[False] * 3, [True, True, False]])
    weights, logsumexp = Softmax().weights(scores, allowed)
    assert weights[0, 0, 0].tolist() == [0.0] * 3
    assert logsumexp[0, 0, 0] == float("-inf")
    assert not logsumexp.requires_grad
    weights.square().sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 0, 0].tolist() == [0.0] * 3
    assert scores.grad[0, 0, 1, :2].abs().min() > 0
    assert scores.grad[0, 0, 1, 2] == 0


def test_no_keys_at_all() -> None:
    weights, logsumexp = Softmax().weights(torch.zeros(2, 3, 5, 0), None)
    assert weights.shape == (2, 3, 5, 0)
    assert (logsumexp == float("-inf")).all()


def test_a_new_distribution_must_say_how() -> None:
    with pytest.raises(TypeError, match="Distribution does not say how to normalise"):
        Distribution().weights(torch.zeros(1, 1), None)
