"""The schema of a captioning recipe: the one place where a recipe becomes a model that tells of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from regard.data.batches import TokenBudget
from regard.data.picture_records import PictureSpec
from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, RegardError
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.patches import PatchesConfig
from regard.inputs.pictures import PictureSize
from regard.inputs.text import TokenizerConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Budget, Data, Decoding, Recipe, check_ranges

ROLES = ("source", "target")
CHANNELS = 3
NUM_WORDS = 5  # of the model that is built to see whether it can be


class CaptionData(Data):
    """Which pictures to learn from, and what is said of them."""

    train: PictureSpec  # type: ignore[assignment]
    validation: PictureSpec  # type: ignore[assignment]
    test: PictureSpec | None = None  # type: ignore[assignment]
    picture: PictureSize  # what every picture is brought to
    max_tokens: Annotated[int, Field(ge=1)] = 64  # a picture with a longer caption is bad
    # A batch's size is its pictures times the longest of their heights and of their captions' tokens together.
    batch: Budget = TokenBudget(1 << 20, max_sentences=32, length_noise=1.0)
    decode_workers: Annotated[int, Field(ge=0)] = 0  # processes that decode pictures, while preparing and validating


class Validation(Section):
    """What decides which weights are best."""

    metric: Literal["bleu-1", "bleu-2", "bleu-3", "bleu-4", "rouge-l", "cider-d", "exact_match"] = "bleu-4"
    decoding: Decoding = DecodingOptions(max_length=64)
    max_pictures: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class CaptionRecipe(Recipe):
    """A complete run: data, tokenizer, model, training, decoding."""

    task: Literal["caption"]
    data: CaptionData
    tokenizer: TokenizerConfig
    model: EncoderDecoderConfig
    init_from: Path | None = None  # a model directory whose encoder this one starts from, as far as it fits
    # Weight of "each place gets an attention of 1 over a caption" (Xu et al. 2015, eq. 14); 0: not asked for.
    attention_penalty: Annotated[float, Field(ge=0)] = 0.0
    validation: Validation = Validation()
    decoding: Decoding = DecodingOptions(beam_size=5, max_length=64)  # of the finished model
    decoding_pictures: Annotated[int, Field(ge=1)] = 32  # decoded at once

    @model_validator(mode="after")
    def _fits_together(self) -> CaptionRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        check_ranges(self.model)
        if self.model.tie == "all":
            raise ConfigError("model.tie is all, which wants text on both sides; set model.tie to decoder")
        check_model(self.model, self.data.picture)
        return self


def check_model(config: EncoderDecoderConfig, size: PictureSize) -> None:
    """Builds the model with few words and looks at one grey picture, so that each part's own checks speak up.

    Raises: ConfigError, headed by the side that an error comes from, or where the encoder reads no pictures.
    """
    check_source(config.encoder.embedding)
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # random numbers that belong to somebody else
        try:
            model = EncoderDecoder(CHANNELS, NUM_WORDS, config).eval()
            grey = torch.full((1, size.height, size.width, CHANNELS), 127, dtype=torch.uint8)
            model(grey, torch.tensor([size.height]), torch.ones(1, 1, dtype=torch.int64))
        except RegardError as error:
            raise ConfigError(f"model: {error}") from None


def check_source(source: object) -> None:
    """Raises: ConfigError for a source that reads no pictures."""
    if not isinstance(source, ConvolutionConfig | PatchesConfig):
        raise ConfigError(
            "model.encoder.embedding reads no pictures; give it type: convolution or type: patches, see docs/caption.md"
        )
