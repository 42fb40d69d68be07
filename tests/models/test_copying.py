from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import LENGTHS, TARGET_VOCAB, build, luong, recurrent, transformer
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer
from regard.models.copying import LAYER, CopyConfig, CopySpace, with_temporary_ids
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.memory import Memory

BEYOND = 6  # unknown words of the whole batch; a row has some of them
# Real words only where LENGTHS say so; what pads the rows must not matter.
SOURCE = torch.randint(4, TARGET_VOCAB + BEYOND, (3, 7), generator=torch.Generator().manual_seed(5))
SOURCE[:, 1] = TARGET_VOCAB + torch.tensor([3, 0, 5])
SOURCE[0, 4] = SOURCE[0, 1]  # a word that comes twice
SOURCE[0, 2], SOURCE[1, [0, 2]] = TARGET_VOCAB + 1, 7  # rows differ in how many they have
OUTPUTS = torch.randint(1, TARGET_VOCAB + 1, (3, 11), generator=torch.Generator().manual_seed(6))

COVERING = recurrent("coverage", cell="conditional-gru").decoder
CONFIGS: dict[str, EncoderDecoderConfig] = {
    "own head, transformer": replace(transformer(), copy=CopyConfig()),
    "decoder's heads, transformer": replace(transformer(), copy=CopyConfig("decoder")),
    "pointer-generator": replace(recurrent(cell="conditional-gru"), copy=CopyConfig("decoder")),
    "pointer-generator with coverage": replace(recurrent(), decoder=COVERING, copy=CopyConfig("decoder")),
    "own head, recurrent": replace(recurrent("dot"), copy=CopyConfig("own")),
    "luong": replace(luong("bilinear"), copy=CopyConfig("decoder")),
}


def model_of(name: str) -> EncoderDecoder:
    return build(CONFIGS[name], source_vocab=TARGET_VOCAB)


def start(model: EncoderDecoder, rows: Tensor | slice = slice(None), length: int | None = None) -> Any:
    memories, _ = model.encode(SOURCE[rows, :length], LENGTHS[rows])
    return model.decoder.start(memories)


