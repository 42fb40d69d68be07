"""One function a data format: rows of raw fields, streamed, each with its place.

A row's fields are what was found (text, None where a column is missing, or another type); `readers.read` decides which
are usable. A line that is no row at all (wrong number of columns, invalid JSON) goes to `reject` here. Every function
checks what can be checked (files, header, columns, equal line counts) when it is called, before the first row.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from regard.data.records import Origin
from regard.errors import ConfigError, DataError

Row = tuple[dict[str, Any], dict[str, Origin]]  # fields as found, and the place of each, by role
Reject = Callable[[str, Origin], None]  # takes a reason and a place; raises where bad records stop the reading
Columns = Mapping[str, str | int]  # role to column

_PARQUET_ROWS = 1024  # rows decoded at a time
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parallel(paths: Mapping[str, Path]) -> Iterator[Row]:
    """One file a role, one row a line. Raises: DataError when the files differ in their number of lines."""
    for path in paths.values():
        _check_file(path)
    counts = {role: _count_lines(path) for role, path in paths.items()}
    if len(set(counts.values())) > 1:
        described = ", ".join(f"{paths[role]} has {count}" for role, count in counts.items())
        raise DataError(f"parallel files differ in their number of lines: {described}; align them line by line")

    def rows() -> Iterator[Row]:
        for number, lines in enumerate(zip(*(_lines(path) for path in paths.values()), strict=True), start=1):
            yield (
                {role: _text(line) for role, line in zip(paths, lines, strict=True)},
                {role: Origin(str(path), number) for role, path in paths.items()},
            )

    return rows()


def document(path: Path, role: str, part: tuple[float, float] | None) -> Iterator[Row]:
    """One row: the whole file, or its characters from one share of them to another, as they stand.

    Raises: DataError for a file that is no text.
    """
    _check_file(path)
    try:
        with _open_bytes(path) as file:
            data = file.read().removeprefix(_BYTE_ORDER_MARK)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}), expected a whole one; copy it again") from error
    if b"\0" in data:
        raise DataError(
            f"{path}: binary data (byte {data.index(0) + 1} is 0), expected text in UTF-8; convert it first, or give"
            " another file"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 (byte 0x{data[error.start]:02x}, number {error.start + 1}); convert it first, for"
            " example with iconv"
        ) from None
    begin, end = (0.0, 1.0) if part is None else part
    first, last = round(begin * len(text)), round(end * len(text))
    line = text.count("\n", 0, first) + 1
    return iter([({role: text[first:last]}, {role: Origin(str(path), line)})])


def tsv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each line; nothing is quoted or escaped."""
    _check_file(path)
    return ((number, _text(line).split("\t")) for number, line in enumerate(_lines(path), start=1))


