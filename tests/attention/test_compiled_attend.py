"""`attend` in a compiled graph, as one piece, and under activation checkpointing: the same bits, observed or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backend_cases import BATCH, HEADS, normal, output_and_gradients, sides, small_tiles
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.attention.attend import attend
from regard.attention.distributions import SinkSoftmax
from regard.attention.masks import Causal, Packed, Padding, Window
from regard.attention.modifiers import ALiBi, SoftCap
from regard.attention.observation import Observe
from regard.attention.scores import ScaledDot

LENGTH = 19
PADDING = Padding([11, 19, 0])
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal and padding": {"mask": Causal() & PADDING},
    "window": {"mask": Window(5, 0)},
    "packed": {"mask": Packed(torch.arange(LENGTH)[None] // 7, contiguous=True) & Causal()},
    "sinks, alibi": {"mask": PADDING, "distribution": SinkSoftmax(), "score": ScaledDot().then(ALiBi())},
    "blocked": {"score": ScaledDot().then(SoftCap(2.0)), "backend": "blocked"},
    "reference": {"score": ScaledDot().then(SoftCap(2.0)), "backend": "reference"},
}
ASKED = Observe(entropy=True, received=True, rows=(0, 3), top_k=2, queries=torch.arange(LENGTH)[None] < 11)


def both(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """The output unobserved, then observed, then what was observed."""

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        plain = attend(*inputs, **CALLS[name]).output
        output, seen = attend(*inputs, observe=ASKED, **CALLS[name])
        return plain, output, *seen.tensors().values()

    return call


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    """Every bit of two calls' results, and the gradients of all that carries any, in whatever order they are summed."""
    assert len(found) == len(wanted)
    assert all(map(torch.equal, found, wanted))
    ours, theirs = (
        output_and_gradients(torch.cat([one.flatten() for one in results if one.requires_grad]), *inputs)
        for results in (found, wanted)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    assert torch.equal(found[0], found[1]), "what is observed changes the output"


@pytest.mark.parametrize("name", ["plain", "causal and padding", "packed", "sinks, alibi", "blocked"])
def test_a_compiled_graph_is_one_piece_with_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "plain":
        small_tiles(monkeypatch)
    torch._dynamo.reset()
    inputs = sides(LENGTH, LENGTH)
    call = both(name)
    same(torch.compile(call, backend="aot_eager", fullgraph=True)(*inputs), call(*inputs), inputs)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_checkpointing_counts_nothing_twice(name: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    inputs = sides(LENGTH, LENGTH)
    wanted = both(name)(*inputs)
    gradients = output_and_gradients(wanted[1], *inputs)[1:]
    again = checkpoint(both(name), *inputs, use_reentrant=reentrant)
    (again[1] * normal(*again[1].shape, seed=3)).sum().backward()
    assert all(map(torch.equal, again, wanted))
    assert all(torch.equal(side.grad, gradient) for side, gradient in zip(inputs, gradients, strict=True))


def test_custom_ops_are_what_torch_expects_of_them() -> None:
    """Shapes, aliasing and gradients of both ops, by torch's own checks."""
    query, key, value = sides(9, 11)
    ranges, _ = (Causal() & Window(4, 0)).lowered(BATCH, 9, 11)
    sink = normal(HEADS).requires_grad_()
    for bias in (None, normal(HEADS, 9 + 11 - 1)):
        arguments = (query, key, value, 0.3, bias, ranges, None, sink)
        torch.library.opcheck(torch.ops.regard.attend_in_parts.default, arguments)


def test_the_comparison_can_fail() -> None:
    inputs = sides(LENGTH, LENGTH)

    def results(change: float = 0.0) -> tuple[Tensor, ...]:
        plain, *rest = both("plain")(*inputs)
        return plain + change, *rest

    same(results(), results(), inputs)
    with pytest.raises(AssertionError):
        same(results(), results(1e-9), inputs)
    with pytest.raises(AssertionError, match="changes the output"):
        same(results(1e-9), results(1e-9), inputs)
