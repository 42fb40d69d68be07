"""What `regard evaluate` scores on: the recipe's test set, or data named on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from regard.data.readers import DataSpec, read
from regard.data.records import Record
from regard.errors import ConfigError, DataError
from regard.tasks.recipe import validated


def evaluation_records(training: Mapping[str, Any], data: str | None, roles: Sequence[str]) -> list[Record]:
    """Every record to score on. A bad one is an error, since a score must not leave records out.

    training: what a model directory says of its making. data: a path, or a mapping as a recipe would hold; the test set
    of the model's recipe unless given.
    Raises: ConfigError when the recipe names no test set; DataError for data that cannot be read.
    """
    if data is not None:
        return list(read(_parsed(data), roles, on_bad="stop"))
    known: dict[str, Any] = training.get("recipe", {}).get("data", {})
    if not known.get("test"):
        raise ConfigError("evaluate: the model's recipe names no test set; give one with --data PATH")
    try:
        return list(read(validated(DataSpec, known["test"], "the model's recipe"), roles, on_bad="stop"))
    except DataError as error:  # a model travels, its test set may not
        raise DataError(f"{error}; or name the test set with --data PATH") from None


def _parsed(text: str) -> DataSpec:
    if not text.lstrip().startswith("{"):
        return DataSpec(text)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--data {text}: not valid YAML; write it as {{path: FILE, columns: {{...}}}}") from None
    return validated(DataSpec, values, "--data")


def refuse_options(options: Mapping[str, Any], task: str) -> None:
    """Raises: ConfigError naming what this task's evaluation has no use for."""
    if options:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        raise ConfigError(f"evaluate: {names} has no effect on the task {task}; leave it out")
