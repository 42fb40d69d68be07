"""The schema of a recipe that classifies pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from regard.data.batches import TokenBudget
from regard.data.picture_records import PictureSpec
from regard.errors import ConfigError, RegardError
from regard.inputs.pictures import PictureSize
from regard.models.classifier import Classifier, ClassifierConfig
from regard.tasks.caption.recipe import CHANNELS, check_source
from regard.tasks.classify.recipe import Validation
from regard.tasks.sections import Budget, Data, Recipe, check_ranges


class PictureClassifyData(Data):
    """Which pictures to learn from; the text of a record is its label."""

    train: PictureSpec  # type: ignore[assignment]
    validation: PictureSpec  # type: ignore[assignment]
    test: PictureSpec | None = None  # type: ignore[assignment]
    picture: PictureSize  # what every picture is brought to
    batch: Budget = TokenBudget(1 << 20, max_sentences=64, length_noise=1.0)  # a picture's size is its height
    decode_workers: Annotated[int, Field(ge=0)] = 0  # processes that decode pictures, while preparing and validating


class PictureClassifyRecipe(Recipe):
    """A complete run: data, model, training."""

    task: Literal["classify-pictures"]
    data: PictureClassifyData
    init_from: Path | None = None  # a model directory whose encoder this one starts from, as far as it fits
    model: ClassifierConfig
    validation: Validation = Validation()
    pictures_at_once: Annotated[int, Field(ge=1)] = 64  # classified together

    @model_validator(mode="after")
    def _fits_together(self) -> PictureClassifyRecipe:
        """What no single part can see, found before any data is read. Raises: ConfigError."""
        check_ranges(self.model)
        check_source(self.model.encoder.embedding)
        if self.model.ngrams is not None:
            raise ConfigError("model.ngrams counts tokens of text, and a picture has none; leave it out")
        size = self.data.picture
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # random numbers that belong to somebody else
            try:
                grey = torch.full((1, size.height, size.width, CHANNELS), 127, dtype=torch.uint8)
                Classifier(CHANNELS, 2, self.model).eval()(grey, torch.tensor([size.height]))
            except RegardError as error:
                raise ConfigError(f"model: {error}") from None
        return self
