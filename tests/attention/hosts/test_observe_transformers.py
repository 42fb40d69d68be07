"""`regard.observe` on models of transformers, held to the scores that their eager attention materialises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign_models import BART_NAMES, MODELS, Foreign, eager_scores, hf, llama, tokens
from materialised import ASKED, compare, large, nothing_left, observed
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from regard.attention.hosts.observe import observe
from regard.errors import ObservationError

DECODERS = ("llama", "mistral", "gemma2", "gpt2", "gpt_oss")
CASES = [(name, side) for name in MODELS for side in ("left", "right") if name != "vit" or side == "right"]


def check(foreign: Foreign) -> None:
    """Output, order of layers and every statistic of a forward."""
    expected = eager_scores(foreign)
    with torch.no_grad():
        plain = foreign.run()
        with nothing_left(), observe(foreign.model, **ASKED) as seen:
            output = foreign.run()
    assert torch.equal(output, plain)
    assert list(seen.layers) == foreign.layers
    assert len(expected) == len(foreign.layers)
    for name, (scores, sink) in zip(foreign.layers, expected, strict=True):
        compare(seen[name], observed(scores, sink, foreign.real.get(name)), foreign.tolerance)
        eager = foreign.model.config._attn_implementation == "eager"
        assert seen.backend[name] == ("eager (the model's choice)" if eager else "torch flash (cpu)")


@pytest.mark.parametrize(("name", "side"), CASES)
def test_statistics_of_every_layer(name: str, side: str) -> None:
    check(MODELS[name](side))


@pytest.mark.parametrize("name", MODELS)
def test_eager_attention_of_the_model_s_own_file(name: str) -> None:
    foreign = MODELS[name]()
    foreign.model.set_attn_implementation("eager")
    check(foreign)


def test_the_comparison_can_fail() -> None:
    foreign = llama()
    expected = eager_scores(foreign)
    with observe(foreign.model, **ASKED) as seen:
        foreign.run()
    scores, _ = expected[0]
    scores[0, 1, 5, 3] += 0.5
    with pytest.raises(AssertionError, match=r"(?s)^logsumexp"):
        compare(seen[foreign.layers[0]], observed(scores, None, foreign.real[foreign.layers[0]]), foreign.tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_trace_is_kept_in_linear_memory(name: str) -> None:
    """Masks as ranges, T5's bias by its offsets: nothing in a trace has both a query and a key axis."""
    foreign = MODELS[name]()
    with torch.no_grad(), observe(foreign.model, trace=True) as seen:
        foreign.run()
    for layer in foreign.layers:
        trace = seen[layer].trace
        assert trace is not None
        assert trace.bias is None
        assert trace.allowed is None
    if name == "t5":
        assert seen[foreign.layers[0]].trace.offset_bias is not None
    if name in ("llama", "mistral", "gemma2", "gpt_oss"):
        assert seen[foreign.layers[0]].trace.key.shape[1] == 2, "key heads are kept once a group"


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5", "gpt_oss", "bart"])
def test_no_map_is_made_that_the_model_does_not_make_itself(name: str) -> None:
    length = 640
    foreign = MODELS[name]("left", **({} if name == "t5" else {"max_position_embeddings": length}))
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    inputs: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    if name in ("t5", "bart"):
        inputs["decoder_input_ids"] = ids
    foreign.inputs = inputs
    statistics = {"entropy": True, "received": True, "max_logit": True, "top_k": 3, "trace": True}

    def watched() -> None:
        with observe(foreign.model, **statistics):
            foreign.run()

    assert large(length**2, watched) == large(length**2, foreign.run)


def test_counting_maps_can_fail() -> None:
    assert large(64, lambda: torch.ones(8, 8) + torch.ones(8)) == ["aten::ones", "aten::add.Tensor"]
    assert not large(65, lambda: torch.ones(8, 8) + torch.ones(8))


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5", "bert"])
@pytest.mark.parametrize("checkpoint", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_training_keeps_every_bit_and_records_once(name: str, checkpoint: bool | None) -> None:
    foreign = MODELS[name]()
    model = foreign.model.train()
    if checkpoint is not None:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": checkpoint})
        model.enable_input_require_grads()

    def step() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        output = foreign.run()
        output.logsumexp(-1).sum().backward()
        return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    plain = step()
    with nothing_left(), observe(model, entropy=True, rows=(0, -1)) as seen:
        watched = step()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))
    assert list(seen.layers) == foreign.layers


