"""A stream gives the tokens of `decode`, one by one; a sliding decoder goes on past what its model can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_decoders import RecurrentDecoder, memories
from torch import nn

from regard.decoding.coverage import RepeatPenalty
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.decoding.stream import stream
from regard.errors import ConfigError, ObservationError, ShapeError
from regard.inputs.embeddings import EmbeddingConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.models.sliding import SlidingDecoder

BOS, EOS, VOCAB, CONTEXT = 1, 2, 13, 12
PREFIX = torch.tensor([[5, 7, 3]])
CONFIG = LanguageModelConfig(
    8, 2, AttentionConfig(2), FeedForwardConfig(11), embedding=EmbeddingConfig("learned", CONTEXT), dropout=0.0
)


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(3)
    model = LanguageModel(VOCAB, CONFIG).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_length": 4, "no_repeat_ngram": 2},
        {"sample": True, "temperature": 1.3, "top_k": 5, "seed": 4},
        {"sample": True, "top_p": 0.8, "min_length": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", [PREFIX, None], ids=["prefix", "nothing before"])
def test_a_stream_is_what_decode_returns(
    model: LanguageModel, options: dict[str, Any], prefix: torch.Tensor | None
) -> None:
    chosen = DecodingOptions(max_length=8, **options)
    [[whole]] = decode(model, {}, chosen, bos=BOS, eos=EOS, prefix=prefix, sentence_numbers=torch.tensor([6]))
    assert list(stream(model, {}, chosen, bos=BOS, eos=EOS, prefix=prefix, sentence_number=6)) == whole.tokens


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sample"])
def test_a_stream_pays_for_coverage_as_decode_does(sample: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    options = DecodingOptions(max_length=13, coverage_penalty=0.7, sample=sample, seed=3)
    decoder, given = RecurrentDecoder(6, 2), memories([4], seed=4)
    paid: list[torch.Tensor] = []

    def score(penalty: RepeatPenalty, state: Any, log_probs: torch.Tensor) -> torch.Tensor | None:
        paid.append(state.added)
        return own(penalty, state, log_probs)

    own = RepeatPenalty.score
    monkeypatch.setattr(RepeatPenalty, "score", score)
    [[whole]] = decode(decoder, given, options, bos=BOS, eos=EOS)
    wanted, paid = torch.cat(paid), []
    assert list(stream(decoder, given, options, bos=BOS, eos=EOS)) == whole.tokens
    torch.testing.assert_close(torch.cat(paid), wanted)


def test_a_coverage_penalty_without_a_source_is_refused(model: LanguageModel) -> None:
    options = DecodingOptions(max_length=5, coverage_penalty=0.7)
    for search in (decode, stream):
        with pytest.raises(ConfigError, match=r"coverage_penalty is 0\.7, but a language model reads no source"):
            search(model, {}, options, bos=BOS, eos=EOS, prefix=PREFIX)
    with pytest.raises(ObservationError, match="wants attention to a source, but this decoder looks at its own output"):
        decode(model, {}, DecodingOptions(max_length=5), bos=BOS, eos=EOS, scorers=[RepeatPenalty(0.7)])


def test_a_token_comes_before_the_next_is_worked_out(model: LanguageModel) -> None:
    read = 0

    class Counting(SlidingDecoder):
        def advance(self, *arguments: Any) -> Any:
            nonlocal read
            read += 1
            return super().advance(*arguments)

    tokens = stream(Counting(model, CONTEXT), {}, DecodingOptions(max_length=8, min_length=7), bos=BOS, eos=EOS)
    for count, _ in enumerate(tokens, start=1):
        assert read == count


def test_what_no_stream_can_be_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="beam_size is 3 and num_best 1, but a stream is one path; set both to 1"):
        stream(model, {}, DecodingOptions(beam_size=3), bos=BOS, eos=EOS)
    with pytest.raises(ConfigError, match="num_best 2"):
        stream(model, {}, DecodingOptions(sample=True, num_best=2), bos=BOS, eos=EOS)
    with pytest.raises(ShapeError, match="2 rows, expected one; use decode for several"):
        stream(model, {}, DecodingOptions(), bos=BOS, eos=EOS, prefix=PREFIX.expand(2, -1))


# -- past the context --------------------------------------------------------------------------------------------------


def test_within_the_context_nothing_is_different(model: LanguageModel) -> None:
    options = DecodingOptions(max_length=7, min_length=6)
    plain = list(stream(model, {}, options, bos=BOS, eos=EOS, prefix=PREFIX))
    assert list(stream(SlidingDecoder(model, CONTEXT), {}, options, bos=BOS, eos=EOS, prefix=PREFIX)) == plain


@pytest.mark.parametrize("options", [{}, {"sample": True, "seed": 3}], ids=str)
def test_past_the_context_its_last_half_is_read(model: LanguageModel, options: dict[str, Any]) -> None:
    chosen = DecodingOptions(max_length=40, min_length=39, **options)
    tokens = list(stream(SlidingDecoder(model, CONTEXT), {}, chosen, bos=BOS, eos=EOS, prefix=PREFIX))
    assert len(tokens) == 40
    with pytest.raises(ShapeError, match="learned positions end at 12"):
        list(stream(model, {}, chosen, bos=BOS, eos=EOS, prefix=PREFIX))
    if options:
        return
    read = [BOS, *PREFIX[0].tolist()]
    for token in tokens:
        scores = model.head.log_probs(model(torch.tensor([read])))[0, -1].detach()
        scores[EOS] = float("-inf") if token != EOS else scores[EOS]
        assert int(scores.argmax()) == token
        read.append(token)
        if len(read) > CONTEXT:
            read = read[-CONTEXT // 2 :]


def test_a_beam_slides_as_well(model: LanguageModel) -> None:
    options = DecodingOptions(beam_size=3, num_best=3, max_length=30, min_length=29)
    [found] = decode(SlidingDecoder(model, CONTEXT), {}, options, bos=BOS, eos=EOS, prefix=PREFIX)
    assert len(found) == 3
    assert all(len(hypothesis.tokens) == 30 for hypothesis in found)


def test_more_at_once_than_the_context_is_refused(model: LanguageModel) -> None:
    sliding = SlidingDecoder(model, CONTEXT)
    with pytest.raises(ShapeError, match="13 tokens at once, but the model was trained on 12; give the last of them"):
        sliding.advance(sliding.start({}), torch.ones(1, 13, dtype=torch.int64))
