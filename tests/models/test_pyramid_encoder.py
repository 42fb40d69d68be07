from __future__ import annotations

import pytest
import torch
from small_models import DIM, LENGTHS, SOURCE, SOURCE_VOCAB, TARGET, TARGET_VOCAB, log_probs
from torch import Tensor, nn

from regard.attention.observation import Observe
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.errors import ConfigError
from regard.models.attention_rnn import LAYER, AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.pyramid_encoder import PyramidEncoder, PyramidEncoderConfig, packed


def listen_attend_and_spell(pack: int = 2, layers: int = 3) -> EncoderDecoder:
    """Pyramid and location-aware attention, in float64."""
    torch.manual_seed(0)
    config = EncoderDecoderConfig(
        PyramidEncoderConfig("pyramid", 5, num_layers=layers, pack=pack, dropout=0.0),
        AttentionRNNConfig("attention-rnn", DIM, 13, "location", location_width=3, dropout=0.0),
    )
    model = EncoderDecoder(SOURCE_VOCAB, TARGET_VOCAB, config).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def by_torch(encoder: PyramidEncoder, ids: Tensor) -> Tensor:
    """One sentence [length]: torch's layers over pairs, the last one filled up with zeros."""
    vectors = encoder.embedding.tokens(ids[None])
    for index, layer in enumerate(encoder.layers):
        if index:
            rows = list(vectors[0])
            rows += [torch.zeros_like(rows[0])] * (len(rows) % 2)
            vectors = torch.stack([torch.cat(rows[place : place + 2]) for place in range(0, len(rows), 2)])[None]
        vectors = layer(vectors)[0]
    return vectors[0]


def test_pairs_are_packed_layer_by_layer() -> None:
    encoder = listen_attend_and_spell().encoder
    assert isinstance(encoder, PyramidEncoder)
    memory, observations = encoder(SOURCE, LENGTHS)
    assert observations == {}
    assert memory.vectors.shape == (3, 2, encoder.memory_dim)
    assert memory.lengths.tolist() == [2, 1, 2]  # of 7, 3 and 5
    assert memory.stride == 4
    for row, length in enumerate(LENGTHS.tolist()):
        wanted = by_torch(encoder, SOURCE[row, :length])
        torch.testing.assert_close(memory.vectors[row, : len(wanted)], wanted, rtol=1e-10, atol=1e-11)
        assert not memory.vectors[row, len(wanted) :].any()


def test_packing_by_hand() -> None:
    vectors = torch.arange(1, 7).view(1, 3, 2)
    assert packed(vectors, 2).tolist() == [[[1, 2, 3, 4], [5, 6, 0, 0]]]
    assert packed(vectors, 3).tolist() == [[[1, 2, 3, 4, 5, 6]]]
    assert packed(vectors, 1).tolist() == vectors.tolist()
    assert packed(vectors[:, :0], 2).shape == (1, 0, 4)


@pytest.mark.parametrize(("pack", "layers"), [(2, 1), (2, 2), (3, 2)])
def test_a_padded_batch_is_its_items_alone(pack: int, layers: int) -> None:
    model = listen_attend_and_spell(pack, layers)
    batched = log_probs(model, SOURCE, LENGTHS, TARGET)
    for item, length in enumerate(LENGTHS.tolist()):
        one = slice(item, item + 1)
        alone = log_probs(model, SOURCE[one, :length], LENGTHS[one], TARGET[one])
        torch.testing.assert_close(batched[one], alone, rtol=0, atol=1e-11)


def test_cached_decoding_is_teacher_forcing() -> None:
    model = listen_attend_and_spell()
    wanted = log_probs(model, SOURCE, LENGTHS, TARGET)
    state = model.decoder.start(model.encode(SOURCE, LENGTHS)[0])
    for place in range(TARGET.shape[1]):
        step, state = model.decoder.advance(state, TARGET[:, place : place + 1])
        torch.testing.assert_close(step.log_probs[:, 0], wanted[:, place], rtol=0, atol=1e-11)


def test_a_search_carries_the_attention_of_frames() -> None:
    model = listen_attend_and_spell(layers=2)
    memories, _ = model.encode(SOURCE, LENGTHS)
    options = DecodingOptions(beam_size=3, max_length=5)
    found = decode(model.decoder, memories, options, bos=1, eos=2, observe=Observe(rows="all"))
    plain = decode(model.decoder, memories, options, bos=1, eos=2)
    for row, [hypothesis] in enumerate(found):
        assert hypothesis.tokens == plain[row][0].tokens
        seen = hypothesis.attention[LAYER]
        assert seen.shape == (1, len(hypothesis.tokens), memories["source"].lengths[row])
        torch.testing.assert_close(seen.sum(-1), torch.ones_like(seen[..., 0]))


def test_what_cannot_be_is_refused() -> None:
    for parts in ({"num_layers": 0}, {"pack": 0}):
        with pytest.raises(ConfigError, match="expected at least 1 of each"):
            PyramidEncoder(SOURCE_VOCAB, PyramidEncoderConfig("pyramid", 5, **parts))
