"""One reader for every layout of text data: records of named fields, streamed, with the file and line of each.

| format | what it is | file endings |
|---|---|---|
| parallel | one file a role, one record a line | (path is a mapping of role to file) |
| text | one file, one role, one record a line | .txt |
| document | one file, one role, one record: all of it, or a part | (never guessed) |
| tsv | tab-separated, no quoting, no escapes | .tsv .tab |
| csv | comma-separated, quoted with ", line breaks allowed inside quotes | .csv |
| jsonl | one JSON object a line | .jsonl .ndjson |
| parquet | columns; lines are counted from 1, without a header | .parquet |
| hub | a `datasets` name or folder, with a split | (never guessed) |

All but parquet and hub may be compressed (.gz on top), are UTF-8 with or without a byte-order mark, and end their lines
with a line feed, with or without a carriage return before it: U+2028 and U+0085 are part of the text. Every field but
a document loses its outer white space. A record that cannot be used is counted in a BadRecords with its file and line,
or stops the reading; it never disappears silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from regard.data import formats
from regard.data.records import BadRecords, OnBad, Origin, Record
from regard.errors import ConfigError, DataError, suggestion

__all__ = ["BadRecords", "DataSpec", "OnBad", "Origin", "Record", "read"]

FORMATS = ("parallel", "text", "document", "tsv", "csv", "jsonl", "parquet", "hub")
ENDINGS = {
    ".txt": "text",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class DataSpec:
    """Where records are and which column plays which role."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    path: str | dict[str, str]  # one file with every role, or for parallel text a file for each role; or a hub name
    # None: by file ending.
    format: Literal["parallel", "text", "document", "tsv", "csv", "jsonl", "parquet", "hub"] | None = None
    # Role to column: a name, dotted for nested ones ("translation.de"), or a number from 0 in a file without header.
    # None: each column is named as its role; without header, the columns are the roles in order.
    columns: dict[str, str | int] | None = None
    header: bool = True  # tsv and csv: the first line names the columns
    split: str | None = None  # hub only: which part, as "train" or "test[:100]"
    subset: str | None = None  # hub only: the configuration's name, where there are several
    part: tuple[float, float] | None = None  # document only: from which share of its characters to which, 0 to 1

    def __post_init__(self) -> None:
        if self.part is None:
            return
        begin, end = self.part
        if not 0.0 <= begin < end <= 1.0:
            raise ConfigError(f"part is {[begin, end]}, expected two shares in order, as [0.0, 0.9]")
        if self.format != "document":
            raise ConfigError(f"part is {[begin, end]}, but only a document has parts; set format to document")

    def resolved(self, folder: Path) -> DataSpec:
        """The same with relative paths taken from `folder`; hub names stay."""
        if self.format == "hub":
            return self
        if isinstance(self.path, str):
            return replace(self, path=str(folder / self.path))
        return replace(self, path={role: str(folder / path) for role, path in self.path.items()})

    def files(self) -> list[Path]:
        """The files this reads, for hashing; none for a hub name."""
        if self.format == "hub":
            return []
        return [Path(self.path)] if isinstance(self.path, str) else [Path(path) for path in self.path.values()]


def read(
    spec: DataSpec,
    roles: Sequence[str] = ("source", "target"),
    *,
    on_bad: OnBad = "stop",
    report: BadRecords | None = None,
    limit: int | None = None,
) -> Iterator[Record]:
    """Streams the records of `spec`, each with a non-empty text for every role.

    roles: the fields wanted.
    on_bad: "skip" counts a bad record in `report` and goes on; "stop" raises at the first one.
    limit: stop after so many good records.
    Raises: ConfigError for a specification that cannot be read; DataError for a missing or empty file, for parallel
    files of unequal length, both before the first record; and DataError when no record is good.
    """
    if on_bad not in ("skip", "stop"):
        raise ConfigError(f"on_bad is {on_bad!r}, expected skip or stop")
    if not roles:
        raise ConfigError(f"reading {_name(spec)}: received no roles, expected at least one")
    roles = tuple(roles)
    tally = BadRecords() if report is None else report
    reject = partial(tally.add, on_bad=on_bad)
    rows = _rows(spec, roles, reject)  # opens and checks the files now, not at the first record

    whole = spec.format == "document"

    def records() -> Iterator[Record]:
        num_good = 0
        for found, origins in rows:
            for role in roles:
                reason = _unusable(found[role])
                if reason is not None:
                    reject(f"{reason} {role}", origins[role])
                    break
            else:
                num_good += 1
                fields = {role: found[role] if whole else found[role].strip() for role in roles}
                yield Record(fields, origins[roles[0]])
                if num_good == limit:
                    return
        if not num_good:
            raise DataError(
                f"{_name(spec)}: no usable record ({tally.summary()}), expected at least one; check path and columns"
            )

    return records()


