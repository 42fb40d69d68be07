from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    CONFIGS,
    DECODER_LAYERS,
    LENGTHS,
    SOURCE,
    TARGET,
    TARGET_VOCAB,
    build,
    log_probs,
    recurrent,
    transformer,
)
from torch import Tensor

from regard.attention.observation import Observe, observe_materialised
from regard.decoding.force import force
from regard.errors import ObservationError, ShapeError
from regard.inputs.embeddings import EmbeddingConfig
from regard.models.attention_rnn import LAYER
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.memory import Memory
from regard.models.transformer_decoder import TransformerDecoder

EVERYTHING = Observe(logsumexp=True, entropy=True, max_logit=True, received=True, rows="all")


def start(model: EncoderDecoder, rows: Tensor | None = None) -> Any:
    """The state before the first token, for chosen sentences."""
    chosen = slice(None) if rows is None else rows
    memories, _ = model.encode(SOURCE[chosen], LENGTHS[chosen])
    return model.decoder.start(memories)


def feed(model: EncoderDecoder, state: Any, tokens: Tensor, sizes: list[int]) -> tuple[Tensor, Any]:
    found, place = [], 0
    for size in sizes:
        step, state = model.decoder.advance(state, tokens[:, place : place + size])
        found.append(step.log_probs)
        place += size
    assert place == tokens.shape[1]
    return torch.cat(found, 1), state


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [[1] * 11, [2, 2, 2, 2, 2, 1], [3, 1, 7], [11]], ids=str)
def test_cached_is_uncached(name: str, sizes: list[int]) -> None:
    model = build(CONFIGS[name])
    wanted = log_probs(model, SOURCE, LENGTHS, TARGET)
    found, _ = feed(model, start(model), TARGET, sizes)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    torch.testing.assert_close(wanted.exp().sum(-1), torch.ones(3, 11, dtype=torch.float64))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_is_its_items_alone(name: str) -> None:
    model = build(CONFIGS[name])
    batched = log_probs(model, SOURCE, LENGTHS, TARGET)
    for item, length in enumerate(LENGTHS.tolist()):
        one = slice(item, item + 1)
        alone = log_probs(model, SOURCE[one, :length], LENGTHS[one], TARGET[one])
        torch.testing.assert_close(batched[one], alone, rtol=0, atol=1e-11)
    elsewhere = SOURCE.masked_fill(torch.arange(7) >= LENGTHS[:, None], 0)
    torch.testing.assert_close(log_probs(model, elsewhere, LENGTHS, TARGET), batched, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_future_cannot_touch_the_past(name: str) -> None:
    model = build(CONFIGS[name])
    changed = TARGET.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % TARGET_VOCAB
    before, after = (log_probs(model, SOURCE, LENGTHS, target) for target in (TARGET, changed))
    assert torch.equal(after[:, :6], before[:, :6])
    assert not torch.equal(after[:, 6], before[:, 6])


MODELS = {
    name: build(CONFIGS[name]) for name in ("pre-norm", "one key head, rotary", "additive", "location", "luong concat")
}


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(list(MODELS)),
    first=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    second=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    begin=st.integers(0, 3),
)
def test_selected_rows_are_rows_run_from_the_beginning(
    name: str, first: list[int], second: list[int], begin: int
) -> None:
    """Repeats, growth, removal and reordering, twice over, before and after tokens were read."""
    model = MODELS[name]
    picked = torch.tensor(first)
    again = torch.tensor(second) % len(first)
    state = start(model)
    if begin:
        _, state = model.decoder.advance(state, TARGET[:, :begin])
    state = state.select(picked)
    _, state = model.decoder.advance(state, TARGET[picked, begin : begin + 2])
    state = state.select(again)
    rows = picked[again]
    found, _ = model.decoder.advance(state, TARGET[rows, begin + 2 : begin + 5])
    wanted = log_probs(model, SOURCE[rows], LENGTHS[rows], TARGET[rows, : begin + 5])
    torch.testing.assert_close(found.log_probs, wanted[:, -3:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["pre-norm", "additive", "luong dot"])
def test_rows_of_one_source_share_its_memory(name: str) -> None:
    model = build(CONFIGS[name])
    state = start(model).select(torch.tensor([0, 0, 1, 1]))
    _, state = model.decoder.advance(state, TARGET[[0, 1, 2, 0], :2])
    order = torch.tensor([1, 1, 3, 2])
    moved = state.select(order)
    memory = (lambda of: of.cross[0].keys) if name == "pre-norm" else (lambda of: of.memory.keys)
    assert memory(moved) is memory(state), "reordering a beam does not copy the memory"
    assert memory(state.select(torch.tensor([2, 1, 3, 2]))) is not memory(state)
    found, _ = model.decoder.advance(moved, TARGET[:1, 2:3].expand(4, 1))
    wanted, _ = model.decoder.advance(state, TARGET[:1, 2:3].expand(4, 1))
    torch.testing.assert_close(found.log_probs, wanted.log_probs[order], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_is_never_changed_in_place(name: str) -> None:
    model = build(CONFIGS[name])
    _, state = model.decoder.advance(start(model), TARGET[:, :2])
    first, _ = model.decoder.advance(state, TARGET[:, 2:5])
    second, _ = model.decoder.advance(state, TARGET[:, 2:5])
    assert torch.equal(first.log_probs, second.log_probs)


@pytest.mark.parametrize("name", CONFIGS)
def test_observing_step_by_step_and_at_once(name: str) -> None:
    model = build(CONFIGS[name])
    plain, _ = model.decoder.advance(start(model), TARGET)
    assert plain.attention == {}
    assert model.decoder.advance(start(model), TARGET, Observe())[0].attention == {}
    whole, _ = model.decoder.advance(start(model), TARGET, EVERYTHING)
    assert torch.equal(whole.log_probs, plain.log_probs)
    layers = DECODER_LAYERS if isinstance(model.decoder, TransformerDecoder) else 1
    assert list(whole.attention) == [f"decoder.layers.{index}.cross" for index in range(layers)]
    state, steps = start(model), []
    for place in range(TARGET.shape[1]):
        step, state = model.decoder.advance(state, TARGET[:, place : place + 1], EVERYTHING)
        steps.append(step.attention)
    for layer, seen in whole.attention.items():
        assert seen.rows.shape[0] == 3
        assert seen.rows.shape[2:] == (11, 7)
        sums = seen.rows.sum(-1)
        if "sink" in name or "off by one" in name:
            assert (sums < 1.0).all()
        else:
            torch.testing.assert_close(sums, torch.ones_like(sums))
        assert not seen.rows.masked_select(torch.arange(7) >= LENGTHS[:, None, None, None]).any()
        assert seen.row_index.tolist() == list(range(11))
        assert seen.rows.requires_grad
        torch.testing.assert_close(seen.received, seen.rows.detach().sum(2))
        for statistic, axis in (("rows", 2), ("entropy", 2), ("logsumexp", 2), ("max_logit", 2)):
            joined = torch.cat([getattr(step[layer], statistic) for step in steps], axis)
            torch.testing.assert_close(joined, getattr(seen, statistic))
        received = torch.stack([step[layer].received for step in steps]).sum(0)
        torch.testing.assert_close(received, seen.received)


@pytest.mark.parametrize("name", ["pre-norm", "additive", "location", "luong concat", "luong bilinear, nothing fed"])
def test_chosen_rows_and_weighed_queries(name: str) -> None:
    model = build(CONFIGS[name])
    whole, _ = model.decoder.advance(start(model), TARGET, Observe(rows="all"))
    weights = torch.rand(3, 11, dtype=torch.float64)
    some, _ = model.decoder.advance(start(model), TARGET, Observe(rows=(7, -1), received=weights))
    for layer, seen in some.attention.items():
        rows = whole.attention[layer].rows
        assert seen.row_index.tolist() == [7, 10]
        torch.testing.assert_close(seen.rows, rows[:, :, [7, 10]])
        torch.testing.assert_close(seen.received, torch.einsum("bq,bhqk->bhk", weights, rows))


@pytest.mark.parametrize("name", ["dot", "additive", "location", "luong concat"])
def test_queries_that_come_one_by_one_are_observed_as_one_call(name: str) -> None:
    model = build(CONFIGS[name])
    real = torch.arange(11) < torch.tensor([[11], [4], [7]])
    asked = Observe(
        logsumexp=True,
        entropy=True,
        max_logit=True,
        received=torch.rand(3, 11, dtype=torch.float64),
        sink_mass=2,
        top_k=3,
        rows=(9, 0, -3, 9),
        columns=(-1, 0),
        pooled=(4, 3),
        queries=real,
    )
    whole, _ = model.decoder.advance(start(model), TARGET, Observe(rows="all", logsumexp=True, max_logit=True))
    found = model.decoder.advance(start(model), TARGET, asked)[0].attention[LAYER]
    seen = whole.attention[LAYER]
    scores = (seen.rows.detach().log() + seen.logsumexp[..., None]).masked_fill(seen.rows == 0, float("-inf"))
    wanted = observe_materialised(asked, scores, seen.rows, seen.logsumexp, None)
    assert list(found.tensors()) == list(wanted.tensors())
    for statistic, tensor in wanted.tensors().items():
        torch.testing.assert_close(found.tensors()[statistic], tensor)
    assert found.row_index.tolist() == [9, 0, 8, 9]
    with pytest.raises(ObservationError) as caught:
        model.decoder.advance(start(model), TARGET, Observe(trace=True, columns=(7,), received=torch.ones(3, 5)))
    kind = "luong-rnn: " if "luong" in name else "attention-rnn: "
    assert str(caught.value).removeprefix(kind).split("; ") == [
        "observe.columns: [7] asked for, but there are 7 keys",
        "ask within them",
        "observe.received has weights of shape (3, 5), expected (3, 11): one a query",
        "observe.trace is of one call, and this decoder makes one a token",
        "ask for rows instead",
    ]


@pytest.mark.parametrize("name", ["pre-norm", "additive", "conditional", "location", "luong dot"])
def test_a_source_without_words(name: str) -> None:
    model = build(CONFIGS[name])
    found = log_probs(model, SOURCE, torch.tensor([0, 3, 5]), TARGET)
    assert found.isfinite().all()
    torch.testing.assert_close(found[1:], log_probs(model, SOURCE, LENGTHS, TARGET)[1:], rtol=0, atol=1e-11)
    grads = torch.autograd.grad(found.sum(), [model.encoder.embedding.weight, model.decoder.embedding.weight])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("name", CONFIGS)
def test_forced_outputs_have_the_log_probs_of_teacher_forcing(name: str) -> None:
    model = build(CONFIGS[name])
    memories, _ = model.encode(SOURCE, LENGTHS)
    forced = force(model.decoder, memories, TARGET[:, 1:], bos=int(TARGET[0, 0]))
    same = TARGET.clone()
    same[:, 0] = TARGET[0, 0]
    wanted = log_probs(model, SOURCE, LENGTHS, same)[:, :-1].gather(-1, TARGET[:, 1:, None])[..., 0]
    torch.testing.assert_close(forced.token_log_probs, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["pre-norm", "bilinear", "luong concat"])
def test_log_probs_are_float32_at_least(name: str, dtype: torch.dtype) -> None:
    model = build(CONFIGS[name])
    exact = log_probs(model, SOURCE, LENGTHS, TARGET)
    found, _ = feed(model.to(dtype), start(model), TARGET, [4, 7])
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < (1e-3 if dtype == torch.float32 else 2.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_trains_under_autocast(name: str) -> None:
    model = build(CONFIGS[name]).float()
    with torch.no_grad():
        exact = model(SOURCE, LENGTHS, TARGET)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(SOURCE, LENGTHS, TARGET)
    found.float().square().sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_learned_positions_end_while_decoding() -> None:
    model = build(transformer(embedding=EmbeddingConfig("learned", max_positions=10)))
    _, state = model.decoder.advance(start(model), TARGET[:, :10])
    with pytest.raises(ShapeError, match="embedding: 11 tokens, but learned positions end at 10"):
        model.decoder.advance(state, TARGET[:, 10:])


def test_memories() -> None:
    vectors = torch.randn(3, 5, 2)
    memory = Memory.of(vectors)
    assert memory.lengths.tolist() == [5, 5, 5]
    assert memory.mask.kind((0, 5), (0, 5)) == "full"
    chosen = Memory.of(vectors, torch.tensor([1, 2, 3])).select(torch.tensor([2, 2]))
    assert chosen.lengths.tolist() == [3, 3]
    assert torch.equal(chosen.vectors, vectors[[2, 2]])


def test_the_output_space_is_the_vocabulary() -> None:
    for config in (transformer(), recurrent()):
        outputs = build(config).decoder.outputs
        assert outputs.num_outputs == TARGET_VOCAB
        assert outputs.inputs(TARGET) is TARGET


@pytest.mark.parametrize("name", ["pre-norm", "grouped heads, learned positions", "conformer, rotary"])
@pytest.mark.parametrize("observe", [None, Observe(rows="all"), Observe(rows="all", received=True, entropy=True)])
def test_a_beam_reads_its_sentences_memory_once(name: str, observe: Observe | None) -> None:
    """Equally many rows of each sentence share its keys; unequally many have their own; all say the same."""
    model = build(CONFIGS[name])
    picked = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    shared = start(model).select(picked)
    assert (len(shared.lengths), shared.group) == (3, 3)
    _, shared = model.decoder.advance(shared, TARGET[picked, :2])
    alone = start(model, picked)
    _, alone = model.decoder.advance(alone, TARGET[picked, :2])
    for rows in ([2, 0, 1, 3, 3, 4, 8, 7, 6], [3, 4, 5, 6, 7, 8], [1, 0, 4, 3], [0, 5, 5, 8], [7], [0, 3, 6]):
        order = torch.tensor(rows)
        tokens = TARGET[picked[order], 2:5]
        found, after = model.decoder.advance(shared.select(order), tokens, observe)
        wanted, _ = model.decoder.advance(alone.select(order), tokens, observe)
        torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=1e-11)
        assert after.source.tolist() == picked[order].tolist()
        for layer, seen in wanted.attention.items():
            for statistic, tensor in seen.tensors().items():
                torch.testing.assert_close(found.attention[layer].tensors()[statistic], tensor)
