"""The objective of models that copy, against the plain formulas and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ShapeError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.head import HeadConfig, OutputHead
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.copying import CopyConfig, with_temporary_ids
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.recurrent_encoder import RecurrentEncoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.training.copying import copying_loss
from regard.training.objective import CHUNK_TOKENS, Mixture, cross_entropy

VOCAB, DIM = 13, 6
LENGTHS = torch.tensor([5, 3])
SOURCE = torch.tensor([[4, 13, 7, 20, 13], [5, 15, 2, 0, 0]])
# Known and copied, copied alone, known alone, in neither (15 is the other row's word), the end.
TARGETS = torch.tensor([[7, 13, 9, 15, 20, 2], [15, 5, 2, 0, 0, 0]])
REAL = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])

TRANSFORMER = EncoderDecoderConfig(
    TransformerEncoderConfig(DIM, 1, AttentionConfig(2), FeedForwardConfig(7), dropout=0.0),
    TransformerDecoderConfig(DIM, 1, AttentionConfig(2), FeedForwardConfig(7), dropout=0.0),
    copy=CopyConfig("own"),
)
POINTER = EncoderDecoderConfig(
    RecurrentEncoderConfig("recurrent", 5, embedding=EmbeddingConfig("none"), dropout=0.0),
    AttentionRNNConfig("attention-rnn", DIM, attention_dim=5, score="coverage", cell="conditional-gru", dropout=0.0),
    copy=CopyConfig("decoder"),
)


def built(config: EncoderDecoderConfig) -> EncoderDecoder:
    torch.manual_seed(3)
    model = EncoderDecoder(VOCAB, VOCAB, config).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def loss_of(model: EncoderDecoder, **options: Any) -> Any:
    inputs = TARGETS.roll(1, 1)
    inputs[:, 0] = 1
    hidden, copied = model.copying(SOURCE, LENGTHS, inputs)
    decoder: Any = model.decoder
    return copying_loss(decoder, hidden, copied, SOURCE, TARGETS, REAL, **options)


def plain(model: EncoderDecoder, smoothing: float, coverage: float) -> tuple[Tensor, Tensor]:
    """(objective, nll), a token at a time from the decoder's own log-probabilities."""
    inputs = TARGETS.roll(1, 1)
    inputs[:, 0] = 1
    decoder: Any = model.decoder
    memories, _ = model.encode(SOURCE, LENGTHS)
    state = decoder.start(memories)
    step, _ = decoder.advance(state, inputs)
    hidden, copied = model.copying(SOURCE, LENGTHS, inputs)
    generated = decoder.head.log_probs(hidden)
    _, words = with_temporary_ids(SOURCE, VOCAB)
    objective = nll = torch.zeros((), dtype=torch.float64)
    covered = torch.zeros_like(copied.attention[:, 0])
    for place in range(TARGETS.shape[1]):
        for row in range(2):
            if not REAL[row, place]:
                continue
            target, own = int(TARGETS[row, place]), words[row].tolist()
            if target < VOCAB:
                log_prob = step.log_probs[row, place, target]
            elif target in own:
                log_prob = step.log_probs[row, place, VOCAB + own.index(target)]
            else:
                log_prob = F.logsigmoid(copied.gate[row, place]) + generated[row, place, 3]
            nll = nll - log_prob
            spread = -generated[row, place].mean()
            repeated = torch.minimum(copied.attention[row, place], covered[row]).sum()
            objective = objective - (1 - smoothing) * log_prob + smoothing * spread + coverage * repeated
        covered = covered + copied.attention[:, place]
    return objective, nll


@pytest.mark.parametrize("config", [TRANSFORMER, POINTER], ids=["transformer", "pointer-generator"])
@pytest.mark.parametrize(("smoothing", "coverage"), [(0.0, 0.0), (0.1, 0.7)])
def test_the_loss_is_the_plain_one_in_value_and_gradient(
    config: EncoderDecoderConfig, smoothing: float, coverage: float
) -> None:
    model = built(config)
    loss = loss_of(model, smoothing=smoothing, coverage=coverage)
    objective, nll = plain(model, smoothing, coverage)
    torch.testing.assert_close(loss.objective, objective)
    torch.testing.assert_close(loss.nll, nll.detach())
    parameters = list(model.parameters())
    found, wanted = (torch.autograd.grad(one / 7, parameters) for one in (loss.objective, objective))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("config", [TRANSFORMER, POINTER], ids=["transformer", "pointer-generator"])
