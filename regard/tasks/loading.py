"""A model out of its directory, whatever the task: its tokenizer, its configuration, its weights, each checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from regard.errors import ConfigError, ModelFileError, ShapeError
from regard.inputs.text import Tokenizer
from regard.tasks import model_directory
from regard.tasks.model_directory import ModelDirectory
from regard.tasks.recipe import validated
from regard.tasks.sections import check_ranges
from regard.training.averaging import load_weights

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)


def tokenizer_of(directory: ModelDirectory, role: str) -> Tokenizer:
    """The tokenizer of a role. Raises: ModelFileError when it is missing or damaged."""
    try:
        name = directory.config["tokenizers"][role]
        content = directory.texts[name]
    except (KeyError, TypeError):
        raise ModelFileError(
            f"{directory.path}: the tokenizer of the {role} is missing; copy the model directory again"
        ) from None
    return Tokenizer.from_json(content, name=str(directory.path / name))


def config_of(directory: ModelDirectory, schema: type[Config]) -> Config:
    """What the directory says of its model, as `schema`, a dataclass with a field `model`.

    Raises: ModelFileError when it is no such thing: a program wrote it, so it is the file that is wrong.
    """
    path = directory.path / model_directory.CONFIG
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    about = {name: directory.config[name] for name in names if name in directory.config}
    try:
        config = validated(schema, about, str(path))
        check_ranges(config.model)  # type: ignore[attr-defined]
    except (ConfigError, ShapeError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ModelFileError(f"{path}: damaged ({reason}); copy the model directory again") from None
    return config


def fitted(directory: ModelDirectory, build: Callable[[], Model]) -> Model:
    """The model that `build` makes, with the directory's weights. Raises: ModelFileError when they do not fit."""
    path = directory.path / model_directory.CONFIG
    try:
        model = build()
    except (ConfigError, ShapeError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); copy the model directory again") from None
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in directory.weights.items()}
    if wanted != found:
        wrong = sorted({name for name in wanted | found if wanted.get(name) != found.get(name)})
        raise ModelFileError(
            f"{directory.path}: {len(wrong)} weights do not fit the configuration, e.g. {wrong[0]} "
            f"({_shape(found.get(wrong[0]))}, expected {_shape(wanted.get(wrong[0]))}); copy the directory again"
        )
    load_weights(model, directory.weights)
    return model


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
