"""The demos by the name of their task. Each trains on data that it makes itself, scores, and draws what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from regard.errors import ConfigError, suggestion
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


def _translate() -> Demo:
    from regard.tasks.translate.demo import demo

    return demo


def _transcribe() -> Demo:
    from regard.tasks.transcribe.demo import demo

    return demo


def _caption() -> Demo:
    from regard.tasks.caption.demo import demo

    return demo


def _summarize() -> Demo:
    from regard.tasks.summarize.demo import demo

    return demo


DEMOS: dict[str, Callable[[], Demo]] = {
    "translate": _translate,
    "transcribe": _transcribe,
    "caption": _caption,
    "summarize": _summarize,
}


def demo_of(task: str) -> Demo:
    """The demo of `task`. Raises: ConfigError for a task that has none."""
    if task not in DEMOS:
        raise ConfigError(f"demo `{task}` is not known{suggestion(task, DEMOS) or '; known: ' + ', '.join(DEMOS)}")
    return DEMOS[task]()
