"""Where a command's input lines come from: arguments, files, standard input.

One bad input of several does not stop the rest: it arrives as a `BadInput`, is reported where it stands, and the
command ends with status 2 once everything else is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from regard.errors import ConfigError


@dataclass(frozen=True)
class BadInput:
    """An input that cannot be used. message: what was received, and the remedy.

    is_line: it stands for one line, whose place in the output stays; otherwise for a file that gave no lines.
    """

    message: str
    is_line: bool = True


def num_inputs(texts: Sequence[str], files: Sequence[Path]) -> int | None:
    """How many there are, where that is known before anything is read."""
    return None if "-" in texts or files else len(texts)


def input_lines(texts: Sequence[str], files: Sequence[Path]) -> Iterator[str | BadInput]:
    """The given texts, with "-" standing for the lines of standard input, then the lines of the files; streamed.

    Raises: ConfigError when there is no input at all.
    """
    if not texts and not files:
        raise ConfigError('nothing to do: give a text in quotes, --file PATH, or "-" for standard input')
    return _lines(texts, files)


def _lines(texts: Sequence[str], files: Sequence[Path]) -> Iterator[str | BadInput]:
    for number, text in enumerate(texts, 1):
        if text == "-":
            yield from decoded_lines(sys.stdin.buffer, "standard input")
        elif text.isascii() or text == text.encode("utf-8", "replace").decode():
            yield text
        else:  # the system hands on bytes that are not UTF-8 as half characters
            yield BadInput(f"text {number}: not UTF-8; write it in a UTF-8 terminal, or give it with --file")
    for path in files:
        try:
            with path.open("rb") as file:
                yield from decoded_lines(file, str(path))
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}); give a text file, a line each"
            yield BadInput(message, is_line=False)


def decoded_lines(stream: BinaryIO, name: str) -> Iterator[str | BadInput]:
    """The lines of a stream, decoded one by one so that a bad one is named and the rest is used."""
    for number, line in enumerate(stream, 1):
        if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
            yield BadInput(f"{name}: UTF-16, expected UTF-8; convert it first (iconv -t UTF-8)", is_line=False)
            return
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield BadInput(
                f"{name}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}, number {error.start + 1} of the "
                "line); convert it first, for example with iconv"
            )


def input_documents(texts: Sequence[str], files: Sequence[Path]) -> Iterator[str | BadInput]:
    """The given texts, with "-" standing for all of standard input, then the files; each a document with some text.

    Raises: ConfigError when there is no input at all.
    """
    if not texts and not files:
        raise ConfigError('nothing to do: give a text in quotes, --file PATH, or "-" for standard input')
    return _documents(texts, files)


def _documents(texts: Sequence[str], files: Sequence[Path]) -> Iterator[str | BadInput]:
    for number, text in enumerate(texts, 1):
        if text == "-":
            yield _document(sys.stdin.buffer.read(), "standard input")
        else:  # bytes that are not UTF-8 arrive as half characters, and go back to what they were
            yield _document(text.encode("utf-8", "surrogateescape"), f"text {number}")
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            yield BadInput(f"{path}: cannot be read ({error.strerror}); give a text file", is_line=False)
            continue
        yield _document(content, str(path))


def _document(content: bytes, name: str) -> str | BadInput:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return BadInput(f"{name}: UTF-16, expected UTF-8; convert it first (iconv -t UTF-8)", is_line=False)
    place = content.find(b"\0")
    if place >= 0:
        return BadInput(f"{name}: holds a NUL at byte {place + 1}, so it is no text; give a text file", is_line=False)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return BadInput(
            f"{name}: not UTF-8 (byte 0x{error.object[error.start]:02x}, number {error.start + 1}); give a text file,"
            " or convert it first, for example with iconv",
            is_line=False,
        )
    if not text.strip():
        return BadInput(f"{name}: holds no text, expected a document; give another", is_line=False)
    return text


def check_files(names: Sequence[str]) -> None:
    """names: of files that are read whole, "-" is standard input. Raises: ConfigError when that is to be read twice."""
    if names.count("-") > 1:
        raise ConfigError('"-" stands twice; standard input holds one file')


def files_at_once(names: Sequence[str], most: int) -> Iterator[list[Path | bytes]]:
    """The files, so many at a time; for "-" what standard input holds."""
    for begin in range(0, len(names), most):
        yield [sys.stdin.buffer.read() if name == "-" else Path(name) for name in names[begin : begin + most]]
