"""Encoders of pictures under decoders of words, each combination that recipes name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import ATTENTION, FEED_FORWARD, TARGET, TARGET_VOCAB
from torch import Tensor

from regard.attention.observation import Observe
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.patches import PatchesConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.no_encoder import NoEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig

DIM = 12
CONVOLUTION = ConvolutionConfig("convolution", (8, 16))
PATCHES = PatchesConfig("patches", 8)
TRANSFORMER: Any = TransformerDecoderConfig(DIM, 2, ATTENTION, FEED_FORWARD, dropout=0.0)
TELL = ShowAttendTellConfig("show-attend-tell", DIM, 14, 10, dropout=0.0)
CAPTIONERS = {
    "show, attend and tell": EncoderDecoderConfig(NoEncoderConfig("none", DIM, CONVOLUTION), TELL),
    "convolution and Transformer": EncoderDecoderConfig(
        TransformerEncoderConfig(DIM, 1, ATTENTION, FEED_FORWARD, embedding=CONVOLUTION, dropout=0.0), TRANSFORMER
    ),
    "vision Transformer": EncoderDecoderConfig(
        TransformerEncoderConfig(DIM, 2, ATTENTION, FEED_FORWARD, embedding=PATCHES, dropout=0.0), TRANSFORMER
    ),
}


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8, generator=generator), torch.full((3,), 16)


def build(name: str) -> EncoderDecoder:
    torch.manual_seed(3)
    return EncoderDecoder(3, TARGET_VOCAB, CAPTIONERS[name]).double().eval()


@pytest.mark.parametrize("name", CAPTIONERS)
def test_the_memory_knows_its_grid_and_words_look_at_it(name: str) -> None:
    model = build(name)
    memories, _ = model.encode(*pictures())
    memory = memories["source"]
    grid = (4, 6) if "vision" not in name else (2, 3)
    assert memory.grid == grid and memory.vectors.shape == (3, grid[0] * grid[1], DIM)
    assert memory.select(torch.tensor([2, 0])).grid == grid
    step, _ = model.decoder.advance(model.decoder.start(memories), TARGET, Observe(rows="all"))
    for seen in step.attention.values():
        assert seen.rows is not None
        assert seen.rows.shape[2:] == (TARGET.shape[1], grid[0] * grid[1])
        torch.testing.assert_close(seen.rows.sum(-1), torch.ones_like(seen.rows[..., 0]))


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_caption_does_not_depend_on_other_pictures_and_everything_learns(name: str) -> None:
    model = build(name)
    values, lengths = pictures()
    hidden = model(values, lengths, TARGET)
    for row in range(3):
        alone = model(values[row : row + 1], lengths[:1], TARGET[row : row + 1])
        torch.testing.assert_close(hidden[row : row + 1], alone, rtol=0, atol=1e-9)
    model.decoder.head(hidden).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.encoder.embedding.positions.rows.grad.any()
