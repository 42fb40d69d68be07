"""`regard.observe` on any module that calls `F.scaled_dot_product_attention`: all of that function's arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from materialised import ASKED, compare, nothing_left, observed
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from regard.attention.hosts.observe import observe
from regard.errors import ObservationError

QUERIES, KEYS, DIM = 7, 11, 5


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Attention(nn.Module):
    """What it is given, handed on."""

    def forward(self, *tensors: Tensor, **options: Any) -> Tensor:
        return F.scaled_dot_product_attention(*tensors, **options)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Attention()

    def forward(self, *tensors: Tensor, **options: Any) -> Tensor:
        return self.inner(*tensors, **options)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "four axes": ((3, 2, QUERIES, DIM), (3, 2, KEYS, DIM)),
    "three axes": ((3, QUERIES, DIM), (3, KEYS, DIM)),
    "two axes": ((QUERIES, DIM), (KEYS, DIM)),
    "five axes": ((2, 3, 2, QUERIES, DIM), (2, 3, 2, KEYS, DIM)),
    "one batch of keys": ((3, 2, QUERIES, DIM), (1, 2, KEYS, DIM)),
    "one key head": ((3, 2, QUERIES, DIM), (3, 1, KEYS, DIM)),
}
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "bool": {"attn_mask": draw(QUERIES, KEYS, seed=3) > -0.5},
    "keys": {"attn_mask": torch.arange(KEYS)[None] < 8},
    "added": {"attn_mask": draw(QUERIES, KEYS, seed=3)},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "dropout": {"dropout_p": 0.3},
}


def by_hand(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    """[batch, heads, query_len, key_len]"""
    scores = query @ key.transpose(-2, -1) * options.get("scale", DIM**-0.5)
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if scores.ndim < 4:
        return scores.reshape(-1, 1, QUERIES, KEYS)
    return scores.flatten(0, -4)


@pytest.mark.parametrize("options", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
def test_every_argument(inference: bool, shape: str, options: str) -> None:
    query, key, value = draw(*SHAPES[shape][0]), draw(*SHAPES[shape][1], seed=2), draw(*SHAPES[shape][1], seed=5)
    model = Model()

    def run() -> Tensor:
        torch.manual_seed(0)
        return model(query, key, value, **MASKS[options])

    with torch.inference_mode(inference):
        plain = run()
        with nothing_left(), observe(model, **ASKED) as seen:
            assert torch.equal(run(), plain)
    compare(seen["inner"], observed(by_hand(query, key, MASKS[options])), 1e-9)
    if options == "dropout":
        assert seen.backend == {"inner": "torch math: dropout"}
    elif shape == "four axes":
        assert seen.backend == {"inner": "torch flash (cpu)"}


@pytest.mark.parametrize("shape", [(1, 1, 1, KEYS), (3, 1, 1, KEYS), (3, 2, QUERIES, KEYS), (2, 1, KEYS), (QUERIES, 1)])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
def test_masks_of_every_broadcast_shape(shape: tuple[int, ...], added: bool) -> None:
    mask = draw(*shape, seed=7)
    mask = mask if added else mask > -0.7
    query, key = draw(3, 2, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, **ASKED) as seen:
        model(query, key, key, attn_mask=mask)
    compare(seen["inner"], observed(by_hand(query, key, {"attn_mask": mask})), 1e-9)


@pytest.mark.parametrize("corner", [causal_upper_left, causal_lower_right])
def test_torch_s_causal_biases(corner: Any) -> None:
    query, key = draw(3, 2, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    plain = model(query, key, key, attn_mask=corner(QUERIES, KEYS))
    with observe(model, **ASKED) as seen:
        assert torch.equal(model(query, key, key, attn_mask=corner(QUERIES, KEYS)), plain)
    first = 0 if corner is causal_upper_left else KEYS - QUERIES
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(first)
    compare(seen["inner"], observed(by_hand(query, key, {"attn_mask": mask})), 1e-9)


def test_grouped_heads() -> None:
    query, key = draw(3, 6, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, **ASKED) as seen:
        model(query, key, key, enable_gqa=True)
    compare(seen["inner"], observed(by_hand(query, key.repeat_interleave(3, 1), {})), 1e-9)
    assert seen["inner"].trace is not None
    assert seen["inner"].trace.key.shape[1] == 2


def test_a_row_that_may_attend_to_nothing() -> None:
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool)
    mask[3] = False
    query, key = draw(3, 2, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, logsumexp=True, entropy=True, received=True) as seen:
        model(query, key, key, attn_mask=mask)
    found = seen["inner"]
    assert (found.logsumexp[:, :, 3] == float("-inf")).all()
    assert not found.entropy[:, :, 3].any()
    torch.testing.assert_close(found.received.sum(-1), torch.full((3, 2), QUERIES - 1.0, dtype=torch.float64))


def test_the_logsumexp_is_that_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.attention.hosts import observe as module

    given = []

    def watched(pairs: Any, request: Any, logsumexp: Tensor | None) -> Any:
        given.append(logsumexp)
        return second_pass(pairs, request, logsumexp)

    second_pass = module.second_pass
    monkeypatch.setattr(module, "second_pass", watched)
    query, key = draw(3, 2, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, entropy=True):
        model(query, key, key)
        model(query, key, key, dropout_p=0.5)
    torch.testing.assert_close(given[0], by_hand(query, key, {}).logsumexp(-1))
    assert given[1] is None, "materialised weights leave none"


def test_padded_queries_of_self_attention_count_nowhere() -> None:
    class SelfAttention(nn.Module):
        def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
            return self.attend(vectors[:, None], mask)

        def attend(self, heads: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)

    class CrossAttention(nn.Module):
        def forward(self, vectors: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(vectors[:, None], memory[:, None], memory[:, None], attn_mask=mask)

    real = torch.arange(KEYS) < torch.tensor([KEYS, 4, 8])[:, None]
    vectors = draw(3, KEYS, DIM)
    scores = by_hand(vectors[:, None], vectors[:, None], {"attn_mask": real[:, None, None]})
    for mask in (real[:, None, None], real[:, None, None] & torch.ones(KEYS, KEYS, dtype=torch.bool).tril()):
        own, cross = nn.Sequential(SelfAttention()), nn.Sequential(CrossAttention())
        with observe(own, **ASKED) as seen:
            own[0](vectors, mask)
        scores = by_hand(vectors[:, None], vectors[:, None], {"attn_mask": mask})
        compare(seen["0"], observed(scores, None, real), 1e-9)
        with observe(cross, **ASKED) as seen:
            cross[0](vectors, vectors.clone(), mask)
        compare(seen["0"], observed(scores), 1e-9)


def test_a_mask_that_spares_the_diagonal_makes_no_padding() -> None:
    class SelfAttention(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            heads, mask = vectors[:, None], ~torch.eye(KEYS, dtype=torch.bool)
            return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)

    model = SelfAttention()
    with observe(model, received=True) as seen:
        model(draw(3, KEYS, DIM))
    torch.testing.assert_close(seen["attention"].received.sum(-1), torch.full((3, 1), float(KEYS), dtype=torch.float64))


def test_every_call_of_a_layer_is_an_entry() -> None:
    query, key = draw(3, 2, QUERIES, DIM), draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, entropy=True) as seen:
        for length in (3, 5, QUERIES):
            model(query[:, :, :length], key, key)
    assert list(seen.layers) == ["inner", "inner#1", "inner#2"]
    assert list(seen.backend) == list(seen.layers)
    assert [found.entropy.shape[-1] for found in seen.calls("inner")] == [3, 5, QUERIES]


def test_what_is_outside_the_model_is_not_observed() -> None:
    model, other = Model(), Model()
    query = draw(1, 2, QUERIES, DIM)
    with observe(model, entropy=True) as seen:
        other(query, query, query)
        F.scaled_dot_product_attention(query, query, query)
        model(query, query, query)
    assert list(seen.layers) == ["inner"]


def test_rows_carry_gradient_and_nothing_else_does() -> None:
    query = draw(3, 2, QUERIES, DIM).requires_grad_()
    key = draw(3, 2, KEYS, DIM, seed=2)
    model = Model()
    with observe(model, entropy=True, rows="all") as seen:
        model(query, key, key)
    rows = seen["inner"].rows
    (found,) = torch.autograd.grad(rows.square().sum(), query)
    (expected,) = torch.autograd.grad(by_hand(query, key, {}).softmax(-1).square().sum(), query)
    torch.testing.assert_close(found, expected)
    assert not seen["inner"].entropy.requires_grad


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:There is a performance drop")
def test_what_cannot_be_read_is_refused() -> None:
    model = Model()
    nested = torch.nested.nested_tensor([draw(2, 3, DIM), draw(2, 5, DIM)], layout=torch.jagged).transpose(1, 2)
    with (
        nothing_left(),
        pytest.raises(ObservationError, match="layer `inner`: it attends over nested"),
        observe(model, entropy=True),
    ):
        model(nested, nested, nested)
    query = draw(4, 2, QUERIES, DIM)
    with (
        nothing_left(),
        pytest.raises(ObservationError, match=r"runs inside torch\.func"),
        observe(model, entropy=True),
    ):
        torch.func.vmap(lambda one: model(one[None], one[None], one[None]))(query)


def test_the_operator_is_seen_as_well_as_the_function() -> None:
    class Operator(nn.Module):
        def forward(self, query: Tensor) -> Tensor:
            return torch.ops.aten.scaled_dot_product_attention(query, query, query)

    model = Operator()
    query = draw(1, 2, QUERIES, DIM)
    with observe(model, **ASKED) as seen:
        model(query)
    compare(seen["attention"], observed(by_hand_square(query)), 1e-9)


def by_hand_square(query: Tensor) -> Tensor:
    return query @ query.transpose(-2, -1) * DIM**-0.5