def test_gradients_are_finite_differences(config: EncoderDecoderConfig) -> None:
    model = built(config)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model, smoothing=0.1, coverage=0.7).objective, parameters)
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    along = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    size, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * size * direction
            values.append(loss_of(model, smoothing=0.1, coverage=0.7).objective)
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= sign * size * direction
    assert ((values[0] - values[1]) / (2 * size)).item() == pytest.approx(float(along), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mixture_over_many_chunks(smoothing: float, bias: bool, dtype: torch.dtype) -> None:
    tokens = 2 * CHUNK_TOKENS + 37
    torch.manual_seed(1)
    head = OutputHead(nn.Parameter(torch.randn(VOCAB, DIM, dtype=dtype)), HeadConfig(bias)).to(dtype)
    hidden = torch.randn(tokens, DIM, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, VOCAB, (tokens,))
    gates = torch.randn(tokens, dtype=dtype, requires_grad=True)
    masses = torch.randn(tokens, dtype=dtype, requires_grad=True)
    kind = torch.arange(tokens) % 3  # both ways, generated alone, copied alone
    generate = F.logsigmoid(gates).masked_fill(kind == 2, float("-inf"))
    copy = (F.logsigmoid(-gates) + F.logsigmoid(masses)).masked_fill(kind == 1, float("-inf"))
    leaves = [part for part in (hidden, gates, masses, head.weight, head.bias) if part is not None]
    loss = cross_entropy(hidden, head, targets, smoothing=smoothing, mixture=Mixture(generate, copy))
    found = torch.autograd.grad(loss.objective / 3, leaves, retain_graph=True)

    softmax = head(hidden).log_softmax(-1)
    chosen = softmax.gather(1, targets[:, None])[:, 0].exp()
    generated = torch.where(kind == 2, 0.0, gates.sigmoid() * chosen)
    copied = torch.where(kind == 1, 0.0, (1 - gates.sigmoid()) * masses.sigmoid())
    nll = -(generated + copied).log().sum()
    wanted = (1 - smoothing) * nll - smoothing * softmax.mean(-1).sum()
    rtol = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(loss.objective, wanted, rtol=rtol, atol=0)
    torch.testing.assert_close(loss.nll, nll.detach(), rtol=rtol, atol=0)
    for mine, theirs in zip(found, torch.autograd.grad(wanted / 3, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=rtol * theirs.abs().max().item())


def test_a_mixture_that_only_generates_is_the_plain_loss_bit_for_bit() -> None:
    torch.manual_seed(2)
    head = OutputHead(nn.Parameter(torch.randn(VOCAB, DIM)), HeadConfig(True))
    hidden, targets = torch.randn(9, DIM, requires_grad=True), torch.randint(0, VOCAB, (9,))
    surely = Mixture(torch.zeros(9), torch.full((9,), float("-inf")))
    losses = [cross_entropy(hidden, head, targets, smoothing=0.1, mixture=given) for given in (None, surely)]
    torch.testing.assert_close(losses[0].objective, losses[1].objective)
    torch.testing.assert_close(*(torch.autograd.grad(loss.objective, hidden)[0] for loss in losses))


def test_a_mixture_of_another_length_is_refused() -> None:
    head = OutputHead(nn.Parameter(torch.randn(VOCAB, DIM)), HeadConfig())
    with pytest.raises(ShapeError, match=r"mixture.copy has shape \(2,\), expected \(3,\)"):
        cross_entropy(
            torch.randn(3, DIM),
            head,
            torch.zeros(3, dtype=torch.int64),
            mixture=Mixture(torch.zeros(3), torch.zeros(2)),
        )
