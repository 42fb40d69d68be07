"""Batches loaded ahead of the step that trains on them, in order, by processes of their own.

A batch is a pure function of its position, so workers change when it is loaded and never what it holds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regard.data.batches import Batch, Position, Sequences
from regard.errors import DataError, RegardError

AHEAD = 2  # batches that each worker holds ready
LOOK_SECONDS = 0.2  # how often a worker looks whether the process that trains is still there
GRACE_SECONDS = 2.0  # what a worker that was asked to end may take
# Forked workers share the corpus's arrays with this process; elsewhere forks are not safe.
METHOD = "fork" if sys.platform == "linux" else None
SIGNALS = {signal.SIGINT, signal.SIGTERM}  # they end a run in its own time; a worker ends when the run does
Loaded = tuple[dict[str, Sequences], Tensor]


class Positioned(Protocol):
    """Whatever has a batch at every position, as `BatchStream`."""

    def at(self, position: Position) -> Batch: ...


class Stream(Positioned, Protocol):
    """The training batches, epoch after epoch without end, as a pure function of the position."""

    def after(self, position: Position) -> Position: ...

    def num_batches(self, epoch: int) -> int: ...

    def padding_share(self, epoch: int = 0) -> dict[str, float]: ...


def batches_from(
    stream: Positioned, positions: Iterable[Position], workers: int = 0, *, pinned: bool = False
) -> Generator[Batch, None, None]:
    """The batch of `stream` at each of `positions`, in their order.

    workers: how many processes load ahead; 0: this one loads each batch when it is asked for. With workers, positions
    are taken up to `workers * AHEAD` before their batch is asked for, so they must not depend on what was trained.
    pinned: in page-locked memory, from where a GPU takes it while it computes; only where there is CUDA.

    Close it to end the workers. They also end by themselves when this process does, however it is killed, and neither
    Ctrl-C nor a termination signal that reaches them ends them before. Random states are left alone.

    Raises: what `stream.at` raises, also in a worker; DataError when a worker is killed.
    """
    if not workers and not pinned:
        for position in positions:
            yield stream.at(position)
        return
    before = set(multiprocessing.active_children())
    with _starting_workers():
        loader = DataLoader(
            _Places(stream),
            batch_size=None,
            sampler=positions,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pinned,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=partial(_begin_worker, os.getpid()) if workers else None,
            multiprocessing_context=METHOD if workers else None,
            generator=torch.Generator(),  # torch draws a seed for its workers: not from the run's own numbers
        )
        found: Iterator[Loaded | RegardError] = iter(loader)
    processes = set(multiprocessing.active_children()) - before
    try:
        while True:
            _tell_of_the_dead(processes)
            try:
                loaded = next(found)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                traceback.clear_frames(error.__traceback__)  # they hold torch's iterator, and it its workers
                _tell_of_the_dead(processes, GRACE_SECONDS)
                raise
            if isinstance(loaded, RegardError):
                raise loaded
            roles, indices = loaded
            yield Batch(roles, indices.numpy())
    finally:
        del found  # the last reference, unless a defect's traceback holds another: torch ends its workers
        for process in processes:
            process.terminate()
            process.join(GRACE_SECONDS)
            process.kill()


def _tell_of_the_dead(processes: Iterable[Any], seconds: float = 0.0) -> None:
    """Raises: DataError when one of the workers is gone, or goes within `seconds`: its connections end before it."""
    gone = set(connection.wait([process.sentinel for process in processes], seconds))
    for process in processes:
        if process.sentinel in gone:
            process.join()
            code = process.exitcode
            how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with status {code}"
            raise DataError(
                f"a process that loads data ended {how}; run the same command to go on, with data.workers=0 where it"
                " happens again: memory, /dev/shm included, may be short"
            ) from None


class _Places(Dataset[Any]):
    """The stream as torch's loader wants it: position in, plain tensors out."""

    def __init__(self, stream: Positioned) -> None:
        self.stream = stream

    def __getitem__(self, position: Position) -> Loaded | RegardError:
        """Tensors alone go through shared memory, so that messages stay smaller than what a pipe takes at once.

        A mistake of the user's comes back as a value: torch would wrap it into a page of traceback.
        """
        try:
            batch = self.stream.at(position)
        except RegardError as error:
            return error
        return batch.roles, torch.from_numpy(batch.indices)


def _as_it_is(loaded: Any) -> Any:
    return loaded


@contextmanager
def _starting_workers() -> Iterator[None]:
    """Within the context processes begin that never hear `SIGNALS`, and torch hears nothing of how they end.

    Torch's handler would raise wherever this process happens to be, also in the middle of a step; whoever waits for a
    batch looks by himself.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with warnings.catch_warnings():
            # Warned of are more workers than cores, which are the user's choice, and a fork beside threads, which is
            # safe for what a worker does: it reads mapped files and fills arrays.
            warnings.simplefilter("ignore")
            yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin_worker(parent: int, number: int) -> None:
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Ends this process when its parent is gone, or asks for it; any other sender of a termination signal is ignored.

    Without it a worker would outlive a killed run by seconds, and hold its lock.
    """
    asked = False
    while os.getppid() == parent and not asked:
        if sys.platform == "linux":
            told = signal.sigtimedwait(SIGNALS, LOOK_SECONDS)
            asked = told is not None and told.si_signo == signal.SIGTERM and told.si_pid == parent
        else:
            time.sleep(LOOK_SECONDS)
            asked = signal.SIGTERM in signal.sigpending()
    os._exit(0)
