"""What a run looks like on a terminal: a bar with tokens per second and time left, and lines above it.

All of it goes to standard error, so that standard output holds results alone. Where standard error is no terminal, a
line every so often takes the bar's place.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0
SPEED_MEMORY = 0.95  # how much of the speed shown is the past's, a step


class TrainingProgress:
    """A watcher (see `regard.training.monitor`) that draws a progress bar; use it as a context manager."""

    def __init__(self, label: str = "training") -> None:
        self.console = Console(stderr=True, highlight=False)
        self.label = label
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._speed = 0.0  # target tokens a second, smoothed
        self._loss: float | None = None
        self._max_steps = 0
        self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def started(self, step: int, max_steps: int) -> None:
        self._max_steps = max_steps
        self._last_line = time.monotonic()
        if not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task(self.label, total=max_steps, completed=step, loss="", speed="")
        self._bar.start()

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        speed = num_tokens / max(seconds, 1e-9)
        self._speed = speed if self._speed == 0 else SPEED_MEMORY * self._speed + (1 - SPEED_MEMORY) * speed
        self._loss = self._loss if loss is None else loss
        told_loss = "" if self._loss is None else f"loss {self._loss:.3f}"
        told_speed = f"{self._speed:,.0f} tokens/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, loss=told_loss, speed=told_speed)
            if step >= self._max_steps:
                self.finish()
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.said(f"step {step:,} of {self._max_steps:,}, {told_loss}, {told_speed}")

    def said(self, message: str) -> None:
        self.console.print(message, markup=False, emoji=False, soft_wrap=True)

    def finish(self) -> None:
        """Takes the bar away; what was printed above it stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
