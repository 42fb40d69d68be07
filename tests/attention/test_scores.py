from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.attention.attend import attend
from regard.attention.modifiers import ALiBi, RelativeBias, SoftCap
from regard.attention.rotary import Rotary
from regard.attention.scores import Additive, Bilinear, Cosine, CoverageAware, Dot, LocationAware, ScaledDot, Score
from regard.errors import ConfigError, ShapeError

BATCH, HEADS, QUERY_LEN, KEY_LEN, DIM, OTHER = 2, 3, 5, 7, 11, 13
NUM_FILTERS, WIDTH = 4, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def located(previous: Tensor, filters: Tensor, location: Tensor) -> Tensor:
    """U F * previous, one place at a time: [batch, heads, query_len, key_len, head_dim]."""
    batch, heads, query_len, key_len = previous.shape
    found = torch.zeros(batch, heads, query_len, key_len, location.shape[-1], dtype=torch.float64)
    for head in range(heads):
        taps, out = filters[head % len(filters)], location[head % len(location)]
        for key in range(key_len):
            for tap in range(WIDTH):
                source = key + tap - WIDTH // 2
                if 0 <= source < key_len:
                    found[:, head, :, key] += previous[:, head, :, source, None] * (taps[:, tap] @ out)
    return found


def test_scores_are_their_formulas() -> None:
    query, key, wide = normal(BATCH, HEADS, QUERY_LEN, DIM), normal(BATCH, HEADS, KEY_LEN, DIM), normal(2, 3, 7, OTHER)
    matrix, shared = normal(HEADS, DIM, OTHER), normal(1, DIM, OTHER)
    vector, one = normal(HEADS, DIM), normal(1, DIM)
    heat = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    filters, location, previous = normal(HEADS, NUM_FILTERS, WIDTH), normal(1, NUM_FILTERS, DIM), normal(2, 3, 5, 7)
    product = torch.einsum("bhqd,bhkd->bhqk", query, key)
    summed = query[:, :, :, None] + key[:, :, None]
    cosine = product / query.norm(dim=-1)[..., None] / key.norm(dim=-1)[:, :, None]
    cases: list[tuple[Score, Tensor, Tensor]] = [
        (Dot(), key, product),
        (ScaledDot(), key, product / math.sqrt(DIM)),
        (ScaledDot(0.3), key, product * 0.3),
        (Bilinear(matrix), wide, torch.einsum("bhqd,hde,bhke->bhqk", query, matrix, wide)),
        (Bilinear(shared), wide, torch.einsum("bhqd,de,bhke->bhqk", query, shared[0], wide)),
        (Cosine(heat), key, cosine / heat[:, None, None]),
        (Cosine(heat[:1]), key, cosine / 0.1),
        (Additive(vector), key, torch.einsum("bhqkd,hd->bhqk", summed.tanh(), vector)),
        (Additive(one), key, torch.einsum("bhqkd,d->bhqk", summed.tanh(), one[0])),
    ]
    for taps in (filters, filters[:1]):
        whole = (summed + located(previous, taps, location)).tanh()
        aware = LocationAware(vector, taps, location, previous)
        cases.append((aware, key, torch.einsum("bhqkd,hd->bhqk", whole, vector)))
        first = (summed[:, :, :1] + located(previous[:, :, :1], taps, location)).tanh()
        step = LocationAware(vector, taps, location, previous[:, :, :1])
        torch.testing.assert_close(step.similarity(query[:, :, :1], key), torch.einsum("bhqkd,hd->bhqk", first, vector))
    for weight in (location[:, 0], normal(HEADS, DIM, seed=1)):
        weighed = previous[..., None] * weight[:, None, None]
        aware_of_it = CoverageAware(one, weight, previous)
        cases.append((aware_of_it, key, torch.einsum("bhqkd,d->bhqk", (summed + weighed).tanh(), one[0])))
    for score, keys, wanted in cases:
        torch.testing.assert_close(score.similarity(query, keys), wanted)
        sizes = {"batch": BATCH, "query_len": QUERY_LEN, "key_len": KEY_LEN}
        assert score.check(DIM, keys.shape[-1], heads=HEADS) == []
        assert score.check(DIM, keys.shape[-1], heads=HEADS, **sizes) == []
        pairs = score.pairs(query, keys)
        assert (pairs is None) == isinstance(score, Additive | CoverageAware | LocationAware)
        if pairs is not None:
            torch.testing.assert_close(pairs.of_queries(torch.arange(QUERY_LEN)), wanted)


