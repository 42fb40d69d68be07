"""`regard.observe` on torch's own attention modules: every way they compute, every argument, no bit changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from materialised import ASKED, compare, large, nothing_left, observed
from torch import Tensor, nn

from regard.attention.hosts.observe import observe
from regard.errors import ObservationError

BATCH, HEADS, DIM, QUERIES, KEYS = 3, 2, 10, 7, 11
NESTED = "ignore:The PyTorch API of nested tensors"
pytestmark = [
    pytest.mark.filterwarnings(NESTED),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
]


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def multihead(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def scores_of(module: nn.MultiheadAttention, query: Tensor, key: Tensor, disallowed: Tensor, added: Tensor) -> Tensor:
    """By hand; query, key: [batch, length, width]; disallowed, added: broadcast to the scores without extra keys."""
    if module.in_proj_weight is None:
        weights = (module.q_proj_weight, module.k_proj_weight)
    else:
        weights = (module.in_proj_weight[:DIM], module.in_proj_weight[DIM : 2 * DIM])
    bias = torch.zeros(3 * DIM, dtype=torch.float64) if module.in_proj_bias is None else module.in_proj_bias
    query, key = query @ weights[0].T + bias[:DIM], key @ weights[1].T + bias[DIM : 2 * DIM]
    extra = 0
    if module.bias_k is not None:
        key, extra = torch.cat([key, module.bias_k.expand(len(key), 1, DIM)], 1), 1
    if module.add_zero_attn:
        key, extra = torch.cat([key, torch.zeros(len(key), 1, DIM, dtype=torch.float64)], 1), extra + 1
    query, key = (side.unflatten(-1, (HEADS, -1)).transpose(1, 2) for side in (query, key))
    scores = query @ key.transpose(-2, -1) / (DIM / HEADS) ** 0.5
    shape = (*scores.shape[:-1], scores.shape[-1] - extra)
    scores = scores + F.pad(added.expand(shape), (0, extra))
    return scores.masked_fill(F.pad(disallowed.expand(shape), (0, extra)), float("-inf")).detach()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "widths": {"kdim": 13, "vdim": 5},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout": {"dropout": 0.4},
}
padding = torch.arange(KEYS) >= torch.tensor([KEYS, 4, 8])[:, None]
some = draw(QUERIES, KEYS, seed=9) > 0.4
of_heads = draw(BATCH * HEADS, QUERIES, KEYS, seed=8) > 0.9
MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "padding": {"key_padding_mask": padding},
    "added padding": {"key_padding_mask": torch.zeros(BATCH, KEYS).double().masked_fill(padding, float("-inf"))},
    "causal": {"attn_mask": torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(KEYS - QUERIES + 1)},
    "any": {"attn_mask": some},
    "of heads": {"attn_mask": of_heads, "key_padding_mask": padding},
    "added": {"attn_mask": draw(QUERIES, KEYS, seed=4), "key_padding_mask": draw(BATCH, KEYS, seed=5)},
}


def lowered(masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    disallowed = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    added = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for name, mask in masks.items():
        whole = mask[:, None, None] if name == "key_padding_mask" else mask
        if mask.ndim == 3:
            whole = mask.view(BATCH, HEADS, QUERIES, KEYS)
        if mask.dtype == torch.bool:
            disallowed = disallowed | whole
        else:
            added = added + whole
    return disallowed, added


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "length first"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_cross_attention(options: str, masks: str, batch_first: bool) -> None:
    module = multihead(**OPTIONS[options], batch_first=batch_first)
    query, key = draw(BATCH, QUERIES, DIM), draw(BATCH, KEYS, module.kdim, seed=2)
    value = draw(BATCH, KEYS, module.vdim, seed=3)
    given = [side if batch_first else side.transpose(0, 1) for side in (query, key, value)]
    for need_weights, train in itertools.product((True, False), (True, False)):
        module.train(train)
        run = seeded(lambda need=need_weights: module(*given, need_weights=need, **MASKS[masks])[0])
        with torch.no_grad():
            plain = run()
            with nothing_left(), observe(module, **ASKED) as seen:
                assert torch.equal(run(), plain)
        expected = observed(scores_of(module, query, key, *lowered(MASKS[masks])))
        compare(seen["attention"], expected, 1e-9)
        dropped = train and options == "dropout"
        if need_weights:
            assert seen.backend["attention"] == "torch materialised: need_weights"
        else:
            fused = "torch math: dropout" if dropped else "torch flash (cpu)"
            assert seen.backend["attention"] in (fused, "torch math")


def seeded(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def again() -> Tensor:
        torch.manual_seed(4)
        return run()

    return again


def test_self_attention_by_its_fast_path() -> None:
    module = multihead(batch_first=True).eval()
    vectors = draw(BATCH, KEYS, DIM)
    with torch.no_grad():
        plain = module(vectors, vectors, vectors, key_padding_mask=padding, need_weights=False)[0]
        with nothing_left(), observe(module, **ASKED) as seen:
            output = module(vectors, vectors, vectors, key_padding_mask=padding, need_weights=False)[0]
    assert torch.equal(output, plain)
    assert seen.backend["attention"] == "torch fast path"
    expected = observed(scores_of(module, vectors, vectors, *lowered({"key_padding_mask": padding})), None, ~padding)
    compare(seen["attention"], expected, 1e-9)


def test_unbatched_inputs() -> None:
    module = multihead()
    query, key = draw(QUERIES, DIM), draw(KEYS, DIM, seed=2)
    with observe(module, **ASKED) as seen:
        module(query, key, key, key_padding_mask=padding[1])
    disallowed = padding[1].view(1, 1, 1, KEYS)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    compare(seen["attention"], observed(scores_of(module, query[None], key[None], disallowed, zero)), 1e-9)


def test_the_causal_hint_is_top_left_where_torch_takes_it() -> None:
    module = multihead(batch_first=True)
    query, key = draw(BATCH, QUERIES, DIM), draw(BATCH, KEYS, DIM, seed=2)
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1)
    with observe(module, **ASKED) as seen:
        module(query, key, key, attn_mask=mask, is_causal=True, need_weights=False)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    compare(seen["attention"], observed(scores_of(module, query, key, mask, zero)), 1e-9)


# -- layers and stacks -------------------------------------------------------------------------------------------------


def encoder(norm_first: bool, nested: bool) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        DIM, HEADS, 13, dropout=0.2, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    return nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(DIM, dtype=torch.float64), enable_nested_tensor=nested)


INPUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"src_key_padding_mask": padding & (torch.arange(KEYS) != KEYS)},
    "all padded": {"src_key_padding_mask": torch.arange(KEYS) >= torch.tensor([9, 4, 8])[:, None]},
    "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(KEYS, dtype=torch.float64), "is_causal": True},
    "causal and padded": {
        "mask": torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1),
        "src_key_padding_mask": padding,
    },
}


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("way", ["fast", "inference", "grad", "train"])
def test_encoder_stacks_keep_their_bits_on_every_path(way: str, kind: str, norm_first: bool) -> None:
    stack = encoder(norm_first, nested=True).train(way == "train")
    vectors = draw(BATCH, KEYS, DIM).requires_grad_(way in ("grad", "train"))

    def run() -> list[Tensor]:
        torch.manual_seed(2)
        stack.zero_grad()
        vectors.grad = None
        output = stack(vectors, **INPUTS[kind])
        if not output.requires_grad:
            return [output]
        output.square().sum().backward()
        return [output.detach(), vectors.grad, *(parameter.grad.clone() for parameter in stack.parameters())]

    with torch.inference_mode() if way == "inference" else torch.set_grad_enabled(way != "fast"):
        plain = run()
        with nothing_left(), observe(stack, **ASKED) as seen:
            watched = run()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert list(seen.layers) == ["layers.0.self_attn", "layers.1.self_attn"]
    backend = {"train": "torch math: dropout", "grad": "torch flash (cpu)"}.get(way, "torch fast path")
    assert set(seen.backend.values()) == {backend}
    first = stack.layers[0]
    given = first.norm1(vectors) if norm_first else vectors
    disallowed, added = torch.zeros(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    missing = INPUTS[kind].get("src_key_padding_mask")
    if missing is not None:
        disallowed = disallowed | missing[:, None, None]
    if "mask" in INPUTS[kind]:
        disallowed = disallowed | torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)
    scores = scores_of(first.self_attn, given.detach(), given.detach(), disallowed, added)
    compare(seen["layers.0.self_attn"], observed(scores, None, None if missing is None else ~missing), 1e-9)


def test_the_whole_transformer_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(DIM, HEADS, 2, 2, 13, batch_first=True)
    source, target = torch.randn(2, 9, DIM), torch.randn(2, 5, DIM)
    missing = torch.arange(9) >= torch.tensor([9, 6])[:, None]
    given = {
        "tgt_mask": model.generate_square_subsequent_mask(5),
        "src_key_padding_mask": torch.zeros(2, 9).masked_fill(missing, float("-inf")),
        "memory_key_padding_mask": torch.zeros(2, 9).masked_fill(missing, float("-inf")),
        "tgt_is_causal": True,
    }
    for train, grad in itertools.product((False, True), (False, True)):
        model.train(train)
        with torch.set_grad_enabled(grad):
            torch.manual_seed(3)
            plain = model(source, target, **given)
            torch.manual_seed(3)
            with nothing_left(), observe(model, received=True) as seen:
                assert torch.equal(model(source, target, **given), plain)
        assert [name for name in seen.layers if name.startswith("encoder")] == [
            "encoder.layers.0.self_attn",
            "encoder.layers.1.self_attn",
        ]
        assert list(seen.layers)[2:] == [
            f"decoder.layers.{layer}.{kind}" for layer in range(2) for kind in ("self_attn", "multihead_attn")
        ]
        own = seen["encoder.layers.1.self_attn"].received
        torch.testing.assert_close(own.sum(-1), torch.tensor([9.0, 6.0])[:, None].expand(2, HEADS))
        assert not own[1, :, 6:].any(), "a nested batch is told in the length it had"
        cross = seen["decoder.layers.0.multihead_attn"].received
        torch.testing.assert_close(cross.sum(-1), torch.full((2, HEADS), 5.0))
        assert not cross[1, :, 6:].any()


def test_the_fast_path_is_open_beside_another_mode() -> None:
    """A device context around a layer: torch leaves its fast path by itself, and the contexts end in their order."""

    class InsideDevice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = encoder(False, nested=True)

        def forward(self, vectors: Tensor) -> Tensor:
            with torch.device("cpu"):
                return self.layer(vectors)

    model = InsideDevice().eval()
    with torch.no_grad():
        plain = model(draw(BATCH, KEYS, DIM))
        with nothing_left(), observe(model, entropy=True) as seen:
            assert torch.equal(model(draw(BATCH, KEYS, DIM)), plain)
    assert list(seen.layers) == ["layer.layers.0.self_attn", "layer.layers.1.self_attn"]


def test_a_model_that_is_not_observed_keeps_its_fast_path_too() -> None:
    stack, other = encoder(False, nested=True).eval(), encoder(True, nested=False).eval()
    with torch.no_grad():
        plain = other(draw(BATCH, KEYS, DIM))
        with observe(stack, entropy=True) as seen:
            stack(draw(BATCH, KEYS, DIM))
            assert torch.equal(other(draw(BATCH, KEYS, DIM)), plain)
    assert len(seen.layers) == 2


class OwnForward(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor, **masks: Any) -> Tensor:
        query = src.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(query, query, query).transpose(1, 2).flatten(2)


class ForwardAround(nn.TransformerEncoderLayer):
    """Whether the fast path is taken inside is torch's affair, so that the observer's mode must stay away."""

    def forward(self, src: Tensor, **masks: Any) -> Tensor:
        return super().forward(src, **masks) + OwnForward.forward(self, src)


def test_subclasses_of_torch_s_modules_are_read_where_torch_s_forward_does_not_run() -> None:
    vectors = draw(BATCH, KEYS, DIM)
    own = nn.Sequential(OwnForward(DIM, HEADS, 13, batch_first=True, dtype=torch.float64))
    with observe(own, **ASKED) as seen:
        own(vectors)
    query = vectors.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    compare(seen["0"], observed(query @ query.transpose(-2, -1) * (DIM / HEADS) ** -0.5), 1e-9)
    around = nn.Sequential(ForwardAround(DIM, HEADS, 13, batch_first=True, dtype=torch.float64)).eval()
    with torch.no_grad():
        plain = around(vectors)
        wanted = r"layer `0` \(ForwardAround\)"
        with nothing_left(), pytest.raises(ObservationError, match=wanted), observe(around, entropy=True):
            around(vectors)
        with observe(mixed := nn.Sequential(own, around), layers="0.0", entropy=True):
            assert torch.equal(mixed[1](vectors), plain)
            mixed(vectors)


def test_the_function_itself() -> None:
    class Pooling(nn.Module):
        """As CLIP's pooling: the weights of separate projections, the function called directly."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = multihead(bias=True)
            self.pool = True

        def forward(self, vectors: Tensor) -> Tensor:
            inner, rows = self.attention, vectors.transpose(0, 1)
            query, key, _ = inner.in_proj_weight.chunk(3)
            return F.multi_head_attention_forward(
                rows.mean(0, keepdim=True),
                rows,
                rows,
                DIM,
                HEADS,
                None,
                inner.in_proj_bias,
                None,
                None,
                False,
                0.0,
                inner.out_proj.weight,
                inner.out_proj.bias,
                use_separate_proj_weight=True,
                q_proj_weight=query,
                k_proj_weight=key,
                v_proj_weight=key,
                need_weights=False,
                training=False,
            )[0]

    model = Pooling()
    vectors = draw(BATCH, KEYS, DIM)
    plain = model(vectors)
    with nothing_left(), observe(model, **{**ASKED, "pooled": None}) as seen:
        assert torch.equal(model(vectors), plain)
    assert seen.backend == {"attention": "torch flash (cpu)"}
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    expected = observed(scores_of(model.attention, vectors.mean(1, keepdim=True), vectors, zero.bool(), zero))
    expected.pop("pooled")
    compare(seen["attention"], expected, 1e-9)


