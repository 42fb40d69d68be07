from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.decoding.fusion import LanguageModelScorer
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError, ModelFileError, ShapeError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models.foreign.llama import llama_config, llama_weights
from regard.models.language_model import Documents, LanguageModel, LanguageModelConfig
from regard.training.averaging import load_weights

VOCAB, DIM, LAYERS, BOS, EOS = 19, 12, 2, 1, 2
TOKENS = torch.randint(3, VOCAB, (3, 11), generator=torch.Generator().manual_seed(2))

PLAIN = LanguageModelConfig(DIM, LAYERS, AttentionConfig(3), FeedForwardConfig(23), dropout=0.0)
LLAMA = replace(
    PLAIN,
    attention=AttentionConfig(6, kv_heads=2, head_dim=4, bias=False, rotary_base=100.0),
    feed_forward=FeedForwardConfig(17, "silu", gated=True, bias=False),
    embedding=EmbeddingConfig("none", scale_by_root=False),
    norm=NormConfig("rms"),
    tie=False,
)
CONFIGS = {
    "sinusoids, layer norm": PLAIN,
    "rotary, grouped, rms, gated": LLAMA,
    "learned positions, post-norm": replace(
        PLAIN, embedding=EmbeddingConfig("learned", 31), norm=NormConfig("rms", "post")
    ),
    "alibi, window, sink": replace(
        PLAIN,
        attention=AttentionConfig(3, distance_bias="alibi", window=4, sink="learned"),
        embedding=EmbeddingConfig("none"),
    ),
}


def build(config: LanguageModelConfig, seed: int = 0) -> LanguageModel:
    """In float64, every weight drawn wide enough that no part of the model says nothing."""
    torch.manual_seed(seed)
    model = LanguageModel(VOCAB, config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def feed(model: LanguageModel, state: Any, tokens: Tensor, sizes: list[int]) -> tuple[Tensor, Any]:
    found, place = [], 0
    for size in sizes:
        step, state = model.advance(state, tokens[:, place : place + size])
        found.append(step.log_probs)
        place += size
    assert place == tokens.shape[1]
    return torch.cat(found, 1), state


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [[1] * 11, [3, 1, 7], [11]], ids=str)
@torch.no_grad()
def test_cached_is_uncached(name: str, sizes: list[int]) -> None:
    model = build(CONFIGS[name])
    wanted = model.head.log_probs(model(TOKENS))
    found, state = feed(model, model.start({}), TOKENS, sizes)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    assert state.position == 11


def test_cached_steps_carry_the_uncached_gradient() -> None:
    model = build(LLAMA)
    gradients = []
    for sizes in ([11], [4, 1, 6]):
        model.zero_grad()
        feed(model, model.start({}), TOKENS, sizes)[0].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-8)


@torch.no_grad()
def test_a_state_can_be_gone_on_from_twice() -> None:
    model = build(LLAMA)
    _, state = feed(model, model.start({}), TOKENS[:1], [4, 1, 6])
    kept = [[part.clone() for part in layer.read] for layer in state.layers]
    one, longer = model.advance(state, torch.tensor([[5]]))
    other, _ = model.advance(state, torch.tensor([[9]]))
    again, _ = model.advance(state, torch.tensor([[5]]))
    model.advance(longer, torch.tensor([[7]]))
    torch.testing.assert_close(again, one, rtol=0, atol=0)
    for token, step in ((5, one), (9, other)):
        wanted = model.head.log_probs(model(torch.cat([TOKENS[:1], torch.tensor([[token]])], 1)))[:, -1:]
        torch.testing.assert_close(step.log_probs, wanted, rtol=0, atol=1e-11)
    for layer, before in zip(state.layers, kept, strict=True):
        torch.testing.assert_close(list(layer.read), before, rtol=0, atol=0)


@torch.no_grad()
def test_selected_rows_go_on_as_their_own() -> None:
    model = build(LLAMA)
    _, state = feed(model, model.start({}), TOKENS, [11])
    rows = torch.tensor([2, 0, 2, 1])
    step, _ = model.advance(state.select(rows), torch.tensor([[4], [5], [6], [7]]))
    for place, (row, token) in enumerate(zip(rows.tolist(), (4, 5, 6, 7), strict=True)):
        text = torch.cat([TOKENS[row : row + 1], torch.tensor([[token]])], 1)
        wanted = model.head.log_probs(model(text))[0, -1]
        torch.testing.assert_close(step.log_probs[place, 0], wanted, rtol=0, atol=1e-11)


# -- packed documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_are_as_if_alone(name: str) -> None:
    model = build(CONFIGS[name])
    lengths = [[4, 1, 6], [11], [2, 9]]
    begins = torch.zeros(3, 11, dtype=torch.bool)
    for row, of_row in enumerate(lengths):
        begins[row, [sum(of_row[:place]) for place in range(len(of_row))]] = True
    documents = Documents.beginning_at(begins)
    assert documents is not None
    assert documents.positions[0].tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5]
    packed = model(TOKENS, documents)
    goal = torch.randn(packed.shape, dtype=torch.float64)
    (packed * goal).sum().backward()
    gradient = model.embedding.weight.grad.clone()
    model.zero_grad()
    for row, of_row in enumerate(lengths):
        begin = 0
        for length in of_row:
            part = slice(begin, begin + length)
            alone = model(TOKENS[row : row + 1, part])
            torch.testing.assert_close(alone[0], packed[row, part], rtol=0, atol=1e-11)
            (alone[0] * goal[row, part]).sum().backward()
            begin += length
    torch.testing.assert_close(model.embedding.weight.grad, gradient, rtol=0, atol=1e-9)


