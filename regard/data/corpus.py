"""The prepared corpus: arrays on disk, read through memory maps, so that a corpus larger than memory trains.

A folder holds for each role ``ROLE.tokens`` (the arrays of all records one after the other: ids of text, frames of
speech, rows of pictures), ``ROLE.offsets`` (where each array begins, and at last where they end, in positions), and
``corpus.json`` (counts, number formats, hashes, what made it, and which records were bad). Only the offsets are ever
held in memory: 8 bytes a record and role. The folder appears at once when all is written; an interrupted preparation
leaves nothing that could be taken for a corpus.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from regard.data.columns import Column, Refused
from regard.data.readers import BadRecords, OnBad, Record
from regard.errors import ConfigError, DataError

FORMAT_VERSION = 1
_DESCRIPTION = "corpus.json"


class Corpus:
    """A prepared corpus, opened by `Corpus.open` and made by `prepare`."""

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        self.folder = folder
        self.description = dict(description)  # the content of corpus.json
        self.roles: tuple[str, ...] = tuple(description["roles"])
        self._offsets = {role: self._mapped(role, "offsets", "int64") for role in self.roles}
        self._tokens = {role: self._mapped(role, "tokens", description["roles"][role]["dtype"]) for role in self.roles}
        self._lengths: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Corpus:
        """Maps the corpus in `folder`. Raises: DataError when it is missing, damaged or of a newer format."""
        folder = Path(folder)
        try:
            description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{folder}: no prepared corpus ({_DESCRIPTION} is missing); prepare it again") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / _DESCRIPTION}: unreadable ({error}); prepare the corpus again") from error
        version = description.get("format_version") if isinstance(description, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(
                f"{folder}: corpus format {version!r}, this regard reads {FORMAT_VERSION}; prepare the corpus again"
            )
        try:
            return cls(folder, description)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / _DESCRIPTION}: damaged ({type(error).__name__} {error}); prepare the corpus again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files by itself; pickled otherwise, all of their content would travel."""
        return Corpus.open, (self.folder,)

    def __len__(self) -> int:
        """Number of records."""
        return int(self.description["num_records"])

    @property
    def fingerprint(self) -> str:
        """What the caller of `prepare` said the content depends on (data, tokenizers, limits), as it said it."""
        return str(self.description["fingerprint"])

    @cached_property
    def sha256(self) -> str:
        """One hash of the content: all ids of all roles and where sentences begin."""
        parts = [
            f"{role} {entry['tokens_sha256']} {entry['offsets_sha256']}"
            for role, entry in sorted(self.description["roles"].items())
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def lengths(self, role: str) -> np.ndarray:
        """int32 [records]: number of positions of each record; of text its ids, the end token included."""
        if role not in self._lengths:
            self._lengths[role] = np.diff(self._of(role, self._offsets)).astype(np.int32)
            self._lengths[role].flags.writeable = False
        return self._lengths[role]

    def num_tokens(self, role: str) -> int:
        """Number of positions of the whole role; of text its ids, end tokens included."""
        return int(self._of(role, self._offsets)[-1])

    def __getitem__(self, place: tuple[str, int]) -> np.ndarray:
        """corpus[role, index]: one record's array, [length, ...]; ids are int64."""
        role, index = place
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a corpus of {len(self)}")
        offsets = self._of(role, self._offsets)
        index = index % len(self)
        return self._widened(self._tokens[role][offsets[index] : offsets[index + 1]])

    def stretch(self, role: str, index: int, begin: int, end: int) -> np.ndarray:
        """int64 [end - begin]: some of the ids of one record, the end token counted among them."""
        offsets = self._of(role, self._offsets)
        first, past = int(offsets[index]), int(offsets[index + 1])
        return self._tokens[role][min(first + begin, past) : min(first + end, past)].astype(np.int64)

    def padded(self, role: str, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[batch, longest, ...], padded with zeros, and int64 [batch] of lengths; ids are int64."""
        indices = np.asarray(indices, dtype=np.int64)
        offsets = self._of(role, self._offsets)
        starts = offsets[indices]
        lengths = offsets[indices + 1] - starts
        columns = np.arange(lengths.max(initial=0))
        real = columns < lengths[:, None]
        tokens = self._tokens[role]
        values = np.zeros((*real.shape, *tokens.shape[1:]), dtype=tokens.dtype)
        values[real] = tokens[(starts[:, None] + columns)[real]]
        return self._widened(values), lengths

    @staticmethod
    def _widened(values: np.ndarray) -> np.ndarray:
        """An array of the caller's own; unsigned numbers that stand alone are ids."""
        is_ids = values.dtype.kind == "u" and values.dtype.itemsize > 1
        return values.astype(np.int64) if is_ids else np.array(values)

    def verify(self) -> None:
        """Reads everything and compares hashes. Raises: DataError naming the file whose content changed."""
        for role, entry in self.description["roles"].items():
            for kind in ("tokens", "offsets"):
                path = self.folder / f"{role}.{kind}"
                if sha256_of_file(path) != entry[f"{kind}_sha256"]:
                    raise DataError(f"{path}: the content is not what was written; prepare the corpus again")

    def _of(self, role: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
        if role not in arrays:
            raise DataError(f"{self.folder}: no role {role!r}, the corpus has {', '.join(self.roles)}; prepare it anew")
        return arrays[role]

    def _mapped(self, role: str, kind: str, dtype: str) -> np.ndarray:
        entry = self.description["roles"][role]
        count = entry["num_tokens"] if kind == "tokens" else self.description["num_records"] + 1
        shape = (count, *(entry.get("position_shape", ()) if kind == "tokens" else ()))
        path = self.folder / f"{role}.{kind}"
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path}: missing ({error.strerror}); prepare the corpus again") from error
        if size != expected:
            raise DataError(f"{path}: {size} bytes, expected {expected}; prepare the corpus again")
        mapped = np.memmap(path, dtype=dtype, mode="r", shape=shape)
        if kind == "offsets" and (mapped[0] != 0 or mapped[-1] != entry["num_tokens"]):
            raise DataError(f"{path}: begins at {mapped[0]} and ends at {mapped[-1]}; prepare the corpus again")
        return mapped


def prepare(
    records: Iterable[Record],
    columns: Mapping[str, Column],
    folder: str | os.PathLike[str],
    *,
    max_tokens: Mapping[str, int] | int | None = None,
    on_bad: OnBad = "stop",
    report: BadRecords | None = None,
    fingerprint: str = "",
) -> Corpus:
    """Turns `records` into arrays in `folder` and opens the corpus; one pass, in memory that does not grow with it.

    columns: role to what makes its arrays; one and the same may serve several roles.
    max_tokens: the most positions a record may have in each role, a text's end token included; a longer one is bad,
        with the reason "too long". None: no limit.
    on_bad, report: as for `readers.read`; give both the same report, and the corpus keeps all of it.
    fingerprint: kept for the caller, who compares it to know whether the corpus is still the one wanted.
    An earlier corpus in `folder` is replaced when the new one is complete.
    Raises: DataError when no record is usable, or when `folder` holds something else than a corpus.
    """
    folder = Path(folder)
    report = BadRecords() if report is None else report
    if not columns:
        raise ConfigError("preparing a corpus: received no columns, expected one for each role")
    limits = dict.fromkeys(columns, max_tokens) if max_tokens is None or isinstance(max_tokens, int) else max_tokens
    if folder.exists() and not (folder / _DESCRIPTION).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds other files, expected a prepared corpus or nothing; give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    unfinished = folder.with_name(f"{_unfinished_prefix(folder)}{os.getpid()}")
    unfinished.mkdir()
    try:
        with ExitStack() as stack:
            writers = {role: stack.enter_context(_RoleWriter(unfinished, role, columns[role])) for role in columns}
            for chunk in _chunks(records, min(column.records_at_once for column in columns.values())):
                _write_chunk(chunk, columns, writers, limits, on_bad, report)
            entries = {role: writer.finish() | columns[role].about() for role, writer in writers.items()}
        num_records = next(iter(writers.values())).num_records
        if not num_records:
            raise DataError(f"{folder}: no usable record for the corpus ({report.summary()}); check data and limits")
        description = {
            "format_version": FORMAT_VERSION,
            "num_records": num_records,
            "fingerprint": fingerprint,
            "roles": entries,
            "bad_records": report.to_record(),
        }
        with (unfinished / _DESCRIPTION).open("w", encoding="utf-8") as file:
            json.dump(description, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return Corpus.open(folder)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises: DataError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def sha256_of_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """One hash for several files in their order: that of their hashes, so that moving a line between two shows."""
    return hashlib.sha256("".join(sha256_of_file(path) for path in paths).encode()).hexdigest()


def _unfinished_prefix(folder: Path) -> str:
    """Name before the process id; machines that share the disk have names of their own."""
    return f".{folder.name}.unfinished-{socket.gethostname()}-"


def _remove_abandoned(folder: Path) -> None:
    """Clears away what a killed preparation of `folder` on this machine left behind.

    A folder with our own number is one of them: a container that starts anew gives its processes the same numbers.
    """
    prefix = _unfinished_prefix(folder)
    for left in folder.parent.glob(f"{glob.escape(prefix)}*"):
        number = left.name.removeprefix(prefix)
        if number == str(os.getpid()) or not _is_alive(number):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


class _RoleWriter:
    """Appends arrays of one role to its two files, hashing on the way."""

    def __init__(self, folder: Path, role: str, column: Column) -> None:
        self._paths = {kind: folder / f"{role}.{kind}" for kind in ("tokens", "offsets")}
        self._hashes = {kind: hashlib.sha256() for kind in self._paths}
        self._files: dict[str, BinaryIO] = {}
        self._dtype, self._position_shape = column.dtype, column.position_shape
        self._num_tokens = 0
        self.num_records = 0

    def __enter__(self) -> Self:
        self._files = {kind: path.open("wb") for kind, path in self._paths.items()}
        self._put("offsets", np.zeros(1, dtype="<i8"))
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, arrays: Sequence[np.ndarray]) -> None:
        if not arrays:
            return
        assert all(array.shape[1:] == self._position_shape for array in arrays), "a column keeps one shape of position"
        lengths = np.fromiter((len(array) for array in arrays), dtype="<i8", count=len(arrays))
        ends = self._num_tokens + np.cumsum(lengths)
        self._put("tokens", np.concatenate(arrays).astype(self._dtype, copy=False))
        self._put("offsets", ends.astype("<i8"))
        self._num_tokens = int(ends[-1])
        self.num_records += len(arrays)

    def finish(self) -> dict[str, Any]:
        """Brings the files to the disk; what corpus.json says of them."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        hashes = {f"{kind}_sha256": digest.hexdigest() for kind, digest in self._hashes.items()}
        shape = {"position_shape": list(self._position_shape)} if self._position_shape else {}
        return {"dtype": self._dtype.name, "num_tokens": self._num_tokens, **shape, **hashes}

    def _put(self, kind: str, values: np.ndarray) -> None:
        data = values.tobytes()
        self._files[kind].write(data)
        self._hashes[kind].update(data)


def _write_chunk(
    chunk: Sequence[Record],
    columns: Mapping[str, Column],
    writers: Mapping[str, _RoleWriter],
    limits: Mapping[str, int | None],
    on_bad: OnBad,
    report: BadRecords,
) -> None:
    made = {role: column.arrays([record.fields[role] for record in chunk]) for role, column in columns.items()}
    good: dict[str, list[np.ndarray]] = {role: [] for role in columns}
    for record, *arrays in zip(chunk, *made.values(), strict=True):
        reason = next(
            filter(None, (_unusable(role, one, limits) for role, one in zip(made, arrays, strict=True))), None
        )
        if reason is not None:
            report.add(reason, record.origin, on_bad=on_bad)
            continue
        for role, array in zip(made, arrays, strict=True):
            good[role].append(array)
    for role, usable in good.items():
        writers[role].write(usable)


def _unusable(role: str, array: np.ndarray | Refused, limits: Mapping[str, int | None]) -> str | None:
    """Why a record cannot be used for what it is in `role`; None when it can."""
    if isinstance(array, Refused):
        return f"{array} {role}"
    limit = limits.get(role)
    return None if limit is None or len(array) <= limit else f"too long {role}, over {limit} tokens"


def _chunks(records: Iterable[Record], size: int) -> Iterator[tuple[Record, ...]]:
    iterator = iter(records)
    while chunk := tuple(itertools.islice(iterator, size)):
        yield chunk
