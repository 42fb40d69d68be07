"""Checkpoints: everything a run needs to go on exactly, written so that a kill at any instant leaves a usable one.

Each is a folder (`checkpoint_folder`) that appears whole; only then are older ones deleted. Reading takes the newest
that is whole. One process or a hundred write and read the same ones. Checkpoints are local and never shared; what is
shared is `model/`.

    step-000000500/      after every `checkpoint_every` steps and at the end; the newest few stay and can be averaged
    stopped-000000523/   where a run was asked to stop; gone after the next checkpoint, and never averaged, so that a
                         run that was interrupted ends as one that was not
    best/                the weights of the best validation
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from regard.errors import TrainingError
from regard.training import checkpoint_folder
from regard.training.disk import delete_folder, recover_folders
from regard.training.processes import World

NAME = re.compile(r"(step|stopped)-(\d{9,})")
BEST = "best"
FORMER = re.compile(r"(step|stopped)-\d{9,}\.pt")  # files of format 2, before there were several processes


class Saved(NamedTuple):
    """A whole checkpoint: where its tensors lie, and its plain values."""

    path: Path
    state: dict[str, Any]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fills `tensors` by their names; all processes call it. Raises: TrainingError for what is not in it."""
        checkpoint_folder.load(self.path, tensors)


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest `keep` stay. said: is told of every damaged one.

    Whatever writes or reads is called by all processes of `world` together.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        said: Callable[[str], None] = lambda message: None,
        world: World = World(),  # noqa: B008 (frozen)
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.said = said
        self.world = world

    def path(self, step: int, *, stopped: bool = False) -> Path:
        """Where the checkpoint of `step` lies."""
        return self.folder / f"{'stopped' if stopped else 'step'}-{step:09d}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints that stay, oldest first; those of a stopped run do not count."""
        return [step for step, kind, _ in self._found() if kind == "step"][-self.keep :]

    def newest_path(self) -> Path | None:
        """The newest checkpoint, or None."""
        found = self._found()
        return found[-1][2] if found else None

    def save(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, stopped: bool = False
    ) -> Path:
        """Writes the checkpoint of `step`, then deletes those past `keep` and what stopped runs left up to here.

        stopped: the run ends here because it was asked to. Raises: TrainingError when the disk is full.
        """
        path = self.path(step, stopped=stopped)
        self._write(path, tensors, state)
        self.world.first(lambda: self._tidy(path))
        return path

    def save_best(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes the weights of the best validation so far. Raises: TrainingError when the disk is full."""
        self._write(self.folder / BEST, tensors, state)

    def newest(self) -> Saved | None:
        """The newest whole checkpoint, or None when there is none.

        A damaged one is passed over for the one before. Raises: TrainingError when all are damaged.
        """
        paths: list[Path] = self.world.first(self._to_go_on_from)
        for path in paths:
            state = checkpoint_folder.whole_state(path, self.world)
            if state is not None:
                self.world.first(partial(self._tidy, path))  # a kill may have come before it was done
                return Saved(path, state)
            self.said(f"{path}: damaged, passed over for the checkpoint before it")
        if paths:
            raise self.world.told_once(
                TrainingError(f"{self.folder}: no checkpoint can be read; delete this folder to start the run again")
            )
        return None

    def best(self) -> Saved | None:
        """The weights and score of the best validation, or None."""
        state = checkpoint_folder.whole_state(self.folder / BEST, self.world)
        return None if state is None else Saved(self.folder / BEST, state)

    def kept(self) -> Iterator[Saved]:
        """The checkpoints that stay, oldest first; a damaged one is left out."""
        for step in self.world.first(self.steps):
            path = self.path(step)
            state = checkpoint_folder.whole_state(path, self.world)
            if state is None:
                self.said(f"{path}: damaged, left out")
            else:
                yield Saved(path, state)

    def _to_go_on_from(self) -> list[Path]:
        """All checkpoints, newest first, after what killed writes have left was put right."""
        recover_folders(self.folder)
        found = self._found()
        former = (
            [] if found or not self.folder.is_dir() else [p for p in self.folder.iterdir() if FORMER.fullmatch(p.name)]
        )
        if former:
            was = "checkpoints of format 2, this regard goes on from 3"
            raise TrainingError(f"{self.folder}: {was}; take the regard that wrote them, or another run")
        return [path for _, _, path in reversed(found)]

    def _found(self) -> list[tuple[int, str, Path]]:
        """(step, kind, folder) of all checkpoints, oldest first; of one step, the regular one last."""
        if not self.folder.is_dir():
            return []
        matches = ((NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        found = [(int(match[2]), match[1], path) for match, path in matches if match]
        return sorted(found, key=lambda one: (one[0], one[1] == "step"))

    def _tidy(self, path: Path) -> None:
        """Deletes what the checkpoint at `path` makes needless."""
        found = self._found()
        [step] = [step for step, _, other in found if other == path]
        regular = [other for _, kind, other in found if kind == "step"]
        stopped = [other for other_step, kind, other in found if kind == "stopped" and other_step <= step]
        for old in [*regular[: -self.keep], *stopped]:
            if old != path:
                delete_folder(old)

    def _write(self, path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        newest = self.newest_path()
        usable = f"the last usable checkpoint is {newest}" if newest else "there is no earlier checkpoint"
        checkpoint_folder.write(path, tensors, state, self.world, usable=usable)
