"""The schema of a language model's recipe: the one place where a recipe becomes a language model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from regard.data.windows import WindowBudget
from regard.decoding.options import DecodingOptions
from regard.decoding.scorers import no_source
from regard.errors import ConfigError, RegardError
from regard.inputs.text import TokenizerConfig
from regard.models.language_model import LanguageModel, LanguageModelConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Decoding, Recipe, check_ranges

ROLE = "text"  # the one field of a record: a document


class GenerateData(Data):
    """Which text to learn from. A record is a document: a line of a text file, or all of a file or a part of it
    (`format: document`), or a field of a table."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None  # type: ignore[assignment]  # longer documents are bad
    # Documents are packed into windows, end to end, and do not attend across their borders. Windows of the validation
    # and the test data are as long.
    batch: WindowBudget  # type: ignore[assignment]


class Validation(Section):
    """What decides which weights are best."""

    metric: Literal["log_likelihood"] = "log_likelihood"  # nats a token
    max_documents: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class GenerateRecipe(Recipe):
    """A complete run: data, tokenizer, model, training, decoding."""

    task: Literal["generate"]
    data: GenerateData
    tokenizer: TokenizerConfig
    model: LanguageModelConfig
    validation: Validation = Validation()
    # Of the finished model. The likeliest text of a language model repeats itself: by default it draws.
    decoding: Decoding = DecodingOptions(sample=True, temperature=0.8)

    @model_validator(mode="after")
    def _fits_together(self) -> GenerateRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        check_ranges(self.model)
        check_decoding(self.decoding)
        embedding, window = self.model.embedding, self.data.batch.window_tokens
        if window < 2:
            raise ConfigError(f"data.batch.window_tokens is {window}, expected 2 or more; raise it")
        if embedding.positions == "learned" and embedding.max_positions < window:
            raise ConfigError(
                f"model.embedding.max_positions is {embedding.max_positions}, but data.batch.window_tokens is {window};"
                " raise the one or lower the other"
            )
        with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
            try:
                LanguageModel(5, dataclasses.replace(self.model, num_layers=min(self.model.num_layers, 1)))
            except RegardError as error:
                raise ConfigError(str(error).replace("attention:", "model.attention:", 1)) from None
        return self


def check_decoding(options: DecodingOptions) -> None:
    """Raises: ConfigError for what is of no use to a language model."""
    if options.coverage_penalty:
        raise ConfigError(no_source(options))