@pytest.mark.parametrize("then", [False, True], ids=["alone", "modified"])
def test_a_block_of_queries_scores_as_in_the_whole(then: bool) -> None:
    query, key = normal(BATCH, HEADS, QUERY_LEN, DIM - 1), normal(BATCH, HEADS, KEY_LEN, DIM - 1)
    previous = normal(BATCH, HEADS, QUERY_LEN, KEY_LEN)
    score: Score = LocationAware(normal(1, 10), normal(1, NUM_FILTERS, WIDTH), normal(1, NUM_FILTERS, 10), previous)
    if then:
        score = score.then(Rotary(), SoftCap(2.0), ALiBi(), RelativeBias(normal(8, HEADS)))
    rows = torch.tensor([1, 3])
    for one in (score, CoverageAware(normal(1, 10), normal(1, 10, seed=1), previous)):
        whole = one.similarity(query, key)
        block = one.similarity(query[:, :, rows], key, rows + KEY_LEN - QUERY_LEN)
        torch.testing.assert_close(block, whole[:, :, rows])


def test_gradients_reach_every_parameter() -> None:
    query, key = normal(1, 2, 3, 4).requires_grad_(), normal(1, 2, 5, 4).requires_grad_()
    heat, matrix, vector = torch.tensor([0.3, 2.0], dtype=torch.float64), normal(2, 4, 4), normal(2, 4)
    filters, location, previous = normal(1, 3, 3), normal(2, 3, 4), normal(1, 2, 3, 5)
    parameters = [parameter.requires_grad_() for parameter in (heat, matrix, vector, filters, location, previous)]
    heat, matrix, vector, filters, location, previous = parameters
    scores: list[tuple[Score, list[Tensor]]] = [
        (ScaledDot(), []),
        (Bilinear(matrix), [matrix]),
        (Cosine(heat), [heat]),
        (Additive(vector), [vector]),
        (LocationAware(vector, filters, location, previous), [vector, filters, location, previous]),
        (CoverageAware(vector, location[:, 0], previous), [vector, location, previous]),
    ]
    for score, learned in scores:
        inputs = [query, key, *learned]
        assert torch.autograd.gradcheck(lambda *_, score=score: score.similarity(query, key), inputs)
        pairs = score.pairs(query, key)
        if pairs is not None:
            goal = normal(1, 2, 3, 5, seed=1)
            found = torch.autograd.grad((pairs.of_queries(torch.arange(3)) * goal).sum(), inputs)
            wanted = torch.autograd.grad((score.similarity(query, key) * goal).sum(), inputs)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("heads_of_vector", [1, HEADS])
def test_additive_gradients_are_tanhs(heads_of_vector: int) -> None:
    """Of scores that nothing normalises: a softmax's gradient sums to 0 and would hide a constant."""
    given = [normal(BATCH, HEADS, length, DIM).requires_grad_() for length in (QUERY_LEN, KEY_LEN)]
    query, key, vector = *given, normal(heads_of_vector, DIM).requires_grad_()
    weights = normal(BATCH, HEADS, QUERY_LEN, KEY_LEN)
    wanted = (torch.tanh(query[:, :, :, None] + key[:, :, None]) * vector[:, None, None]).sum(-1)
    found = Additive(vector).similarity(query, key)
    torch.testing.assert_close(found, wanted)
    mine, theirs = (torch.autograd.grad((scores * weights).sum(), (query, key, vector)) for scores in (found, wanted))
    torch.testing.assert_close(mine, theirs)


