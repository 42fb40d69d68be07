from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.distributions import Distribution, Entmax15, Sigmoid, SinkSoftmax, Softmax, Sparsemax

HEADS = 3
SINKS = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
EVERY: dict[str, Distribution] = {
    "softmax": Softmax(),
    "off by one": SinkSoftmax(),
    "learned sinks": SinkSoftmax(SINKS),
    "sparsemax": Sparsemax(),
    "entmax15": Entmax15(),
    "sigmoid": Sigmoid(),
    "sigmoid, given bias": Sigmoid(-1.5),
    "sigmoid, bias a head": Sigmoid([-1.0, 0.0, 2.0]),
}
every = pytest.mark.parametrize("name", EVERY)


def random_scores(query_len: int = 5, key_len: int = 7, spread: float = 3.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, HEADS, query_len, key_len, generator=generator, dtype=torch.float64) * spread


def random_mask(query_len: int = 5, key_len: int = 7, seed: int = 0) -> Tensor:
    """Item 0's first query may attend to nothing."""
    allowed = torch.rand(2, 1, query_len, key_len, generator=torch.Generator().manual_seed(seed)) < 0.6
    allowed[..., 0] = True
    allowed[0, :, 0] = False
    return allowed


def by_hand(distribution: Distribution, scores: list[float], head: int) -> list[float]:
    """One row from the definition, in plain Python; the thresholds by bisection."""
    if not scores:
        return []
    match distribution:
        case Softmax() | SinkSoftmax():
            sink = distribution.sink(HEADS, torch.zeros((), dtype=torch.float64))
            shares = [math.exp(score) for score in scores]
            total = sum(shares) + (0.0 if sink is None else math.exp(float(sink[head])))
            return [share / total for share in shares]
        case Sigmoid():
            bias = -math.log(len(scores))
            if distribution.bias is not None:
                bias = float(distribution.bias.expand(HEADS)[head])
            return [1.0 / (1.0 + math.exp(-score - bias)) for score in scores]
    power, scale = (1, 1.0) if isinstance(distribution, Sparsemax) else (2, 0.5)
    low, high = scale * max(scores) - 1.0, scale * max(scores)
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(max(scale * score - middle, 0.0) ** power for score in scores)
        low, high = (middle, high) if total >= 1.0 else (low, middle)
    return [max(scale * score - low, 0.0) ** power for score in scores]


@every
@pytest.mark.parametrize("masked", [True, False])
def test_weights_are_their_definition(name: str, masked: bool) -> None:
    distribution, scores = EVERY[name], random_scores()
    allowed = random_mask() if masked else None
    weights, logsumexp = distribution.weights(scores, allowed)
    assert weights.dtype == scores.dtype
    assert (logsumexp is not None) == distribution.has_logsumexp
    shown = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed.expand(scores.shape)
    for place in [(item, head, query) for item in range(2) for head in range(HEADS) for query in range(5)]:
        kept = shown[place]
        assert weights[place][kept].tolist() == pytest.approx(
            by_hand(distribution, scores[place][kept].tolist(), place[1]), abs=1e-12
        )
        assert not weights[place][~kept].any()
        if logsumexp is not None and kept.any():
            key = int(weights[place].argmax())
            assert float((scores[place][key] - logsumexp[place]).exp()) == pytest.approx(float(weights[place][key]))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    scores, allowed = (random_scores(spread=10.0)).to(dtype), random_mask()
    weights, logsumexp = EVERY[name].weights(scores, allowed)
    exact, exact_logsumexp = EVERY[name].weights(scores.double(), allowed)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), exact, rtol=3e-5, atol=3e-6)
    if logsumexp is not None and exact_logsumexp is not None:
        assert logsumexp.dtype == torch.float32
        torch.testing.assert_close(logsumexp.double(), exact_logsumexp, rtol=1e-6, atol=1e-6)


@every
@pytest.mark.parametrize("masked", [True, False])
def test_gradients_are_exact(name: str, masked: bool) -> None:
    scores = random_scores(query_len=3, key_len=5, spread=1.0)[:1].requires_grad_()
    allowed = random_mask(3, 5)[:1] if masked else None
    assert torch.autograd.gradcheck(lambda given: EVERY[name].weights(given, allowed)[0], scores)
    assert torch.autograd.gradgradcheck(lambda given: EVERY[name].weights(given, allowed)[0], scores)


