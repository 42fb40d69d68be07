"""Tiny random models of transformers, a padded batch for each, and the scores that their eager attention makes.

Nothing is downloaded: every configuration is written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

pytest.importorskip("transformers", reason="transformers is not installed")
import transformers as hf

VOCAB, DIM, HEADS, LAYERS, LENGTH, SOURCE = 61, 24, 4, 2, 13, 11
KV_HEADS = 2


@dataclass(eq=False)
class Foreign:
    """A model, its inputs, and what is known of its attention.

    layers: names in the order in which they run. real: layer -> bool [batch, query_len], which queries are no padding;
    layers that are not there have none that shows. tolerance: of every statistic against the eager run's scores.
    """

    model: nn.Module
    inputs: dict[str, Tensor]
    layers: list[str]
    real: dict[str, Tensor] = field(default_factory=dict)
    tolerance: float = 5e-6

    def run(self) -> Tensor:
        output = self.model(**self.inputs)
        return output.logits if "logits" in output else output.last_hidden_state


def padding(batch: int, length: int, side: str) -> Tensor:
    """[batch, length] of 0 and 1: the second item is 3 shorter, a third one 5."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for item in range(1, batch):
        short = 2 * item + 1
        mask[item, :short] = 0 if side == "left" else 1
        mask[item, length - short :] = 0 if side == "right" else 1
    return mask