def test_dropout_is_no_part_of_a_statistic() -> None:
    for implementation in ("sdpa", "eager"):
        foreign = MODELS["bert"](attention_probs_dropout_prob=0.4, hidden_dropout_prob=0.0)
        foreign.model.set_attn_implementation(implementation)
        first = foreign.layers[0]
        with torch.no_grad(), observe(foreign.model, layers=first, **ASKED) as still:
            foreign.run()
        foreign.model.train()
        with torch.no_grad(), observe(foreign.model, layers=first, **ASKED) as dropping:
            foreign.run()
        for name, tensor in still[first].tensors().items():
            torch.testing.assert_close(dropping[first].tensors()[name], tensor)
        expected = "torch math: dropout" if implementation == "sdpa" else "eager (the model's choice)"
        assert dropping.backend[first] == expected


def test_autocast_is_seen_as_it_was_computed() -> None:
    for implementation in ("sdpa", "eager"):
        foreign = llama("right")
        foreign.model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            plain = foreign.run()
            with observe(foreign.model, trace=True) as seen:
                assert torch.equal(foreign.run(), plain)
        trace = seen[foreign.layers[0]].trace
        assert trace.query.dtype == torch.bfloat16
        assert seen[foreign.layers[0]].logsumexp.dtype == torch.float32


def test_half_precision_models() -> None:
    foreign = llama()
    foreign.model.bfloat16()
    with torch.no_grad():
        plain = foreign.run()
        with observe(foreign.model, entropy=True, received=True) as seen:
            assert torch.equal(foreign.run(), plain)
        foreign.model.set_attn_implementation("eager")
        with observe(foreign.model, entropy=True, received=True) as eager:
            foreign.run()
    for layer in foreign.layers:
        torch.testing.assert_close(seen[layer].entropy, eager[layer].entropy, rtol=0.1, atol=0.1)


# -- generation --------------------------------------------------------------------------------------------------------


GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "t5", "bart", "whisper"])
def test_generation_has_an_entry_a_call(name: str, way: str) -> None:
    foreign = MODELS[name]()
    inputs = {key: value for key, value in foreign.inputs.items() if not key.startswith("decoder")}

    def generate() -> Tensor:
        torch.manual_seed(3)
        return foreign.model.generate(**inputs, max_new_tokens=4, **GENERATION[way])

    plain = generate()
    with nothing_left(), observe(foreign.model, received=True, entropy=True) as seen:
        assert torch.equal(generate(), plain)
    expected = eager_scores(foreign, generate)
    assert len(expected) == len(seen.layers)
    steps: dict[str, int] = {}
    for entry, (scores, sink) in zip(seen.layers, expected, strict=True):
        layer = entry.partition("#")[0]
        call = steps[layer] = steps.get(layer, -1) + 1
        assert entry == (layer if not call else f"{layer}#{call}")
        truth = observed(scores, sink)
        found = seen.layers[entry]
        keys = found.received.shape[-1]  # an empty static cache is cut to what has been written
        if layer in foreign.real and scores.shape[-2] > 1 and "decoder" not in layer:
            repeats = scores.shape[0] // len(foreign.real[layer])
            truth = observed(scores, sink, foreign.real[layer].repeat_interleave(repeats, 0))
        for mine, other in ((found.received, truth["received"][..., :keys]), (found.entropy, truth["entropy"])):
            torch.testing.assert_close(mine.double(), other, rtol=foreign.tolerance, atol=foreign.tolerance)
        assert not truth["received"][..., keys:].any()
    assert len(seen.calls(foreign.layers[-1])) == 4


def test_a_trace_of_a_static_cache_is_not_written_on() -> None:
    foreign = llama()
    with observe(foreign.model, trace=True, received=True) as seen:
        foreign.model.generate(**foreign.inputs, max_new_tokens=3, cache_implementation="static")
    first = seen.calls(foreign.layers[0])[0]
    assert first.trace is not None
    scores = first.trace.of_queries(torch.arange(first.trace.query_len))
    weights = (scores - first.logsumexp[..., None]).exp().nan_to_num()
    torch.testing.assert_close(weights.sum(-2), first.received, rtol=1e-4, atol=1e-5)


