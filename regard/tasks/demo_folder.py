"""What all demos share: the folder that each makes anew, the short training, and the end of what they print.

A demo owns its folder: what it learns from, its runs, and what it draws. The next demo in the same folder replaces all
of that, and nothing else: where there is anything that no demo made, nothing is touched.
"""

from __future__ import annotations

import importlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from regard.errors import DataError, Interrupted, RegardError
from regard.tasks.run import train
from regard.tasks.sections import Recipe
from regard.training.config import ScheduleConfig, TrainingConfig
from regard.training.disk import UNFINISHED
from regard.training.monitor import Watcher

REMEDY = "give a new or empty folder with --out"


@dataclass(frozen=True)
class Layout:
    """What a demo's folder holds. Every name is relative to it, but for those of what it learns from."""

    data: str  # the folder that it learns from
    files: str  # a regular expression: whatever may lie in `data`, as a path relative to it, folders too
    proof: str  # the file in `data` that is there before a run begins: without it, a run is somebody else's
    drawings: tuple[str, ...]
    runs: tuple[str, ...] = ("run",)  # in the order of their training

    @property
    def content(self) -> tuple[str, ...]:
        """All that a finished demo leaves in its folder."""
        return (self.data, *self.runs, *self.drawings)

    def make_room(self, folder: Path) -> None:
        """Removes what an earlier demo learnt from, and its runs; its drawings stay until they are drawn anew.

        Whatever is left by a kill, here or later, is known again.
        Raises: DataError when something lies in `folder` that is of no demo, and for one that cannot be used.
        """
        try:
            foreign = next(self._foreign(folder), None)
            if foreign is not None:
                raise DataError(f"{folder}: holds {foreign}, which is of no demo; {REMEDY}")
            for name in (*reversed(self.runs), self.data):  # what proves that a run is a demo's goes last
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
        except OSError as error:
            raise DataError(f"{folder}: cannot be used ({(error.strerror or str(error)).lower()}); {REMEDY}") from None

    def _foreign(self, folder: Path) -> Iterator[str]:
        """What is of no demo."""
        found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        yield from (name for name in found if name.removesuffix(UNFINISHED) not in self.content)
        data = folder / self.data
        for path in sorted(data.rglob("*")):
            name = path.relative_to(data).as_posix()
            if re.fullmatch(self.files, name.removesuffix(UNFINISHED)) is None:
                yield f"{self.data}/{name}"
        if not (data / self.proof).is_file():
            yield from (name for name in self.runs if name in found)


class Spent(NamedTuple):
    """What the training took. processor_seconds: over all threads."""

    seconds: float
    processor_seconds: float


def need(*packages: str, extra: str) -> None:
    """To be asked before room is made: an earlier demo goes only where the next one can be.

    Raises: RegardError for a package of the extra that is missing or does not work.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:  # the latter of one that does not find its library
            raise RegardError(
                f"this demo needs the package {package} ({error}); pip install 'regard[{extra}]'"
            ) from None


def short_training(num_steps: int, *, peak: float, **changes: Any) -> TrainingConfig:
    """num_steps under a cosine whose largest learning rate is `peak`. changes: what else is not the default."""
    half = max(num_steps // 2, 1)
    return TrainingConfig(
        max_steps=num_steps,
        schedule=ScheduleConfig("cosine", peak=peak, warmup_steps=min(100, max(num_steps // 5, 1)), floor=0.02),
        validate_every=half,
        checkpoint_every=half,
        final=("last",),
        log_every=10,
        **changes,
    )


def train_in_turn(runs: Sequence[tuple[Recipe, Path]], watcher: Watcher) -> Spent:
    """Trains one after the other; a recipe may begin with the model of a run before it.

    Raises: Interrupted when it is stopped.
    """
    began, used = time.monotonic(), time.process_time()
    try:
        for recipe, folder in runs:
            train(recipe, folder, origin="the demo's recipe", watcher=watcher)
    except Interrupted:
        raise Interrupted("the demo was stopped; the same command starts it anew") from None
    return Spent(time.monotonic() - began, time.process_time() - used)


def last_lines(what: str, spent: Spent, page: Path, picture: Path, try_next: str) -> list[str]:
    """The last lines. what: is to be seen on page and picture. try_next: a command, without `regard`."""
    return [
        f"trained in {spent.seconds:.0f} s",
        "",
        f"{what}: {page}",
        f"{' ' * len(what)}  {picture}",
        f"try: regard {try_next}",
    ]


def drawn_json(task: str, figures: Mapping[str, Any], spent: Spent, page: Path, picture: Path) -> dict[str, Any]:
    """All that a demo tells, as plain values."""
    return {
        "task": task,
        **figures,
        "train_seconds": round(spent.seconds, 2),
        "processor_seconds": round(spent.processor_seconds, 2),
        "page": str(page),
        "picture": str(picture),
    }
