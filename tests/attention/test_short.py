"""Attention over short rows in C, which training on a CPU takes: output, logsumexp and gradients."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.attention.attend import attend
from regard.attention.masks import Causal, Padding
from regard.attention.native import build, short, unavailable
from regard.attention.observation import Observe

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no native code here: {unavailable()}")
FLAVOURS = {"native": (), "plain": ("-DREGARD_NARROW",), "narrower": ("-mno-avx512f",)}
NAMES = ("output", "gradient of queries", "gradient of keys", "gradient of values")


def materialised(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same in plain torch, in the dtype of the inputs."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-2, -1) * scale
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    seen = seen.tril() if causal else seen
    seen = (seen if allowed is None else seen & allowed).expand(scores.shape)
    scores = scores.masked_fill(~seen, float("-inf"))
    logsumexp = scores.logsumexp(-1)
    weights = (scores - logsumexp.masked_fill(logsumexp == float("-inf"), 0.0)[..., None]).exp()
    return weights @ value, logsumexp


def sides(
    batch: int,
    heads: int,
    kv_heads: int,
    query_len: int,
    key_len: int,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as a projection gives them, heads inside places; keys and values otherwise."""
    query = torch.randn(batch, query_len, heads, head_dim).to(dtype).transpose(1, 2)
    key = torch.randn(batch, kv_heads, key_len, head_dim).to(dtype)
    value = torch.randn(batch, key_len, kv_heads, value_dim).to(dtype).transpose(1, 2)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def padded(lengths: list[int], key_len: int) -> Tensor:
    return (torch.arange(key_len) < torch.tensor(lengths)[:, None])[:, None, None]


