"""A step by native code is the modules' step, and nothing that watches is passed by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.attention.native import unavailable
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.layers.norm import NormConfig
from regard.models import language_model
from regard.models.language_model import LanguageModel, LanguageModelConfig

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"no native code: {unavailable()}")

VOCAB = 29
# Widths that are no multiple of any processor's vectors; products large enough to be shared out.
PLAIN = LanguageModelConfig(210, 2, AttentionConfig(5), FeedForwardConfig(301), dropout=0.0)
CONFIGS = {
    "sinusoids, layer norm, relu": PLAIN,
    "rotary, grouped, rms, gated": replace(
        PLAIN,
        model_dim=205,
        attention=AttentionConfig(6, kv_heads=2, head_dim=22, bias=False, rotary_base=100.0),
        feed_forward=FeedForwardConfig(177, "silu", gated=True, bias=False),
        embedding=EmbeddingConfig("none", scale_by_root=False),
        norm=NormConfig("rms"),
        tie=False,
    ),
    "learned positions, gelu": replace(
        PLAIN, embedding=EmbeddingConfig("learned", 400), feed_forward=FeedForwardConfig(67, "gelu")
    ),
}
TOKENS = torch.randint(3, VOCAB, (1, 150), generator=torch.Generator().manual_seed(2))


def build(config: LanguageModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(VOCAB, config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    return model


def steps(model: LanguageModel, tokens: Tensor, first: int) -> tuple[Tensor, language_model.LanguageModelState]:
    step, state = model.advance(model.start({}), tokens[:, :first])
    found = [step.log_probs]
    for place in range(first, tokens.shape[1]):
        step, state = model.advance(state, tokens[:, place : place + 1])
        found.append(step.log_probs)
    return torch.cat(found, 1), state


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_quick_steps_are_the_modules(name: str, threads: int) -> None:
    model = build(CONFIGS[name])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, state = steps(model, TOKENS, first=7)
    finally:
        torch.set_num_threads(before)
    assert state.quick is not None
    exact = build(CONFIGS[name])
    wanted = exact.double()
    wanted = wanted.head.log_probs(wanted(TOKENS))
    single = model.head.log_probs(model(TOKENS))
    worst = float((single - wanted).abs().max())  # of float32 in torch
    assert float((found - wanted).abs().max()) <= max(2 * worst, 1e-5)


@torch.no_grad()
def test_not_a_bit_depends_on_the_threads() -> None:
    model = build(CONFIGS["rotary, grouped, rms, gated"])
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(steps(model, TOKENS[:, :40], first=3)[0])
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@torch.no_grad()
def test_a_state_can_be_gone_on_from_twice() -> None:
    model = build(PLAIN)
    _, state = steps(model, TOKENS[:, :30], first=3)
    one, longer = model.advance(state, torch.tensor([[5]]))
    other, _ = model.advance(state, torch.tensor([[9]]))
    again, _ = model.advance(state, torch.tensor([[5]]))
    assert torch.equal(one.log_probs, again.log_probs)
    assert not torch.equal(one.log_probs, other.log_probs)
    kept, _ = model.advance(longer, torch.tensor([[7]]))
    text = torch.cat([TOKENS[:, :30], torch.tensor([[5, 7]])], 1)
    torch.testing.assert_close(kept.log_probs, model.head.log_probs(model(text))[:, -1:], rtol=1e-4, atol=1e-4)


def test_whoever_watches_sees_every_layer() -> None:
    model = build(PLAIN)
    with torch.no_grad():
        _, state = steps(model, TOKENS[:, :9], first=3)
        with regard.observe(model, entropy=True) as seen:
            model.advance(state, torch.tensor([[5]]))
        assert len(seen.layers) == 2
        called = []
        hook = model.layers[1].feed_forward.register_forward_hook(lambda *given: called.append(1))
        _, fresh = model.advance(model.start({}), TOKENS[:, :3])
        _, fresh = model.advance(fresh, torch.tensor([[5]]))
        hook.remove()
        assert fresh.quick is None
        assert len(called) == 2
    step, _ = model.advance(state, torch.tensor([[5]]))  # with a gradient
    assert step.log_probs.requires_grad


@pytest.mark.parametrize(
    "config",
    [
        replace(PLAIN, norm=NormConfig(placement="post")),
        replace(PLAIN, attention=AttentionConfig(5, window=3)),
        replace(PLAIN, attention=AttentionConfig(5, distance_bias="alibi"), embedding=EmbeddingConfig("none")),
        replace(PLAIN, attention=AttentionConfig(5, sink="off_by_one")),
        replace(PLAIN, attention=AttentionConfig(5, soft_cap=3.0)),
    ],
    ids=["post-norm", "window", "alibi", "sink", "soft cap"],
)
@torch.no_grad()
def test_what_it_does_not_know_is_left_to_the_modules(config: LanguageModelConfig) -> None:
    model = build(replace(config, model_dim=40, feed_forward=FeedForwardConfig(23)))
    found, state = steps(model, TOKENS[:, :12], first=3)
    assert state.quick is None
    torch.testing.assert_close(found, model.head.log_probs(model(TOKENS[:, :12])), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_numbers_and_rows_are_left_to_the_modules() -> None:
    model = build(PLAIN).double()
    assert steps(model, TOKENS[:, :5], first=3)[1].quick is None
    model = build(PLAIN)
    assert steps(model, TOKENS[:, :5].expand(2, -1), first=3)[1].quick is None
    model.train()
    assert steps(model, TOKENS[:, :5], first=3)[1].quick is None
