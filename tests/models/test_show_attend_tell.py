"""Show, Attend and Tell against its equations, written out with torch's own cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import TARGET, TARGET_VOCAB
from torch import Tensor

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig
from regard.models.memory import Memory
from regard.models.recurrent_attention import LAYER
from regard.models.show_attend_tell import ShowAttendTellConfig, ShowAttendTellDecoder

DIM, STATE, ATTENTION, MEMORY = 12, 14, 10, 6
LENGTHS = torch.tensor([9, 9, 4])


def decoder(score: Any = "additive", **changes: Any) -> ShowAttendTellDecoder:
    torch.manual_seed(4)
    config = ShowAttendTellConfig("show-attend-tell", DIM, STATE, ATTENTION, score=score, dropout=0.0, **changes)
    built = ShowAttendTellDecoder(TARGET_VOCAB, config, memory_dim=MEMORY).double()
    for parameter in built.parameters():  # biases of 0 and small weights would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return built


def memory() -> Memory:
    torch.manual_seed(6)
    return Memory(torch.randn(3, 9, MEMORY, dtype=torch.float64, requires_grad=True), LENGTHS, 8, (3, 3))


def papers_loop(model: ShowAttendTellDecoder, seen: Memory, tokens: Tensor, score: str) -> tuple[Tensor, Tensor]:
    """(log-probabilities, weights [rows, n, places]) by the paper's equations."""
    part = dict(model.named_parameters())
    vectors = seen.vectors
    real = torch.arange(vectors.shape[1]) < seen.lengths[:, None]
    mean = (vectors * real[..., None]).sum(1) / seen.lengths[:, None]
    hidden, cell = torch.tanh(F.linear(mean, part["initial.weight"], part["initial.bias"])).chunk(2, -1)
    keys = F.linear(vectors, part["key.weight"], part["key.bias"])
    found, weights = [], []
    for step in range(tokens.shape[1]):
        word = part["embedding.tokens.weight"][tokens[:, step]]
        query = F.linear(hidden, part["query.weight"])[:, None]
        scores = torch.tanh(query + keys) @ part["score_weight"][0] if score == "additive" else (query * keys).sum(-1)
        alpha = scores.masked_fill(~real, float("-inf")).softmax(-1)
        beta = torch.sigmoid(F.linear(hidden, part["beta.weight"], part["beta.bias"]))
        context = beta * (alpha[..., None] * vectors).sum(1)
        hidden, cell = model.cell(torch.cat([word, context], -1), (hidden, cell))
        read = torch.tanh(word + hidden @ part["of_state.weight"].T + context @ part["of_context.weight"].T)
        found.append(F.linear(read, part["embedding.tokens.weight"], part["head.bias"]).log_softmax(-1))
        weights.append(alpha)
    return torch.stack(found, 1), torch.stack(weights, 1)


@pytest.mark.parametrize("score", ["additive", "dot"])
def test_steps_are_the_papers_and_so_are_their_gradients(score: str) -> None:
    model, seen = decoder(score), memory()
    step, _ = model.advance(model.start({"source": seen}), TARGET, Observe(rows="all"))
    wanted, weights = papers_loop(model, seen, TARGET, score)
    torch.testing.assert_close(step.log_probs, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(step.attention[LAYER].rows[:, 0], weights, rtol=1e-9, atol=1e-10)
    goal = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    over = [seen.vectors, *model.parameters()]
    found, theirs = (torch.autograd.grad((output * goal).sum(), over) for output in (step.log_probs, wanted))
    torch.testing.assert_close(found, theirs, rtol=1e-8, atol=1e-9)
    assert all(gradient.any() for gradient in found), "every parameter matters"


def test_word_by_word_is_all_at_once_and_states_can_be_selected() -> None:
    model, seen = decoder(), memory()
    wanted, _ = model.advance(model.start({"source": seen}), TARGET)
    state, order = model.start({"source": seen}), torch.tensor([2, 0, 1])
    state = state.select(order)
    for place in range(TARGET.shape[1]):
        step, state = model.advance(state, TARGET[order, place : place + 1])
        torch.testing.assert_close(step.log_probs[:, 0], wanted.log_probs[order, place], rtol=0, atol=1e-11)


def test_rows_that_are_observed_carry_gradient() -> None:
    """What the doubly stochastic part of the loss learns through."""
    model, seen = decoder(), memory()
    _, _, observed = model.read(model.start({"source": seen}), TARGET, Observe(rows="all"))
    rows = observed[LAYER].rows
    assert rows is not None
    [gradient] = torch.autograd.grad((1 - rows.sum(2)).square().sum(), [model.query.weight])
    assert gradient.any()


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"show-attend-tell: embedding.positions is `learned`, expected `none`"):
        decoder(embedding=EmbeddingConfig("learned"))
    with pytest.raises(ConfigError, match="state_dim is 0 and attention_dim 10"):
        ShowAttendTellDecoder(5, ShowAttendTellConfig("show-attend-tell", 4, 0, 10), memory_dim=3)
