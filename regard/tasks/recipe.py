"""Recipes: a YAML file and `key=value` overrides become a checked, frozen configuration.

A mistake is answered with one line that names file, key and remedy, all mistakes at once.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from regard.errors import ConfigError, RegardError, suggestion
from regard.tasks.yaml_values import parse_yaml

Schema = TypeVar("Schema")

# What pydantic's complaints expect, in the words of somebody who writes YAML.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "dataclass_type": "keys and values",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
}
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
MISSING_KEY = ("missing", "missing_argument")
SHOWN_CHARACTERS = 60  # of a received value


class Section(BaseModel):
    """Part of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The recipe as plain values. Raises: ConfigError for a missing file, a syntax error (with its line) or no
    mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe; see the recipes/ folder for complete ones") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        received = "nothing" if content is None else _shown(content)
        raise ConfigError(f"{path}: holds {received}, expected keys and values; see the recipes/ folder")
    return content


def with_overrides(recipe: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The recipe with each `a.b=value` put in; values are read as YAML ("null", "[1, 2]", "true", "5e-3").

    Raises: ConfigError for an override without "=", or one that goes through a plain value.
    """
    result: dict[str, Any] = _copied(recipe)
    for override in overrides:
        name, equals, text = override.partition("=")
        *parents, last = name.split(".")
        if not equals or not all([*parents, last]):
            raise ConfigError(f"override `{override}`: expected key=value, as in training.max_steps=1000")
        value = parse_yaml(text, f"override `{override}`")
        place = result
        for index, parent in enumerate(parents):
            child = place.setdefault(parent, {})
            if child is None:
                child = place[parent] = {}
            if not isinstance(child, dict):
                section = ".".join(parents[: index + 1])
                raise ConfigError(
                    f"override `{override}`: `{section}` is {_shown(child)}, no section; override it whole"
                )
            place = child
        place[last] = value
    return result


def validated(schema: type[Schema], values: Mapping[str, Any], origin: str) -> Schema:
    """`values` as an instance of `schema`. origin: the file to name in errors.

    Types are taken at their word: "4" is no number, 4.0 no whole number, true no 1; a whole number is a number.

    Raises: ConfigError that lists every mistake.
    """
    received = plain(values)
    try:
        # Only from JSON does pydantic's strict reading build dataclasses from mappings and tuples from lists.
        return TypeAdapter(schema).validate_json(json.dumps(received, default=str), strict=True)
    except ValidationError as error:
        mistakes = _mistakes(typing.cast("list[Any]", error.errors(include_url=False)), schema, received)
        raise ConfigError(f"{origin}: " + "; ".join(mistakes)) from None
    except RegardError as error:  # a configuration's own check
        raise ConfigError(f"{origin}: {'; '.join(str(error).splitlines())}") from None


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
    """The dotted keys whose values differ between two plain configurations; a key without value equals an absent
    one."""
    if not prefix:  # at the top nothing but keys and values is a configuration
        before, after = ({} if value is None else value for value in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [
            found
            for name in names
            for found in differences(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if before == after else [prefix or "(all of it)"]


def _copied(value: Any) -> Any:
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, Mapping) else value


# -- what is wrong, in words -------------------------------------------------------------------------------------------


def _mistakes(errors: Sequence[Any], schema: Any, received: Any) -> list[str]:
    """One phrase a mistake. Of a union of configurations, only the member that the `type` key names is blamed."""
    places = [tuple(found["loc"]) for found in errors]
    # Members of a union that another `type` rules out.
    ruled_out = {
        place[:-1]
        for place in places
        if len(place) > 1 and place[-1] == "type" and len(_keys(place[:-1], received)) < len(place) - 1
    }
    unions = {member[:-1] for member in ruled_out}
    # Unions of which no member has the `type` that was received.
    lost = {
        union
        for union in unions
        if all(place[: len(union) + 1] in ruled_out for place in places if place[: len(union)] == union)
    }
    deeper = {tuple(keys[:end]) for keys in (_keys(place, received) for place in places) for end in range(len(keys))}
    complaints: dict[str, str] = {}  # phrase up to what is expected -> what is expected
    for found, place in zip(errors, places, strict=True):
        inside = [member for member in ruled_out if place[: len(member)] == member]
        if any(member[:-1] not in lost or place != (*member, "type") for member in inside):
            continue
        keys = _keys(place, received)
        if len(keys) < len(place) and found["type"] in EXPECTED and tuple(keys) in deeper:
            continue  # a member of a union that wants another kind of value; one that wants this kind complains inside
        begin, expected = _phrase(found, place, schema, received)
        known = complaints.get(begin)
        complaints[begin] = expected if known in (None, expected) else f"{known} or {expected}"
    return [f"{begin}{expected}" for begin, expected in complaints.items()]


def _phrase(found: Any, place: tuple[Any, ...], schema: Any, received: Any) -> tuple[str, str]:
    """The phrase of one complaint, in two parts: members of a union differ in the second alone."""
    missing = found["type"] in MISSING_KEY
    keys = _keys(place[:-1] if missing else place, received) + ([place[-1]] if missing else [])
    name = ".".join(str(key) for key in keys)
    if found["type"] in UNKNOWN_KEY:
        known = _known_keys(schema, place[:-1])
        return f"unknown key `{name}`{suggestion(str(place[-1]), known) or ', known here: ' + ', '.join(known)}", ""
    if missing:
        return f"key `{name}` is missing, add it", ""
    if found["type"] == "value_error":
        return f"key `{name}`: {found['ctx']['error']}" if name else str(found["ctx"]["error"]), ""
    if found["type"] == "literal_error":
        expected = str(found["ctx"]["expected"]).replace("'", "")
    else:
        expected = EXPECTED.get(found["type"]) or found["msg"].removeprefix("Input should be ")
    subject = f"key `{name}` is" if name else "received"
    return f"{subject} {_shown(found['input'])}: expected ", expected


def _keys(place: tuple[Any, ...], received: Any) -> list[Any]:
    """The keys of a pydantic place: it also names the members of unions, which stand in no recipe."""
    keys = []
    for part in place:
        mapped = isinstance(received, Mapping) and part in received
        listed = isinstance(received, list) and isinstance(part, int) and part < len(received)
        if not (mapped or listed):
            continue
        received = received[part]
        keys.append(part)
    return keys


def _shown(value: Any) -> str:
    """A received value as it could stand in the recipe."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _known_keys(schema: Any, place: tuple[Any, ...]) -> list[str]:
    """The keys that a section may hold, found by walking the types along a pydantic place."""
    current: list[Any] = [schema]
    for part in place:
        following: list[Any] = []
        for kind in _members(current):
            if getattr(kind, "__name__", None) == part and not typing.get_origin(kind):
                following.append(kind)
            elif typing.get_origin(kind) in (dict, list, tuple):
                following.append(typing.get_args(kind)[-1 if typing.get_origin(kind) is dict else 0])
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
    """The fields of a configuration and their types; none for anything else."""
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)):
        fields = (
            kind.model_fields if issubclass(kind, BaseModel) else {field.name for field in dataclasses.fields(kind)}
        )
        return {name: hint for name, hint in typing.get_type_hints(kind).items() if name in fields}
    return {}
