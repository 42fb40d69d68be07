"""What a run reports: JSON lines that resume without duplicates, TensorBoard, and whoever watches.

`metrics.jsonl` holds what is a function of the recipe alone, so that a resumed run's file equals an undisturbed one's,
byte by byte. What depends on the clock (tokens a second) goes to TensorBoard and to the watcher.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from regard.training.disk import not_written


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
    """The run's JSON lines and TensorBoard events.

    Every method raises TrainingError when the disk does not take what it is given.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self._events = Events(folder / "tensorboard")
        self._file: BinaryIO | None = None

    def open(self, size: int, step: int) -> int:
        """Cuts the file back to `size` bytes, its length at the checkpoint of `step`, and appends from there.

        Returns how many of these bytes are missing: 0 unless somebody shortened or removed the file.
        """
        with self._reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 (held until the run ends)
            size_found = self._file.seek(0, os.SEEK_END)
            kept = min(size, size_found)
            if kept < size:  # what is left may end within a line
                self._file.seek(0)
                kept = self._file.read(kept).rfind(b"\n") + 1
            self._file.truncate(kept)
            self._file.seek(0, os.SEEK_END)
        self._events.open(step)
        return size - kept

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line, and the same numbers as TensorBoard events. A number that is not finite becomes null."""
        assert self._file is not None, "opened before"
        line = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        with self._reported():
            self._file.write(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n")
            self._file.flush()  # people follow the file while it grows
        for name, value in values.items():
            if isinstance(value, int | float):
                self.event(step, name, value)

    def event(self, step: int, name: str, value: float) -> None:
        """A number for TensorBoard alone."""
        self._events.write(step, name, value)

    def flush(self) -> int:
        """Brings everything to the disk; returns the file's size in bytes, which a checkpoint keeps."""
        assert self._file is not None, "opened before"
        with self._reported():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Ends both files. What a full disk did not take was reported when it was written."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._events.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise not_written(self.path, error) from None


class NoMetrics(Metrics):
    """Of a process that is not the first of its run: nothing is written, the first writes for all."""

    def open(self, size: int, step: int) -> int:
        return 0

    def write(self, step: int, values: dict[str, Any]) -> None: ...

    def event(self, step: int, name: str, value: float) -> None: ...

    def flush(self) -> int:
        return 0


class Events:
    """TensorBoard's event files, one for each process of a run; without TensorBoard, nothing.

    Written in the calling thread: the package's own writer reports a full disk from a thread, with a traceback.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._path = folder

    def open(self, step: int) -> None:
        """Begins a file that goes on after `step`: readers drop what earlier files hold of later steps."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            return  # TensorBoard is not installed: the JSON lines hold the same numbers
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._path = self.folder / f"events.out.tfevents.{self._next_number():010d}.regard"
            self._file = open(self._path, "xb")  # noqa: SIM115 (held until the run ends)
        except OSError as error:
            raise not_written(self._path, error) from None
        self._records = RecordWriter(self._file)
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._put(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, name: str, value: float) -> None:
        """One number."""
        if self._file is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._put(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """Ends the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _put(self, event: Any) -> None:
        assert self._file is not None, "opened before"
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise not_written(self._path, error) from None

    def _next_number(self) -> int:
        """The time in seconds, or more where a file of this second is there: readers take files in order of name."""
        names = (path.name.split(".") for path in self.folder.iterdir())
        numbers = [int(parts[3]) for parts in names if len(parts) > 3 and parts[3].isdigit()]
        return max([int(time.time()), *(number + 1 for number in numbers)])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
