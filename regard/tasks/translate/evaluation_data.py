"""What `regard evaluate` scores on: the recipe's test set, or data named on the command line."""

from __future__ import annotations

from typing import Any

import yaml

from regard.data.readers import DataSpec, read
from regard.errors import ConfigError, DataError
from regard.tasks.recipe import validated
from regard.tasks.translate.recipe import ROLES
from regard.tasks.translate.translator import Translator


def evaluation_pairs(translator: Translator, spec: str | None) -> list[tuple[str, str]]:
    """(source, reference) pairs. spec: see `parsed_spec`; the test set of the model's recipe unless given.

    Raises: ConfigError when the recipe names no test set; DataError for data that cannot be read.
    """
    if spec is not None:
        return pairs(parsed_spec(spec))
    known: dict[str, Any] = translator.config.training.get("recipe", {}).get("data", {})
    if not known.get("test"):
        raise ConfigError("evaluate: the model's recipe names no test set; give one with --data SOURCE,TARGET")
    try:
        return pairs(validated(DataSpec, known["test"], "the model's recipe"))
    except DataError as error:  # a model travels, its test set may not
        raise DataError(f"{error}; or name the test set with --data SOURCE,TARGET") from None


def pairs(spec: DataSpec) -> list[tuple[str, str]]:
    """Every (source, reference) of a test set; a bad record is an error, since a score must not leave sentences out."""
    return [(one.fields["source"], one.fields["target"]) for one in read(spec, ROLES, on_bad="stop")]


def parsed_spec(text: str) -> DataSpec:
    """A data specification out of one word of a command line.

    "test.tsv": one file with both sides. "test.en,test.de": parallel text, source first. "{path: x.csv, columns:
    {source: en, target: de}}": the mapping that a recipe would hold.
    """
    if text.lstrip().startswith("{"):
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--data {text}: not valid YAML; write it as {{path: FILE, columns: {{...}}}}") from None
        return validated(DataSpec, values, "--data")
    parts = text.split(",")
    if len(parts) == 2:
        return DataSpec({"source": parts[0], "target": parts[1]})
    if len(parts) > 2:
        raise ConfigError(f"--data {text}: expected one file, or SOURCE,TARGET; use a YAML mapping for anything else")
    return DataSpec(text)
