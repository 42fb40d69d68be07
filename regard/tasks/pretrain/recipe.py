"""The schema of a pre-training recipe: the one place where a recipe becomes a masked language model."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from regard.errors import ConfigError, RegardError
from regard.inputs.text import TokenizerConfig
from regard.models.masked_language_model import MaskedLanguageModel, MaskedLanguageModelConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Recipe, check_ranges

ROLE = "target"  # the one field of a record: a text, of which parts are to be filled in


class PretrainData(Data):
    """Which text to learn from: a line of a text file, or the column `target` of a table."""


class Validation(Section):
    """What decides which weights are best."""

    metric: Literal["log_likelihood", "accuracy"] = "log_likelihood"
    max_records: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class PretrainRecipe(Recipe):
    """A complete run: data, tokenizer, model, training."""

    task: Literal["pretrain"]
    data: PretrainData
    tokenizer: TokenizerConfig
    model: MaskedLanguageModelConfig
    validation: Validation = Validation()
    batch_tokens: Annotated[int, Field(ge=1)] = 4096  # padded tokens filled in at once in validation

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        self.data.check_budget()
        check_ranges(self.model)
        encoder = dataclasses.replace(self.model.encoder, num_layers=1)
        with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
            try:
                MaskedLanguageModel(5, dataclasses.replace(self.model, encoder=encoder))
            except RegardError as error:
                raise ConfigError(f"model.encoder: {error}") from None
        return self
