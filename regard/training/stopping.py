"""Ctrl-C and termination signals: a run is asked to stop, and does so where it can be taken up again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class BrokenOff(BaseException):
    """A signal broke something off. No `Exception`, so that no validation takes it for a failure of its own."""


class StopRequest:
    """Whether a signal has asked for an end.

    A step is finished first; what runs within `breakable` is broken off. A second Ctrl-C ends the process at once. Only
    the main thread hears signals; in another one nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._breakable = False

    @contextmanager
    def heard(self, said: Callable[[str], None]) -> Iterator[None]:
        """Within the context signals are taken as a request. Raises: KeyboardInterrupt at the second Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True
            with suppress(RuntimeError):  # a watcher that was printing just now cannot print within it
                said("stopping: a checkpoint is written first; Ctrl-C (again) stops at once, without one")
            if self._breakable:
                self._breakable = False
                raise BrokenOff

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """Within the context a request raises BrokenOff at once, one that was made before does so on entering."""
        try:
            self._breakable = True
            if self.asked:
                raise BrokenOff
            yield
        finally:
            self._breakable = False
