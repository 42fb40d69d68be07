from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import CONFIGS, LENGTHS, SOURCE, TARGET, build, recurrent
from torch import Tensor

from regard.attention.observation import Observe
from regard.errors import ConfigError
from regard.models.attention_rnn import LAYER, AttentionRNNDecoder
from regard.models.memory import Memory


def by_hand(decoder: AttentionRNNDecoder, memory: Memory, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Chorowski et al. 2015, eq. 5 to 9, around torch's cell: (log-probabilities [rows, n, vocab], weights)."""
    part, vectors = dict(decoder.named_parameters()), memory.vectors
    half = vectors.shape[-1] // 2
    hidden = torch.tanh(F.linear(vectors[:, 0, half:], part["initial.weight"], part["initial.bias"]))
    keys = F.linear(vectors, part["key.weight"], part["key.bias"])
    padded = torch.arange(vectors.shape[1]) >= memory.lengths[:, None]
    filters, width = part["location.filters"][0], part["location.filters"].shape[-1]
    weights = torch.zeros(vectors.shape[:2], dtype=vectors.dtype)
    weights[:, 0] = 1.0
    found, seen = [], []
    for step in range(tokens.shape[1]):
        located = torch.zeros_like(keys)
        around = F.pad(weights, (width // 2, width // 2))
        for key in range(vectors.shape[1]):
            located[:, key] = around[:, key : key + width] @ filters.T @ part["location.location"][0]
        query = F.linear(hidden, part["query.weight"])[:, None]
        scores = torch.tanh(query + keys + located) @ part["location.vector"][0]
        weights = scores.masked_fill(padded, float("-inf")).softmax(-1)
        context = (weights[:, None] @ vectors)[:, 0]
        token = part["embedding.tokens.weight"][tokens[:, step]]
        hidden = decoder.cell(torch.cat([token, context], -1), hidden)
        read = F.linear(torch.cat([hidden, token, context], -1), part["readout.weight"], part["readout.bias"])
        logits = F.linear(F.max_pool1d(read, 2), part["embedding.tokens.weight"], part["head.bias"])
        found.append(logits.log_softmax(-1))
        seen.append(weights)
    return torch.stack(found, 1), torch.stack(seen, 1)


def test_steps_and_gradients_are_those_of_the_formulas() -> None:
    model = build(CONFIGS["location"])
    decoder = model.decoder
    assert isinstance(decoder, AttentionRNNDecoder)
    vectors = model.encode(SOURCE, LENGTHS)[0]["source"].vectors.detach().requires_grad_()
    memory = Memory(vectors, LENGTHS)
    step, _ = decoder.advance(decoder.start({"source": memory}), TARGET, Observe(rows="all"))
    wanted, weights = by_hand(decoder, memory, TARGET)
    torch.testing.assert_close(step.log_probs, wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(step.attention[LAYER].rows[:, 0], weights, rtol=1e-9, atol=1e-10)
    goal = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    over = [vectors, *decoder.parameters()]
    mine, theirs = (torch.autograd.grad((output * goal).sum(), over) for output in (step.log_probs, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)
    assert all(gradient.any() for gradient in mine), "every parameter matters"


def test_what_is_observed_changes_no_bit() -> None:
    model = build(CONFIGS["location"])
    state = model.decoder.start(model.encode(SOURCE, LENGTHS)[0])
    plain, after = model.decoder.advance(state, TARGET)
    real = torch.arange(TARGET.shape[1]) % 3 > 0
    for asked in (
        Observe(rows=(2, -1)),
        Observe(entropy=True),
        Observe(rows="all", heads=(0,)),
        Observe(received=True, queries=real.expand(3, -1)),
    ):
        seen, after_seen = model.decoder.advance(state, TARGET, asked)
        assert torch.equal(seen.log_probs, plain.log_probs)
        assert torch.equal(after_seen.attended, after.attended)
        found = seen.attention[LAYER]
        assert (found.rows is None) == (asked.rows is None)
    assert found.received.sum().item() == pytest.approx(3 * real.sum().item())


def test_filters_that_cannot_be_are_refused() -> None:
    for parts in ({"location_width": 4}, {"location_filters": 0}):
        with pytest.raises(ConfigError, match="expected at least one filter of an odd width"):
            build(recurrent("location", **parts))
