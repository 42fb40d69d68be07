"""The schema of a classification recipe: the one place where a recipe becomes a classifier."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator

from regard.errors import ConfigError, RegardError
from regard.inputs.text import TokenizerConfig
from regard.models.classifier import Classifier, ClassifierConfig
from regard.tasks.recipe import Section
from regard.tasks.sections import Data, Recipe, check_ranges

SOURCE, SECOND, LABEL = "source", "second", "target"


class ClassifyData(Data):
    """Which inputs to learn from. A record has a `source`, its label as `target`, and of pairs a `second` source."""

    pairs: bool = False  # whether two texts are classified together
    # All labels, in the order in which they are numbered and shown; those of the training data, sorted, unless given.
    labels: Annotated[tuple[str, ...], Field(min_length=2)] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """The fields of a record."""
        return (SOURCE, SECOND, LABEL) if self.pairs else (SOURCE, LABEL)


class Validation(Section):
    """What decides which weights are best."""

    metric: Literal["accuracy", "macro_f1", "log_likelihood"] = "accuracy"
    max_records: Annotated[int, Field(ge=1)] | None = None  # only the first so many; null: all


class ClassifyRecipe(Recipe):
    """A complete run: data, tokenizer, model, training."""

    task: Literal["classify"]
    data: ClassifyData
    # How text is cut; left out where `init_from` brings its own.
    tokenizer: TokenizerConfig | None = None
    # The model directory of a pre-trained encoder (task pretrain), whose weights and tokenizer this one begins with.
    init_from: Path | None = None
    model: ClassifierConfig
    # In training each token is replaced by the unknown one with this probability (Iyyer et al. 2015, word dropout).
    word_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    validation: Validation = Validation()
    batch_tokens: Annotated[int, Field(ge=1)] = 4096  # padded tokens classified at once

    @model_validator(mode="after")
    def _fits_together(self) -> ClassifyRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        if (self.tokenizer is None) == (self.init_from is None):
            raise ConfigError(
                "tokenizer and init_from: expected one of the two, as a pre-trained encoder brings its own tokenizer"
            )
        if self.data.labels is not None and len(set(self.data.labels)) < len(self.data.labels):
            raise ConfigError(f"data.labels names one label twice: {', '.join(self.data.labels)}; remove it")
        self.data.check_budget()
        check_ranges(self.model)
        encoder: Any = self.model.encoder
        if hasattr(encoder, "num_layers"):
            encoder = dataclasses.replace(encoder, num_layers=1)
        with torch.random.fork_rng(devices=[]):  # initialisation draws random numbers that belong to somebody else
            try:
                Classifier(5, 2, dataclasses.replace(self.model, encoder=encoder))
            except RegardError as error:
                raise ConfigError(f"model: {error}") from None
        return self
