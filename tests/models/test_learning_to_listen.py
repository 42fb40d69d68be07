"""Speech models learn to read words off frames, in utterances that they never saw, and where each word is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import conformer
from torch import Tensor

from regard.decoding.ctc import best_path
from regard.decoding.ctc_alignment import forced_alignment
from regard.decoding.ctc_prefix import CTCPrefixScorer
from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.ctc import CTCConfig, ctc_nll
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.pyramid_encoder import PyramidEncoderConfig
from regard.training.objective import cross_entropy, mixed, of_outputs

SOURCE, TARGET, BOS, EOS, WORDS = 16, 8, 1, 2, 4  # a word is one of 5 ids, said on 4 to 7 frames by noisy symbols


def spoken(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(frames [count, most], how many, words [count, WORDS], on how many frames each is said).

    A frame is one of two symbols of its word, now and then any symbol.
    """
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, TARGET, (count, WORDS), generator=generator)
    spans = torch.randint(4, 8, (count, WORDS), generator=generator)
    lengths = spans.sum(1)
    frames = torch.zeros(count, int(lengths.max()), dtype=torch.int64)
    for row in range(count):
        said = words[row].repeat_interleave(spans[row])
        symbols = 2 * said - 5 + torch.randint(0, 2, said.shape, generator=generator)
        noisy = torch.rand(said.shape, generator=generator) < 0.1
        frames[row, : len(said)] = torch.where(
            noisy, torch.randint(1, SOURCE, said.shape, generator=generator), symbols
        )
    return frames, lengths, words, spans


def words_right(found: list[list[int]], words: Tensor) -> float:
    wanted = words.tolist()
    return sum(one == other for one, other in zip(found, wanted, strict=True)) / len(wanted)


LISTEN_ATTEND_AND_SPELL = EncoderDecoderConfig(
    PyramidEncoderConfig("pyramid", 24, num_layers=2, dropout=0.0),
    AttentionRNNConfig("attention-rnn", 24, 24, "location", location_filters=4, location_width=9, dropout=0.0),
    ctc=CTCConfig(dropout=0.0),
)


@pytest.mark.parametrize(
    "config",
    [replace(conformer(rotary_base=100.0), ctc=CTCConfig(weight=0.5, dropout=0.0)), LISTEN_ATTEND_AND_SPELL],
    ids=["conformer", "listen, attend and spell"],
)
def test_words_are_read_off_frames(config: EncoderDecoderConfig) -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(SOURCE, TARGET, config)
    assert model.ctc is not None
    optimizer = torch.optim.Adam(model.parameters(), 8e-3)
    for step in range(150):
        frames, lengths, words, _ = spoken(24, seed=step)
        inputs = torch.cat([torch.full((24, 1), BOS), words], 1)
        outputs = torch.cat([words, torch.full((24, 1), EOS)], 1)
        hidden, memories = model.forced(frames, lengths, inputs)
        memory = memories["source"]
        told = cross_entropy(hidden.flatten(0, 1), model.decoder.head, outputs.flatten())
        whole = of_outputs(
            ctc_nll(model.ctc(memory.vectors), memory.lengths, words, torch.full((24,), WORDS), skip_impossible=True)
        )
        optimizer.zero_grad()
        (mixed(told, whole, model.ctc.weight).objective / outputs.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    frames, lengths, words, spans = spoken(60, seed=10**6)
    with torch.no_grad():
        memories, _ = model.encode(frames, lengths)
        memory = memories["source"]
        log_probs = model.ctc(memory.vectors)
    by_ctc = [found.tokens for found in best_path(log_probs, memory.lengths)]
    options = DecodingOptions(beam_size=4, max_length=12, length_penalty=0.0)
    scorer = CTCPrefixScorer(log_probs, memory.lengths, weight=1.0, eos=EOS)
    joint = decode(model.decoder, memories, options, bos=BOS, eos=EOS, scorers=[scorer])
    alone = decode(model.decoder, memories, options, bos=BOS, eos=EOS)
    shares = {
        "ctc": words_right(by_ctc, words),
        "attention": words_right([best.tokens[:-1] for [best] in alone], words),
        "joint": words_right([best.tokens[:-1] for [best] in joint], words),
    }
    assert shares["joint"] > 0.75, shares
    assert shares["joint"] >= max(shares.values()), "each helps the other"
    aligned = forced_alignment(log_probs, memory.lengths, words, torch.full((60,), WORDS))
    inside = [
        begin - memory.stride <= place * memory.stride < end + memory.stride
        for row, ends in zip(aligned, spans.cumsum(1).tolist(), strict=True)
        for (place, _, _), begin, end in zip(row, [0, *ends], ends, strict=False)
    ]
    assert sum(inside) / len(inside) > 0.9, "a token's frames are those on which its word was said"
