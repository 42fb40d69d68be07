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
from torch.utils._python_dispatch import TorchDispatchMode

from regard.attention.attend import BACKENDS, BackendName, attend, explain_backend
from regard.attention.distributions import Distribution, Softmax
from regard.attention.masks import Causal, Mask, Padding
from regard.attention.observation import Observe
from regard.attention.scores import Additive, Bilinear, Dot, ScaledDot, Score
from regard.errors import ConfigError, ShapeError

BATCH, HEADS, KV_HEADS, QUERY_LEN, KEY_LEN, DIM, VALUE_DIM = 2, 6, 3, 5, 7, 11, 13
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


class Kernels(TorchDispatchMode):
    """The torch operations that ran, and the size of their largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.names.add(str(function))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("backend", list(BACKENDS))
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
@pytest.mark.parametrize("backend", list(BACKENDS))
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
@pytest.mark.parametrize("backend", list(BACKENDS))
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
@pytest.mark.parametrize("backend", list(BACKENDS))
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


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_gradients_of_a_group_are_summed(backend: BackendName) -> None:
    query, key, value = (side.requires_grad_() for side in inputs())
    wide = [side.detach().repeat_interleave(HEADS // KV_HEADS, dim=1).requires_grad_() for side in (key, value)]
    grouped = output_and_gradients(attend(query, key, value, mask=Causal(), backend=backend).output, key, value)
    repeated = output_and_gradients(attend(query, *wide, mask=Causal(), backend=backend).output, *wide)
    torch.testing.assert_close(grouped[0], repeated[0])
    for mine, theirs in zip(grouped[1:], repeated[1:], strict=True):
        torch.testing.assert_close(mine, theirs.unflatten(1, (KV_HEADS, -1)).sum(2))


def test_values_wider_than_keys_go_to_the_reference() -> None:
    sides = [side.requires_grad_() for side in inputs(value_dim=VALUE_DIM)]
    assert explain_backend(*sides).chosen == "reference"
    found = output_and_gradients(attend(*sides, mask=Padding(LENGTHS)).output, *sides)
    wanted = output_and_gradients(by_hand(*sides, Padding(LENGTHS)), *sides)
    torch.testing.assert_close(found, wanted)
    assert found[0].shape == (BATCH, HEADS, QUERY_LEN, VALUE_DIM)
    with pytest.raises(ConfigError, match="on a CPU it wants equal widths, not keys of 11 and values of 13"):
        attend(*sides, backend="fused")


@pytest.mark.parametrize("backend", list(BACKENDS))
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


@pytest.mark.parametrize("mask", MASKS)
def test_the_fused_backend_never_holds_all_scores(mask: str) -> None:
    query, key, value = (normal(2, 3, 211, 4, seed=seed, dtype=torch.float32) for seed in (1, 2, 3))
    for moved in ([query, key, value], [side.mT.contiguous().mT for side in (query, key, value)]):
        with Kernels() as kernels:
            attend(*moved, mask=MASKS[mask], backend="fused")
        assert "aten._scaled_dot_product_flash_attention_for_cpu.default" in kernels.names
        assert kernels.largest < 2 * 3 * 211 * 211
    with Kernels() as kernels:
        attend(query, key, value, mask=MASKS[mask], backend="reference")
    assert kernels.largest >= 2 * 3 * 211 * 211


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


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_autocast_changes_nothing(backend: BackendName) -> None:
    query, key, value = inputs(dtype=torch.float32)
    for score in (ScaledDot(), Bilinear(normal(1, DIM, DIM, dtype=torch.float32))):
        wanted = attend(query, key, value, score=score, backend=backend).output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend(query, key, value, score=score, backend=backend).output
        assert torch.equal(found, wanted)


class Halves(Distribution):
    """No softmax: every allowed key weighs a half."""

    def weights(self, scores: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        halves = torch.full_like(scores, 0.5)
        return halves if allowed is None else halves * allowed, None


def test_the_choice_is_explained() -> None:
    query, key, value = inputs()
    assert explain_backend(query, key, value, mask=Causal()) == ("fused", {})
    reasons = {
        "statistics were asked for, which it does not return": {"observe": Observe(entropy=True)},
        "it normalises by softmax, not by Halves": {"distribution": Halves()},
        "it compares by products, not by Additive": {"score": Additive(normal(1, DIM))},
        "dropout on the weights is served materialised": {"dropout": 0.1},
    }
    for reason, asked in reasons.items():
        choice = explain_backend(query, key, value, **asked)
        assert choice == ("reference", {"fused": reason})
        with pytest.raises(ConfigError) as caught:
            attend(query, key, value, backend="fused", **asked)
        assert str(caught.value) == (f"attend: backend `fused` cannot serve this call: {reason}; leave `backend` out")
    assert explain_backend(query, key, value, observe=Observe(), distribution=Softmax()).chosen == "fused"
    meta = [side.to("meta") for side in (query, key, value)]
    assert explain_backend(*meta).refused == {"fused": "float64 is fused on a CPU only"}
    with pytest.raises(ConfigError, match="backend `flash` is not known; known: fused, reference"):
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
@given(seed=st.integers(0, 10_000), key_len=st.integers(1, 9), backend=st.sampled_from(list(BACKENDS)))
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
    backend=st.sampled_from(list(BACKENDS)),
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
    backend=st.sampled_from(list(BACKENDS)),
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
