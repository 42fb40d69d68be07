"""The schema of a summarization recipe: the one place where a recipe becomes a summarization model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from regard.decoding.options import DecodingOptions
from regard.errors import ConfigError, RegardError
from regard.inputs.tokenizers import AnyTokenizerConfig
from regard.inputs.words import WordTokenizerConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Decoding, Recipe, check_ranges

ROLES = ("source", "target")  # a document and its summary


class SummarizeData(Data):
    """Which documents and summaries to learn from."""

    # A document is read as far as this many tokens, in training and afterwards; what follows is left out.
    max_tokens: Annotated[int, Field(ge=2)] = 400
    max_summary_tokens: Annotated[int, Field(ge=1)] = 64  # a longer summary makes a bad record


class Validation(Section):
    """What decides which weights are best."""

    # Means over the documents, 0 to 100: "rouge1", "rouge2" and "rougel" as F, "rouge" the mean of the three, "exact"
    # the share of summaries that are the reference.
    metric: Literal["rouge", "rouge1", "rouge2", "rougel", "exact"] = "rouge"
    decoding: Decoding = DecodingOptions(max_length=64)
    max_documents: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class SummarizeRecipe(Recipe):
    """A complete run: data, tokenizer, model, training, decoding."""

    task: Literal["summarize"]
    data: SummarizeData
    # One vocabulary for documents and summaries. Words, of which unknown ones are copied whole, want a model that
    # copies; subwords serve any.
    tokenizer: AnyTokenizerConfig
    model: EncoderDecoderConfig
    # The price of pointing again at what was pointed at before, beside the likelihood (See et al. 2017, eq. 13, where
    # it is 1). For models that copy.
    coverage_loss: Annotated[float, Field(ge=0.0)] = 0.0
    validation: Validation = Validation()
    decoding: Decoding = DecodingOptions(beam_size=4, max_length=64, no_repeat_ngram=3)  # of the finished model
    decoding_batch_tokens: Annotated[int, Field(ge=1)] = 16384  # padded source tokens decoded at once

    @model_validator(mode="after")
    def _fits_together(self) -> SummarizeRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        self.data.check_budget()
        check_ranges(self.model)
        if self.model.copy is None and isinstance(self.tokenizer, WordTokenizerConfig):
            raise ConfigError(
                "tokenizer.kind is words, whose unknown words can only be copied, and the model does not copy; set"
                " model.copy, or tokenizer.kind to bpe"
            )
        if self.model.copy is None and self.coverage_loss:
            raise ConfigError(
                f"coverage_loss is {self.coverage_loss}, but the model points at nothing; set model.copy, or drop it"
            )
        for name, part in (("encoder", self.model.encoder), ("decoder", self.model.decoder)):
            embedding: Any = part.embedding
            longest = self.data.max_tokens if name == "encoder" else self.data.max_summary_tokens
            if getattr(embedding, "positions", None) == "learned" and embedding.max_positions < longest:
                raise ConfigError(
                    f"model.{name}.embedding.max_positions is {embedding.max_positions}, but {longest} tokens are to be"
                    " read; raise it"
                )
        _refuse_what_cannot_be_built(self.model)
        return self


def _refuse_what_cannot_be_built(config: EncoderDecoderConfig) -> None:
    """Builds the model with one layer a side (all are alike) and few words, so that each part's own checks speak up.

    Raises: ConfigError, with what they say.
    """
    sides: dict[str, Any] = {"encoder": config.encoder, "decoder": config.decoder}
    for name, side in sides.items():
        if hasattr(side, "num_layers"):
            sides[name] = dataclasses.replace(side, num_layers=1)
    num_words = 5
    with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
        try:
            EncoderDecoder(num_words, num_words, dataclasses.replace(config, **sides))
        except RegardError as error:
            reason = str(error)
            raise ConfigError(reason if reason.startswith("model") else f"model: {reason}") from None
