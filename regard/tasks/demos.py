"""The demos by the name of their task. Each trains on data that it makes itself, scores, and draws what it shows."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from regard.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from regard.training.monitor import Watcher


class Shown(Protocol):
    """What a demo came to."""

    def lines(self) -> list[str]:
        """What to print: examples, figures, where the pictures lie, what to try next."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        ...


class Demo(Protocol):
    """Trains, scores and draws into `folder`, where an earlier demo's things are replaced.

    num_steps: fewer updates than the demo's own number for a quick look; the figures then mean less.
    Raises: DataError when `folder` holds anything else; Interrupted when it is stopped while it trains.
    """

    def __call__(
        self, folder: Path, *, seed: int = 1, num_steps: int | None = None, watcher: Watcher | None = None
    ) -> Shown: ...


# Each is `demo` in regard/tasks/TASK/demo.py, imported when it is asked for.
DEMOS = ("translate", "summarize", "caption", "transcribe")


def demo_of(task: str) -> Demo:
    """The demo of `task`. Raises: ConfigError for a task that has none."""
    if task not in DEMOS:
        raise ConfigError(f"demo `{task}` is not known{suggestion(task, DEMOS) or '; known: ' + ', '.join(DEMOS)}")
    return cast(Demo, importlib.import_module(f"regard.tasks.{task}.demo").demo)
