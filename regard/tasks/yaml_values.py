"""YAML as recipes are read and written: the core schema of YAML 1.2, in which 5e-3 is a number and `no` a language; a
key stands once."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any

import yaml

from regard.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's loader speaks YAML 1.1 and silently takes the last of equal keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as the parent has it)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue
            line = key_node.start_mark.line + 1
            if key in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"key `{key}` stands on line {lines[key]} and again on line {line}",
                    problem_mark=key_node.start_mark,
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that PyYAML's own loader or regard's would take for something else."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the parent has it)
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)


def written_yaml(values: Any) -> str:
    """Plain values as YAML that `parse_yaml`, and any other reader, turns into the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_yaml(text: str, origin: str) -> Any:
    """`text` as plain values. origin: the file to name in errors, or what else holds the text.

    Raises: ConfigError for what is no YAML, with its line; for a key that stands twice; for a value inside itself.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}:{mark.line + 1}" if mark and "\n" in text else origin
        raise ConfigError(f"{place}: not valid YAML ({error.problem or error.context}); mend this line") from None
    except yaml.reader.ReaderError as error:
        place = f"{origin}:{text.count(chr(10), 0, error.position) + 1}" if "\n" in text else origin
        raise ConfigError(f"{place}: not valid YAML ({error.reason}); mend this line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin}: not valid YAML ({' '.join(str(error).split())}); mend it") from None
    try:
        json.dumps(values, default=str, skipkeys=True)
    except (ValueError, RecursionError):
        raise ConfigError(f"{origin}: a value holds itself (an alias inside its anchor); write it out") from None
    return values
