"""Calling `regard` and looking at what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Trained(NamedTuple):
    """A finished run. out, err: what the command that trained it printed."""

    recipe: Path
    data: Path
    run: Path
    out: str
    err: str

    @property
    def model(self) -> Path:
        return self.run / "model"


class Done(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The error lines, without their head."""
        head = "regard: error: "
        return [line.removeprefix(head) for line in self.err.splitlines() if line.startswith(head)]

    def refused(self, *parts: str) -> str:
        """Asserts that it was refused with one line that holds all `parts`, and printed nothing else; that line."""
        assert self.status == 2, self
        assert self.out == ""
        assert "Traceback" not in self.err
        [line] = self.errors
        for part in parts:
            assert part in line, line
        return line


Command = Callable[..., Done]


def start(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """`regard` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    words = [sys.executable, "-m", "regard", *map(str, arguments)]
    return subprocess.Popen(words, env=environment, **options)  # type: ignore[call-overload, no-any-return]


def run_process(*arguments: object, stdin: bytes = b"", limit_seconds: float = 240.0) -> Done:
    """`regard` in a process of its own, to its end."""
    process = start(*arguments, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin, timeout=limit_seconds)
    return Done(process.returncode, out.decode(), err.decode())


def files_in(*folders: Path) -> dict[Path, bytes]:
    """Every file below the folders with its content, to see that nothing was written over."""
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
