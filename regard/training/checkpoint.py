"""Checkpoints: everything a run needs to go on exactly, written so that a kill at any instant leaves a usable one.

A checkpoint is written under another name, flushed to the disk and renamed; only then are older ones deleted. Reading
takes the newest that is whole. Checkpoints are local and never shared; what is shared is `model/`.

    step-000000500.pt      after every `checkpoint_every` steps and at the end; the newest few stay and can be averaged
    stopped-000000523.pt   where a run was asked to stop; gone after the next checkpoint, and never averaged, so that a
                           run that was interrupted ends as one that was not
    best.pt                the weights of the best validation
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from regard.errors import TrainingError
from regard.training.disk import write_atomically

NAME = re.compile(r"(step|stopped)-(\d{9,})\.pt")
BEST = "best.pt"
MARK = b"regard checkpoint, sha256 before this: "  # then the hash: the last bytes of a whole file


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest `keep` stay. said: is told of every damaged one."""

    def __init__(self, folder: Path, keep: int, said: Callable[[str], None] = lambda message: None) -> None:
        self.folder = folder
        self.keep = keep
        self.said = said

    def path(self, step: int, *, stopped: bool = False) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.folder / f"{'stopped' if stopped else 'step'}-{step:09d}.pt"

    def steps(self) -> list[int]:
        """The steps of the checkpoints that stay, oldest first; those of a stopped run do not count."""
        return [step for step, kind, _ in self._found() if kind == "step"]

    def newest_path(self) -> Path | None:
        """The newest checkpoint's file, or None."""
        found = self._found()
        return found[-1][2] if found else None

    def save(self, step: int, state: dict[str, Any], *, stopped: bool = False) -> Path:
        """Writes the checkpoint of `step`, then deletes those past `keep` and what stopped runs left up to here.

        stopped: the run ends here because it was asked to. Raises: TrainingError when the disk is full.
        """
        path = self.path(step, stopped=stopped)
        self._write(path, state)
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)
        for other_step, kind, other in self._found():
            if kind == "stopped" and other != path and other_step <= step:
                other.unlink(missing_ok=True)
        return path

    def save_best(self, weights: dict[str, Any]) -> None:
        """Writes the weights of the best validation so far. Raises: TrainingError when the disk is full."""
        self._write(self.folder / BEST, weights)

    def load_newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None when there is none.

        A damaged one is passed over for the one before. Raises: TrainingError when all are damaged.
        """
        self.clear_unfinished()
        found = self._found()
        for _, _, path in reversed(found):
            state = read(path)
            if state is not None:
                return state
            self.said(f"{path}: damaged, passed over for the checkpoint before it")
        if found:
            raise TrainingError(f"{self.folder}: no checkpoint can be read; delete this folder to start the run again")
        return None

    def load_best(self) -> dict[str, Any] | None:
        """The weights and score of the best validation, or None."""
        return read(self.folder / BEST)

    def kept(self) -> Iterator[dict[str, Any]]:
        """The checkpoints that stay, oldest first, one in memory at a time; a damaged one is left out."""
        for step in self.steps():
            state = read(self.path(step))
            if state is None:
                self.said(f"{self.path(step)}: damaged, left out")
            else:
                yield state

    def clear_unfinished(self) -> None:
        """Deletes what a killed write left behind."""
        if self.folder.is_dir():
            for path in self.folder.glob("*.unfinished"):
                path.unlink(missing_ok=True)

    def _found(self) -> list[tuple[int, str, Path]]:
        """(step, kind, file) of all checkpoints, oldest first; of one step, the regular one last."""
        if not self.folder.is_dir():
            return []
        matches = ((NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        found = [(int(match[2]), match[1], path) for match, path in matches if match]
        return sorted(found, key=lambda one: (one[0], one[1] == "step"))

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        newest = self.newest_path()
        usable = f"the last usable checkpoint is {newest}" if newest else "there is no earlier checkpoint"
        write_atomically(path, lambda file: write(state, file), usable=usable)


def read(path: Path) -> dict[str, Any] | None:
    """What `write` wrote, tensors on the CPU; None when the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            content_bytes = file.seek(0, os.SEEK_END) - len(MARK) - hashlib.sha256().digest_size
            if content_bytes < 0:
                return None
            file.seek(content_bytes)
            end = file.read()
            if end != MARK + _sha256(file, content_bytes):
                return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises a different kind for each way of not being able to read
        return None
    return state


def write(state: dict[str, Any], file: BinaryIO) -> None:
    """Writes `state` and a hash of all of it: torch checks nothing, and reads a flipped bit as a wrong weight."""
    torch.save(state, file)
    file.flush()
    end = MARK + _sha256(file, file.tell())
    file.seek(0, os.SEEK_END)
    file.write(end)


def _sha256(file: BinaryIO, num_bytes: int) -> bytes:
    """The hash of the first `num_bytes` of a file."""
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (part := file.read(min(num_bytes, 1 << 20))):
        digest.update(part)
        num_bytes -= len(part)
    return digest.digest()