@every
def test_an_empty_row_weighs_nothing_and_learns_nothing(name: str) -> None:
    scores = random_scores(2, 3).requires_grad_()
    allowed = torch.tensor([[False] * 3, [True, True, False]])
    weights, logsumexp = EVERY[name].weights(scores, allowed)
    assert not weights[:, :, 0].any()
    if logsumexp is not None:
        sink = EVERY[name].sink(HEADS, scores)
        wanted = torch.full((HEADS,), -math.inf).double() if sink is None else sink
        assert torch.equal(logsumexp[:, :, 0], wanted.expand(2, HEADS))
        assert not logsumexp.requires_grad
    # The keys' weights are multiplied unlike, because those of a row may sum to a constant.
    (weights * torch.tensor([1.0, 2.0, 4.0])).square().sum().backward()
    assert scores.grad is not None
    assert not scores.grad[:, :, 0].any()
    assert not scores.grad[:, :, 1, 2].any()
    assert scores.grad[:, :, 1, :2].any()
    assert scores.grad.isfinite().all()


@every
def test_no_keys_at_all(name: str) -> None:
    for allowed in (None, torch.ones(2, 1, 5, 0, dtype=torch.bool)):
        weights, logsumexp = EVERY[name].weights(torch.zeros(2, HEADS, 5, 0), allowed)
        assert weights.shape == (2, HEADS, 5, 0)
        if logsumexp is not None:
            sink = EVERY[name].sink(HEADS, logsumexp)
            wanted = torch.full((HEADS, 1), -math.inf) if sink is None else sink[:, None]
            torch.testing.assert_close(logsumexp, wanted.expand(2, HEADS, 5))


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(list(EVERY)), seed=st.integers(0, 999), extra=st.integers(0, 4))
def test_masked_keys_are_as_if_they_were_not_there(name: str, seed: int, extra: int) -> None:
    """A padded row weighs its real keys as the row alone does; permuted keys are weighed alike."""
    scores = random_scores(3, 5 + extra, seed=seed)
    allowed = (torch.arange(5 + extra) < 5)[None, None, None]
    padded, _ = EVERY[name].weights(scores, allowed)
    alone, _ = EVERY[name].weights(scores[..., :5], None)
    torch.testing.assert_close(padded[..., :5], alone)
    assert not padded[..., 5:].any()
    order = torch.randperm(5 + extra, generator=torch.Generator().manual_seed(seed))
    permuted, _ = EVERY[name].weights(scores[..., order], allowed[..., order])
    torch.testing.assert_close(permuted, padded[..., order])


@every
def test_shifted_scores_weigh_alike_where_they_compete(name: str) -> None:
    scores = random_scores()
    shifted = torch.equal(
        EVERY[name].weights(scores + 2.0, None)[0].round(decimals=9),
        EVERY[name].weights(scores, None)[0].round(decimals=9),
    )
    assert shifted == (name in ("softmax", "sparsemax", "entmax15"))


# -- sparse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_len", [1, 2, 7, 301])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_sparse_distributions_are_those_of_entmax(key_len: int, spread: float) -> None:
    entmax = pytest.importorskip("entmax", reason="entmax is not installed")
    scores, again = (random_scores(5, key_len, spread).requires_grad_() for _ in range(2))
    goal = random_scores(5, key_len, seed=1)
    for ours, theirs in ((Sparsemax(), entmax.sparsemax), (Entmax15(), entmax.entmax15)):
        found, wanted = ours.weights(scores, None)[0], theirs(again, dim=-1)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            torch.autograd.grad((found * goal).sum(), scores), torch.autograd.grad((wanted * goal).sum(), again)
        )


