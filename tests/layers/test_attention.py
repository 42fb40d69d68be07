from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.distributions import SinkSoftmax
from regard.attention.masks import Causal, Mask, Padding, Window
from regard.attention.modifiers import RelativeBias, SoftCap
from regard.attention.observation import Observe
from regard.attention.scores import ScaledDot
from regard.errors import ConfigError
from regard.layers.attention import AttentionConfig, KeysValues, MultiHeadAttention

BATCH, HEADS, LENGTH, SOURCE_LEN, DIM, MEMORY_DIM = 2, 3, 5, 7, 33, 13
LENGTHS = torch.tensor([4, 7])


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def build(is_self: bool, memory_dim: int | None = None, dim: int = DIM, **config: Any) -> MultiHeadAttention:
    torch.manual_seed(0)
    layer = MultiHeadAttention(dim, AttentionConfig(HEADS, **config), is_self=is_self, memory_dim=memory_dim).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def run(layer: MultiHeadAttention, vectors: Tensor, memory: Tensor | None, mask: Mask | None) -> Tensor:
    if memory is None:
        return layer(*layer.project_self(vectors, 0), mask)[0]
    return layer(layer.project_query(vectors), layer.project_memory(memory), mask)[0]


@pytest.mark.parametrize("bias", [True, False])
def test_self_attention_is_torchs(bias: bool) -> None:
    ours = build(True, bias=bias)
    theirs = nn.MultiheadAttention(DIM, HEADS, bias=bias, batch_first=True, dtype=torch.float64)
    theirs.in_proj_weight.data = ours.query_key_value.weight.data
    theirs.out_proj.weight.data = ours.output.weight.data
    if bias:
        theirs.in_proj_bias.data, theirs.out_proj.bias.data = ours.query_key_value.bias.data, ours.output.bias.data
    vectors, again = (normal(BATCH, SOURCE_LEN, DIM).requires_grad_() for _ in range(2))
    padded = torch.arange(SOURCE_LEN) >= LENGTHS[:, None]
    future = torch.ones(SOURCE_LEN, SOURCE_LEN, dtype=torch.bool).triu(1)
    found = run(ours, vectors, None, Causal() & Padding(LENGTHS))
    wanted = theirs(again, again, again, key_padding_mask=padded, attn_mask=future, need_weights=False)[0]
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(vectors.grad, again.grad)
    torch.testing.assert_close(ours.query_key_value.weight.grad, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.output.weight.grad, theirs.out_proj.weight.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_is_torchs(bias: bool) -> None:
    ours = build(False, MEMORY_DIM, bias=bias)
    theirs = nn.MultiheadAttention(
        DIM, HEADS, bias=bias, kdim=MEMORY_DIM, vdim=MEMORY_DIM, batch_first=True, dtype=torch.float64
    )
    theirs.q_proj_weight.data = ours.query.weight.data
    key_weight, value_weight = ours.key_value.weight.data.chunk(2)
    theirs.k_proj_weight.data, theirs.v_proj_weight.data = key_weight, value_weight
    theirs.out_proj.weight.data = ours.output.weight.data
    if bias:
        theirs.in_proj_bias.data = torch.cat([ours.query.bias.data, ours.key_value.bias.data])
        theirs.out_proj.bias.data = ours.output.bias.data
    vectors, memory = normal(BATCH, LENGTH, DIM), normal(BATCH, SOURCE_LEN, MEMORY_DIM).requires_grad_()
    again = memory.detach().clone().requires_grad_()
    padded = torch.arange(SOURCE_LEN) >= LENGTHS[:, None]
    found = run(ours, vectors, memory, Padding(LENGTHS))
    wanted, weights = theirs(vectors, again, again, key_padding_mask=padded, average_attn_weights=False)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(memory.grad, again.grad)
    torch.testing.assert_close(
        torch.cat(ours.key_value.weight.grad.chunk(2)),
        torch.cat([theirs.k_proj_weight.grad, theirs.v_proj_weight.grad]),
    )
    seen = ours(ours.project_query(vectors), ours.project_memory(memory), Padding(LENGTHS), Observe(rows="all"))[1]
    torch.testing.assert_close(seen.rows, weights)


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_grouped_heads_are_heads_that_share(kv_heads: int) -> None:
    torch.manual_seed(0)
    grouped = MultiHeadAttention(DIM, AttentionConfig(6, kv_heads=kv_heads, head_dim=4), is_self=False).double()
    plain = MultiHeadAttention(DIM, AttentionConfig(6, head_dim=4), is_self=False).double()
    plain.load_state_dict(
        grouped.state_dict()
        | {
            name: part.unflatten(0, (2, kv_heads, 4)).repeat_interleave(6 // kv_heads, 1).flatten(0, 2)
            for name, part in grouped.state_dict().items()
            if name.startswith("key_value")
        }
    )
    vectors, memory = normal(BATCH, LENGTH, DIM), normal(BATCH, SOURCE_LEN, DIM)
    assert grouped.project_memory(memory).keys.shape == (BATCH, kv_heads, SOURCE_LEN, 4)
    torch.testing.assert_close(
        run(grouped, vectors, memory, Padding(LENGTHS)), run(plain, vectors, memory, Padding(LENGTHS))
    )


def test_rotary_attention_knows_only_distances() -> None:
    layer = build(True, dim=36, rotary_base=10_000.0)
    vectors = normal(BATCH, LENGTH, 36)
    first = layer(*layer.project_self(vectors, 0), Causal())[0]
    torch.testing.assert_close(layer(*layer.project_self(vectors, 977), Causal())[0], first)
    # Without a mask and without rotation the order of the input says nothing; with rotation it does.
    turned = run(layer, vectors.flip(1), None, None).flip(1)
    assert (turned - run(layer, vectors, None, None)).abs().max() > 1e-3
    layer.rotary = None
    torch.testing.assert_close(run(layer, vectors.flip(1), None, None).flip(1), run(layer, vectors, None, None))
    assert build(False, rotary_base=10_000.0, dim=36).rotary is None, "cross-attention has no distances"


def test_options_are_scores_distributions_and_masks() -> None:
    """What a configuration names is what `attend` is handed, with gradients to all that is learned."""
    layer = build(True, window=2, soft_cap=1.5, distance_bias="t5", sink="learned")
    vectors = normal(BATCH, SOURCE_LEN, DIM)
    found = run(layer, vectors, None, Padding(LENGTHS))
    query, (keys, values) = layer.project_self(vectors, 0)
    attended = attend(
        query,
        keys,
        values,
        score=ScaledDot().then(SoftCap(1.5), RelativeBias(layer.distance_table)),
        distribution=SinkSoftmax(layer.sink_logits),
        mask=Padding(LENGTHS) & Window(2, 2),
        backend="reference",
    )
    torch.testing.assert_close(found, layer.output(attended.output.transpose(1, 2).flatten(2)))
    found.sum().backward()
    assert layer.distance_table.shape == (32, HEADS)
    assert layer.distance_table.grad.any()
    assert layer.sink_logits.grad.all()
    seen = layer(query, KeysValues(keys, values), Padding(LENGTHS), Observe(rows="all"))[1].rows
    assert not seen[:, :, 0, 3:].any(), "beyond the window"
    assert (seen.sum(-1) < 1.0).all(), "the sink takes its share"


@pytest.mark.parametrize("option", [{"distance_bias": "alibi"}, {"distance_bias": "t5"}, {"window": 1}])
def test_distance_is_of_self_attention(option: dict[str, Any]) -> None:
    vectors, memory = normal(BATCH, LENGTH, DIM), normal(BATCH, SOURCE_LEN, DIM)
    ours, plain = build(True, **option), build(True)
    ours.load_state_dict(plain.state_dict(), strict=False)
    assert (run(ours, vectors, None, None) - run(plain, vectors, None, None)).abs().max() > 1e-3
    ours, plain = build(False, DIM, **option), build(False, DIM)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert torch.equal(run(ours, vectors, memory, None), run(plain, vectors, memory, None))


def test_what_is_learned_about_distances_and_sinks_starts_from_nothing() -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(DIM, AttentionConfig(HEADS, distance_bias="t5", sink="learned"), is_self=True)
    assert not layer.distance_table.any()
    assert not layer.sink_logits.any()
    off_by_one = MultiHeadAttention(DIM, AttentionConfig(HEADS, sink="off_by_one"), is_self=True)
    off_by_one.load_state_dict(layer.state_dict(), strict=False)
    vectors = normal(BATCH, LENGTH, DIM).float()
    torch.testing.assert_close(run(off_by_one, vectors, None, None), run(layer, vectors, None, None))


@pytest.mark.parametrize("option", [{"window": 2}, {"distance_bias": "alibi"}, {"distance_bias": "t5"}])
def test_a_cache_keeps_distances(option: dict[str, Any]) -> None:
    layer = build(True, **option)
    vectors = normal(BATCH, LENGTH, DIM)
    whole = layer(*layer.project_self(vectors, 0), Causal())[0]
    _, cache = layer.project_self(vectors[:, :2], 0)
    query, fresh = layer.project_self(vectors[:, 2:], 2)
    torch.testing.assert_close(layer(query, cache.followed_by(fresh), Causal())[0], whole[:, 2:])


def test_the_cache_grows_and_is_selected() -> None:
    layer = build(True, dim=36, rotary_base=100.0)
    vectors = normal(BATCH, LENGTH, 36)
    whole = layer(*layer.project_self(vectors, 0), Causal())[0]
    _, cache = layer.project_self(vectors[:, :2], 0)
    query, fresh = layer.project_self(vectors[:, 2:], 2)
    torch.testing.assert_close(layer(query, cache.followed_by(fresh), Causal())[0], whole[:, 2:])
    rows = torch.tensor([1, 1, 0])
    chosen = KeysValues(*cache).select(rows)
    assert torch.equal(chosen.keys, cache.keys[rows])
    assert torch.equal(chosen.values, cache.values[rows])


def test_dropout_on_the_weights_is_of_training_only() -> None:
    torch.manual_seed(0)
    layer = build(True, dropout=0.5)
    vectors = normal(BATCH, LENGTH, DIM)
    assert not torch.equal(run(layer, vectors, None, None), run(layer, vectors, None, None))
    layer.eval()
    assert torch.equal(run(layer, vectors, None, None), run(layer, vectors, None, None))
    assert layer.project_self(vectors, 0)[0].shape == (BATCH, HEADS, LENGTH, DIM // HEADS)


def test_initialisation_is_glorots_over_the_stacked_matrix() -> None:
    torch.manual_seed(0)
    layer = MultiHeadAttention(64, AttentionConfig(4), is_self=True)
    bound = (6 / (64 + 3 * 64)) ** 0.5
    largest = layer.query_key_value.weight.abs().max().item()
    assert 0.99 * bound < largest <= bound
    assert not layer.query_key_value.bias.any()
    assert not layer.output.bias.any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AttentionConfig(0), "attention: heads is 0, expected at least 1"),
        (AttentionConfig(4, kv_heads=3, head_dim=2), "attention: heads 4 is no multiple of kv_heads 3; change either"),
        (AttentionConfig(4, kv_heads=0, head_dim=2), "attention: heads 4 is no multiple of kv_heads 0; change either"),
        (AttentionConfig(5), "attention: model_dim 33 is no multiple of heads 5; set head_dim"),
        (AttentionConfig(3, head_dim=0), "attention: head_dim is 0, expected at least 1"),
        (
            AttentionConfig(3, rotary_base=100.0, dropout=1.0),
            "attention: rotary positions want an even head_dim, not 11; set head_dim; "
            "dropout is 1.0, expected at least 0 and below 1",
        ),
        (
            AttentionConfig(3, window=-1, soft_cap=0.0),
            "attention: window is -1, expected at least 0 tokens to each side; "
            "soft_cap is 0.0, expected a number above 0",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_told(config: AttentionConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MultiHeadAttention(DIM, config, is_self=True)
    assert str(caught.value) == message