def test_right_padding_in_a_static_cache_is_found() -> None:
    foreign = llama("right")
    cache = hf.StaticCache(foreign.model.config, max_cache_len=20)
    with torch.no_grad(), observe(foreign.model, entropy=True) as seen:
        foreign.model(**foreign.inputs, past_key_values=cache)
    entropy = seen[foreign.layers[0]].entropy
    assert not entropy.transpose(1, 2)[~foreign.inputs["attention_mask"].bool()].any()
    assert entropy.transpose(1, 2)[foreign.inputs["attention_mask"].bool()][1:].any(-1).sum() > 20


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_attention_by_hand_is_refused() -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = sizes | {"image_size": 12, "patch_size": 4}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "sep_token_id", "eos_token_id"), 0)
    text = sizes | {"vocab_size": 61, "encoder_hidden_size": 24} | ids
    model = hf.BlipForConditionalGeneration(hf.BlipConfig(text_config=text, vision_config=vision)).eval()

    def run() -> None:
        model(pixel_values=torch.zeros(1, 3, 12, 12), input_ids=torch.ones(1, 5, dtype=torch.int64))

    wanted = r"layer `vision_model.encoder.layers.0.self_attn` \(BlipAttention\) attends in a way of its own"
    with nothing_left(), pytest.raises(ObservationError, match=wanted), observe(model, entropy=True):
        run()
    with pytest.raises(ObservationError, match="BlipTextSelfAttention"), observe(model, layers="text*", entropy=True):
        run()


def test_a_way_around_the_interface_is_refused() -> None:
    foreign = MODELS["gpt2"](reorder_and_upcast_attn=True, attn_implementation="eager")
    foreign.model.float()
    with pytest.raises(ObservationError, match="GPT2Attention"), observe(foreign.model, entropy=True):
        foreign.run()


def by_hand(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    return value.repeat_interleave(2, 1).transpose(1, 2), None


def by_torch(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    output = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=True, enable_gqa=True)
    return output.transpose(1, 2), None


@pytest.mark.parametrize("implementation", ["own_flex_attention", "of_its_own"])
def test_a_kernel_that_is_not_read_is_refused_by_name(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, implementation, by_hand)
    foreign = llama()
    foreign.model.config._attn_implementation = implementation
    with (
        nothing_left(),
        pytest.raises(ObservationError, match=rf"`model.layers.0.self_attn` runs transformers' `{implementation}`"),
        observe(foreign.model, entropy=True),
    ):
        foreign.run()
    with (
        nothing_left(),
        pytest.raises(ObservationError, match="the function chose no layer that ran"),
        observe(foreign.model, layers=lambda name: "lm_head" in name, entropy=True),
    ):
        foreign.run()


def test_an_implementation_that_calls_torch_s_attention_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, "by_torch", by_torch)
    foreign = llama()
    foreign.inputs.pop("attention_mask")
    foreign.real.clear()
    check(foreign)
    with observe(foreign.model, received=True) as usual:
        foreign.run()
    foreign.model.config._attn_implementation = "by_torch"
    with observe(foreign.model, received=True) as seen:
        foreign.run()
    for layer in foreign.layers:
        torch.testing.assert_close(seen[layer].received, usual[layer].received)


def test_an_eager_function_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    eager = modeling_llama.eager_attention_forward

    def with_bias(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        return eager(module, query + 1.0, key, *args, **kwargs)

    foreign = llama()
    foreign.model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", with_bias)
    for train in (False, True):
        foreign.model.train(train)
        foreign.model.config.attention_dropout = 0.3
        with (
            nothing_left(),
            pytest.raises(ObservationError, match=r"LlamaAttention computes something else .* differs by"),
            observe(foreign.model, entropy=True),
        ):
            foreign.run()


# -- names and choices -------------------------------------------------------------------------------------------------


def test_layers_and_heads_are_chosen_by_pattern() -> None:
    foreign = MODELS["bart"]()
    with observe(foreign.model, layers="*.encoder_attn", heads={"*.1.encoder_attn": (3, -4)}, entropy=True) as seen:
        foreign.run()
    cross = f"model.{BART_NAMES[2]}"
    assert list(seen.layers) == [cross.format(0), cross.format(1)]
    assert seen[cross.format(0)].entropy.shape == (3, 4, 13)
    assert seen[cross.format(1)].entropy.shape == (3, 2, 13)
    assert seen[cross.format(1)].head_index.tolist() == [3, 0]


def test_weights_leave_padded_queries_out_of_cross_attention() -> None:
    foreign = MODELS["bart"]()
    mask = foreign.inputs["decoder_attention_mask"]
    with observe(foreign.model, layers="*.encoder_attn", received=mask.double()) as seen:
        foreign.run()
    received = seen[f"model.{BART_NAMES[2].format(0)}"].received
    torch.testing.assert_close(received.sum(-1), mask.sum(-1).double()[:, None].expand(3, 4))
