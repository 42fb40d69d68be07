"""Attention in native C against the materialised definition in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from second_pass_cases import CASES, NEGATIVE_INFINITY, SIZES, causal, inputs, materialised
from torch import Tensor

from regard.attention import native
from regard.attention.native import build, forward
from regard.attention.pair_scores import PairScores

TOLERANCE = 5e-6
FLAVOURS = {"plain": ("-DREGARD_NARROW",), "narrower": ("-mno-avx512f",)}


@pytest.fixture(autouse=True)
def native_code() -> None:
    if reason := native.unavailable():
        pytest.skip(f"no native code here: {reason}")


def values(pairs: PairScores, width: int = 23) -> Tensor:
    generator = torch.Generator().manual_seed(13)
    value = torch.randn(pairs.batch, pairs.key.shape[1], pairs.key_len, width, generator=generator)
    return value.to(pairs.query.dtype)


def compare(pairs: PairScores, value: Tensor, tolerance: float = TOLERANCE) -> None:
    """Raises: AssertionError where anything that `forward` returns is not its definition."""
    assert forward.refuses(pairs, value) is None
    scores, weights, logsumexp = materialised(pairs)
    found = forward.forward(pairs, value)
    assert found.output.dtype == value.dtype
    rounding = 2.0**-8 if value.dtype == torch.bfloat16 else tolerance  # of the output, once
    right = weights @ value.double().repeat_interleave(pairs.group, 1)
    torch.testing.assert_close(found.output.double(), right, rtol=rounding, atol=tolerance)
    nothing = torch.full_like(logsumexp[..., None], NEGATIVE_INFINITY)
    for mine, truth in (
        (found.logsumexp, logsumexp),
        (found.entropy, torch.special.entr(weights).sum(-1)),
        (found.max_logit, torch.cat([scores, nothing], -1).amax(-1)),
    ):
        torch.testing.assert_close(mine.double(), truth, rtol=tolerance, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str, dtype: torch.dtype) -> None:
    pairs = CASES[case](inputs(dtype=dtype))
    compare(pairs, values(pairs))


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str) -> None:
    for case in ("plain", "causal", "sink", "offset bias", "allowed"):
        pairs = CASES[case](inputs(**SIZES[size]))
        for width in (1, 64, 70):
            compare(pairs, values(pairs, width))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_paths_of_other_processors(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library = build.load("forward.c", extra_flags=FLAVOURS[flavour])
    except build.BuildError as error:
        pytest.skip(f"the compiler does not make this flavour: {error}")
    monkeypatch.setattr(forward, "_library", lambda: library)
    for case in CASES:
        pairs = CASES[case](inputs())
        compare(pairs, values(pairs))


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = inputs()
    right = forward.forward(pairs, values(pairs))
    for name in forward.Forwarded._fields:
        wrong = right._replace(**{name: getattr(right, name) + 1e-3})
        monkeypatch.setattr(forward, "forward", lambda pairs, value, wrong=wrong: wrong)
        with pytest.raises(AssertionError):
            compare(pairs, values(pairs))


@pytest.mark.parametrize("steep", [1.0, 40.0])
def test_scores_that_rise_along_the_keys(steep: float) -> None:
    """Each panel's scores exceed the last one's by far: the reference has to move, sums with it."""
    pairs = inputs(query_len=29, key_len=401, spread=0.1)
    pairs = replace(pairs, bias=torch.linspace(0, 300 * steep, 401).view(1, 401))
    # A score of size s is known to s / 2^24, and a weight no better.
    compare(pairs, values(pairs), tolerance=TOLERANCE + 300 * steep * 2.0**-23)
    falling = replace(pairs, bias=torch.linspace(300 * steep, 0, 401).view(1, 401))
    compare(falling, values(falling), tolerance=TOLERANCE + 300 * steep * 2.0**-23)


def test_values_of_padding_are_not_read() -> None:
    clean = CASES["padded"](inputs())
    value = values(clean)
    poisoned = value.clone()
    poisoned[1, :, -11:] = float("nan")
    assert torch.equal(forward.forward(clean, poisoned).output, forward.forward(clean, value).output)


def test_strides_of_values_and_of_the_output() -> None:
    pairs = CASES["causal"](inputs())
    value = values(pairs)
    turned = value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert turned.stride(-1) != 1
    found, right = forward.forward(pairs, turned), forward.forward(pairs, value)
    assert torch.equal(found.output, right.output)
    assert right.output.transpose(1, 2).is_contiguous()  # so that heads join without a copy


def test_the_number_of_threads_changes_no_bit() -> None:
    pairs = inputs(batch=1, heads=2, kv_heads=1, query_len=1511, key_len=1511, head_dim=32)
    pairs = replace(pairs, ranges=causal(pairs))
    value = values(pairs)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(forward.forward(pairs, value))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_nothing_to_attend_to() -> None:
    for sizes in ({"key_len": 0}, {"query_len": 0}, {"batch": 0}):
        pairs = inputs(**sizes)
        found = forward.forward(pairs, values(pairs))
        assert found.output.shape == (pairs.batch, 6, pairs.query_len, 23)
        assert not found.output.any()
        assert (found.logsumexp == NEGATIVE_INFINITY).all()


def test_refusals_name_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = inputs()
    value = values(pairs)
    assert forward.refuses(pairs, value) is None
    assert forward.refuses(pairs, value.double()) == "it reads strided values of the queries' dtype and device"
    assert forward.refuses(pairs, value[..., :0]) == "there is nothing to sum"
    learning = replace(pairs, query=pairs.query.clone().requires_grad_())
    assert forward.refuses(learning, value) == "it has no gradient"
    with torch.no_grad():
        assert forward.refuses(learning, value) is None
    half = inputs(dtype=torch.float16)
    assert forward.refuses(half, value.half()) == "it reads float32 and bfloat16, not torch.float16"
    monkeypatch.setenv("REGARD_NATIVE", "0")
    assert forward.refuses(pairs, value) == "REGARD_NATIVE=0 turns native code off"
