"""regard's attention chosen for models of transformers: the same logits and gradients, masks in linear memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from foreign_models import MODELS, Foreign, eager_scores, hf, llama, tokens
from materialised import ASKED, compare, large, nothing_left, observed
from torch import Tensor
from transformers import masking_utils
from transformers.modeling_utils import AttentionInterface

from regard.attention.hosts.implementation import attention_forward, make_mask, use_in_transformers
from regard.attention.hosts.model_score import ModelScore, Rows
from regard.attention.hosts.observe import observe
from regard.errors import ConfigError

CASES = [(name, side) for name in MODELS for side in ("left", "right") if name != "vit" or side == "right"]


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    use_in_transformers()
    yield
    AttentionInterface._global_mapping.pop("regard")
    masking_utils.AttentionMaskInterface._global_mapping.pop("regard")


def chosen(foreign: Foreign) -> Foreign:
    foreign.model.set_attn_implementation("regard")
    return foreign


def real_of(foreign: Foreign, output: Tensor) -> Tensor:
    """Which outputs belong to no padding: what stands at padding differs from implementation to implementation."""
    fitting = [mask for mask in foreign.real.values() if mask.shape == output.shape[:2]]
    return fitting[-1] if fitting else torch.ones(output.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize(("name", "side"), CASES)
def test_logits_and_statistics_are_those_of_eager_attention(name: str, side: str) -> None:
    foreign = MODELS[name](side)
    expected = eager_scores(foreign)
    with torch.no_grad():
        foreign.model.set_attn_implementation("eager")
        eager = foreign.run()
        with nothing_left(), observe(chosen(foreign).model, **ASKED) as seen:
            output = foreign.run()
    real = real_of(foreign, output)
    torch.testing.assert_close(output[real], eager[real], rtol=foreign.tolerance, atol=foreign.tolerance)
    assert list(seen.layers) == foreign.layers
    for layer, (scores, sink) in zip(foreign.layers, expected, strict=True):
        compare(seen[layer], observed(scores, sink, foreign.real.get(layer)), foreign.tolerance)
    assert set(seen.backend.values()) == {"regard reference" if name == "gemma2" else "regard fused"}


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "t5", "bart"])
def test_gradients_are_those_of_eager_attention(name: str) -> None:
    foreign = MODELS[name]("right")

    def gradients(implementation: str) -> dict[str, Tensor]:
        foreign.model.set_attn_implementation(implementation)
        foreign.model.zero_grad()
        output = foreign.run()
        output[real_of(foreign, output)].logsumexp(-1).sum().backward()
        return {key: value.grad.clone() for key, value in foreign.model.named_parameters() if value.grad is not None}

    eager, own = gradients("eager"), gradients("regard")
    assert eager.keys() == own.keys()
    for key, gradient in eager.items():
        scale = gradient.abs().max().clamp(min=1.0)
        torch.testing.assert_close(own[key] / scale, gradient / scale, rtol=1e-4, atol=20 * foreign.tolerance, msg=key)


@pytest.mark.parametrize(
    "way", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static"]
)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "t5", "bart"])
def test_generation(name: str, way: dict[str, Any]) -> None:
    foreign = MODELS[name]()
    inputs = {key: value for key, value in foreign.inputs.items() if not key.startswith("decoder")}
    foreign.model.set_attn_implementation("eager")
    expected = foreign.model.generate(**inputs, max_new_tokens=5, **way)
    assert torch.equal(chosen(foreign).model.generate(**inputs, max_new_tokens=5, **way), expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss", "bart"])
def test_no_map_and_no_mask_of_all_pairs_is_made(name: str) -> None:
    length = 640
    foreign = MODELS[name]("left", max_position_embeddings=length)
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    foreign.inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "bart":
        foreign.inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    assert large(length**2, chosen(foreign).run) == []
    foreign.model.set_attn_implementation("eager")
    assert large(length**2, foreign.run) != []


def test_a_mask_that_the_user_gives_is_taken_as_it_is() -> None:
    foreign = llama()
    shape = (3, 1, 13, 13)
    sparse = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.5) | torch.eye(13, dtype=torch.bool)
    added = torch.zeros(shape).masked_fill(~sparse, torch.finfo(torch.float32).min)
    biased = added + torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for mask in (added, biased):
        foreign.inputs["attention_mask"] = mask
        with torch.no_grad():
            foreign.model.set_attn_implementation("eager")
            expected = foreign.run()
            torch.testing.assert_close(chosen(foreign).run(), expected, rtol=1e-4, atol=1e-4)


def test_masks_of_every_kind() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int64)

    def blocks(item: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // 3 == key // 3

    def by_tensor(item: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return table[query, key]

    table = torch.arange(81).view(9, 9) % 2 == 0
    sizes = {"batch_size": 2, "q_length": 9, "kv_length": 9, "device": ids.device}
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[1, 5:] = False
    holes = padding.clone()
    holes[:, ::2] = False
    functions = {
        "causal": masking_utils.causal_mask_function,
        "all": masking_utils.bidirectional_mask_function,
        "window": masking_utils.sliding_window_causal_mask_function(3),
        "blocks": blocks,
        "table": by_tensor,
    }
    for name, function in functions.items():
        for real in (None, padding, holes):
            given = {**sizes, "mask_function": function, "attention_mask": real, "use_vmap": name == "table"}
            expected = masking_utils.sdpa_mask(**given, allow_is_causal_skip=False)
            made = make_mask(**given)
            assert made is None or (made.shape == (2, 1, 9, 9) and made.untyped_storage().nbytes() == 1)
            mask = None if made is None else made.mask
            dense = torch.ones(1, 1, 1, 1, dtype=torch.bool) if mask is None else mask.dense(9, 9)
            assert torch.equal(dense.expand(2, 1, 9, 9), expected), (name, real)
            if real is None:
                assert isinstance(mask, Rows) or name in ("all", "table")
            elif real is padding and name != "table":
                assert isinstance(mask, Rows)


def test_a_step_of_a_cache_stands_where_it_stands() -> None:
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, :2] = False
    given = {
        "batch_size": 2,
        "kv_length": 8,
        "mask_function": masking_utils.causal_mask_function,
        "attention_mask": real,
    }
    expected = masking_utils.sdpa_mask(**given, q_length=2, q_offset=4, allow_is_causal_skip=False)
    for place in ({"q_length": 2, "q_offset": 4}, {"cache_position": torch.tensor([4, 5])}):
        mask = make_mask(**given, **place).mask
        assert torch.equal(mask.dense(2, 8).expand(2, 1, 2, 8), expected)


def test_a_block_of_queries_is_scored_as_all_are() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64) for length in (5, 7))
    bias = torch.randn(1, 3, 5, 7, generator=generator, dtype=torch.float64)
    bias[0, 1, 2, 3] = torch.finfo(torch.float64).min
    offsets = torch.randn(3, 11, generator=generator, dtype=torch.float64)
    for score in (
        ModelScore(0.3, 2.0, offsets, bias),
        ModelScore(0.3, None, None, bias),
        ModelScore(0.3, None, offsets),
    ):
        whole = score.similarity(query, key)
        pairs = score.pairs(query, key)
        torch.testing.assert_close(whole, pairs.of_queries(torch.arange(5)))
        some = score.similarity(query[:, :, 1:3], key, torch.tensor([3, 4]))
        torch.testing.assert_close(some, whole[:, :, 1:3])


def test_what_it_does_not_know_is_refused() -> None:
    side = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ConfigError, match="knows no paged cache"):
        attention_forward(torch.nn.Identity(), side, side, side, None, cache=object())
    mask = make_mask(1, 4, masking_utils.causal_mask_function, q_length=4)
    assert mask.contiguous() is mask.to(torch.float32) is mask.detach() is mask
    for wrong in (lambda: mask + 1, lambda: mask[:, :, 1:], lambda: ~mask, lambda: mask.expand(2, 1, 4, 4)):
        with pytest.raises(ConfigError, match="the model computes with its mask"):
            wrong()


def test_it_is_never_put_under_a_model_that_did_not_ask() -> None:
    foreign = llama()
    assert foreign.model.config._attn_implementation == "sdpa"
    with observe(foreign.model, entropy=True) as seen:
        foreign.run()
    assert set(seen.backend.values()) == {"torch flash (cpu)"}
    assert hf.LlamaForCausalLM(foreign.model.config).config._attn_implementation == "sdpa"