def tokens(batch: int, length: int, seed: int = 5) -> Tensor:
    return torch.randint(4, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def built(kind: Any, config: Any) -> nn.Module:
    """In float64 and eval mode, with weights wide enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = kind(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.35)
            elif "bias" in name or "sinks" in name:
                parameter.normal_(std=0.2)
    return model


def _decoder(kind: str, config: Any, side: str, path: str, *, double: bool = False) -> Foreign:
    """In float32 unless their eager softmax takes float64 too: where it casts, the lowest value overflows to -inf."""
    mask = padding(3, LENGTH, side)
    model = built(getattr(hf, kind), config)
    layers = [path.format(layer) for layer in range(LAYERS)]
    real = dict.fromkeys(layers, mask.bool())
    inputs = {"input_ids": tokens(3, LENGTH), "attention_mask": mask}
    if double:
        return Foreign(model, inputs, layers, real)
    return Foreign(model.float(), inputs, layers, real, tolerance=5e-5)


def _sizes(**more: Any) -> dict[str, Any]:
    """pad_token_id lies within the vocabulary; no end of sentence, so that generation runs its length."""
    common = {
        "vocab_size": VOCAB,
        "hidden_size": DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 20,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    return common | more


def llama(side: str = "left", **more: Any) -> Foreign:
    config = hf.LlamaConfig(**_sizes(num_key_value_heads=KV_HEADS, **more))
    return _decoder("LlamaForCausalLM", config, side, "model.layers.{}.self_attn")


def mistral(side: str = "left", **more: Any) -> Foreign:
    config = hf.MistralConfig(**_sizes(num_key_value_heads=KV_HEADS, sliding_window=4, head_dim=6, **more))
    return _decoder("MistralForCausalLM", config, side, "model.layers.{}.self_attn")


def gemma2(side: str = "left", **more: Any) -> Foreign:
    config = hf.Gemma2Config(
        **_sizes(
            num_key_value_heads=KV_HEADS,
            head_dim=8,
            sliding_window=5,
            query_pre_attn_scalar=7,
            attn_logit_softcapping=1.5,
            **more,
        )
    )
    return _decoder("Gemma2ForCausalLM", config, side, "model.layers.{}.self_attn")


def gpt2(side: str = "left", **more: Any) -> Foreign:
    names = {"n_embd": DIM, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCAB}
    config = hf.GPT2Config(**names, pad_token_id=0, bos_token_id=1, eos_token_id=None, **more)
    return _decoder("GPT2LMHeadModel", config, side, "transformer.h.{}.attn", double=True)


def gpt_oss(side: str = "left", **more: Any) -> Foreign:
    config = hf.GptOssConfig(
        **_sizes(num_key_value_heads=KV_HEADS, head_dim=8, sliding_window=4, **more),
        num_local_experts=2,
        num_experts_per_tok=1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return _decoder("GptOssForCausalLM", config, side, "model.layers.{}.self_attn")


def bert(side: str = "right", **more: Any) -> Foreign:
    mask = padding(3, LENGTH, side)
    model = built(hf.BertModel, hf.BertConfig(**_sizes(type_vocab_size=2, **more)))
    layers = [f"encoder.layer.{layer}.attention.self" for layer in range(LAYERS)]
    inputs = {"input_ids": tokens(3, LENGTH), "attention_mask": mask}
    return Foreign(model, inputs, layers, dict.fromkeys(layers, mask.bool()))


def vit(side: str = "right", **more: Any) -> Foreign:
    config = hf.ViTConfig(
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=17,
        image_size=12,
        patch_size=4,
        **more,
    )
    model = built(hf.ViTModel, config)
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    names = [name for name, module in model.named_modules() if type(module).__name__ == "ViTAttention"]
    return Foreign(model, {"pixel_values": pixels}, names)


def _encoder_decoder(model: nn.Module, side: str, names: tuple[str, str, str], **inputs: Tensor) -> Foreign:
    """names: of encoder, decoder's own and cross-attention; the decoder's batch is padded too."""
    encoder, own, cross = names
    decoder_mask = padding(3, LENGTH, "right")
    inputs = {**inputs, "decoder_input_ids": tokens(3, LENGTH, seed=6), "decoder_attention_mask": decoder_mask}
    layers = [encoder.format(layer) for layer in range(LAYERS)]
    decoder = [name.format(layer) for layer in range(LAYERS) for name in (own, cross)]
    real = {own.format(layer): decoder_mask.bool() for layer in range(LAYERS)}
    if "attention_mask" in inputs:
        real |= dict.fromkeys(layers, inputs["attention_mask"].bool())
    return Foreign(model, inputs, layers + decoder, real)


def t5(side: str = "right", **more: Any) -> Foreign:
    config = hf.T5Config(
        vocab_size=VOCAB,
        d_model=DIM,
        d_kv=5,
        d_ff=17,
        num_layers=LAYERS,
        num_heads=HEADS,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=0,
        **more,
    )
    names = (
        "encoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.0.SelfAttention",
        "decoder.block.{}.layer.1.EncDecAttention",
    )
    model = built(hf.T5ForConditionalGeneration, config)
    return _encoder_decoder(model, side, names, input_ids=tokens(3, SOURCE, 7), attention_mask=padding(3, SOURCE, side))


BART_NAMES = ("encoder.layers.{}.self_attn", "decoder.layers.{}.self_attn", "decoder.layers.{}.encoder_attn")


def _bart_sizes(**more: Any) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", LAYERS), ("attention_heads", HEADS), ("ffn_dim", 17))
    }
    common = {"vocab_size": VOCAB, "d_model": DIM, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
    return common | sides | {"eos_token_id": None, "forced_eos_token_id": None, "decoder_start_token_id": 1} | more


def bart(side: str = "right", **more: Any) -> Foreign:
    model = built(hf.BartForConditionalGeneration, hf.BartConfig(**_bart_sizes(**more)))
    names = tuple(f"model.{name}" for name in BART_NAMES)
    return _encoder_decoder(model, side, names, input_ids=tokens(3, SOURCE, 7), attention_mask=padding(3, SOURCE, side))


def marian(side: str = "right", **more: Any) -> Foreign:
    config = hf.MarianConfig(**_bart_sizes(decoder_vocab_size=VOCAB, **more))
    model = built(hf.MarianMTModel, config)
    names = tuple(f"model.{name}" for name in BART_NAMES)
    return _encoder_decoder(model, side, names, input_ids=tokens(3, SOURCE, 7), attention_mask=padding(3, SOURCE, side))


def whisper(side: str = "right", **more: Any) -> Foreign:
    sizes = _bart_sizes(**more)
    sizes.pop("max_position_embeddings")
    config = hf.WhisperConfig(
        **sizes,
        num_mel_bins=5,
        max_source_positions=SOURCE,
        max_target_positions=32,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = built(hf.WhisperForConditionalGeneration, config)
    sound = torch.randn(3, 5, 2 * SOURCE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return _encoder_decoder(model, side, tuple(f"model.{name}" for name in BART_NAMES), input_features=sound)


MODELS: dict[str, Callable[..., Foreign]] = {
    "llama": llama,
    "mistral": mistral,
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gpt_oss": gpt_oss,
    "bert": bert,
    "vit": vit,
    "t5": t5,
    "bart": bart,
    "marian": marian,
    "whisper": whisper,
}


class EagerScores(TorchFunctionMode):
    """Collects the final scores of eager attention: what its softmax is given, and beside it the sink's.

    found: (scores [batch, heads, query_len, key_len], sink [heads] or None), in the order of the calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.softmax and args[0].ndim == 4 and not self._was_joined(args[0]):
            self.found.append((args[0].detach(), None))
        result = func(*args, **kwargs)
        if func is torch.cat and isinstance(result, Tensor) and result.ndim == 4 and args[0][1].shape[-1] == 1:
            scores, sink = args[0]
            if sink.shape[:3] == scores.shape[:3] and kwargs.get("dim") == -1:
                self.found.append((scores.detach(), sink[0, :, 0, 0].detach()))
        return result

    def _was_joined(self, scores: Tensor) -> bool:
        return (
            bool(self.found) and self.found[-1][1] is not None and scores.shape[-1] == self.found[-1][0].shape[-1] + 1
        )


def eager_scores(foreign: Foreign, run: Callable[[], Any] | None = None) -> list[tuple[Tensor, Tensor | None]]:
    """Of a forward, or whatever `run` does, with the model's attention set to eager and then back."""
    before = foreign.model.config._attn_implementation
    foreign.model.set_attn_implementation("eager")
    try:
        with EagerScores() as mode, torch.no_grad():
            (run or foreign.run)()
    finally:
        foreign.model.set_attn_implementation(before)
    return mode.found
