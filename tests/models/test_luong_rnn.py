from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from small_models import DIM, LENGTHS, SOURCE, TARGET, TARGET_VOCAB, build, log_probs, luong
from torch import Tensor, nn

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.models.luong_rnn import LuongRNNConfig, LuongRNNDecoder
from regard.models.memory import Memory
from regard.models.recurrent_attention import LAYER

SCORES: list[Literal["dot", "bilinear", "concat"]] = ["dot", "bilinear", "concat"]
STATE = 14


def decoder_of(model: Any) -> LuongRNNDecoder:
    assert isinstance(model.decoder, LuongRNNDecoder)
    return model.decoder


def papers_loop(decoder: LuongRNNDecoder, score: str, memory: Memory, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Step by step with torch's own cells, by the paper's equations: (log-probabilities, weights [rows, n, source])."""
    part = dict(decoder.named_parameters())
    vectors, cells = memory.vectors, list(decoder.layers)
    last = vectors[torch.arange(len(vectors)), memory.lengths - 1]
    states = torch.tanh(F.linear(torch.cat([vectors[:, 0], last], -1), part["initial.weight"], part["initial.bias"]))
    hidden, kept = (list(half.split(STATE, -1)) for half in states.chunk(2, -1))
    padded = torch.arange(vectors.shape[1]) >= memory.lengths[:, None]
    attentional = torch.zeros(len(vectors), DIM, dtype=vectors.dtype)
    found, seen = [], []
    for step in range(tokens.shape[1]):
        below = part["embedding.tokens.weight"][tokens[:, step]]
        if decoder.input_feeding:
            below = torch.cat([below, attentional], -1)  # sec. 3.3
        for layer, cell in enumerate(cells):
            assert isinstance(cell, nn.LSTMCell)
            hidden[layer], kept[layer] = cell(below, (hidden[layer], kept[layer]))
            below = hidden[layer]
        if score == "concat":  # eq. 8, W_a as the one matrix that it is there
            whole = torch.cat([part["attention.query.weight"], part["attention.key.weight"]], 1)
            pairs = torch.cat([below[:, None].expand(-1, vectors.shape[1], -1), vectors], -1)
            scores = torch.tanh(pairs @ whole.T) @ part["attention.vector"][0]
        elif score == "bilinear":
            scores = torch.einsum("bi,ij,bsj->bs", below, part["attention.key.weight"], vectors)
        else:
            scores = (vectors @ below[..., None])[..., 0]
        weights = scores.masked_fill(padded, float("-inf")).softmax(-1)  # eq. 7
        context = (weights[:, None] @ vectors)[:, 0]
        attentional = torch.tanh(torch.cat([context, below], -1) @ part["attention.attentional.weight"].T)  # eq. 5
        found.append((attentional @ part["embedding.tokens.weight"].T + part["head.bias"]).log_softmax(-1))
        seen.append(weights)
    return torch.stack(found, 1), torch.stack(seen, 1)


@pytest.mark.parametrize("feeding", [True, False], ids=["fed", "nothing fed"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("score", SCORES)
def test_steps_are_the_papers_and_so_are_their_gradients(score: Any, layers: int, feeding: bool) -> None:
    model = build(luong(score, layers=layers, input_feeding=feeding))
    decoder = decoder_of(model)
    memory = model.encode(SOURCE, LENGTHS)[0]["source"]
    memory = Memory(memory.vectors.detach().requires_grad_(), LENGTHS)
    step, _ = decoder.advance(decoder.start({"source": memory}), TARGET, Observe(rows="all"))
    wanted, weights = papers_loop(decoder, score, memory, TARGET)
    torch.testing.assert_close(step.log_probs, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(step.attention[LAYER].rows[:, 0], weights, rtol=1e-9, atol=1e-10)
    goal = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    over = [memory.vectors, *decoder.parameters()]
    found, theirs = (torch.autograd.grad((output * goal).sum(), over) for output in (step.log_probs, wanted))
    torch.testing.assert_close(found, theirs, rtol=1e-8, atol=1e-9)
    assert all(gradient.any() for gradient in found), "every parameter matters"


def test_input_feeding_feeds() -> None:
    """What was attended to at the first token reaches the recurrence at the second, and only then."""
    states: dict[bool, list[Tensor]] = {}
    for feeding in (True, False):
        model = build(luong("dot", input_feeding=feeding))
        decoder, memories = decoder_of(model), model.encode(SOURCE, LENGTHS)[0]
        begun = decoder.start(memories)
        # Other values under the same keys: the weights stay, the context does not.
        other = replace(begun, memory=replace(begun.memory, values=begun.memory.values.flip(-1)))
        states[feeding] = []
        for number in (1, 2):
            after, changed = (decoder.advance(state, TARGET[:, :number])[1] for state in (begun, other))
            assert not torch.equal(after.attentional, changed.attentional)
            states[feeding].append((after.hidden[0] - changed.hidden[0]).abs().max())
    assert states[False] == [0.0, 0.0]
    assert states[True][0] == 0.0
    assert states[True][1] > 1e-3


def test_a_fed_vector_is_state() -> None:
    """A beam that is reordered takes its attentional vectors along."""
    decoder = decoder_of(model := build(luong("bilinear", layers=2)))
    _, state = decoder.advance(decoder.start(model.encode(SOURCE, LENGTHS)[0]), TARGET[:, :2])
    rows = torch.tensor([2, 0, 0])
    chosen = state.select(rows)
    assert torch.equal(chosen.attentional, state.attentional[rows])
    for kept, before in zip((*chosen.hidden, *chosen.cells), (*state.hidden, *state.cells), strict=True):
        assert torch.equal(kept, before[rows])
    step, _ = decoder.advance(replace(state, attentional=torch.zeros_like(state.attentional)), TARGET[:, 2:3])
    right, _ = decoder.advance(state, TARGET[:, 2:3])
    assert (step.log_probs - right.log_probs).abs().max() > 1e-3


def test_the_first_state_has_read_the_source_whichever_way_it_was_read() -> None:
    decoder = LuongRNNDecoder(7, LuongRNNConfig("luong-rnn", 6, 5), memory_dim=11)
    vectors = torch.randn(3, 4, 11)
    memory = Memory(vectors, torch.tensor([4, 2, 0]))
    for place, matters in ((0, True), (1, True), (2, False), (3, False)):
        changed = vectors.clone()
        changed[1, place] += 1.0
        same = torch.equal(
            decoder.start({"source": Memory(changed, memory.lengths)}).hidden[0],
            decoder.start({"source": memory}).hidden[0],
        )
        assert same != matters


@pytest.mark.parametrize("score", SCORES)
def test_all_queries_at_once_leave_a_trace(score: Any) -> None:
    """Without input feeding a sequence is one call of `attend`, of which everything can be observed."""
    model = build(luong(score, input_feeding=False))
    decoder = decoder_of(model)
    state = decoder.start(model.encode(SOURCE, LENGTHS)[0])
    seen = decoder.advance(state, TARGET, Observe(entropy=True, trace=score != "concat"))[0].attention[LAYER]
    assert (seen.trace is not None) == (score != "concat")
    assert seen.entropy is not None
    assert seen.entropy.shape == (3, 1, 11)


def test_what_does_not_fit_is_refused() -> None:
    config = LuongRNNConfig("luong-rnn", DIM, 5, score="dot")
    with pytest.raises(ConfigError) as caught:
        LuongRNNDecoder(7, config, memory_dim=8)
    assert str(caught.value) == (
        "luong-rnn: score `dot` compares states of width 5 with a memory of width 8; set state_dim to 8, or score to "
        "bilinear"
    )
    LuongRNNDecoder(7, config, memory_dim=5)
    with pytest.raises(
        ConfigError, match=r"^luong-rnn: embedding\.positions is `sinusoidal`, expected `none`: a recur"
    ):
        LuongRNNDecoder(7, replace(config, embedding=EmbeddingConfig()), memory_dim=5)
    for change in ({"num_layers": 0}, {"state_dim": 0}):
        with pytest.raises(ConfigError, match=r"num_layers is . and state_dim ., expected 1 or more"):
            LuongRNNDecoder(7, replace(config, **change), memory_dim=5)


def test_dropout_acts_in_training_only() -> None:
    for layers in (1, 2):
        model = build(luong("bilinear", dropout=0.3, layers=layers))
        assert torch.equal(log_probs(model, SOURCE, LENGTHS, TARGET), log_probs(model, SOURCE, LENGTHS, TARGET))
        model.train()
        assert not torch.equal(log_probs(model, SOURCE, LENGTHS, TARGET), log_probs(model, SOURCE, LENGTHS, TARGET))


@pytest.mark.parametrize("feeding", [True, False], ids=["fed", "nothing fed"])
def test_dropout_acts_between_layers(feeding: bool) -> None:
    decoder = decoder_of(model := build(luong("dot", dropout=0.3, layers=3, input_feeding=feeding)))
    dropped = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal dropped
        dropped += result.numel()

    decoder.dropout.register_forward_hook(count)
    decoder.advance(decoder.start(model.encode(SOURCE, LENGTHS)[0]), TARGET)
    # The embedding and the attentional vector, and two of the three layers' states.
    assert dropped == TARGET.numel() * (2 * DIM + 2 * STATE)


def test_tied_matrices_are_counted_once() -> None:
    counts = {tie: build(replace(luong("dot"), tie=tie)).num_parameters() for tie in ("decoder", "none")}  # type: ignore[arg-type]
    assert counts["none"] - counts["decoder"] == TARGET_VOCAB * DIM