@pytest.mark.parametrize("distribution", [Sparsemax(), Entmax15()], ids=lambda one: type(one).__name__)
def test_long_rows_of_float32_sum_to_1(distribution: Distribution) -> None:
    """What lies far below the greatest must not be added up: it would drown the few keys that matter."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 1, 3, 100_003, generator=generator)
    scores[0, 0, 1] *= 1e-3
    scores[0, 0, 2] *= 100.0
    weights, _ = distribution.weights(scores, None)
    exact, _ = distribution.weights(scores.double(), None)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(weights.double(), exact, rtol=1e-2, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_key_far_ahead_takes_exactly_everything(seed: int, dtype: torch.dtype) -> None:
    scores = random_scores(5, 11, seed=seed).to(dtype)
    best = scores.amax(-1, keepdim=True)
    ahead = torch.where(scores == best, best + 2.0, scores)
    for distribution in (Sparsemax(), Entmax15()):
        assert torch.equal(distribution.weights(ahead, None)[0], (scores == best).to(dtype))


def test_sparse_closed_forms() -> None:
    two = torch.tensor([[[[0.3, 0.0, -5.0]]]], dtype=torch.float64)
    assert Sparsemax().weights(two, None)[0].flatten().tolist() == pytest.approx([0.65, 0.35, 0.0])
    equal = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    for distribution in (Sparsemax(), Entmax15()):
        assert distribution.weights(equal, None)[0].flatten().tolist() == pytest.approx([0.25] * 4)
        apart = torch.tensor([[[[9.0, 0.0, 7.0]]]], dtype=torch.float64)
        assert distribution.weights(apart, None)[0].flatten().tolist() == [1.0, 0.0, 0.0]


# -- sinks and sigmoids ------------------------------------------------------------------------------------------------


def test_a_sink_is_one_more_column_as_in_gpt_oss() -> None:
    oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss", reason="transformers is not installed")
    query, key = random_scores(5, 4), random_scores(7, 4, seed=1)
    sinks, again = (SINKS.clone().requires_grad_() for _ in range(2))
    module = torch.nn.Module()
    module.sinks, module.num_key_value_groups, module.training = again, 1, False  # type: ignore[assignment]
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.float64).masked_fill(~random_mask(), torch.finfo(torch.float64).min)
    _, wanted = oss.eager_attention_forward(module, query, key, key, mask, scaling=0.5)
    found, logsumexp = SinkSoftmax(sinks).weights(query @ key.transpose(-2, -1) * 0.5, random_mask())
    torch.testing.assert_close(found, wanted)
    assert logsumexp is not None
    goal = random_scores(seed=2)
    torch.testing.assert_close(
        torch.autograd.grad((found * goal).sum(), sinks), torch.autograd.grad((wanted * goal).sum(), again)
    )


def test_sinks_are_handed_out_as_kernels_want_them() -> None:
    like = torch.zeros(1, dtype=torch.bfloat16)
    assert Softmax().sink(5, like) is None
    assert Sparsemax().sink(5, like) is None
    nought = SinkSoftmax().sink(5, like)
    assert nought is not None and nought.dtype == torch.float32 and nought.tolist() == [0.0] * 5
    learned = SinkSoftmax(SINKS.bfloat16().requires_grad_()).sink(3, like)
    assert learned is not None and learned.dtype == torch.float32 and learned.requires_grad
    assert SinkSoftmax([1.0, 2.0]).check(heads=3) == ["SinkSoftmax.logits has shape (2,), expected (3,)"]
    assert SinkSoftmax(SINKS).check(heads=3) == SinkSoftmax().check(heads=3) == Softmax().check(heads=3) == []


def test_a_sigmoid_counts_the_keys_that_the_query_may_see() -> None:
    scores = torch.zeros(1, 1, 3, 5)
    causal = torch.ones(3, 5, dtype=torch.bool).tril()
    weights, _ = Sigmoid().weights(scores, causal)
    # sigmoid(-log n) = 1 / (1 + n)
    torch.testing.assert_close(weights[0, 0], causal / torch.tensor([[2.0], [3.0], [4.0]]))
    of_all, _ = Sigmoid().weights(scores, torch.tensor([[[[True]], [[False]]]]))
    torch.testing.assert_close(of_all[0, :, 0, 0], torch.tensor([1 / 6, 0.0]))
    assert Sigmoid([1.0, 2.0]).check(heads=3) == ["Sigmoid.bias has shape (2,), expected (3,) or a number"]
    assert Sigmoid(1.0).check(heads=3) == Sigmoid([1.0] * 3).check(heads=3) == Sigmoid().check(heads=3) == []


def test_a_new_distribution_must_say_how() -> None:
    with pytest.raises(TypeError, match="Distribution does not say how to normalise"):
        Distribution().weights(torch.zeros(1, 1), None)