SHAPES = {
    "a sentence": (3, 4, 4, 17, 17, 32, 32),
    "grouped, of two widths": (2, 6, 2, 13, 29, 7, 19),
    "one of each": (2, 1, 1, 1, 1, 3, 5),
    "the longest": (2, 2, 1, 5, 128, 64, 11),
    "one query": (5, 3, 3, 1, 23, 16, 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["all", "padding", "causal", "both"])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_float64(shape: str, mask: str, dtype: torch.dtype) -> None:
    inputs = sides(*SHAPES[shape], dtype)
    batch, key_len = inputs[1].shape[0], inputs[1].shape[2]
    causal = mask in ("causal", "both") and inputs[0].shape[2] == key_len
    lengths = [0, *torch.randint(1, key_len + 1, (batch - 1,)).tolist()]  # one item has no key at all
    options = {
        "scale": 0.3,
        "causal": causal,
        "allowed": padded(lengths, key_len) if mask in ("padding", "both") else None,
    }
    output, logsumexp = short.attend_short(*inputs, **options)
    gradient = torch.randn_like(output)
    found = (output, *torch.autograd.grad(output, inputs, gradient))
    wide = [side.detach().double().requires_grad_() for side in inputs]
    true_output, true_logsumexp = materialised(*wide, **options)
    truth = (true_output, *torch.autograd.grad(true_output, wide, gradient.double()))
    torch.testing.assert_close(logsumexp.double(), true_logsumexp.detach(), rtol=1e-5, atol=1e-5)
    assert not logsumexp.requires_grad
    plain_output, _ = materialised(*inputs, **options)  # plain torch at the same precision
    plain = (plain_output, *torch.autograd.grad(plain_output, inputs, gradient))
    for name, mine, theirs, right in zip(NAMES, found, plain, truth, strict=True):
        assert mine.dtype == dtype
        worst, plain_worst = ((one.detach().double() - right.detach()).abs().max() for one in (mine, theirs))
        least = 2e-6 * right.detach().abs().max()  # where plain torch happens to be exact
        assert worst <= max(2 * plain_worst, least), f"{name}: off by {worst:.2g}"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_processor_computes_the_same(flavour: str) -> None:
    try:
        library = build.load("short.c", extra_flags=FLAVOURS[flavour])
    except build.BuildError as error:
        pytest.skip(f"this compiler does not take {FLAVOURS[flavour]}: {error}")
    assert short._is_right(library)


def test_the_check_before_use_finds_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    library = short._library()
    right = short._run

    def wrong(*arguments: object, **options: object) -> None:
        right(*arguments, **options)  # type: ignore[arg-type]
        for tensor in options.get("gradients") or ():  # type: ignore[union-attr]
            tensor[..., -1, -1] *= 1.001

    assert not isinstance(library, str) and short._is_right(library)
    monkeypatch.setattr(short, "_run", wrong)
    assert not short._is_right(library)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_law_a_padded_batch_equals_its_items_alone(
    batch: int, query_len: int, key_len: int, heads: int, narrow: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if narrow else torch.float32
    inputs = sides(batch, heads, heads, query_len, key_len, 5, 3, dtype)
    lengths = torch.randint(1, key_len + 1, (batch,)).tolist()
    output, logsumexp = short.attend_short(*inputs, scale=0.5, allowed=padded(lengths, key_len))
    for item, length in enumerate(lengths):
        query, key, value = (side[item : item + 1] for side in inputs)
        alone, alone_logsumexp = short.attend_short(query, key[:, :, :length], value[:, :, :length], scale=0.5)
        torch.testing.assert_close(output[item], alone[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logsumexp[item], alone_logsumexp[0], rtol=1e-5, atol=1e-6)


def test_no_bit_depends_on_the_number_of_threads() -> None:
    inputs = sides(31, 4, 2, 19, 23, 16, 16, torch.bfloat16)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            output, _ = short.attend_short(*inputs, scale=0.25)
            found.append((output, *torch.autograd.grad(output.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_no_bit_depends_on_whose_threads_they_are() -> None:
    """Torch's own, which it borrows, or threads that it makes."""
    pool, library = build.pool_of_torch(), short._library()
    if pool is None:
        pytest.skip("this torch has no OpenMP runtime to borrow from")
    assert not isinstance(library, str)
    inputs = sides(31, 4, 4, 19, 23, 16, 16, torch.float32)
    borrowed, _ = short.attend_short(*inputs, scale=0.25)
    try:
        library.regard_use_pool(None)
        own, _ = short.attend_short(*inputs, scale=0.25)
    finally:
        library.regard_use_pool(ctypes.cast(pool, ctypes.c_void_p))
    assert torch.equal(own, borrowed)


def test_what_is_not_allowed_is_not_heeded() -> None:
    """Values and keys of padding may be anything, and get no gradient."""
    query, key, value = (side.detach() for side in sides(2, 2, 2, 5, 11, 8, 8, torch.float32))
    output, _ = short.attend_short(query, key, value, scale=1.0, allowed=padded([7, 11], 11))
    key[0, :, 7:], value[0, :, 7:] = 1e30, -1e30
    wild = [side.clone().requires_grad_() for side in (query, key, value)]
    again, _ = short.attend_short(*wild, scale=1.0, allowed=padded([7, 11], 11))
    assert torch.equal(again, output)
    again.sum().backward()
    assert wild[1].grad is not None and wild[2].grad is not None
    assert wild[1].grad[0, :, 7:].abs().max() == wild[2].grad[0, :, 7:].abs().max() == 0.0


def test_a_number_that_is_none_is_passed_on() -> None:
    for narrow in (torch.float32, torch.bfloat16):
        query, key, value = (side.detach() for side in sides(1, 1, 1, 3, 5, 8, 8, narrow))
        query[0, 0, 1, 2] = float("nan")
        output, _ = short.attend_short(query, key, value, scale=1.0)
        assert output[0, 0, 1].isnan().all() and not output[0, 0, [0, 2]].isnan().any()


# -- who takes it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    original = short._run

    def counted(*arguments: object, **options: object) -> None:
        seen.append("backward" if options.get("gradients") else "forward")
        original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(short, "_run", counted)
    return seen


def test_attend_takes_it_in_training_alone(calls: list[str]) -> None:
    inputs = sides(3, 4, 4, 17, 17, 8, 8, torch.float32)
    mask = Causal() & Padding(torch.tensor([17, 5, 11]))
    attend(*inputs, mask=mask).output.sum().backward()
    assert calls == ["forward", "backward"]
    with torch.no_grad():
        without = attend(*inputs, mask=mask).output
    bias = torch.zeros(3, 1, 17, 17).masked_fill(~mask.dense(17, 17, torch.device("cpu")), float("-inf"))
    torch.testing.assert_close(without, F.scaled_dot_product_attention(*inputs, bias), rtol=1e-5, atol=1e-6)
    assert calls == ["forward", "backward"]


def test_what_it_does_not_know_goes_elsewhere(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    attend(*sides(1, 2, 2, 7, 129, 8, 8, torch.float32)).output.sum().backward()  # long rows
    attend(*(side.double() for side in sides(1, 2, 2, 7, 7, 8, 8, torch.float32))).output.sum().backward()
    monkeypatch.setenv("REGARD_NATIVE", "0")
    inputs = sides(2, 2, 2, 7, 7, 8, 8, torch.bfloat16)
    attend(*inputs).output.sum().backward()
    assert calls == []
    assert all(side.grad is not None and side.grad.isfinite().all() for side in inputs)


def test_a_function_transform_goes_elsewhere(calls: list[str]) -> None:
    inputs = [side.detach() for side in sides(2, 2, 2, 5, 5, 4, 4, torch.float32)]
    gradient = torch.func.grad(lambda query: attend(query, *inputs[1:]).output.sum())(inputs[0])
    query = inputs[0].clone().requires_grad_()
    attend(query, *inputs[1:]).output.sum().backward()
    assert query.grad is not None
    torch.testing.assert_close(gradient, query.grad, rtol=1e-5, atol=1e-6)
    assert calls == ["forward", "backward"]


def test_observing_in_training_changes_no_bit(calls: list[str]) -> None:
    inputs = sides(2, 4, 2, 13, 19, 8, 8, torch.bfloat16)
    mask = Padding(torch.tensor([19, 3]))
    request = Observe(logsumexp=True, entropy=True, received=True)
    plain, observed = attend(*inputs, mask=mask), attend(*inputs, mask=mask, observe=request)
    assert torch.equal(plain.output, observed.output) and calls == ["forward", "forward"]
    truth = attend(*(side.detach().double() for side in inputs), mask=mask, observe=request, backend="reference")
    for name, expected in truth.observation.tensors().items():
        torch.testing.assert_close(getattr(observed.observation, name).double(), expected, rtol=1e-4, atol=1e-4)


def test_recomputed_activations_give_the_same_bits() -> None:
    inputs = sides(2, 2, 2, 11, 11, 8, 8, torch.float32)

    def run(*given: Tensor) -> Tensor:
        return attend(*given, mask=Causal()).output

    plain = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    again = torch.autograd.grad(checkpoint(run, *inputs, use_reentrant=False).square().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