def test_a_cosine_of_nothing_is_0_in_every_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        query, key = torch.zeros(1, 1, 2, 4, dtype=dtype), torch.randn(1, 1, 3, 4).to(dtype)
        scores = Cosine(torch.tensor([0.5])).similarity(query, key)
        assert scores.dtype == dtype
        assert not scores.any()
        itself = Cosine(torch.tensor([0.5])).similarity(key, key).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(itself, torch.full_like(itself, 2.0), rtol=1e-2, atol=0)


def test_a_score_says_what_does_not_fit() -> None:
    assert Dot().check(5, 7, heads=3) == ["query width 5 and key width 7 differ"]
    assert Bilinear(normal(2, 5, 7)).check(5, 7, heads=3) == [
        "Bilinear.weight has shape (2, 5, 7), expected (3 or 1, 5, 7)"
    ]
    assert Bilinear(normal(5, 7)).check(5, 7, heads=3) == ["Bilinear.weight has shape (5, 7), expected (3 or 1, 5, 7)"]
    assert Additive(normal(2, 7)).check(5, 7, heads=3) == [
        "query width 5 and key width 7 differ",
        "Additive.vector has shape (2, 7), expected (3 or 1, 7)",
    ]
    assert Cosine(normal(2)).check(5, 5, heads=3) == ["Cosine.temperature has shape (2,), expected (3 or 1,)"]
    assert LocationAware(normal(2, 5), normal(3, 4, 6), normal(1, 4, 5), normal(2, 3, 1)).check(5, 5, heads=3) == [
        "LocationAware.vector has shape (2, 5), expected (3 or 1, 5)",
        "LocationAware.filters has shape (3, 4, 6), expected (3 or 1, num_filters, an odd width)",
        "LocationAware.previous has shape (2, 3, 1), expected (batch, 3, query_len, key_len)",
    ]
    covering = CoverageAware(normal(1, 5), normal(2, 5), normal(2, 3, 2, 7))
    assert covering.check(5, 5, heads=3, batch=2, query_len=3, key_len=7) == [
        "CoverageAware.weight has shape (2, 5), expected (3 or 1, 5)",
        "CoverageAware.covered has shape (2, 3, 2, 7), expected (2, 3, 3, 7)",
    ]
    aware = LocationAware(normal(1, 5), normal(3, 4, 7), normal(1, 2, 5), normal(2, 3, 2, 7))
    assert aware.check(5, 5, heads=3, batch=2, query_len=3, key_len=7) == [
        "LocationAware.location has shape (1, 2, 5), expected (3 or 1, 4, 5)",
        "LocationAware.previous has shape (2, 3, 2, 7), expected (2, 3, 3, 7)",
    ]


def test_a_new_score_must_say_how() -> None:
    with pytest.raises(TypeError, match="Score does not say how to compare"):
        Score().similarity(normal(1, 1, 1, 1), normal(1, 1, 1, 1))


# -- modified ----------------------------------------------------------------------------------------------------------


def test_modifiers_act_in_their_order() -> None:
    query, key = normal(BATCH, HEADS, QUERY_LEN, 10), normal(BATCH, HEADS, KEY_LEN, 10)
    plain = ScaledDot().similarity(query, key)
    distance = (torch.arange(KEY_LEN)[None] - torch.arange(KEY_LEN - QUERY_LEN, KEY_LEN)[:, None]).abs()
    bias = -torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)[:, None, None] * distance
    slopes = ALiBi([1.0, 2.0, 0.5])
    capped_first = ScaledDot().then(SoftCap(1.5), slopes)
    torch.testing.assert_close(capped_first.similarity(query, key), 1.5 * torch.tanh(plain / 1.5) + bias)
    biased_first = ScaledDot().then(slopes).then(SoftCap(1.5))
    torch.testing.assert_close(biased_first.similarity(query, key), 1.5 * torch.tanh((plain + bias) / 1.5))
    assert biased_first.modifiers == (slopes, SoftCap(1.5))


