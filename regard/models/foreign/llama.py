"""Llama, as transformers keeps it: its configuration and its weights as a `LanguageModel`'s. Touvron et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regard.errors import ConfigError, ModelFileError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.language_model import LanguageModelConfig

# Ours within a layer -> theirs, joined along the outputs in this order.
_OF_LAYER = {
    "self_attention.query_key_value.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.output.weight": ("self_attn.o_proj",),
    "feed_forward.inner.weight": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.outer.weight": ("mlp.down_proj",),
    "attention_block.norm.weight": ("input_layernorm",),
    "feed_forward_block.norm.weight": ("post_attention_layernorm",),
}


def llama_config(values: Mapping[str, Any]) -> LanguageModelConfig:
    """The configuration of the same model. values: the keys of a Llama's config.json.

    Raises: ConfigError naming every key whose value regard has no part for.
    """
    rotary = values.get("rope_parameters") or {"rope_type": "default", "rope_theta": values.get("rope_theta", 10_000.0)}
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    received = {**values, "rope_type": rotary.get("rope_type", "default")}
    problems = [
        f"{name} is {received[name]!r}, expected {value!r}"
        for name, value in {**wanted, "rope_type": "default"}.items()
        if received.get(name, value) != value
    ]
    if problems:
        raise ConfigError("a Llama's configuration: " + "; ".join(problems) + "; choose another checkpoint")
    return LanguageModelConfig(
        model_dim=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        attention=AttentionConfig(
            heads=values["num_attention_heads"],
            kv_heads=values.get("num_key_value_heads"),
            head_dim=values.get("head_dim"),
            bias=False,
            rotary_base=float(rotary["rope_theta"]),
        ),
        feed_forward=FeedForwardConfig(values["intermediate_size"], activation="silu", gated=True, bias=False),
        embedding=EmbeddingConfig(positions="none", scale_by_root=False),
        norm=NormConfig("rms", "pre", eps=values.get("rms_norm_eps", 1e-6)),
        tie=bool(values.get("tie_word_embeddings", False)),
        dropout=0.0,
    )


def llama_weights(theirs: Mapping[str, Tensor], config: LanguageModelConfig) -> dict[str, Tensor]:
    """`theirs`, by the names of transformers' LlamaForCausalLM, as the parameters of a `LanguageModel`.

    Raises: ModelFileError naming the weights that are missing.
    """
    names = {"embedding.tokens.weight": ["model.embed_tokens.weight"], "norm.weight": ["model.norm.weight"]}
    if not config.tie:
        names["head.weight"] = ["lm_head.weight"]
    for index in range(config.num_layers):
        for ours, parts in _OF_LAYER.items():
            names[f"layers.{index}.{ours}"] = [f"model.layers.{index}.{part}.weight" for part in parts]
    missing = sorted({name for parts in names.values() for name in parts} - theirs.keys())
    if missing:
        raise ModelFileError(
            f"a Llama's weights: {len(missing)} are missing, e.g. {missing[0]}; expected those of LlamaForCausalLM"
        )
    return {ours: torch.cat([theirs[part] for part in parts]) for ours, parts in names.items()}