def test_rows_of_one_document_need_no_mask() -> None:
    assert Documents.beginning_at(torch.zeros(2, 5, dtype=torch.bool)) is None
    assert Documents.beginning_at(torch.zeros(0, 5, dtype=torch.bool)) is None


def test_packed_documents_behind_others_are_refused() -> None:
    model = build(PLAIN)
    documents = Documents.beginning_at(torch.eye(3, 11, dtype=torch.bool))
    _, state = model.advance(model.start({}), TOKENS)
    with pytest.raises(ShapeError, match=r"packed documents behind 11 tokens already read; read them from a new state"):
        model.read(state, TOKENS, documents=documents)


# -- the protocol ------------------------------------------------------------------------------------------------------


def test_greedy_search_goes_on_from_prefixes() -> None:
    model = build(LLAMA)
    found = decode(model, {}, DecodingOptions(max_length=6), bos=BOS, eos=EOS, prefix=TOKENS)
    for row, [best] in enumerate(found):
        text = torch.cat([torch.tensor([BOS]), TOKENS[row]])
        for token in best.tokens:
            assert int(model.head.log_probs(model(text[None]))[0, -1].argmax()) == token
            text = torch.cat([text, torch.tensor([token])])


def test_beams_and_rescoring_agree() -> None:
    model = build(LLAMA)
    found = decode(
        model, {}, DecodingOptions(beam_size=3, num_best=3, max_length=5), bos=BOS, eos=EOS, prefix=TOKENS[:1]
    )
    for hypothesis in found[0]:
        forced = force(model, {}, torch.tensor([hypothesis.tokens]), bos=BOS, prefix=TOKENS[:1])
        assert float(forced.log_prob.detach()) == pytest.approx(hypothesis.log_prob, abs=1e-9)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_it_votes_in_the_search_of_another_model(beam_size: int) -> None:
    model, voter = build(LLAMA), build(PLAIN, seed=5)
    found = decode(
        model,
        {},
        DecodingOptions(beam_size=beam_size, num_best=beam_size, max_length=6, length_penalty=0.0),
        bos=BOS,
        eos=EOS,
        prefix=TOKENS,
        scorers=[LanguageModelScorer(voter, weight=0.7, bos=BOS)],
    )
    for row in found:
        for hypothesis in row:
            vote = force(voter, {}, torch.tensor([hypothesis.tokens]), bos=BOS).log_prob.detach()
            assert hypothesis.score == pytest.approx(hypothesis.log_prob + 0.7 * float(vote), abs=1e-9)


def test_the_future_cannot_touch_the_past() -> None:
    model = build(LLAMA)
    changed = TOKENS.clone()
    changed[:, 7:] = 3
    torch.testing.assert_close(model(changed)[:, :7], model(TOKENS)[:, :7], rtol=0, atol=1e-12)


def test_observations_are_named_by_layer() -> None:
    model = build(LLAMA)
    step, _ = model.advance(model.start({}), TOKENS, Observe(rows="all"))
    assert list(step.attention) == [f"layers.{index}.self" for index in range(LAYERS)]
    for seen in step.attention.values():
        assert seen.rows.shape == (3, 6, 11, 11)
        assert seen.rows.triu(1).eq(0).all()


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_layers is 0, expected at least 1"):
        LanguageModel(VOCAB, replace(PLAIN, num_layers=0))


def test_the_start_of_weights_is_as_wide_as_asked() -> None:
    torch.manual_seed(0)
    model = LanguageModel(400, replace(LLAMA, model_dim=96, num_layers=8, init_std=0.02))
    layer = model.layers[0]
    assert float(layer.feed_forward.inner.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(layer.feed_forward.outer.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)


# -- against transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_llamas_logits_are_transformers(tied: bool) -> None:
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=31,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    theirs = hf.LlamaForCausalLM(config).double().eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.4)
    ours_config = llama_config(config.to_dict())
    ours = LanguageModel(VOCAB, ours_config).double().eval()
    load_weights(ours, llama_weights(theirs.state_dict(), ours_config))
    wanted = theirs(input_ids=TOKENS).logits
    # Their angles and their norms are float32 in a float64 model.
    torch.testing.assert_close(ours.head(ours(TOKENS)), wanted, rtol=0, atol=2e-5)
    assert ours.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())


def test_what_a_llama_is_not_is_named() -> None:
    values = {"hidden_act": "gelu", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}
    with pytest.raises(ConfigError, match=r"hidden_act is 'gelu', expected 'silu'; rope_type is 'yarn', expected"):
        llama_config(values)
    with pytest.raises(ModelFileError, match=r"21 are missing, e.g. lm_head.weight"):
        llama_weights({}, LLAMA)
