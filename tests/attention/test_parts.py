"""Fused attention in parts against the materialised reference: outputs, gradients, logsumexp, precision."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
import torch
import torch.nn.functional as F
from backend_cases import (
    BATCH,
    COMPACT,
    DIM,
    HEADS,
    KV_HEADS,
    LENGTHS,
    MASKS,
    SCORES,
    distributions,
    normal,
    output_and_gradients,
    sides,
    small_tiles,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.attend import attend
from regard.attention.backends import parts
from regard.attention.distributions import SinkSoftmax
from regard.attention.masks import Causal, Global, Mask, Padding, Window
from regard.attention.modifiers import ALiBi
from regard.attention.observation import Observe
from regard.attention.scores import ScaledDot

LOGSUMEXP = Observe(logsumexp=True)


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("mask", MASKS)
def test_parts_are_the_reference(mask: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    query_len, key_len = LENGTHS[size]
    chosen = MASKS[mask](query_len, key_len)
    # Every score, and every distribution with another score from mask to mask.
    others = islice(cycle(distributions().values()), len(mask) % 3, None)
    for place, (score, (distribution, learned)) in enumerate(zip(SCORES.values(), others, strict=False)):
        if place == len(SCORES) - 2:
            monkeypatch.setattr(parts, "FEW_PAIRS", 2**17)  # one tile with a mask of all pairs
        inputs = sides(query_len, key_len)
        results = [
            attend(*inputs, score=score, mask=chosen, distribution=distribution, backend=backend, observe=LOGSUMEXP)
            for backend in ("fused", "reference")
        ]
        found, wanted = (output_and_gradients(result.output, *inputs, *learned) for result in results)
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(results[0].observation.logsumexp, results[1].observation.logsumexp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["causal and padding", "everything", "packed", "dense"])
def test_low_precision_is_no_worse_than_twice_plain_torch(
    mask: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_len = key_len = 67
    chosen = MASKS[mask](query_len, key_len)
    assert chosen is not None
    inputs = sides(query_len, key_len, dtype, dim=37)
    exact = [side.detach().double().requires_grad_() for side in inputs]
    wanted = output_and_gradients(attend(*exact, mask=chosen, backend="reference").output, *exact)
    dense = chosen.dense(query_len, key_len).expand(BATCH, -1, query_len, key_len)
    empty = ~dense.any(-1, keepdim=True)
    plain = F.scaled_dot_product_attention(*inputs, dense | empty, enable_gqa=True).masked_fill(empty, 0.0)
    theirs = output_and_gradients(plain, *inputs)
    small_tiles(monkeypatch)
    ours = output_and_gradients(attend(*inputs, mask=chosen, backend="fused").output, *inputs)
    with torch.no_grad():  # where nothing learns, bfloat16 is not widened
        narrow = attend(*inputs, mask=chosen, backend="fused").output
    for right, mine, other in zip((*wanted, wanted[0]), (*ours, narrow), (*theirs, theirs[0]), strict=True):
        assert mine.dtype == dtype
        assert (mine - right).abs().max() <= 2 * (other - right).abs().max()


@pytest.mark.parametrize("observed", ["statistics", "rows", "trace"])
@pytest.mark.parametrize("mask", MASKS)
def test_observing_changes_no_bit(mask: str, observed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {
        "statistics": Observe(entropy=True, received=True, max_logit=True, top_k=2, columns=(0,), pooled=(3, 2)),
        "rows": Observe(rows=(0, -1), heads=(1,)),
        "trace": Observe(trace=True),
    }[observed]
    for dtype, name in ((torch.bfloat16, "softmax"), (torch.float32, "softmax"), (torch.float32, "sinks")):
        inputs = sides(29, 29, dtype)
        distribution, learned = distributions()[name]
        plain, seen = (
            attend(*inputs, mask=MASKS[mask](29, 29), distribution=distribution, observe=asked, backend="fused")
            for asked in (None, request)
        )
        ours, theirs = (output_and_gradients(result.output, *inputs, *learned) for result in (seen, plain))
        assert all(map(torch.equal, ours, theirs))
        carrying = [name for name, tensor in seen.observation.tensors().items() if tensor.requires_grad]
        assert carrying == (["rows"] if observed == "rows" else [])
        small_tiles(monkeypatch)


@pytest.mark.parametrize("mask", COMPACT)
def test_what_is_observed_is_the_reference_s(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    asked = Observe(
        logsumexp=True,
        entropy=True,
        max_logit=True,
        received=normal(1, 23).exp(),
        sink_mass=3,
        top_k=4,
        rows=(3, -1, 0),
        columns=(1, -1),
        pooled=(5, 3),
        heads=(3, 0),
        queries=torch.arange(23) < torch.tensor([[23], [5], [20]]),
    )
    for score, (distribution, _) in ((SCORES["alibi"], distributions()["sinks"]), (None, distributions()["softmax"])):
        call = {"score": score, "mask": COMPACT[mask](23, 31), "distribution": distribution, "observe": asked}
        found, wanted = (
            attend(*sides(23, 31), **call, backend=backend).observation.tensors()  # type: ignore[arg-type]
            for backend in ("fused", "reference")
        )
        assert list(found) == list(wanted)
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_a_sink_learns_by_the_mass_that_it_takes() -> None:
    """Against finite differences: nothing here has a formula of its own."""
    inputs = sides(5, 5)
    logits = normal(HEADS).requires_grad_()

    def loss(*given: Tensor) -> Tensor:
        *three, sink = given
        return attend(*three, mask=Causal() & Window(3, 0), distribution=SinkSoftmax(sink), backend="fused").output

    assert torch.autograd.gradcheck(loss, (*inputs, logits), fast_mode=True)


def test_gradients_of_a_sum_and_of_a_part() -> None:
    # A sum hands back one number for all, which has no strides to read it by; a slice leaves holes.
    mask = Window(5, 0) | Global(2)
    inputs = sides(31, 31)
    for reduce in (lambda output: output.sum(), lambda output: output[:, 1:3, ::4].square().sum()):
        found, wanted = (
            torch.autograd.grad(reduce(attend(*inputs, mask=mask, distribution=sink, backend=backend).output), inputs)
            for sink in [SinkSoftmax()]
            for backend in ("fused", "reference")
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("learning", range(3))
def test_one_side_may_learn_alone(learning: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    inputs = [side.detach().requires_grad_(place == learning) for place, side in enumerate(sides(19, 19))]
    results = [attend(*inputs, mask=Window(5, 0), backend=backend).output for backend in ("fused", "reference")]
    found, wanted = (output_and_gradients(result, inputs[learning]) for result in results)
    torch.testing.assert_close(found, wanted)


def test_strides_and_widths_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    mask, score = Causal() & Window(9, 0), ScaledDot().then(ALiBi())
    query, key, value = sides(29, 29)
    layouts = [
        lambda side: side.transpose(1, 2).contiguous().transpose(1, 2),
        lambda side: side.transpose(2, 3).contiguous().transpose(2, 3),
        lambda side: torch.stack([side, side], -1)[..., 1],
    ]
    for wide in (value, value[..., :-1], torch.cat([value, value], -1)):
        wanted = output_and_gradients(
            attend(query, key, wide, mask=mask, score=score, backend="reference").output, query
        )
        for layout in layouts:
            moved = [layout(side) for side in (query, key, wide)]
            assert not any(side.is_contiguous() for side in moved)
            found = output_and_gradients(attend(*moved, mask=mask, score=score, backend="fused").output, query)
            torch.testing.assert_close(found, wanted)


def test_few_masks_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    additive = parts._Call._additive

    def counting(call: parts._Call, *arguments: Tensor | None) -> tuple[Tensor, Tensor | None]:
        made.append(arguments)
        return additive(call, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(parts._Call, "_additive", counting)
    side = normal(1, 1, 2048, 4, dtype=torch.float32)
    for score in (ScaledDot(), ScaledDot().then(ALiBi([0.5]))):
        attend(side, side, side, mask=Window(100, 50), score=score)
        assert 0 < len(made) <= 4, "the masks of a window repeat from block to block"
        made.clear()


@settings(deadline=None, max_examples=40)
@given(
    query_len=st.integers(1, 24),
    key_len=st.integers(1, 24),
    left=st.integers(0, 9),
    right=st.integers(0, 9),
    ends=st.lists(st.integers(0, 24), min_size=BATCH, max_size=BATCH),
    kept=st.integers(0, 3),
)
def test_law_a_padded_batch_is_its_items_alone(
    query_len: int, key_len: int, left: int, right: int, ends: list[int], kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch)
        lengths = [min(end, key_len) for end in ends]
        mask: Mask = Window(left, right) | Global(kept)
        query, key, value = sides(query_len, key_len)
        batched = attend(query, key, value, mask=mask & Padding(lengths), backend="fused").output
        for item, length in enumerate(lengths):
            # The queries keep their places: those that would see beyond the item's end see up to it.
            one = [side[item : item + 1] for side in (query, key, value)]
            alone = attend(*one, mask=mask & Padding([length]), backend="reference").output
            torch.testing.assert_close(batched[item : item + 1], alone)


@settings(deadline=None, max_examples=25)
@given(length=st.integers(2, 40), place=st.integers(0, 39), left=st.integers(0, 12))
def test_law_what_is_out_of_sight_cannot_touch(length: int, place: int, left: int) -> None:
    place %= length
    with pytest.MonkeyPatch.context() as patch:
        small_tiles(patch)
        query, key, value = (side.detach() for side in sides(length, length))
        hidden = ((torch.arange(length) > place) | (torch.arange(length) < place - left))[:, None]
        before = attend(query, key, value, mask=Window(left, 0), backend="fused").output
        after = attend(query, key + 9.0 * hidden, value - 7.0 * hidden, mask=Window(left, 0), backend="fused").output
        assert torch.equal(after[:, :, place], before[:, :, place])


def test_no_query_no_key_no_item() -> None:
    for query_len, key_len in ((0, 5), (5, 0), (0, 0)):
        for distribution in (None, SinkSoftmax(normal(HEADS))):
            inputs = sides(query_len, key_len)
            output, seen = attend(*inputs, mask=Causal(), distribution=distribution, observe=LOGSUMEXP, backend="fused")
            assert output.shape == (BATCH, HEADS, query_len, DIM)
            assert not output.any()
            assert seen.logsumexp is not None
            nothing = float("-inf") if distribution is None else distribution.logits.expand(BATCH, -1)[..., None]
            assert (seen.logsumexp == nothing).all()
            assert not any(gradient.any() for gradient in torch.autograd.grad(output.sum(), inputs))
    none = [side[:0] for side in sides(5, 5)]
    assert attend(*none, mask=Window(1, 1), backend="fused").output.shape == (0, HEADS, 5, DIM)
    assert KV_HEADS < HEADS
