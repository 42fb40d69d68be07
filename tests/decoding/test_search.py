"""`decode` and `force` as users call them: lengths, prefixes, attention, output spaces and mistakes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tiny_decoders import BOS, EOS, RecurrentDecoder, TableDecoder, TableState, alone, memories
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.force import force
from regard.decoding.hypotheses import looked_at
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError, ObservationError, RegardError, ShapeError
from regard.models.decoder import Decoder
from regard.models.memory import Memory

WAYS = [
    DecodingOptions(max_length=11),
    DecodingOptions(max_length=11, beam_size=4, num_best=4),
    DecodingOptions(max_length=11, sample=True, num_best=3),
]
each_way = pytest.mark.parametrize("options", WAYS, ids=["greedy", "beam", "sample"])


def endless(vocab: int = 7) -> TableDecoder:
    decoder = TableDecoder.random(vocab, 3)
    decoder.table[:, EOS] = float("-inf")
    return decoder


@each_way
def test_no_output_exceeds_its_limit(options: DecodingOptions) -> None:
    caps = torch.tensor([3, 200, 1])
    found = decode(endless(), memories([3, 2, 5], seed=1), options, bos=BOS, eos=EOS, max_lengths=caps)
    for group, cap in zip(found, [3, 11, 1], strict=True):
        assert len(group) == options.num_best
        for hypothesis in group:
            assert len(hypothesis.tokens) == cap
            assert not hypothesis.finished
    found = decode(endless(), memories([3, 2], seed=1), options, bos=BOS, eos=EOS, max_lengths=2)
    assert {len(hypothesis.tokens) for group in found for hypothesis in group} == {2}


@each_way
def test_a_prefix_is_read_in_one_step_and_is_no_part_of_the_output(options: DecodingOptions) -> None:
    decoder = RecurrentDecoder(11, seed=3)
    source = memories([3, 5], seed=1)
    prefix = torch.tensor([[2, 3, 4], [5, 6, 7]])
    observe = Observe(rows="all")
    found = decode(decoder, source, options, bos=BOS, eos=EOS, prefix=prefix, observe=observe)
    for row, group in enumerate(found):
        for hypothesis in group:
            tokens = torch.tensor([hypothesis.tokens])
            given, length = alone(source, row), len(hypothesis.tokens)
            forced = force(decoder, given, tokens, bos=BOS, prefix=prefix[row : row + 1], observe=observe)
            assert forced.token_log_probs[0].tolist() == pytest.approx(hypothesis.token_log_probs)
            assert length <= 11
            rows = forced.attention["decoder.cross"].rows
            assert rows is not None
            torch.testing.assert_close(hypothesis.attention["decoder.cross"], rows[0, :, -length:])
    table = TableDecoder.random(7, 3)
    decode(table, source, options, bos=BOS, eos=EOS, prefix=prefix.clamp(max=6))
    assert table.tokens_advanced[0] == 4
    assert set(table.tokens_advanced[1:]) <= {1}


@each_way
def test_attention_has_the_shape_of_the_real_memory(options: DecodingOptions) -> None:
    decoder = RecurrentDecoder(11, seed=3)
    source = memories([3, 7, 5], seed=1)
    found = decode(decoder, source, options, bos=BOS, eos=EOS, observe=Observe(rows="all"))
    for group, length in zip(found, [3, 7, 5], strict=True):
        for hypothesis in group:
            seen = hypothesis.attention["decoder.cross"]
            assert seen.shape == (2, len(hypothesis.tokens), length)
            torch.testing.assert_close(seen.sum(-1), torch.ones(2, len(hypothesis.tokens), dtype=torch.float64))
    [[plain], *_] = decode(decoder, source, DecodingOptions(), bos=BOS, eos=EOS)
    assert plain.attention == {}


def test_which_memory_a_layer_looks_at() -> None:
    image, speech = Memory.of(torch.zeros(2, 5, 3)), Memory.of(torch.zeros(2, 5, 3))
    both = {"image": image, "speech": speech}
    assert looked_at("decoder.layers.0.speech", [5, 5], both) is speech
    assert looked_at("decoder.layers.0.cross", [5, 5], both) is image
    assert looked_at("decoder.layers.0.self", [5, 6], both) is None
    assert looked_at("decoder.layers.0.cross", [4], both) is None


def test_force_pads_and_carries_gradient() -> None:
    decoder = RecurrentDecoder(11, seed=3)
    decoder.out.requires_grad_()
    source = memories([3, 5], seed=1)
    tokens = torch.tensor([[4, 6, EOS], [7, EOS, -100]])
    forced = force(decoder, source, tokens, torch.tensor([3, 2]), bos=BOS)
    assert forced.token_log_probs[1, 2] == 0
    short = force(decoder, alone(source, 1), tokens[1:, :2], bos=BOS)
    torch.testing.assert_close(short.token_log_probs[0], forced.token_log_probs[1, :2])
    torch.testing.assert_close(forced.log_prob, forced.token_log_probs.sum(1))
    forced.log_prob.sum().backward()
    assert decoder.out.grad is not None
    assert bool(decoder.out.grad.any())


class Copying:
    """Output ids 7 and above stand for copied words and are fed back as the unknown word, 2."""

    num_outputs = 10

    def inputs(self, outputs: Tensor) -> Tensor:
        return outputs.where(outputs < 7, 2)


@each_way
def test_chosen_outputs_are_fed_back_through_the_output_space(options: DecodingOptions) -> None:
    seen: list[Tensor] = []

    class CopyDecoder(TableDecoder):
        def advance(self, state, tokens, observe=None):  # type: ignore[no-untyped-def]
            seen.append(tokens)
            return super().advance(state, tokens, observe)

    decoder = CopyDecoder(TableDecoder.random(10, 3).table)
    decoder.outputs = Copying()  # type: ignore[assignment]
    found = decode(decoder, memories([3, 2], seed=1), options, bos=BOS, eos=EOS, prefix=torch.tensor([[9], [4]]))
    assert any(token >= 7 for group in found for hypothesis in group for token in hypothesis.tokens)
    assert seen[0].tolist() == [[BOS, 2], [BOS, 4]]
    assert all(int(tokens.max()) < 7 for tokens in seen)


class LanguageModel(TableDecoder):
    def start(self, memories: Mapping[str, Memory]) -> TableState:
        assert not memories
        return TableState(torch.zeros(1, dtype=torch.int64))


@each_way
def test_without_memories_the_prefix_gives_the_rows(options: DecodingOptions) -> None:
    decoder = LanguageModel(TableDecoder.random(7, 3).table)
    prefix = torch.tensor([[2, 3], [4, 5], [2, 3]])
    found = decode(decoder, {}, options, bos=BOS, eos=EOS, prefix=prefix)
    assert len(found) == 3
    if not options.sample:
        assert found[0] == found[2] != found[1]
    assert len(decode(decoder, {}, options, bos=BOS, eos=EOS)) == 1


@each_way
def test_an_empty_batch(options: DecodingOptions) -> None:
    empty = {"source": Memory(torch.zeros(0, 3, 6), torch.zeros(0, dtype=torch.int64))}
    assert decode(TableDecoder.random(7, 3), empty, options, bos=BOS, eos=EOS) == []


@each_way
def test_a_broken_model_is_reported(options: DecodingOptions) -> None:
    decoder = TableDecoder(torch.full((1009, 7), float("nan"), dtype=torch.float64))
    with pytest.raises(RegardError) as caught:
        decode(decoder, memories([3], seed=1), options, bos=BOS, eos=EOS)
    assert str(caught.value) == (
        "decode: the model's log-probabilities at token 1 are NaN, expected numbers; the weights or the inputs hold NaN"
        " or infinity: take an earlier checkpoint or look at the input"
    )


def test_mistakes_are_named() -> None:
    decoder: Decoder = TableDecoder.random(7, 3)
    source = memories([3, 2], seed=1)
    options = DecodingOptions()

    def message(kind: type[RegardError], **arguments: object) -> str:
        with pytest.raises(kind) as caught:
            decode(decoder, source, options, bos=BOS, eos=EOS, **arguments)  # type: ignore[arg-type]
        return str(caught.value)

    assert message(ConfigError, max_lengths=torch.tensor([3, 0])) == (
        "decode: max_lengths is 0 for row 1, expected at least 1; drop the sentence or allow a token"
    )
    assert message(ShapeError, max_lengths=torch.tensor([3])) == (
        "decode: max_lengths has shape [1], expected [2]: one a sentence"
    )
    assert message(ShapeError, prefix=torch.tensor([[3]])) == (
        "decode: memory `source` has 2, prefix has 1 rows; expected as many in each: one a sentence"
    )
    assert message(ObservationError, observe=Observe(entropy=True, rows=(0,))) == (
        "decode: observe asks for entropy, rows=(0,); a hypothesis carries the rows of all its steps and nothing else:"
        ' pass Observe(rows="all") and derive the rest from them'
    )
    others = {
        "sink_mass": 2,
        "top_k": 3,
        "columns": (0,),
        "pooled": (2, 2),
        "trace": True,
        "received": torch.ones(2, 1),
    }
    for name, value in others.items():
        asked = Observe(rows="all", heads=(0,), **{name: value})
        assert f"observe asks for {name}; a hypothesis carries" in message(ObservationError, observe=asked)
    with pytest.raises(ConfigError, match="beam_size is 0"):
        decode(decoder, source, DecodingOptions(beam_size=0), bos=BOS, eos=EOS)
    with pytest.raises(ShapeError) as caught:
        decode(
            decoder,
            source,
            DecodingOptions(sample=True),
            bos=BOS,
            eos=EOS,
            sentence_numbers=torch.tensor([1, 2, 3]),
        )
    assert str(caught.value) == "decode: sentence_numbers has shape [3], expected [2]: one a sentence"
    with pytest.raises(ShapeError) as caught:
        force(decoder, source, torch.tensor([[3]]), bos=BOS)
    assert str(caught.value) == "force: tokens has shape [1, 1], expected [2, at least 1]: one output a sentence"