def test_no_map_is_made_that_torch_does_not_make_itself() -> None:
    length = 640
    stack = encoder(False, nested=True)
    vectors = draw(1, length, DIM)
    masks = [
        {},
        {"src_key_padding_mask": torch.arange(length)[None] >= length - 7},
        {"mask": torch.ones(length, length, dtype=torch.bool).triu(1)},
    ]
    for train, given in itertools.product((False, True), masks):
        stack.train(train)

        def watched(given: dict[str, Tensor] = given) -> None:
            with observe(stack, entropy=True, received=True, trace=True):
                stack(vectors, **given)

        assert large(length**2, watched) == large(length**2, lambda given=given: stack(vectors, **given))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_recorded_once_and_rows_learn(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = encoder(False, nested=False)

        def forward(self, vectors: Tensor) -> Tensor:
            return checkpoint(self.layer, vectors, use_reentrant=reentrant)

    model = Checkpointed().train()
    vectors = draw(BATCH, KEYS, DIM).requires_grad_()

    def step() -> list[Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        model(vectors).square().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = step()
    with nothing_left(), observe(model, rows="all", entropy=True) as seen:
        watched = step()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert list(seen.layers) == ["layer.layers.0.self_attn", "layer.layers.1.self_attn"]
    rows = seen["layer.layers.0.self_attn"].rows
    assert rows.requires_grad is not reentrant  # a reentrant checkpoint runs forward without gradient
    if not reentrant:
        (gradient,) = torch.autograd.grad(rows.square().sum(), vectors)
        weights = multihead_rows(model.layer.layers[0].self_attn, vectors)
        (expected,) = torch.autograd.grad(weights.square().sum(), vectors)
        torch.testing.assert_close(gradient, expected)


def multihead_rows(module: nn.MultiheadAttention, vectors: Tensor) -> Tensor:
    module.eval()
    weights: Tensor = module(vectors, vectors, vectors, average_attn_weights=False)[1]
    return weights


def test_a_selective_checkpoint_recomputes_what_it_kept_apart() -> None:
    from functools import partial

    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        kept = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = encoder(False, nested=False)

        def forward(self, vectors: Tensor) -> Tensor:
            contexts = partial(create_selective_checkpoint_contexts, policy)
            return checkpoint(self.layer, vectors, use_reentrant=False, context_fn=contexts)

    model = Checkpointed().train()
    vectors = draw(BATCH, KEYS, DIM).requires_grad_()

    def step() -> Tensor:
        torch.manual_seed(0)
        vectors.grad = None
        model(vectors).square().sum().backward()
        return vectors.grad.clone()

    plain = step()
    with observe(model, received=True, rows=(0,)) as seen:
        assert torch.equal(step(), plain)
    assert len(seen.layers) == 2