def _unusable(text: Any) -> str | None:
    """Why `text` cannot be a field; None when it can."""
    if text is None:
        return "missing"
    if not isinstance(text, str):
        return f"{type(text).__name__} instead of text in"
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # surrogateescape's mark for a byte that is no UTF-8, or a lone \ud800 in JSON
            return "undecodable"
    return None if text.strip() else "empty"


def _rows(spec: DataSpec, roles: tuple[str, ...], reject: formats.Reject) -> Iterator[formats.Row]:
    form = _format(spec)
    if isinstance(spec.path, dict):
        if form != "parallel":
            raise ConfigError(
                f"format {form} reads one path, received a mapping of {', '.join(spec.path)}; give one, or leave format"
                " out for parallel files"
            )
        missing = [role for role in roles if role not in spec.path]
        if missing:
            raise ConfigError(
                f"data path names files for {', '.join(spec.path) or 'nothing'}, expected also {', '.join(missing)};"
                " add a file for each role"
            )
        return formats.parallel({role: Path(spec.path[role]) for role in roles})
    path, columns = spec.path, _columns(spec, roles)
    if form == "hub":
        if spec.split is None:
            raise ConfigError(f"{path}: format hub needs the part to read, as split: train")
        return formats.hub(path, spec.subset, spec.split, columns)
    if form == "parallel":
        raise ConfigError(
            f"{path}: format parallel wants path to be a mapping of role to file,"
            " as {source: train.en, target: train.de}"
        )
    if form in ("text", "document"):
        if len(roles) != 1:
            raise ConfigError(
                f"{path}: a {form} file holds one role, wanted are {', '.join(roles)}; make path a mapping of role to"
                " file, or set format"
            )
        if form == "document":
            return formats.document(Path(path), roles[0], spec.part)
        return formats.parallel({roles[0]: Path(path)})
    if form in ("tsv", "csv"):
        cells = formats.tsv_cells(Path(path)) if form == "tsv" else formats.csv_cells(Path(path), reject)
        if spec.header:
            return formats.table_with_header(Path(path), cells, columns, reject)
        return formats.table_without_header(
            Path(path),
            cells,
            columns if spec.columns else dict(zip(roles, range(len(roles)), strict=True)),
            reject,
            num_columns=None if spec.columns else len(roles),
        )
    if form == "jsonl":
        return formats.json_lines(Path(path), columns, reject)
    return formats.parquet(Path(path), columns)


def _columns(spec: DataSpec, roles: tuple[str, ...]) -> dict[str, str | int]:
    columns = spec.columns
    if columns is None:
        return {role: role for role in roles}
    missing = [role for role in roles if role not in columns]
    if missing:
        raise ConfigError(
            f"{_name(spec)}: columns names {', '.join(columns) or 'nothing'}, expected also {', '.join(missing)};"
            " add a column for each role"
        )
    return {role: columns[role] for role in roles}


def _format(spec: DataSpec) -> str:
    if spec.format is not None:
        if spec.format not in FORMATS:
            raise ConfigError(
                f"data format {spec.format!r} is unknown{suggestion(spec.format, FORMATS)}; known are"
                f" {', '.join(FORMATS)}"
            )
        return spec.format
    if not isinstance(spec.path, str):
        return "parallel"
    name = spec.path.lower().removesuffix(".gz")
    form = ENDINGS.get(os.path.splitext(name)[1])
    if form is None:
        raise DataError(
            f"{spec.path}: cannot tell the format from the file ending; set format to one of {', '.join(FORMATS)}"
        )
    return form


def _name(spec: DataSpec) -> str:
    return spec.path if isinstance(spec.path, str) else ", ".join(spec.path.values())
