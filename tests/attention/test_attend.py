from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard.attention.attend import BackendName, attend, explain_backend
from regard.attention.distributions import Distribution, SinkSoftmax, Softmax, Sparsemax
from regard.attention.masks import Causal, Mask, Padding
from regard.attention.modifiers import RelativeBias, SoftCap
from regard.attention.observation import Observe
from regard.attention.scores import Additive, Bilinear, Dot, LocationAware, ScaledDot, Score
from regard.errors import ConfigError, ObservationError, ShapeError

BATCH, HEADS, KV_HEADS, QUERY_LEN, KEY_LEN, DIM, VALUE_DIM = 2, 6, 3, 5, 7, 11, 13
# The backends with gradients, in every dtype; the one in C, which is taken by name alone, has tests of its own.
LEARNING: list[BackendName] = ["fused", "blocked", "reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTHS = torch.tensor([3, 7])
MASKS: dict[str, Mask | None] = {
    "none": None,
    "causal": Causal(),
    "padding": Padding(LENGTHS),
    "shared padding": Padding(torch.tensor([4])),
    "causal and padding": Causal() & Padding(LENGTHS),
    "causal or padding": Causal() | Padding(LENGTHS),
    "a source without words": Padding(torch.tensor([0, 5])),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def inputs(
    query_len: int = QUERY_LEN, key_len: int = KEY_LEN, value_dim: int = DIM, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    query = normal(BATCH, HEADS, query_len, DIM, dtype=dtype)
    key, value = normal(BATCH, KV_HEADS, key_len, DIM, seed=1), normal(BATCH, KV_HEADS, key_len, value_dim, seed=2)
    return query, key.to(dtype), value.to(dtype)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Mask | None, score: Score | None = None) -> Tensor:
    """Plain torch, one query head at a time; a row without keys is left out of the softmax altogether."""
    group = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        left, right = query[:, head], key[:, head // group]
        match score:
            case Bilinear():
                left, scale = left @ score.weight[head % len(score.weight)], 1.0
            case Dot():
                scale = 1.0
            case _:
                scale = 1.0 / math.sqrt(query.shape[-1])
        if isinstance(score, Additive):
            vector = score.vector[head % len(score.vector)]
            scores = (torch.tanh(left[:, :, None] + right[:, None]) * vector).sum(-1)
        else:
            scores = scale * left @ right.transpose(-2, -1)
        allowed = torch.ones(scores.shape, dtype=torch.bool)
        if mask is not None:
            allowed = mask.dense(scores.shape[1], scores.shape[2])[:, 0].expand(scores.shape)
        some = allowed.any(-1, keepdim=True)
        weights = scores.masked_fill(~allowed & some, float("-inf")).softmax(-1) * some
        heads.append(weights @ value[:, head // group])
    return torch.stack(heads, 1)


def output_and_gradients(output: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
    goal = normal(*output.shape, seed=3)
    return (output, *torch.autograd.grad((output.double() * goal).sum(), sides))


@pytest.mark.parametrize("backend", LEARNING)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("query_len", [1, QUERY_LEN, KEY_LEN, KEY_LEN + 4])
def test_every_backend_is_plain_torch(backend: BackendName, mask: str, query_len: int) -> None:
    sides = [side.requires_grad_() for side in inputs(query_len)]
    found = output_and_gradients(attend(*sides, mask=MASKS[mask], backend=backend).output, *sides)
    wanted = output_and_gradients(by_hand(*sides, MASKS[mask]), *sides)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "score",
    [
        Dot(),
        ScaledDot(),
        Bilinear(normal(HEADS, DIM, DIM)),
        Bilinear(normal(1, DIM, DIM)),
        Additive(normal(HEADS, DIM)),
        Additive(normal(1, DIM)),
    ],
    ids=lambda score: type(score).__name__,
)
@pytest.mark.parametrize("backend", LEARNING)
def test_every_score_on_every_backend(backend: BackendName, score: Score) -> None:
    sides = [side.requires_grad_() for side in inputs()]
    learned = [part.requires_grad_() for part in vars(score).values() if isinstance(part, Tensor)]
    mask = Causal() & Padding(LENGTHS)
    if backend == "fused" and isinstance(score, Additive):
        with pytest.raises(ConfigError, match="compares by products, not by Additive; leave `backend` out"):
            attend(*sides, score=score, mask=mask, backend=backend)
        return
    found = output_and_gradients(attend(*sides, score=score, mask=mask, backend=backend).output, *sides, *learned)
    wanted = output_and_gradients(by_hand(*sides, mask, score), *sides, *learned)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", LEARNING)
def test_a_row_without_keys_is_zero_and_teaches_nothing(backend: BackendName, dtype: torch.dtype) -> None:
    for mask, key_len in ((Padding(torch.tensor([0, 7])), 7), (Causal(), 2), (None, 0), (Causal(), 0)):
        sides = [side.requires_grad_() for side in inputs(QUERY_LEN, key_len, dtype=dtype)]
        output, *gradients = output_and_gradients(attend(*sides, mask=mask, backend=backend).output, *sides)
        assert output.dtype == dtype
        for tensor in (output, *gradients):
            assert tensor.isfinite().all()
        empty = (
            torch.ones(BATCH, 1, QUERY_LEN, 1, dtype=torch.bool)
            if key_len == 0 or mask is None
            else ~mask.dense(QUERY_LEN, key_len).expand(BATCH, 1, -1, -1).any(-1, keepdim=True)
        )
        assert empty.any()
        assert not output.masked_select(empty).any()
        assert not gradients[0].masked_select(empty).any()
        if key_len == 7:
            assert not gradients[1][0].any()
            assert not gradients[2][0].any()
            assert gradients[1][1].abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", LEARNING)
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_low_precision_is_no_worse_than_twice_plain_torch(backend: BackendName, dtype: torch.dtype, mask: str) -> None:
    query_len, key_len, dim = 67, 67, 37
    lengths = torch.tensor([41, 67])
    chosen: Mask | None = {"none": None, "causal": Causal(), "padding": Padding(lengths)}[mask]
    sides = [normal(2, 3, length, dim, seed=length, dtype=dtype) for length in (query_len, key_len, key_len)]
    sides = [side.requires_grad_() for side in sides]
    exact_sides = [side.detach().double().requires_grad_() for side in sides]
    exact = output_and_gradients(by_hand(*exact_sides, chosen), *exact_sides)
    found = output_and_gradients(attend(*sides, mask=chosen, backend=backend).output, *sides)
    dense = None if chosen is None else chosen.dense(query_len, key_len).expand(2, 1, query_len, key_len)
    plain = output_and_gradients(F.scaled_dot_product_attention(*sides, dense), *sides)
    for right, mine, theirs in zip(exact, found, plain, strict=True):
        assert mine.dtype == dtype
        assert (mine - right).abs().max() <= 2 * (theirs - right).abs().max()


@pytest.mark.parametrize("backend", LEARNING)
def test_gradients_of_a_group_are_summed(backend: BackendName) -> None:
    query, key, value = (side.requires_grad_() for side in inputs())
    wide = [side.detach().repeat_interleave(HEADS // KV_HEADS, dim=1).requires_grad_() for side in (key, value)]
    grouped = output_and_gradients(attend(query, key, value, mask=Causal(), backend=backend).output, key, value)
    repeated = output_and_gradients(attend(query, *wide, mask=Causal(), backend=backend).output, *wide)
    torch.testing.assert_close(grouped[0], repeated[0])
    for mine, theirs in zip(grouped[1:], repeated[1:], strict=True):
        torch.testing.assert_close(mine, theirs.unflatten(1, (KV_HEADS, -1)).sum(2))


@pytest.mark.parametrize("value_dim", [VALUE_DIM, DIM - 4])
@pytest.mark.parametrize("backend", LEARNING)
def test_values_of_another_width_than_keys(backend: BackendName, value_dim: int) -> None:
    sides = [side.requires_grad_() for side in inputs(value_dim=value_dim)]
    found = output_and_gradients(attend(*sides, mask=Padding(LENGTHS), backend=backend).output, *sides)
    wanted = output_and_gradients(by_hand(*sides, Padding(LENGTHS)), *sides)
    torch.testing.assert_close(found, wanted)
    assert found[0].shape == (BATCH, HEADS, QUERY_LEN, value_dim)
    # Few of them are materialised, many padded to one width.
    choice = explain_backend(*sides)
    assert choice.chosen == "reference"
    assert choice.refused["fused"] == (
        f"it wants equal widths; padding keys of 11 and values of {value_dim} pays from 1048576 scores on, not for 420"
    )
    many = [torch.zeros(2, 3, 419, width) for width in (5, 5, value_dim)]
    assert explain_backend(*many).chosen == "fused"


@pytest.mark.parametrize("backend", LEARNING)
def test_strides_do_not_matter(backend: BackendName) -> None:
    query, key, value = inputs()
    wanted = attend(query, key, value, backend=backend).output
    layouts = [
        lambda side: side.transpose(1, 2).contiguous().transpose(1, 2),
        lambda side: side.transpose(2, 3).contiguous().transpose(2, 3),
        lambda side: torch.stack([side, side], -1)[..., 1],
    ]
    for layout in layouts:
        moved = [layout(side) for side in (query, key, value)]
        assert not any(side.is_contiguous() for side in moved)
        torch.testing.assert_close(attend(*moved, backend=backend).output, wanted)
    shared = [side[:1].expand(BATCH, -1, -1, -1) for side in (key, value)]
    torch.testing.assert_close(
        attend(query, *shared, backend=backend).output,
        attend(query, *(side.contiguous() for side in shared), backend=backend).output,
    )


def test_dropout_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    query, key, value = inputs(1, 5)
    exact = attend(query, key, value).output
    draws = [attend(query, key, value, dropout=0.3).output for _ in range(3000)]
    stacked = torch.stack(draws)
    error = (stacked.mean(0) - exact).abs() / (stacked.std(0) / math.sqrt(len(draws)))
    assert error.max() < 5.0
    assert not torch.equal(draws[0], draws[1])
    torch.manual_seed(3)
    first = attend(query, key, value, dropout=0.3).output
    torch.manual_seed(3)
    assert torch.equal(attend(query, key, value, dropout=0.3).output, first)


@pytest.mark.parametrize("backend", LEARNING)
def test_autocast_changes_nothing(backend: BackendName) -> None:
    query, key, value = inputs(dtype=torch.float32)
    for score in (ScaledDot(), Bilinear(normal(1, DIM, DIM, dtype=torch.float32))):
        wanted = attend(query, key, value, score=score, backend=backend).output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend(query, key, value, score=score, backend=backend).output
        assert torch.equal(found, wanted)


def location_aware() -> LocationAware:
    return LocationAware(
        normal(1, DIM), normal(1, 2, 3), normal(1, 2, DIM), normal(BATCH, HEADS, 1, KEY_LEN).softmax(-1)
    )


class Halves(Distribution):
    """No softmax: every allowed key weighs a half."""

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        halves = torch.full_like(scores, 0.5)
        return halves if allowed is None else halves * allowed, None


def test_the_choice_is_explained() -> None:
    query, key, value = inputs()
    assert explain_backend(query, key, value, mask=Causal(), observe=Observe(entropy=True)) == ("fused", {})
    table = normal(32, HEADS).requires_grad_()
    few = "420 elements of scores, fewer than 16777216, are quicker held at once"
    reasons: dict[str, dict[str, Any]] = {
        "it normalises by softmax, not by Halves": {"distribution": Halves()},
        "it compares by products, not by LocationAware": {"score": location_aware()},
        "it compares by products, not by Additive and SoftCap": {"score": Additive(normal(1, DIM)).then(SoftCap(3.0))},
        "it bounds no scores by a soft-cap": {"score": ScaledDot().then(SoftCap(3.0))},
        "it gives a learned position bias no gradient": {"score": ScaledDot().then(RelativeBias(table))},
    }
    for reason, asked in reasons.items():
        elements = few.replace("420", "4620") if isinstance(asked.get("score"), LocationAware) else few
        assert explain_backend(query, key, value, **asked) == ("reference", {"fused": reason, "blocked": elements})
        with pytest.raises(ConfigError) as caught:
            attend(query, key, value, backend="fused", **asked)
        assert str(caught.value) == (f"attend: backend `fused` cannot serve this call: {reason}; leave `backend` out")
    for name in ("fused", "blocked"):
        with pytest.raises(
            ConfigError, match=f"`{name}` cannot serve this call: dropout on the weights is served mater"
        ):
            attend(query, key, value, backend=name, dropout=0.1)  # type: ignore[arg-type]
    assert explain_backend(query, key, value, observe=Observe(), distribution=Softmax()).chosen == "fused"
    with torch.no_grad():
        assert explain_backend(query, key, value, score=ScaledDot().then(RelativeBias(table))).chosen == "fused"
    long = torch.zeros(1, 2, 3001, 1)
    choice = explain_backend(long, long, long, score=ScaledDot().then(SoftCap(3.0)))
    assert choice == ("blocked", {"fused": "it bounds no scores by a soft-cap"})
    meta = [side.to("meta") for side in (query, key, value)]
    assert explain_backend(*meta).refused["fused"] == "float64 is fused on a CPU only"
    meta = [side.float() for side in meta]
    assert explain_backend(*meta, mask=Causal()).chosen == "fused"
    assert explain_backend(*meta, mask=Causal(), distribution=SinkSoftmax()).refused["fused"] == (
        "on meta it knows squares below the diagonal and masks of keys"
    )
    with pytest.raises(ConfigError, match="backend `flash` is not known; known: fused, blocked, reference, native"):
        attend(query, key, value, backend="flash")  # type: ignore[arg-type]


def test_the_return_type_is_the_same_everywhere() -> None:
    query, key, value = inputs(dtype=torch.float32)
    seen = Observe(received=True)
    for found in (attend(query, key, value), attend(query, key, value, observe=seen)):
        assert type(found).__name__ == "Attended"
        assert found.output.dtype == torch.float32
    halves = attend(query, key, value, distribution=Halves(), observe=seen)
    torch.testing.assert_close(halves.observation.received, torch.full((BATCH, HEADS, KEY_LEN), QUERY_LEN / 2))


def test_every_mismatch_is_told_at_once() -> None:
    with pytest.raises(ShapeError) as caught:
        attend(
            torch.zeros(2, 5, 3, 7),
            torch.zeros(3, 2, 4, 8),
            torch.zeros(2, 3, 5, 8, dtype=torch.float64),
            mask=Padding(torch.tensor([1, 2, 3, 4])),
            dropout=1.0,
        )
    assert str(caught.value).removeprefix("attend: ").split("; ") == [
        "batch: query 2, key 3, value 2",
        "kv_heads: key 2, value 3",
        "heads: 5 query heads are no multiple of 2 key heads",
        "key_len: key 4, value 5",
        "query width 7 and key width 8 differ",
        "Padding.lengths has shape (4,), expected (2,)",
        "dtypes: query torch.float32, key torch.float32, value torch.float64",
        "dropout is 1.0, expected at least 0 and below 1",
    ]
    with pytest.raises(ShapeError) as caught:
        attend(torch.zeros(2, 3), torch.zeros(1, 1, 1, 1), torch.zeros(1, device="meta"), dropout=-0.1)
    assert str(caught.value).removeprefix("attend: ").split("; ") == [
        "query has 2 axes, expected 4: [batch, heads, length, width]",
        "value has 1 axes, expected 4: [batch, heads, length, width]",
        "devices: query cpu, key cpu, value meta",
        "dropout is -0.1, expected at least 0 and below 1",
    ]
    with pytest.raises(ShapeError) as caught:
        attend(
            None,  # type: ignore[arg-type]
            np.zeros((1, 1, 1, 1)),  # type: ignore[arg-type]
            torch.zeros(1, 1, 1, 1),
            score="dot",  # type: ignore[arg-type]
            distribution=torch.softmax,  # type: ignore[arg-type]
            mask=torch.ones(3, 5, dtype=torch.bool),  # type: ignore[arg-type]
            observe=True,  # type: ignore[arg-type]
        )
    assert str(caught.value).removeprefix("attend: ").split("; ") == [
        "query is NoneType, expected a tensor",
        "key is ndarray, expected a tensor",
        "score is str, expected an object such as ScaledDot()",
        "distribution is builtin_function_or_method, expected an object such as Softmax()",
        "mask is Tensor, expected an object such as Causal() or Padding(lengths), joined by & and |",
        "observe is bool, expected a request such as Observe(entropy=True)",
    ]
    whole = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    with pytest.raises(ShapeError, match=r"dtypes: torch\.int64, expected a floating point one"):
        attend(whole, whole, whole)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), key_len=st.integers(1, 9), backend=st.sampled_from(LEARNING))
def test_law_order_of_keys_says_nothing(seed: int, key_len: int, backend: BackendName) -> None:
    query, key, value = inputs(3, key_len)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(key_len, generator=generator)
    table = torch.rand(BATCH, 1, 3, key_len, generator=generator) < 0.6

    class Table(Mask):
        def __init__(self, allowed: Tensor) -> None:
            self.table = allowed

        def allowed(self, query_index: Tensor, key_index: Tensor) -> Tensor:
            return self.table

    plain = attend(query, key, value, mask=Table(table), backend=backend).output
    moved = attend(query, key[:, :, order], value[:, :, order], mask=Table(table[..., order]), backend=backend).output
    torch.testing.assert_close(moved, plain)


@settings(deadline=None, max_examples=40)
@given(
    query_len=st.integers(1, 9),
    key_len=st.integers(1, 9),
    row=st.integers(0, 8),
    backend=st.sampled_from(LEARNING),
)
def test_law_the_future_cannot_touch_a_causal_output(
    query_len: int, key_len: int, row: int, backend: BackendName
) -> None:
    query, key, value = inputs(query_len, key_len)
    row %= query_len
    place = key_len - query_len + row
    later = torch.arange(key_len)[:, None] > place
    before = attend(query, key, value, mask=Causal(), backend=backend).output
    after = attend(query, key + 9.0 * later, value - 7.0 * later, mask=Causal(), backend=backend).output
    assert torch.equal(after[:, :, row], before[:, :, row])
    if place >= 0:
        touched = attend(query, key, value + 1.0 * ~later, mask=Causal(), backend=backend).output
        assert not torch.equal(touched[:, :, row], before[:, :, row])


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, KEY_LEN), min_size=BATCH, max_size=BATCH),
    causal=st.booleans(),
    backend=st.sampled_from(LEARNING),
)
def test_law_a_padded_batch_is_its_items_alone(lengths: list[int], causal: bool, backend: BackendName) -> None:
    query, key, value = inputs(KEY_LEN, KEY_LEN)
    padding = Padding(torch.tensor(lengths))
    batched = attend(query, key, value, mask=Causal() & padding if causal else padding, backend=backend).output
    for item, length in enumerate(lengths):
        real = [side[item : item + 1, :, :length] for side in (query, key, value)]
        alone = attend(*real, mask=Causal() if causal else None, backend=backend).output
        torch.testing.assert_close(batched[item : item + 1, :, :length], alone)


def test_arguments_of_the_wrong_kind_are_told_all_at_once() -> None:
    query = torch.zeros(1, 1, 2, 3)
    with pytest.raises(ShapeError, match=r"key is list, expected a tensor; mask is Tensor, expected an object such as"):
        attend(query, [1], query, mask=torch.ones(2, 2, dtype=torch.bool))  # type: ignore[arg-type]


def test_every_statistic_that_is_not_there_is_told_at_once() -> None:
    query, key, value = inputs()
    with pytest.raises(ObservationError) as caught:
        attend(
            query,
            key,
            value,
            distribution=Sparsemax(),
            observe=Observe(
                logsumexp=True,
                trace=True,
                rows=(0, 5),
                columns=(-8,),
                heads=(6, 1),
                received=torch.ones(2, 4),
                queries=torch.ones(2, 5),
            ),
        )
    assert str(caught.value) == (
        "attend: observe.rows: [5] asked for, but there are 5 queries; ask within them; "
        "observe.columns: [-8] asked for, but there are 7 keys; ask within them; "
        "observe.heads: [6] asked for, but there are 6 heads; ask within them; "
        "observe.received has weights of shape (2, 4), expected (2, 5): one a query; "
        "observe.queries is torch.float32 of shape (2, 5), expected torch.bool of (2, 5): which queries are real; "
        "observe.logsumexp: Sparsemax weights have none; ask for rows instead; "
        "observe.trace: Sparsemax weights are not recomputed from a logsumexp; ask for rows instead"
    )
    with pytest.raises(ObservationError) as caught:
        attend(query, key, value, score=Additive(normal(1, DIM)), observe=Observe(trace=True, columns=(7,)))
    assert str(caught.value) == (
        "attend: observe.columns: [7] asked for, but there are 7 keys; ask within them; "
        "observe.trace: Additive makes no products that could be kept; ask for rows instead"
    )
    # What does not fit is told together with what cannot be observed.
    with pytest.raises(ShapeError, match=r"key_len: key 7, value 6; observe\.columns: \[7\] asked for"):
        attend(query, key, value[:, :, 1:], observe=Observe(columns=(7,)))


def test_a_function_mode_sees_attention_as_one_call() -> None:
    class Calls(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[dict[str, Any]] = []

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is attend:
                self.seen.append(kwargs)
            return function(*args, **(kwargs or {}))

    query, key, value = inputs()
    wanted = attend(query, key, value, mask=Causal()).output
    mask, asked = Causal(), Observe(entropy=True)
    with Calls() as calls:
        found = attend(query, key, value, mask=mask, observe=asked, backend="fused")
    assert len(calls.seen) == 1
    assert calls.seen[0]["mask"] is mask
    assert calls.seen[0]["observe"] is asked
    assert calls.seen[0]["backend"] == "fused"
    assert torch.equal(found.output, wanted)
    assert found.observation.entropy is not None


def test_heads_without_width_are_refused() -> None:
    query, key, value = inputs()
    with pytest.raises(ShapeError, match="head_dim is 0, expected at least 1"):
        attend(query[..., :0], key[..., :0], value)
