"""Checkpoints: everything a run needs to go on exactly, written so that a kill at any instant leaves a usable one.

A checkpoint is written under another name, flushed to the disk and renamed; only then are older ones deleted. Reading takes the
newest that is whole. Checkpoints are local and never shared; what is shared is `model/`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from regard.errors import TrainingError

NAME = re.compile(r"step-(\d{9})\.pt")


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest `keep` stay, and `best.pt` beside them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := NAME.fullmatch(path.name)))

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.pt"

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes the checkpoint of `step`, then deletes those past `keep`. Raises: TrainingError when the disk is full."""
        path = self.path(step)
        write_atomically(path, lambda unfinished: torch.save(state, unfinished), usable=self.newest_path())
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)
        return path

    def save_best(self, weights: dict[str, Any]) -> None:
        """Writes the weights of the best validation so far."""
        path = self.folder / "best.pt"
        write_atomically(path, lambda unfinished: torch.save(weights, unfinished), usable=self.newest_path())

    def newest_path(self) -> Path | None:
        """The newest checkpoint's file, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def load_newest(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, or None when there is none. A damaged one is passed over for the one before."""
        self.clear_unfinished()
        for step in reversed(self.steps()):
            state = read(self.path(step))
            if state is not None:
                return state
        if self.steps():
            raise TrainingError(f"{self.folder}: no checkpoint can be read; delete the run directory to start again")
        return None

    def load_best(self) -> dict[str, Any] | None:
        """The weights and score of the best validation, or None."""
        path = self.folder / "best.pt"
        return read(path) if path.is_file() else None

    def clear_unfinished(self) -> None:
        """Deletes what a killed write left behind."""
        if self.folder.is_dir():
            for path in self.folder.glob("*.unfinished"):
                path.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """What `torch.save` wrote, tensors on the CPU; None when the file is damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception:  # torch raises a different kind for each way of being damaged
        return None


def write_atomically(path: Path, write: Callable[[Path], None], *, usable: Path | None = None) -> None:
    """Has `write` fill a file beside `path`, flushes it to the disk and renames it.

    usable: the checkpoint to name in the message when this one cannot be written.
    Raises: TrainingError for a full disk, a quota or a read-only folder; `path` is then what it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        write(unfinished)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        # torch's writer reports a failed write as RuntimeError without an errno.
        if isinstance(error, RuntimeError) and "write" not in str(error).lower():
            raise
        number = getattr(error, "errno", None)
        cause = "the disk is full" if number in (errno.ENOSPC, errno.EDQUOT, None) else os.strerror(number)
        last = f"the last usable checkpoint is {usable}" if usable else "there is no earlier checkpoint"
        raise TrainingError(f"{path}: not written, {cause}; {last}; make room and run the same command again") from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