@pytest.mark.parametrize(("query_len", "key_len"), [(5, 7), (7, 7), (9, 7), (1, 7), (5, 1)])
def test_what_can_be_lowered_is_the_same(query_len: int, key_len: int) -> None:
    query, key = normal(BATCH, HEADS, query_len, 10), normal(BATCH, HEADS, key_len, 10)
    table = normal(8, HEADS)
    for score in (
        ScaledDot().then(Rotary()),
        ScaledDot().then(SoftCap(2.0)),
        Dot().then(ALiBi()),
        Cosine(normal(1).abs()).then(Rotary(dims=4), SoftCap(0.5), ALiBi(), RelativeBias(table, max_distance=5)),
        Bilinear(normal(1, 10, 10)).then(RelativeBias(table, bidirectional=False, max_distance=6)),
    ):
        pairs = score.pairs(query, key)
        assert pairs is not None
        wanted = score.similarity(query, key)
        torch.testing.assert_close(pairs.of_queries(torch.arange(query_len)), wanted)


def test_grouped_heads_lower_to_what_each_head_scores() -> None:
    query, key = normal(BATCH, 6, QUERY_LEN, 10), normal(BATCH, 3, KEY_LEN, 10)
    score = Cosine(normal(6).abs() + 1).then(Rotary(), SoftCap(0.7), ALiBi())
    pairs = score.pairs(query, key)
    assert pairs is not None
    wanted = score.similarity(query, key.repeat_interleave(2, 1))
    torch.testing.assert_close(pairs.of_queries(torch.arange(QUERY_LEN)), wanted)


def test_what_pairs_cannot_say_is_not_lowered() -> None:
    query, key = normal(BATCH, HEADS, QUERY_LEN, 10), normal(BATCH, HEADS, KEY_LEN, 10)
    for score in (
        Dot().then(ALiBi(), SoftCap(2.0)),
        Dot().then(SoftCap(2.0), SoftCap(3.0)),
        Additive(normal(1, 10)).then(ALiBi()),
    ):
        assert score.pairs(query, key) is None


def test_the_table_learns_through_both_forms() -> None:
    query, key, table = normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(8, 2).requires_grad_()
    score = Dot().then(RelativeBias(table, max_distance=4))
    goal = normal(1, 2, 3, 5, seed=1)
    pairs = score.pairs(query, key)
    assert pairs is not None and pairs.offset_bias is not None
    assert pairs.offset_bias.requires_grad, "tells a kernel without this gradient that it is wanted"
    found = torch.autograd.grad((pairs.of_queries(torch.arange(3)) * goal).sum(), table)
    wanted = torch.autograd.grad((score.similarity(query, key) * goal).sum(), table)
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda _: score.similarity(query, key), table)


def test_modifiers_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigError, match=r"then: Rotary turns queries and keys .*; put it before SoftCap"):
        Dot().then(SoftCap(3.0), Rotary())
    with pytest.raises(ConfigError, match="then: float was given, expected modifiers such as Rotary"):
        Dot().then(30.0)  # type: ignore[arg-type]
    score = Dot().then(Rotary(), ALiBi([1.0, 2.0]), RelativeBias(normal(7, 3)))
    assert score.check(5, 7, heads=3) == [
        "query width 5 and key width 7 differ",
        "Rotary: head_dim is 5, expected an even number",
        "Rotary: head_dim is 7, expected an even number",
        "ALiBi.slopes has shape (2,), expected (3,)",
        "RelativeBias.table has shape (7, 3), expected (num_buckets, 3) with num_buckets even and at least 4",
    ]


@pytest.mark.parametrize("scale", ["x", math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale: Any) -> None:
    with pytest.raises(ConfigError, match=r"ScaledDot: scale is .*, expected a finite number, or leave it out"):
        ScaledDot(scale)


def test_a_parameter_that_is_no_tensor_is_named() -> None:
    sides = torch.zeros(3, 1, 2, 3, 5).unbind()
    with pytest.raises(ShapeError, match=r"Additive.vector is list, expected a tensor"):
        attend(*sides, score=Additive([0.5] * 5))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"dropout is 'a', expected at least 0 and below 1"):
        attend(*sides, dropout="a")  # type: ignore[arg-type]
