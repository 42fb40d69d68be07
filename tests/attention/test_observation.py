from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention import second_pass
from regard.attention.attend import attend
from regard.attention.distributions import Softmax
from regard.attention.masks import Causal, Padding
from regard.attention.observation import Observation, Observe, observe_materialised, observe_rows
from regard.errors import ObservationError

BATCH, HEADS, KV_HEADS, QUERY_LEN, KEY_LEN, DIM = 2, 6, 3, 5, 7, 11
EVERYTHING = Observe(logsumexp=True, entropy=True, max_logit=True, received=True, rows="all")


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = [(BATCH, HEADS, QUERY_LEN, DIM), (BATCH, KV_HEADS, KEY_LEN, DIM), (BATCH, KV_HEADS, KEY_LEN, DIM)]
    query, key, value = (torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
    return query, key, value


def test_statistics_are_their_definitions() -> None:
    query, key, value = inputs()
    lengths = torch.tensor([4, 7])
    seen = attend(query, key, value, mask=Padding(lengths), observe=EVERYTHING).observation
    scores = query @ key.repeat_interleave(2, 1).transpose(-2, -1) / math.sqrt(DIM)
    for item, length in enumerate(lengths.tolist()):
        real = scores[item, :, :, :length]
        weights = real.softmax(-1)
        torch.testing.assert_close(seen.logsumexp[item], real.logsumexp(-1))
        torch.testing.assert_close(seen.max_logit[item], real.amax(-1))
        torch.testing.assert_close(seen.entropy[item], -(weights * weights.log()).sum(-1))
        torch.testing.assert_close(seen.rows[item, :, :, :length], weights)
        torch.testing.assert_close(seen.received[item, :, :length], weights.sum(-2))
        assert not seen.rows[item, :, :, length:].any()
        assert not seen.received[item, :, length:].any()
    assert seen.row_index.tolist() == list(range(QUERY_LEN))


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 19), queries=st.integers(1, 5))
def test_closed_forms_of_uniform_attention(length: int, queries: int) -> None:
    nought = torch.zeros(1, 1, queries, DIM)
    key = torch.randn(1, 1, length + 3, DIM)
    seen = attend(nought, key, key, mask=Padding(torch.tensor([length])), observe=EVERYTHING).observation
    for found in (seen.entropy, seen.logsumexp):
        torch.testing.assert_close(found, torch.full((1, 1, queries), math.log(length)))
    torch.testing.assert_close(seen.received[..., :length], torch.full((1, 1, length), queries / length))
    assert seen.max_logit.tolist() == [[[0.0] * queries]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mass_is_conserved_and_kept_per_query_head(dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype)
    seen = attend(query, key, value, observe=EVERYTHING).observation
    assert seen.rows.shape == (BATCH, HEADS, QUERY_LEN, KEY_LEN)
    torch.testing.assert_close(
        seen.rows.sum(-1).double(), torch.ones(BATCH, HEADS, QUERY_LEN).double(), rtol=0, atol=1e-6
    )
    received = seen.received.double().sum(-1)
    wanted = torch.full((BATCH, HEADS), float(QUERY_LEN), dtype=torch.float64)
    torch.testing.assert_close(received, wanted, rtol=0, atol=1e-5)
    assert (seen.entropy <= math.log(KEY_LEN) + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_without_keys(dtype: torch.dtype) -> None:
    query, key, value = inputs(dtype)
    output, seen = attend(query, key, value, mask=Padding(torch.tensor([0, 7])), observe=EVERYTHING)
    assert not output[0].any()
    for found in (seen.logsumexp, seen.max_logit):
        assert (found[0] == float("-inf")).all()
        assert found[1].isfinite().all()
    for found in (seen.entropy, seen.received, seen.rows):
        assert not found[0].any()
        assert found[1].isfinite().all()
    none = attend(query, key[:, :, :0], value[:, :, :0], observe=EVERYTHING)
    assert not none.output.any()
    assert (none.observation.max_logit == float("-inf")).all()
    assert not none.observation.entropy.any()


def test_only_rows_carry_gradient() -> None:
    query, key, value = (side.requires_grad_() for side in inputs())
    seen = attend(query, key, value, mask=Causal(), observe=EVERYTHING).observation
    assert [name for name, tensor in seen.tensors().items() if tensor.requires_grad] == ["rows"]
    goal = torch.randn(seen.rows.shape, dtype=torch.float64)
    found = torch.autograd.grad((seen.rows * goal).sum(), (query, key))
    scores = query @ key.repeat_interleave(2, 1).transpose(-2, -1) / math.sqrt(DIM)
    future = torch.ones(QUERY_LEN, KEY_LEN, dtype=torch.bool).triu(KEY_LEN - QUERY_LEN + 1)
    by_hand = scores.masked_fill(future, float("-inf")).softmax(-1)
    wanted = torch.autograd.grad((by_hand * goal).sum(), (query, key))
    torch.testing.assert_close(found, wanted)


def test_dropout_is_no_part_of_what_is_observed() -> None:
    query, key, value = inputs()
    plain = attend(query, key, value, observe=EVERYTHING)
    dropped = attend(query, key, value, observe=EVERYTHING, dropout=0.5)
    assert not torch.equal(plain.output, dropped.output)
    for name, tensor in plain.observation.tensors().items():
        torch.testing.assert_close(tensor, dropped.observation.tensors()[name])


def test_what_was_not_asked_for_is_none() -> None:
    query, key, value = inputs()
    assert not Observe()
    assert attend(query, key, value).observation.tensors() == {}
    assert attend(query, key, value, observe=Observe()).observation.tensors() == {}
    for name in ("logsumexp", "entropy", "max_logit", "received"):
        request = Observe(**{name: True})
        assert request
        assert list(attend(query, key, value, observe=request).observation.tensors()) == [name]
    assert Observe(received=torch.zeros(1, 2))


def test_chosen_rows() -> None:
    query, key, value = inputs()
    every = attend(query, key, value, observe=Observe(rows="all")).observation.rows
    some = attend(query, key, value, observe=Observe(rows=(3, -1, 0))).observation
    assert some.row_index.tolist() == [3, 4, 0]
    torch.testing.assert_close(some.rows, every[:, :, [3, 4, 0]])
    none = attend(query, key, value, observe=Observe(rows=())).observation
    assert none.rows.shape == (BATCH, HEADS, 0, KEY_LEN)
    with pytest.raises(ObservationError, match=r"rows \[5, -6\] asked for, but there are 5 queries"):
        observe_rows(Observe(rows=(0, 5, -6)), 5, torch.device("cpu"))


def test_received_may_weigh_queries() -> None:
    query, key, value = inputs()
    rows = attend(query, key, value, observe=Observe(rows="all")).observation.rows
    weights = torch.rand(BATCH, QUERY_LEN, dtype=torch.float64)
    found = attend(query, key, value, observe=Observe(received=weights)).observation.received
    torch.testing.assert_close(found, torch.einsum("bq,bhqk->bhk", weights, rows))
    real = torch.arange(QUERY_LEN) < torch.tensor([[3], [5]])
    found = attend(query, key, value, observe=Observe(received=real)).observation.received
    torch.testing.assert_close(found[0], rows[0, :, :3].sum(-2))
    with pytest.raises(ObservationError, match=r"received has weights of shape \(2, 4\), expected \(2, 5\): one a q"):
        attend(query, key, value, observe=Observe(received=weights[:, 1:]))


def test_a_distribution_without_logsumexp_refuses_it() -> None:
    scores = torch.zeros(1, 1, 2, 3)
    weights, _ = Softmax().weights(scores, None)
    with pytest.raises(ObservationError, match="logsumexp asked for, but this distribution has none"):
        observe_materialised(Observe(logsumexp=True), scores, weights, None, None)


def test_an_observation_is_equal_to_itself_alone_and_shown_by_its_shapes() -> None:
    one, other = (Observation(entropy=torch.zeros(2, 3, 5), rows=torch.zeros(2, 3, 1, 7)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
    assert repr(one) == "Observation(entropy=[2, 3, 5], rows=[2, 3, 1, 7])"
    assert repr(Observation()) == "Observation()"


def test_a_request_of_the_wrong_kind_is_refused_when_it_is_made() -> None:
    with pytest.raises(ObservationError) as caught:
        Observe(
            entropy="yes",  # type: ignore[arg-type]
            received=[1.0],  # type: ignore[arg-type]
            sink_mass=1.5,  # type: ignore[arg-type]
            top_k=-1,
            rows=3,  # type: ignore[arg-type]
            columns="all",  # type: ignore[arg-type]
            heads=(True,),
            pooled=4,  # type: ignore[arg-type]
            queries=[True],  # type: ignore[arg-type]
        )
    assert str(caught.value) == (
        "observe.entropy is 'yes', expected True or False; "
        "observe.received is list, expected True, or a tensor of weights [batch, query_len]; "
        "observe.sink_mass is 1.5, expected a number of keys, 0 for none; "
        "observe.top_k is -1, expected a number of keys, 0 for none; "
        "observe.rows is 3, expected their indices, or 'all'; "
        "observe.columns is 'all', expected their indices; "
        "observe.heads is (True,), expected their indices; "
        "observe.pooled is 4, expected (grid rows, grid columns), each at least 1; "
        "observe.queries is list, expected a bool tensor [batch, query_len]: which queries are real"
    )
    with pytest.raises(ObservationError, match=r"observe\.rows is a tensor of shape \(30, 30\), .*heads names none"):
        Observe(rows=torch.zeros(30, 30), heads=())  # type: ignore[arg-type]
    assert Observe(rows=[0, 1], columns=range(2), pooled=[2, 3])
    assert attend(*inputs(), observe=Observe(columns=())).observation.columns.shape == (BATCH, HEADS, QUERY_LEN, 0)


def test_rows_alone_make_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = inputs()
    with_others = attend(query, key, value, observe=Observe(rows=(1, -1), entropy=True, heads=(4, 0))).observation

    def forbidden(*arguments: object) -> None:
        raise AssertionError("a pass over all pairs")

    monkeypatch.setattr(second_pass, "_op", forbidden)
    alone = attend(query, key, value, observe=Observe(rows=(1, -1), heads=(4, 0))).observation
    assert list(alone.tensors()) == ["rows", "row_index", "head_index"]
    for name, found in alone.tensors().items():
        assert torch.equal(found, getattr(with_others, name)), name
    with pytest.raises(AssertionError, match="a pass over all pairs"):
        attend(query, key, value, observe=Observe(entropy=True))


def test_whether_rows_alone_are_asked_for() -> None:
    assert Observe(rows="all").asks_rows_alone
    assert Observe(rows="all", heads=(1,)).asks_rows_alone
    assert not Observe().asks_rows_alone
    assert not Observe(rows=(0,)).asks_rows_alone
    for other in ({"trace": True}, {"top_k": 1}, {"columns": ()}, {"queries": torch.ones(1, 1, dtype=torch.bool)}):
        assert not Observe(rows="all", **other).asks_rows_alone
        assert Observe(rows="all", **other).beside_rows == list(other)
