"""Where a command's input lines come from: arguments, files, standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from regard.errors import ConfigError, DataError


def input_lines(texts: Iterable[str], files: Iterable[Path]) -> list[str]:
    """The given texts, with "-" standing for the lines of standard input, then the lines of the files.

    Raises: ConfigError when there is no input at all; DataError for a missing file or a line that is not UTF-8, by its
    number.
    """
    lines: list[str] = []
    given = False
    for text in texts:
        given = True
        lines += decoded_lines(sys.stdin.buffer, "standard input") if text == "-" else [text]
    for path in files:
        given = True
        try:
            with path.open("rb") as file:
                lines += decoded_lines(file, str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); give a text file, a line each") from None
    if not given:
        raise ConfigError('nothing to do: give a text in quotes, --file PATH, or "-" for standard input')
    return lines


def decoded_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of a stream, decoded one by one so that a bad one is named."""
    for number, line in enumerate(stream, 1):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1}); convert it first, "
                "for example with iconv"
            ) from None
