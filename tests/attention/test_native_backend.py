"""The backend in C that users choose by name: outputs, statistics, and what it leaves to others."""

from __future__ import annotations

import pytest
import torch
from backend_cases import MASKS, SCORES, sides

from regard.attention.attend import attend, explain_backend
from regard.attention.distributions import Sigmoid, SinkSoftmax, Softmax
from regard.attention.masks import Causal
from regard.attention.native import unavailable
from regard.attention.observation import Observe
from regard.errors import ConfigError

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no native code here: {unavailable()}")
WANTED = Observe(logsumexp=True, entropy=True, max_logit=True, received=True, sink_mass=2, rows=(0, -1), pooled=(3, 2))


@pytest.mark.parametrize("distribution", [Softmax(), SinkSoftmax()], ids=["softmax", "sink"])
@pytest.mark.parametrize("mask", MASKS)
def test_it_computes_what_the_reference_does(mask: str, distribution: Softmax) -> None:
    for query_len, key_len in ((17, 17), (5, 23), (29, 13)):
        inputs = [side.detach().float() for side in sides(query_len, key_len)]
        options = {"mask": MASKS[mask](query_len, key_len), "distribution": distribution, "observe": WANTED}
        found = attend(*inputs, backend="native", **options)
        truth = attend(*(side.double() for side in inputs), backend="reference", **options)
        torch.testing.assert_close(found.output.double(), truth.output, rtol=1e-5, atol=1e-6)
        for name, expected in truth.observation.tensors().items():
            mine = getattr(found.observation, name).double()
            torch.testing.assert_close(mine, expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@torch.no_grad()
def test_every_score_of_products(score: str) -> None:
    inputs = [side.detach().float() for side in sides(11, 19)]
    chosen = SCORES[score]
    found = attend(*inputs, score=chosen, mask=Causal(), backend="native")
    truth = attend(*inputs, score=chosen, mask=Causal(), backend="reference")
    torch.testing.assert_close(found.output, truth.output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "request_",
    [Observe(entropy=True), Observe(received=True), Observe(trace=True), Observe(entropy=True, heads=(1,)), WANTED],
    ids=["entropy", "received", "trace", "one head", "many"],
)
def test_observing_changes_no_bit(request_: Observe) -> None:
    inputs = [side.detach().float() for side in sides(23, 23)]
    plain = attend(*inputs, mask=Causal(), backend="native").output
    observed = attend(*inputs, mask=Causal(), backend="native", observe=request_)
    assert torch.equal(observed.output, plain)
    same = attend(*inputs, mask=Causal(), observe=request_).observation
    assert observed.observation.tensors().keys() == same.tensors().keys()
    for name, expected in same.tensors().items():
        torch.testing.assert_close(getattr(observed.observation, name), expected, rtol=1e-5, atol=1e-5)


def test_it_is_never_taken_unasked_and_refuses_what_it_cannot_do() -> None:
    inputs = [side.detach().float() for side in sides(7, 7)]
    assert explain_backend(*inputs).chosen == "fused"
    learning = [side.requires_grad_() for side in inputs]
    for options, reason in (
        ({}, "no gradient"),
        ({"distribution": Sigmoid()}, "softmax"),
        ({"dropout": 0.5}, "dropout"),
    ):
        with pytest.raises(ConfigError, match=reason):
            attend(*learning, backend="native", **options)
