"""The schema of a transcription recipe: the one place where a recipe becomes a speech model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field, model_validator

from regard.data.speech_records import SpeechSpec
from regard.errors import ConfigError, RegardError
from regard.inputs.front_end import FrontEnd, FrontEndConfig
from regard.inputs.speech import SpeechSourceConfig
from regard.inputs.text import TokenizerConfig
from regard.models.attention_rnn import AttentionRNNConfig
from regard.models.ctc_model import CTCModel, CTCModelConfig
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Recipe, check_ranges
from regard.tasks.transcribe.scoring import Compared
from regard.tasks.transcribe.search import AcousticConfig, AcousticModel, SpeechDecoding

ROLES = ("source", "target")
LONGEST_RECORD = 3000  # frames: half a minute


def _can_work(decoding: SpeechDecoding) -> SpeechDecoding:
    decoding.check()
    return decoding


Decoding = Annotated[SpeechDecoding, AfterValidator(_can_work)]


class TranscribeData(Data):
    """Which sound to learn from. Batches are counted in frames, the longest role of a record."""

    train: SpeechSpec  # type: ignore[assignment]  # what a task reads is its own
    validation: SpeechSpec  # type: ignore[assignment]
    test: SpeechSpec | None = None  # type: ignore[assignment]
    max_tokens: Annotated[int, Field(ge=1)] = LONGEST_RECORD  # records of more frames (or tokens of text) are bad


class Validation(Section):
    """What decides which weights are best: 100 less the error rate, of really decoded validation sound."""

    metric: Literal["word_accuracy", "character_accuracy", "exact_match"] = "word_accuracy"
    decoding: Decoding = SpeechDecoding()
    max_utterances: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class TranscribeRecipe(Recipe):
    """A complete run: data, front end, tokenizer, model, training, decoding."""

    task: Literal["transcribe"]
    data: TranscribeData
    front_end: FrontEndConfig = FrontEndConfig()
    tokenizer: TokenizerConfig
    model: AcousticConfig
    validation: Validation = Validation()
    decoding: Decoding = SpeechDecoding()  # of the finished model
    decoding_frames: Annotated[int, Field(ge=1)] = 20_000  # padded frames decoded at once
    compared: Compared = "exact"  # how transcripts are compared with references: "plain" knows no case and no marks

    @model_validator(mode="after")
    def _fits_together(self) -> TranscribeRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        self.data.check_budget()
        check_ranges(self.model)
        source = source_of(self.model)
        augment = source.augment
        if augment is not None and augment.vocal_tract != (1.0, 1.0):
            if self.front_end.kind == "mfcc":
                raise ConfigError(
                    "model.encoder.embedding.augment.vocal_tract moves bands of frequency, which cepstra have not; set"
                    " front_end.kind to cepstral-bands"
                )
            ends = (self.front_end.low_hz, self.front_end.end_hz)
            if (augment.low_hz, augment.high_hz) != ends:
                raise ConfigError(
                    f"model.encoder.embedding.augment has low_hz {augment.low_hz:g} and high_hz {augment.high_hz:g},"
                    f" but front_end has {ends[0]:g} and {ends[1]:g}; make them equal"
                )
        FrontEnd(self.front_end)  # refuses filters that catch nothing
        refuse_what_cannot_be_built(self.front_end, self.model)
        return self


def source_of(config: AcousticConfig) -> SpeechSourceConfig:
    """Raises: ConfigError when the encoder reads anything else than speech."""
    source = config.encoder.embedding
    if not isinstance(source, SpeechSourceConfig):
        raise ConfigError("model.encoder.embedding reads text; a speech model's has `type: speech`")
    return source


def built(front_end: FrontEndConfig, vocab: int, config: AcousticConfig) -> AcousticModel:
    """The model with its first weights. Raises: ConfigError, ShapeError for what cannot be built."""
    if isinstance(config, CTCModelConfig):
        return CTCModel(front_end.bins, vocab, config)
    return EncoderDecoder(front_end.bins, vocab, config)


def refuse_what_cannot_be_built(front_end: FrontEndConfig, config: AcousticConfig) -> None:
    """Builds the model with one layer (all are alike) and few words, so that each part's own checks speak up.

    Raises: what they raise, headed by the side it comes from.
    """
    if not isinstance(config, CTCModelConfig) and config.tie == "all":
        raise ConfigError("model.tie is all, but speech shares no vocabulary with text; set it to decoder")
    source = source_of(config)
    if source.normalization == "corpus" and source.mean is None:  # the run finds them before it builds the model
        bins = front_end.bins
        source = dataclasses.replace(source, mean=(0.0,) * bins, deviation=(1.0,) * bins)
    encoder: Any = dataclasses.replace(config.encoder, embedding=source)
    with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
        parts: dict[str, AcousticConfig] = {"encoder": CTCModelConfig("ctc", encoder)}
        if not isinstance(config, CTCModelConfig):
            decoder: Any = config.decoder
            if hasattr(decoder, "num_layers") and not isinstance(decoder, AttentionRNNConfig):
                decoder = dataclasses.replace(decoder, num_layers=1)
            parts["decoder"] = dataclasses.replace(config, encoder=encoder, decoder=decoder)
        for name, part in parts.items():
            try:
                built(front_end, 5, part)
            except RegardError as error:
                raise ConfigError(f"model.{name}: {error}") from None