def csv_cells(path: Path, reject: Reject) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and cells of each record; a cell holds at most csv.field_size_limit() characters, so
    that a quote never closed cannot take the rest of the file with it."""
    _check_file(path)

    def cells() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader((_text(line) + "\n" for line in _lines(path)), strict=True)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reject(f"invalid CSV ({error})", Origin(str(path), number))
            else:
                yield number, row

    return cells()


def table_with_header(
    path: Path, cells: Iterator[tuple[int, list[str]]], columns: Columns, reject: Reject
) -> Iterator[Row]:
    """Rows of `cells`, the first of which names the columns. A row with more or fewer cells than names is rejected.

    Raises: DataError when a wanted column is not among the names.
    """
    names = [name.strip() for name in next(cells, (0, []))[1]]
    unknown = [
        f"{role} ({column})"
        for role, column in columns.items()
        if not (0 <= column < len(names) if isinstance(column, int) else column in names)
    ]
    if unknown:
        raise DataError(
            f"{path}:1: no column for {', '.join(unknown)}, the header has {', '.join(names)}; name them under columns,"
            " or set header to false"
        )
    indices = {role: column if isinstance(column, int) else names.index(column) for role, column in columns.items()}
    return _picked_cells(path, cells, indices, reject, num_columns=len(names))


def table_without_header(
    path: Path,
    cells: Iterator[tuple[int, list[str]]],
    columns: Columns,
    reject: Reject,
    *,
    num_columns: int | None,
) -> Iterator[Row]:
    """Rows of `cells`, with columns given by number from 0. `num_columns`: what a row must have; None: enough.

    Raises: ConfigError when a column is no such number.
    """
    wrong = [f"{role} ({column})" for role, column in columns.items() if not str(column).isdecimal()]
    if wrong:
        raise ConfigError(f"{path}: header is false, but {', '.join(wrong)} is no column number; count columns from 0")
    return _picked_cells(path, cells, {role: int(column) for role, column in columns.items()}, reject, num_columns)


def _picked_cells(
    path: Path,
    cells: Iterator[tuple[int, list[str]]],
    indices: Mapping[str, int],
    reject: Reject,
    num_columns: int | None,
) -> Iterator[Row]:
    fewest = max(indices.values()) + 1
    for number, row in cells:
        origin = Origin(str(path), number)
        if num_columns is not None and len(row) != num_columns:
            reject(f"{len(row)} column{'s' if len(row) != 1 else ''} instead of {num_columns}", origin)
        elif len(row) < fewest:
            reject(f"{len(row)} column{'s' if len(row) != 1 else ''}, fewer than {fewest}", origin)
        else:
            yield {role: row[index] for role, index in indices.items()}, dict.fromkeys(indices, origin)


def json_lines(path: Path, columns: Columns, reject: Reject) -> Iterator[Row]:
    """One JSON object a line."""
    _check_file(path)

    def rows() -> Iterator[Row]:
        for number, line in enumerate(_lines(path), start=1):
            origin = Origin(str(path), number)
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                reject("undecodable line", origin)
            except (ValueError, RecursionError):
                reject("invalid JSON" if line.strip() else "empty line", origin)
            else:
                if isinstance(row, dict):
                    yield _picked(row, columns), dict.fromkeys(columns, origin)
                else:
                    reject("JSON that is no object", origin)

    return rows()


def parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """Rows by record batches. Raises: DataError when the file is damaged, a column missing or pyarrow not installed."""
    _check_file(path)
    try:
        import pyarrow as arrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow, which is missing; pip install pyarrow") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: no readable Parquet file ({_one_line(error)}); check how it was made") from error
    needed = _needed(str(path), columns, file.schema_arrow.names)

    def rows() -> Iterator[Row]:
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=needed):
            values = {name: _python_values(batch.column(name)) for name in batch.schema.names}
            for index in range(batch.num_rows):
                number += 1
                row = {name: column[index] for name, column in values.items()}
                yield _picked(row, columns), dict.fromkeys(columns, Origin(str(path), number))

    return rows()


def hub(name: str, subset: str | None, split: str, columns: Columns) -> Iterator[Row]:
    """Rows of a split that the package `datasets` loads by name or from a folder."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name}: format hub needs the package datasets; pip install datasets") from error
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the package raises many kinds, its own and those of the network
        raise DataError(
            f"{name}: datasets could not load split {split!r} ({_one_line(error)}); check the name and the network, or"
            " save the data as a file and give its path"
        ) from error
    loaded = loaded.select_columns(_needed(f"{name}[{split}]", columns, loaded.column_names))

    def rows() -> Iterator[Row]:
        for number, row in enumerate(loaded, start=1):
            yield _picked(row, columns), dict.fromkeys(columns, Origin(f"{name}[{split}]", number))

    return rows()


def _picked(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    return {role: _value(row, str(column)) for role, column in columns.items()}


def _value(row: Any, column: str) -> Any:
    """The value of `column`, which may be a dotted way into nested objects; None when there is none."""
    if not isinstance(row, Mapping):
        return None
    if column in row:
        return row[column]
    first, _, rest = column.partition(".")
    return _value(row.get(first), rest) if rest else None


def _needed(name: str, columns: Columns, present: list[str]) -> list[str]:
    """The top columns that hold the wanted ones. Raises: DataError naming those that are not `present`."""
    wanted = [str(column) for column in columns.values()]
    top = {column: column if column in present else column.partition(".")[0] for column in wanted}
    unknown = [column for column in wanted if top[column] not in present]
    if unknown:
        raise DataError(f"{name}: no column {', '.join(unknown)}, it has {', '.join(present)}; name them under columns")
    return sorted(set(top.values()))


def _python_values(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Arrow does not check the text it is given
        import pyarrow as arrow

        binary = column.cast(arrow.large_binary() if arrow.types.is_large_string(column.type) else arrow.binary())
        return [None if value is None else _text(value) for value in binary.to_pylist()]


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {what}, expected a data file; check the path (relative ones start at {Path.cwd()})")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty, expected at least one record; check how it was made")


def _open_bytes(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of `path` without their ends; a byte-order mark is dropped."""
    try:
        with _open_bytes(path) as file:
            for number, line in enumerate(file):
                if number == 0:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path}: the text is UTF-16, expected UTF-8; convert it (iconv -t UTF-8)")
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}), expected a whole one; copy it again") from error


def _count_lines(path: Path) -> int:
    count, last = 0, b"\n"
    try:
        with _open_bytes(path) as file:
            while block := file.read(1 << 20):
                count += block.count(b"\n")
                last = block[-1:]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}), expected a whole one; copy it again") from error
    return count + (last != b"\n")


def _text(line: bytes) -> str:
    """`line` decoded; a byte that is no UTF-8 becomes a lone surrogate, which _unusable finds in its field."""
    return line.decode("utf-8", errors="surrogateescape")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
