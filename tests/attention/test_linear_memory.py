"""Nothing of the size of all pairs is ever allocated outside the reference: forward, backward, observation.

Torch's profiler sees every allocation of its allocator, inside kernels and custom ops too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from backend_cases import COMPACT
from torch.profiler import ProfilerActivity, profile

from regard.attention import chunked
from regard.attention.attend import BackendName, attend
from regard.attention.backends import blocked, parts
from regard.attention.distributions import SinkSoftmax, Sparsemax
from regard.attention.masks import Causal, Mask, Window
from regard.attention.modifiers import ALiBi, SoftCap
from regard.attention.observation import Observe
from regard.attention.scores import ScaledDot

LENGTH = 1536  # tokens; the batch of the masks is 3
ASKED = Observe(
    logsumexp=True,
    entropy=True,
    max_logit=True,
    received=True,
    sink_mass=4,
    top_k=8,
    rows=(0, -1),
    columns=(0, 5),
    pooled=(64, 64),
    trace=True,
)


def allocations(run: Callable[[], object]) -> tuple[int, int]:
    """(the largest allocation, the most that was held at once), in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    found = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return max(event.nbytes() for event in found), most


def a_step(
    mask: Mask | None, length: int, backend: BackendName, batch: int = 3, **call: object
) -> Callable[[], object]:
    sides = [torch.randn(batch, heads, length, 8, requires_grad=True) for heads in (2, 1, 1)]

    def run() -> None:
        output, _ = attend(*sides, mask=mask, observe=ASKED, backend=backend, **call)  # type: ignore[arg-type]
        output.square().sum().backward()

    return run


@pytest.fixture(autouse=True)
def blocks_smaller_than_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 2**18)
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 2**18)
    monkeypatch.setattr(parts, "FEW_PAIRS", 2**12)


@pytest.mark.parametrize("mask", COMPACT)
def test_fused_attention_never_holds_a_number_a_pair(mask: str) -> None:
    chosen = COMPACT[mask](LENGTH, LENGTH)
    for call in ({}, {"score": ScaledDot().then(ALiBi()), "distribution": SinkSoftmax()}):
        largest, _ = allocations(a_step(chosen, LENGTH, "fused", **call))
        assert largest < LENGTH * LENGTH, "not even a byte a pair"


@pytest.mark.parametrize("mask", ["causal", "window and global", "everything"])
def test_neither_does_the_reference_in_blocks(mask: str) -> None:
    chosen = COMPACT[mask](LENGTH, LENGTH)
    largest, _ = allocations(a_step(chosen, LENGTH, "blocked", score=ScaledDot().then(SoftCap(3.0))))
    assert largest < LENGTH * LENGTH


CALLS: dict[str, tuple[BackendName, dict[str, object]]] = {
    "causal": ("fused", {"mask": Causal()}),
    "a continued window with sinks": ("fused", {"mask": Causal() & Window(100, 0), "distribution": SinkSoftmax()}),
    "soft cap": ("blocked", {"mask": Causal(), "score": ScaledDot().then(SoftCap(3.0))}),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory_grows_with_the_length_alone(name: str) -> None:
    backend, call = CALLS[name]
    once, twice = (allocations(a_step(length=length, backend=backend, batch=1, **call))[1] for length in (1500, 3000))  # type: ignore[arg-type]
    fixed = 6 * 2**20  # blocks, whose size is fixed; pairs would take four times as much
    assert twice <= 2 * once + fixed
    assert twice < 3000 * 3000 * 2


def test_the_reference_and_masks_of_all_pairs_are_seen() -> None:
    largest, most = allocations(a_step(Causal(), LENGTH, "reference", distribution=SinkSoftmax()))
    assert most > largest >= 3 * 2 * LENGTH * LENGTH * 4
    call = a_step(Causal(), LENGTH, "reference", batch=1, distribution=Sparsemax())
    with pytest.raises(Exception, match="Sparsemax weights have none"):
        call()
