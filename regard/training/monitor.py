"""What a run reports: JSON lines that resume without duplicates, TensorBoard, and whoever watches.

`metrics.jsonl` holds what is a function of the recipe alone, so that a resumed run's file equals an undisturbed one's, byte by
byte. What depends on the clock (tokens a second) goes to TensorBoard and to the watcher.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol


class Watcher(Protocol):
    """Whoever shows a run: a progress bar, a log, a test. Every method may do nothing."""

    def started(self, step: int, max_steps: int) -> None:
        """The run begins, or goes on, after `step` updates."""

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        """One update is done; loss: nats a token where it is known (every `log_every` steps)."""

    def said(self, message: str) -> None:
        """A line for whoever reads along."""


class Silent:
    """A watcher that shows nothing."""

    def started(self, step: int, max_steps: int) -> None: ...

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None: ...

    def said(self, message: str) -> None: ...


class Metrics:
    """The run's JSON lines and TensorBoard events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self._file: Any = None
        self._events: Any = None

    def open(self, size: int, step: int) -> None:
        """Cuts the file back to `size` bytes, its length at the checkpoint of `step`, and appends from there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        self._file.truncate(min(size, self.path.stat().st_size))
        self._file.seek(0, os.SEEK_END)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return  # TensorBoard is not installed: the JSON lines hold the same numbers
        self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line, and the same numbers as TensorBoard events."""
        self._file.write(json.dumps({"step": step, **values}, sort_keys=True).encode() + b"\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self.event(step, name, value)

    def event(self, step: int, name: str, value: float) -> None:
        """A number for TensorBoard alone."""
        if self._events is not None:
            self._events.add_scalar(name, value, step)

    def flush(self) -> int:
        """Brings everything to the disk; returns the file's size in bytes, which a checkpoint keeps."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()
        size: int = self._file.tell()
        return size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()
