from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, DIM, LENGTHS, SOURCE, SOURCE_VOCAB, TARGET, TARGET_VOCAB, build, recurrent
from torch import Tensor

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.models.attention_rnn import LAYER, AttentionRNNConfig, AttentionRNNDecoder, UpdateLookUpdate
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.memory import Memory


def gru(inputs: Tensor, state: Tensor, weights: list[Tensor]) -> Tensor:
    """One step of torch's gated recurrent unit, from its formula."""
    input_weight, state_weight, input_bias, state_bias = weights
    reset_x, update_x, new_x = (inputs @ input_weight.T + input_bias).chunk(3, -1)
    reset_h, update_h, new_h = (state @ state_weight.T + state_bias).chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return (1 - update) * new + update * state


def steps_by_hand(decoder: AttentionRNNDecoder, memory: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One sentence without padding, by formulas: (log-probabilities [n, vocab], weights [n, source_len])."""
    part = dict(decoder.named_parameters())
    state = torch.tanh(part["initial.weight"] @ memory[0, memory.shape[1] // 2 :] + part["initial.bias"])
    keys = memory @ part["key.weight"].T + part["key.bias"]
    found, seen = [], []
    for token in tokens.tolist():
        query = part["query.weight"] @ state
        if decoder.score_kind == "additive":
            scores = torch.tanh(query + keys) @ part["score_weight"][0]
        elif decoder.score_kind == "bilinear":
            scores = keys @ (part["score_weight"][0].T @ query)
        else:
            scores = keys @ query
        weights = torch.exp(scores) / torch.exp(scores).sum()
        context = (weights[:, None] * memory).sum(0)
        embedded = part["embedding.tokens.weight"][token]
        cell = [part[f"cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        state = gru(torch.cat([embedded, context]), state, cell)
        hidden = part["readout.weight"] @ torch.cat([state, embedded, context]) + part["readout.bias"]
        maxed = torch.stack([torch.maximum(hidden[2 * i], hidden[2 * i + 1]) for i in range(len(hidden) // 2)])
        found.append((part["embedding.tokens.weight"] @ maxed + part["head.bias"]).log_softmax(-1))
        seen.append(weights)
    return torch.stack(found), torch.stack(seen)


@pytest.mark.parametrize("score", ["additive", "dot", "bilinear"])
def test_steps_are_the_papers(score: Literal["additive", "dot", "bilinear"]) -> None:
    model = build(CONFIGS[score])
    assert isinstance(model.decoder, AttentionRNNDecoder)
    memories, _ = model.encode(SOURCE, LENGTHS)
    step, _ = model.decoder.advance(model.decoder.start(memories), TARGET, Observe(rows="all"))
    for item, length in enumerate(LENGTHS.tolist()):
        wanted, weights = steps_by_hand(model.decoder, memories["source"].vectors[item, :length], TARGET[item])
        torch.testing.assert_close(step.log_probs[item], wanted)
        torch.testing.assert_close(step.attention[LAYER].rows[item, 0, :, :length], weights)


def loop_of_torch(decoder: AttentionRNNDecoder, memory: Memory, tokens: Tensor) -> Tensor:
    """Additive attention around torch's own cells, a padded batch at once: log-probabilities [rows, n, vocab]."""
    part, vectors = dict(decoder.named_parameters()), memory.vectors
    half = vectors.shape[-1] // 2
    hidden = torch.tanh(F.linear(vectors[:, 0, half:], part["initial.weight"], part["initial.bias"]))
    keys = F.linear(vectors, part["key.weight"], part["key.bias"])
    padded = torch.arange(vectors.shape[1]) >= memory.lengths[:, None]
    found = []

    def look(state: Tensor) -> Tensor:
        scores = torch.tanh(F.linear(state, part["query.weight"])[:, None] + keys) @ part["score_weight"][0]
        weights = scores.masked_fill(padded, float("-inf")).softmax(-1)
        return (weights[:, None] @ vectors)[:, 0]

    for step in range(tokens.shape[1]):
        token = part["embedding.tokens.weight"][tokens[:, step]]
        if isinstance(decoder.cell, UpdateLookUpdate):
            hidden = decoder.cell.first(token, hidden)
            context = look(hidden)
            hidden = decoder.cell.second(context, hidden)
        else:
            context = look(hidden)
            hidden = decoder.cell(torch.cat([token, context], -1), hidden)
        read = F.linear(torch.cat([hidden, token, context], -1), part["readout.weight"], part["readout.bias"])
        maxed = F.max_pool1d(read, 2)
        found.append(F.linear(maxed, part["embedding.tokens.weight"], part["head.bias"]).log_softmax(-1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("name", ["additive", "conditional"])
def test_gradients_are_those_of_torchs_cells(name: str) -> None:
    model = build(CONFIGS[name])
    decoder = model.decoder
    assert isinstance(decoder, AttentionRNNDecoder)
    vectors = model.encode(SOURCE, LENGTHS)[0]["source"].vectors.detach().requires_grad_()
    memory = Memory(vectors, LENGTHS)
    found = decoder.advance(decoder.start({"source": memory}), TARGET)[0].log_probs
    wanted = loop_of_torch(decoder, memory, TARGET)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    goal = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    over = [vectors, *decoder.parameters()]
    mine, theirs = (torch.autograd.grad((output * goal).sum(), over) for output in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)
    assert all(gradient.any() for gradient in mine), "every parameter matters"


def test_the_conditional_query_knows_the_token() -> None:
    """The first token decides where the conditional decoder looks at once, and where the other one looks next."""
    for name, knows in (("additive", False), ("conditional", True)):
        model = build(CONFIGS[name])
        state = model.decoder.start(model.encode(SOURCE, LENGTHS)[0])
        changed = TARGET.clone()
        changed[:, 0] = (changed[:, 0] + 1) % TARGET_VOCAB
        one, other = (
            model.decoder.advance(state, tokens[:, :2], Observe(rows="all"))[0].attention[LAYER].rows
            for tokens in (TARGET, changed)
        )
        assert torch.equal(one[:, :, 0], other[:, :, 0]) != knows
        assert not torch.equal(one[:, :, 1], other[:, :, 1])


def test_the_encoder_reads_from_both_ends() -> None:
    model = build(recurrent(layers=1))
    memory, observations = model.encoder(SOURCE, LENGTHS)
    assert observations == {}
    part = dict(model.encoder.layers[0].named_parameters())
    embedded = model.encoder.embedding.weight[SOURCE]
    for item, length in enumerate(LENGTHS.tolist()):
        for suffix, order in (("", range(length)), ("_reverse", range(length - 1, -1, -1))):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            weights, state = [part[name + suffix] for name in names], torch.zeros(10, dtype=torch.float64)
            side = slice(10, 20) if suffix else slice(0, 10)
            for place in order:
                state = gru(embedded[item, place], state, weights)
                torch.testing.assert_close(memory.vectors[item, place, side], state)
        assert not memory.vectors[item, length:].any()


def test_initialisation_is_what_the_docstring_says() -> None:
    torch.manual_seed(0)
    config = AttentionRNNConfig("attention-rnn", 64, attention_dim=53)
    decoder = AttentionRNNDecoder(101, config, memory_dim=70)
    assert decoder.score_weight is not None
    assert not decoder.score_weight.any()
    for linear in (decoder.query, decoder.key):
        assert 0.0009 < linear.weight.std() < 0.0011
    for gate in decoder.cell.weight_hh.chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(64), rtol=0, atol=1e-5)
    assert 0.0095 < decoder.cell.weight_ih.std() < 0.0105
    for linear in (decoder.initial, decoder.readout):
        bound = math.sqrt(6 / sum(linear.weight.shape))
        assert 0.98 * bound < linear.weight.abs().max() <= bound
    assert not any(part.any() for name, part in decoder.named_parameters() if "bias" in name)
    bilinear = AttentionRNNDecoder(101, replace(config, score="bilinear"), memory_dim=70)
    assert bilinear.score_weight is not None
    assert torch.equal(bilinear.score_weight[0], torch.eye(53))
    assert AttentionRNNDecoder(101, replace(config, score="dot"), memory_dim=70).score_weight is None
    # Attention starts uniform, and its vector learns at once.
    memory = Memory.of(torch.randn(2, 7, 70))
    step, _ = decoder.advance(
        decoder.start({"source": memory}), torch.ones(2, 1, dtype=torch.int64), Observe(rows="all")
    )
    torch.testing.assert_close(step.attention[LAYER].rows, torch.full((2, 1, 1, 7), 1 / 7))
    step.log_probs[..., 3].sum().backward()
    assert decoder.score_weight.grad is not None
    assert decoder.score_weight.grad.any()


def test_a_memory_of_odd_width() -> None:
    decoder = AttentionRNNDecoder(7, AttentionRNNConfig("attention-rnn", 6, attention_dim=5), memory_dim=13)
    state = decoder.start({"source": Memory.of(torch.randn(2, 3, 13))})
    assert state.hidden.shape == (2, 6)


def test_positions_are_refused() -> None:
    config = AttentionRNNConfig("attention-rnn", DIM, attention_dim=5, embedding=EmbeddingConfig())
    with pytest.raises(
        ConfigError, match=r"attention-rnn: embedding\.positions is `sinusoidal`, expected `none`: a recur"
    ):
        AttentionRNNDecoder(7, config, memory_dim=4)


def test_tied_matrices_are_counted_once() -> None:
    counts = {}
    for tie in ("decoder", "none"):
        torch.manual_seed(0)
        counts[tie] = EncoderDecoder(SOURCE_VOCAB, TARGET_VOCAB, replace(recurrent(), tie=tie)).num_parameters()
    assert counts["none"] - counts["decoder"] == TARGET_VOCAB * DIM
    encoder = replace(recurrent().encoder, model_dim=DIM)
    tied = EncoderDecoder(19, 19, replace(recurrent(), encoder=encoder, tie="all"))
    assert tied.encoder.embedding.weight is tied.decoder.embedding.weight is tied.decoder.head.weight
    with pytest.raises(ConfigError, match=r"got source \(19, 10\) and target \(19, 12\)"):
        EncoderDecoder(19, 19, replace(recurrent(), tie="all"))


def test_dropout_acts_in_training_only() -> None:
    model = build(recurrent(dropout=0.3))
    assert torch.equal(model(SOURCE, LENGTHS, TARGET), model(SOURCE, LENGTHS, TARGET))
    model.train()
    assert not torch.equal(model(SOURCE, LENGTHS, TARGET), model(SOURCE, LENGTHS, TARGET))