def known(outputs: Tensor, state: Any) -> Tensor:
    """The outputs as far as their rows have them: others become ordinary words."""
    most = TARGET_VOCAB + (state.outputs >= TARGET_VOCAB).any(1).long()
    return outputs.masked_fill(outputs >= most[:, None], 5)


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ways_to_a_word_add_up_to_one(name: str) -> None:
    model = model_of(name)
    state = start(model)
    step, after = model.decoder.advance(state, known(OUTPUTS, state), Observe(rows="all"))
    probabilities = step.log_probs.exp()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 11, dtype=torch.float64))
    sources = [row[:length].tolist() for row, length in zip(SOURCE, LENGTHS.tolist(), strict=True)]
    num_unknown = [len({word for word in row if word >= TARGET_VOCAB}) for row in sources]
    assert step.log_probs.shape[-1] == TARGET_VOCAB + max(num_unknown)
    assert len(set(num_unknown)) > 1, "rows differ in what they may copy"
    for row, count in enumerate(num_unknown):
        assert step.log_probs[row, :, TARGET_VOCAB : TARGET_VOCAB + count].isfinite().all()
        assert step.log_probs[row, :, TARGET_VOCAB + count :].eq(float("-inf")).all()
    layer = LAYER if CONFIGS[name].copy == CopyConfig("own") else list(step.attention)[-1]
    pointed = step.attention[layer].rows
    assert pointed is not None
    torch.testing.assert_close(after.covered, pointed.mean(1).sum(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gate_that_only_copies_gives_the_attention_by_word(name: str) -> None:
    model = model_of(name)
    with torch.no_grad():
        model.decoder.gate.weight.zero_()  # type: ignore[union-attr]
        model.decoder.gate.bias.fill_(-1e4)  # type: ignore[union-attr]
    step, _ = model.decoder.advance(start(model), OUTPUTS.clamp_max(TARGET_VOCAB - 1), Observe(rows="all"))
    rows = list(step.attention.values())[-1].rows
    assert rows is not None
    weights = rows.mean(1)
    for row, length in enumerate(LENGTHS.tolist()):
        words = SOURCE[row, :length].tolist()
        unknown = sorted({word for word in words if word >= TARGET_VOCAB})
        wanted = torch.zeros_like(step.log_probs[row])
        for place, word in enumerate(words):
            column = word if word < TARGET_VOCAB else TARGET_VOCAB + unknown.index(word)
            wanted[:, column] += weights[row, :, place]
        torch.testing.assert_close(step.log_probs[row].exp(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [[1] * 11, [3, 1, 7]], ids=str)
def test_cached_is_uncached(name: str, sizes: list[int]) -> None:
    model = model_of(name)
    state = whole = start(model)
    outputs = known(OUTPUTS, state)
    wanted, _ = model.decoder.advance(whole, outputs)
    found, place = [], 0
    for size in sizes:
        step, state = model.decoder.advance(state, outputs[:, place : place + size])
        found.append(step.log_probs)
        place += size
    torch.testing.assert_close(torch.cat(found, 1), wanted.log_probs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_is_its_items_alone(name: str) -> None:
    model = model_of(name)
    state = start(model)
    outputs = known(OUTPUTS, state)
    batched, _ = model.decoder.advance(state, outputs)
    for item, length in enumerate(LENGTHS.tolist()):
        one = slice(item, item + 1)
        alone, _ = model.decoder.advance(start(model, one, length), outputs[one])
        count = alone.log_probs.shape[-1]
        torch.testing.assert_close(batched.log_probs[one, :, :count], alone.log_probs, rtol=0, atol=1e-11)
        assert batched.log_probs[one, :, count:].eq(float("-inf")).all()


MODELS = {name: model_of(name) for name in CONFIGS}


@settings(deadline=None, max_examples=30)
@given(
    name=st.sampled_from(list(CONFIGS)),
    first=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    second=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    begin=st.integers(0, 3),
)
def test_selected_rows_take_their_words_along(name: str, first: list[int], second: list[int], begin: int) -> None:
    model = MODELS[name]
    picked = torch.tensor(first)
    rows = picked[torch.tensor(second) % len(first)]
    state = whole = start(model)
    outputs = known(OUTPUTS, state)
    wanted, _ = model.decoder.advance(whole, outputs[:, : begin + 5])
    if begin:
        _, state = model.decoder.advance(state, outputs[:, :begin])
    state = state.select(picked)
    _, state = model.decoder.advance(state, outputs[picked, begin : begin + 2])
    state = state.select(torch.tensor(second) % len(first))
    found, _ = model.decoder.advance(state, outputs[rows, begin + 2 : begin + 5])
    torch.testing.assert_close(found.log_probs, wanted.log_probs[rows, -3:], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_beam_in_a_batch_is_a_beam_alone_and_copies_unknown_words(name: str) -> None:
    model = MODELS[name]
    options = DecodingOptions(beam_size=4, num_best=3, max_length=9, no_repeat_ngram=2)
    ends: dict[str, Any] = {"bos": Tokenizer.BOS, "eos": Tokenizer.EOS}
    memories, _ = model.encode(SOURCE, LENGTHS)
    found = decode(model.decoder, memories, options, **ends)
    copied = 0
    for row, length in enumerate(LENGTHS.tolist()):
        one = slice(row, row + 1)
        alone_memories, _ = model.encode(SOURCE[one, :length], LENGTHS[one])
        [alone] = decode(model.decoder, alone_memories, options, **ends)
        assert [hypothesis.tokens for hypothesis in found[row]] == [hypothesis.tokens for hypothesis in alone]
        unknown = {int(word) for word in SOURCE[row, :length] if word >= TARGET_VOCAB}
        for hypothesis in found[row]:
            beyond = [token for token in hypothesis.tokens if token >= TARGET_VOCAB]
            assert all(token < TARGET_VOCAB + len(unknown) for token in beyond)
            copied += len(beyond)
        tokens = torch.tensor([found[row][0].tokens])
        forced = force(model.decoder, alone_memories, tokens, bos=Tokenizer.BOS)
        assert forced.log_prob.item() == pytest.approx(found[row][0].log_prob, abs=1e-9)
    assert copied, "no unknown word was ever copied, so that this test would notice nothing"


def test_rescoring_has_finite_gradients_where_words_cannot_be_copied() -> None:
    model = model_of("own head, transformer")
    memories, _ = model.encode(SOURCE, LENGTHS)
    forced = force(model.decoder, memories, OUTPUTS.clamp_max(TARGET_VOCAB - 1), bos=Tokenizer.BOS)
    gradients = torch.autograd.grad(forced.log_prob.sum(), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_coverage_is_what_was_attended_to_and_changes_what_is() -> None:
    """Step by step, against the formula: e = v . tanh(q + k + w c), c the sum of all attention so far."""
    model = model_of("pointer-generator with coverage")
    inner: Any = model.decoder.decoder  # type: ignore[union-attr]
    memories, _ = model.encode(SOURCE, LENGTHS)
    memory = memories["source"]
    state = inner.start(memories)
    keys, real = inner.key(memory.vectors), torch.arange(7) < LENGTHS[:, None]
    covered = torch.zeros(3, 7, dtype=torch.float64)
    hidden = state.hidden
    for token in inner.cell.of_tokens(inner.embedding(OUTPUTS.clamp_max(TARGET_VOCAB - 1))).unbind(1):
        weights = torch.empty(0)

        def look(middle: Tensor) -> Tensor:
            nonlocal weights
            sums = inner.query(middle)[:, None] + keys + covered[..., None] * inner.coverage.weight  # noqa: B023
            scores = (sums.tanh() @ inner.coverage.vector[0]).masked_fill(~real, float("-inf"))
            weights = scores.softmax(-1)
            return (weights[..., None] * memory.vectors).sum(1)

        hidden, _ = inner.cell.transition(look)(token, hidden)
        covered = covered + weights
    step, after = model.decoder.advance(start(model), OUTPUTS.clamp_max(TARGET_VOCAB - 1))
    torch.testing.assert_close(after.inner.hidden, hidden, rtol=0, atol=1e-11)
    torch.testing.assert_close(after.inner.attended[:, 0, 0], covered, rtol=0, atol=1e-11)
    with torch.no_grad():
        inner.coverage.weight.zero_()
    without, _ = model.decoder.advance(start(model), OUTPUTS.clamp_max(TARGET_VOCAB - 1))
    torch.testing.assert_close(without.log_probs[:, 0], step.log_probs[:, 0])
    assert not torch.allclose(without.log_probs[:, 1], step.log_probs[:, 1])


@pytest.mark.parametrize(
    "asked", [Observe(rows="all"), Observe(rows=(1, -1)), Observe(entropy=True, received=True)], ids=str
)
def test_coverage_observes_as_if_it_were_not_there(asked: Observe) -> None:
    """A weight of 0 leaves the attention of the plain decoder, whose observations are what these must be."""
    covering = build(replace(recurrent(), decoder=COVERING), source_vocab=TARGET_VOCAB)
    plain = build(recurrent(cell="conditional-gru"), source_vocab=TARGET_VOCAB)
    with torch.no_grad():
        covering.decoder.coverage.weight.zero_()  # type: ignore[union-attr]
        plain.decoder.score_weight.copy_(covering.decoder.coverage.vector)  # type: ignore[union-attr]
    kept = {name: value for name, value in covering.state_dict().items() if "coverage" not in name}
    plain.load_state_dict({**plain.state_dict(), **kept})
    tokens, source = OUTPUTS.clamp_max(TARGET_VOCAB - 1), SOURCE.clamp_max(TARGET_VOCAB - 1)
    seen = []
    for model in (covering, plain):
        memories, _ = model.encode(source, LENGTHS)
        decoder: Any = model.decoder
        step, _ = decoder.advance(decoder.start(memories), tokens, asked)
        [observation] = step.attention.values()
        seen.append(observation.tensors())
    assert seen[0].keys() == seen[1].keys()
    for name in seen[0]:
        torch.testing.assert_close(seen[0][name], seen[1][name], rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.lists(st.integers(0, 12), min_size=4, max_size=4), min_size=1, max_size=4))
def test_temporary_ids_are_one_a_word(rows: list[list[int]]) -> None:
    ids = torch.tensor(rows) * 7
    found, words = with_temporary_ids(ids, 30)
    most = 0
    for row, given_ids in enumerate(ids.tolist()):
        unknown = sorted({word for word in given_ids if word >= 30})
        most = max(most, len(unknown))
        assert found[row].tolist() == [word if word < 30 else 30 + unknown.index(word) for word in given_ids]
        assert words[row].tolist()[: len(unknown)] == unknown
        assert not any(words[row].tolist()[len(unknown) :])
    assert words.shape[1] == most
    again, _ = with_temporary_ids(found, 30)
    assert torch.equal(again, found), "numbered anew, the same numbers"


def test_copied_words_are_fed_back_as_the_unknown_one() -> None:
    assert CopySpace(10, 3).inputs(torch.tensor([[0, 9, 10, 400]])).tolist() == [[0, 9, 3, 3]]
    assert CopySpace(10, 3).num_outputs == 10


def test_what_cannot_copy_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="copying wants text of one vocabulary on both sides, got a source of size 17"
    ):
        EncoderDecoder(17, TARGET_VOCAB, CONFIGS["luong"])
    decoder: Any = model_of("luong").decoder
    with pytest.raises(ConfigError, match="the source does not say what its words are"):
        decoder.start({"source": Memory.of(torch.zeros(1, 3, 14, dtype=torch.float64))})
