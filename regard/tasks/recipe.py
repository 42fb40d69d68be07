"""Recipes: a YAML file and `key=value` overrides become a checked, frozen configuration.

A mistake is answered with one line that names file, key and remedy, all mistakes at once.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from regard.errors import ConfigError, RegardError, suggestion

Schema = TypeVar("Schema")


class Section(BaseModel):
    """Part of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The recipe as plain values. Raises: ConfigError for a missing file, a syntax error (with its line) or no mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; see the recipes/ folder for complete ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); a recipe is a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML ({getattr(error, 'problem', error)}); mend this line") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, expected keys and values")
    return content


def with_overrides(recipe: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The recipe with each `a.b=value` put in; values are read as YAML ("null", "[1, 2]", "true", "5e-3").

    Raises: ConfigError for an override without "=", or one that goes through a plain value.
    """
    result = _copied(recipe)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"override `{override}`: expected key=value, as in training.max_steps=1000")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"override `{override}`: the value is not valid YAML; put it in quotes") from None
        *parents, last = name.split(".")
        place = result
        for index, parent in enumerate(parents):
            child = place.setdefault(parent, {})
            if child is None:
                child = place[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(
                    f"override `{override}`: `{'.'.join(parents[: index + 1])}` is a value, not a section"
                )
            place = child
        place[last] = value
    return result


def validated(schema: type[Schema], values: Mapping[str, Any], origin: str) -> Schema:
    """`values` as an instance of `schema`. origin: the file to name in errors.

    Raises: ConfigError that lists every mistake.
    """
    try:
        return TypeAdapter(schema).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{origin}: " + "; ".join(dict.fromkeys(_mistakes(error, schema)))) from None
    except RegardError as error:  # a configuration's own check
        raise ConfigError(f"{origin}: {error}") from None


def plain(value: Any) -> Any:
    """A configuration as plain values that YAML and JSON can hold; the inverse of `validated`."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The dotted keys whose values differ between two plain configurations."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [
            found
            for name in names
            for found in differences(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if before == after else [prefix]


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _mistakes(error: ValidationError, schema: Any) -> list[str]:
    """One phrase a mistake. Of a union, only the member that the `type` key names is blamed."""
    errors = error.errors()
    wrong_members = {e["loc"][:-1] for e in errors if e["loc"] and e["loc"][-1] == "type"}
    ambiguous = {place[:-1] for place in wrong_members if place}
    mistakes = []
    for found in errors:
        place = found["loc"]
        if any(place[: len(member)] == member for member in wrong_members):
            continue
        mistakes.append(_phrase(found, place, schema))
    if not mistakes:  # every member was refused for its type
        for parent in sorted(ambiguous, key=str):
            name = ".".join(str(part) for part in parent)
            types_ = [found for found in errors if found["loc"][:-2] == parent and found["loc"][-1] == "type"]
            known = sorted({str(found.get("ctx", {}).get("expected", "")).strip("'") for found in types_} - {""})
            received = next((found["input"] for found in types_ if not isinstance(found["input"], dict)), None)
            mistakes.append(f"key `{name}.type` is {received!r}, expected {' or '.join(known) or 'a known type'}")
    return mistakes or [_phrase(found, found["loc"], schema) for found in errors]


def _phrase(found: Any, place: tuple[Any, ...], schema: Any) -> str:
    # Names of union members stand in pydantic's place, but in no recipe.
    name = ".".join(str(part) for part in place if not (isinstance(part, str) and part[:1].isupper()))
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key `{name}`{suggestion(str(place[-1]), _known_keys(schema, place[:-1])) or ', remove it'}"
    if found["type"] in ("missing", "missing_argument"):
        return f"key `{name}` is missing, add it"
    if found["type"] == "value_error":
        return f"key `{name}`: {found['ctx']['error']}"
    return f"key `{name}` is {found['input']!r}: {found['msg'][:1].lower()}{found['msg'][1:]}"


def _known_keys(schema: Any, place: tuple[Any, ...]) -> list[str]:
    """The keys that a section may hold, found by walking the types along a pydantic location."""
    current: list[Any] = [schema]
    for part in place:
        following: list[Any] = []
        for kind in _members(current):
            if getattr(kind, "__name__", None) == part:
                following.append(kind)
            elif part in (hints := _hints(kind)):
                following.append(hints[part])
        current = following
    return sorted({name for kind in _members(current) for name in _hints(kind)})


def _members(kinds: Iterable[Any]) -> list[Any]:
    """The types themselves, unions and annotations taken apart."""
    flat: list[Any] = []
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            flat += _members(typing.get_args(kind))
        elif origin is typing.Annotated:
            flat += _members(typing.get_args(kind)[:1])
        else:
            flat.append(kind)
    return flat


def _hints(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)):
        hints = typing.get_type_hints(kind)
        return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}
    return {}
