"""The reference a block at a time against the reference at once: every score, distribution, mask and statistic."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from backend_cases import BATCH, DIM, HEADS, LENGTHS, MASKS, normal, output_and_gradients, sides
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.attend import attend
from regard.attention.backends import blocked
from regard.attention.distributions import Distribution, Entmax15, Sigmoid, SinkSoftmax, Softmax, Sparsemax
from regard.attention.masks import Causal, Padding
from regard.attention.modifiers import ALiBi, RelativeBias, SoftCap
from regard.attention.observation import Observation, Observe, joined, observe_materialised
from regard.attention.scores import Additive, Cosine, LocationAware, Rotary, ScaledDot, Score

QUERY_LEN, KEY_LEN = 17, 23
EVERYTHING = Observe(
    logsumexp=True,
    entropy=True,
    max_logit=True,
    received=normal(1, QUERY_LEN).exp(),
    sink_mass=3,
    top_k=4,
    rows=(9, -1, 0, 9),
    columns=(1, -1),
    pooled=(5, 3),
    heads=(3, 0),
    queries=torch.arange(QUERY_LEN) < torch.tensor([[17], [5], [12]]),
)


def location_aware() -> tuple[Score, list[Tensor]]:
    previous = normal(BATCH, HEADS, QUERY_LEN, KEY_LEN).softmax(-1)
    learned = [normal(HEADS, DIM), normal(1, 2, 5), normal(HEADS, 2, DIM)]
    return LocationAware(*(part.requires_grad_() for part in learned), previous), learned  # type: ignore[misc]


# name -> what makes a score and what it learns
SCORES: dict[str, Callable[[], tuple[Score, list[Tensor]]]] = {
    "additive": lambda: (lambda vector: (Additive(vector), [vector]))(normal(HEADS, DIM).requires_grad_()),
    "location-aware": location_aware,
    "capped, t5": lambda: (lambda table: (ScaledDot().then(SoftCap(1.5), RelativeBias(table)), [table]))(
        normal(32, HEADS).requires_grad_()
    ),
    "alibi, capped": lambda: (ScaledDot().then(Rotary(), ALiBi(), SoftCap(0.7)), []),
    "cosine": lambda: (lambda heat: (Cosine(heat), [heat]))(normal(HEADS).exp().requires_grad_()),
}
DISTRIBUTIONS: dict[str, Distribution] = {
    "softmax": Softmax(),
    "sink": SinkSoftmax([0.3, -1.0, 2.0, 0.0]),
    "sparsemax": Sparsemax(),
    "entmax": Entmax15(),
    "sigmoid": Sigmoid(),
}


@pytest.fixture(autouse=True)
def blocks_of_three_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "BLOCK_ELEMENTS", 3 * BATCH * HEADS * KEY_LEN)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("score", SCORES)
def test_blocks_are_the_reference(score: str, distribution: str) -> None:
    mask = Causal() & Padding([21, 0, 11])
    asked = EVERYTHING
    if not DISTRIBUTIONS[distribution].has_logsumexp:
        asked = Observe(**{name: value for name, value in vars(EVERYTHING).items() if name != "logsumexp"})
    compared, learned = SCORES[score]()
    inputs = sides(QUERY_LEN, KEY_LEN)
    call = {"score": compared, "distribution": DISTRIBUTIONS[distribution], "mask": mask}
    results = [
        attend(*inputs, **call, observe=asked, backend=backend)  # type: ignore[arg-type]
        for backend in ("blocked", "reference")
    ]
    both = [torch.cat([result.output.flatten(), result.observation.rows.flatten()]) for result in results]
    found, wanted = (output_and_gradients(one, *inputs, *learned) for one in both)
    torch.testing.assert_close(found, wanted)
    assert list(results[0].observation.tensors()) == list(results[1].observation.tensors())
    for name, tensor in results[1].observation.tensors().items():
        torch.testing.assert_close(results[0].observation.tensors()[name], tensor, msg=lambda text, name=name: name)
    plain = attend(*inputs, **call, backend="blocked").output  # type: ignore[arg-type]
    assert torch.equal(plain, results[0].output)


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(mask: str, size: str) -> None:
    inputs = sides(*LENGTHS[size])
    call = {"mask": MASKS[mask](*LENGTHS[size]), "score": ScaledDot().then(SoftCap(2.0))}
    found, wanted = (attend(*inputs, **call, backend=backend).output for backend in ("blocked", "reference"))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted)


def test_a_trace_is_the_same_whichever_backend_ran() -> None:
    inputs = [side.detach() for side in sides(QUERY_LEN, KEY_LEN)]
    asked = Observe(trace=True, heads=(2, 0), queries=torch.arange(QUERY_LEN)[None] < 11)
    score = ScaledDot().then(ALiBi())
    traces = [
        attend(
            *inputs, score=score, mask=Causal(), distribution=SinkSoftmax(), observe=asked, backend=backend
        ).observation
        for backend in ("fused", "blocked", "reference")
    ]
    for seen in traces:
        assert seen.trace is not None
        assert not seen.trace.query.requires_grad
        for name, tensor in traces[0].trace.tensors().items():  # type: ignore[union-attr]
            assert torch.equal(seen.trace.tensors()[name], tensor)
        torch.testing.assert_close(seen.logsumexp, traces[0].logsumexp)


def test_autocast_and_low_precision() -> None:
    inputs = [side.detach().bfloat16() for side in sides(QUERY_LEN, KEY_LEN)]
    score = ScaledDot().then(SoftCap(2.0))
    wanted = attend(*inputs, score=score, backend="reference").output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(*inputs, score=score, backend="blocked").output
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted)


def test_no_query_and_no_key() -> None:
    for query_len, key_len in ((0, 5), (5, 0)):
        inputs = sides(query_len, key_len)
        output, seen = attend(*inputs, observe=Observe(entropy=True, received=True), backend="blocked")
        assert output.shape == (BATCH, HEADS, query_len, DIM)
        assert not output.any()
        assert seen.received is not None
        assert seen.received.shape == (BATCH, HEADS, key_len)
        assert not any(gradient.any() for gradient in torch.autograd.grad(output.sum(), inputs))


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(1, 10), max_size=4), rows=st.lists(st.integers(-11, 10), max_size=5))
def test_law_blocks_join_to_the_whole(cuts: list[int], rows: list[int]) -> None:
    query_len, key_len = 11, 7
    scores = normal(2, 3, query_len, key_len)
    weights, logsumexp = Softmax().weights(scores, None)
    asked = Observe(
        entropy=True,
        received=True,
        sink_mass=2,
        top_k=2,
        rows=tuple(rows),
        columns=(3,),
        pooled=(4, 3),
        queries=torch.arange(query_len)[None] != 4,
    )
    borders = [0, *sorted(set(cuts)), query_len]
    blocks: list[Observation] = []
    for begin, end in pairwise(borders):
        tile = slice(begin, end)
        of_block = (scores[:, :, tile], weights[:, :, tile], logsumexp[:, :, tile], None)  # type: ignore[index]
        blocks.append(observe_materialised(asked, *of_block, begin=begin, query_len=query_len))
    found = joined(blocks, asked, query_len).tensors()
    wanted = observe_materialised(asked, scores, weights, logsumexp, None).tensors()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)
