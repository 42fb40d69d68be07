"""The schema of a translation recipe: the one place where a recipe becomes a translation model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, RegardError
from regard.inputs.text import TokenizerConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Decoding, Recipe, check_ranges
from regard.tasks.translate.scorings import SCORINGS, Scoring

ROLES = ("source", "target")


class TranslateData(Data):
    """Which text to learn from."""

    source_language: str  # ISO 639-1 code, e.g. "en"
    target_language: str


class Tokenizers(Section):
    """How text is cut into subwords."""

    joint: bool = True  # one vocabulary for both languages
    source: TokenizerConfig
    target: TokenizerConfig | None = None  # as the source's unless given; never given when joint


class Validation(Section):
    """What decides which weights are best."""

    scoring: Scoring = "sacrebleu"
    metric: Literal["bleu", "chrf", "exact_match"] = "bleu"
    decoding: Decoding = DecodingOptions()
    max_sentences: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class TranslateRecipe(Recipe):
    """A complete run: data, tokenizers, model, training, decoding."""

    task: Literal["translate"]
    data: TranslateData
    tokenizers: Tokenizers
    model: EncoderDecoderConfig
    validation: Validation = Validation()
    decoding: Decoding = DecodingOptions(beam_size=5)  # of the finished model
    decoding_batch_tokens: Annotated[int, Field(ge=1)] = 4096  # padded source tokens decoded at once
    report: tuple[Scoring, ...] = SCORINGS  # scorings of the test set

    @model_validator(mode="after")
    def _fits_together(self) -> TranslateRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        if self.tokenizers.joint and self.tokenizers.target is not None:
            raise ConfigError(
                "tokenizers.target is given though tokenizers.joint is true; remove it, or set joint to false"
            )
        if self.validation.metric == "chrf" and self.validation.scoring != "sacrebleu":
            raise ConfigError(
                f"validation.metric is chrf, which scoring {self.validation.scoring} does not give; set"
                " validation.scoring to sacrebleu, or validation.metric to bleu"
            )
        self.data.check_budget()
        check_ranges(self.model)
        if self.model.copy is not None:
            raise ConfigError("model.copy is given, but only the task summarize trains a model to copy; remove it")
        if self.model.tie == "all" and not self.tokenizers.joint:
            raise ConfigError(
                "model.tie is all though tokenizers.joint is false; set tokenizers.joint to true, or model.tie to"
                " decoder"
            )
        widths = self.model.encoder.model_dim, self.model.decoder.model_dim
        if self.model.tie == "all" and len(set(widths)) > 1:
            raise ConfigError(
                f"model.tie is all, but model.encoder.model_dim is {widths[0]} and model.decoder.model_dim {widths[1]};"
                " make them equal, or set model.tie to decoder"
            )
        _refuse_what_cannot_be_built(self.model)
        return self


def _refuse_what_cannot_be_built(config: EncoderDecoderConfig) -> None:
    """Builds the model with one layer (all are alike) and few words, so that each part's own checks speak up.

    Raises: what they raise, headed by the side it comes from.
    """
    sides: dict[str, Any] = {"encoder": config.encoder, "decoder": config.decoder}
    for name, side in sides.items():
        if hasattr(side, "num_layers"):
            sides[name] = dataclasses.replace(side, num_layers=1)
    num_words = 5
    with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
        whole = dataclasses.replace(config, **sides)
        # Beside a decoder that goes with any encoder, what is wrong is wrong with the encoder.
        any_decoder = AttentionRNNConfig("attention-rnn", model_dim=1, attention_dim=1)
        encoder_alone = dataclasses.replace(whole, decoder=any_decoder, tie="none")
        for name, built in (("encoder", encoder_alone), ("decoder", whole)):
            try:
                EncoderDecoder(num_words, num_words, built)
            except RegardError as error:
                raise ConfigError(f"model.{name}: {error}") from None
