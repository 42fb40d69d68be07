"""Batches loaded ahead: the same ones in the same order, and workers that end when they should and not before."""

from __future__ import annotations

import fcntl
import itertools
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.data.batches import Batch, BatchStream, Position, Sequences, TokenBudget
from regard.data.corpus import Corpus
from regard.data.loading import AHEAD, batches_from
from regard.errors import DataError

CorpusOf = Callable[..., Corpus]
PATIENCE_SECONDS = 20.0  # on a busy machine; an idle one needs a fraction of a second


class Made:
    """A stream without a corpus: batch `index` holds its own number. At `broken` it raises."""

    def __init__(self, broken: int = -1, error: Exception | None = None) -> None:
        self.broken = broken
        self.error = error

    def at(self, position: Position) -> Batch:
        if position.index == self.broken:
            assert self.error is not None
            raise self.error
        ids = torch.full((3, 5), position.index)
        return Batch({"target": Sequences(ids, torch.tensor([5, 4, 2]))}, np.arange(position.index, position.index + 3))


def places(count: int) -> list[Position]:
    return [Position(0, index) for index in range(count)]


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be asked does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def _no_worker_left() -> Iterator[None]:
    before = children()
    yield
    assert wait_until(lambda: children() <= before, PATIENCE_SECONDS)


# -- what comes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_batches_in_the_same_order(corpus_of: CorpusOf, workers: int) -> None:
    lengths = [3 + n % 13 for n in range(101)]
    corpus = corpus_of(source=lengths, target=lengths[::-1])
    stream = BatchStream(corpus, TokenBudget(60), seed=1)
    positions = [Position(1, 5)]
    for _ in range(40):
        positions.append(stream.after(positions[-1]))
    assert positions[-1].epoch > 1, "the walk must cross an epoch"
    loaded = list(batches_from(stream, positions, workers))
    assert len(loaded) == len(positions)
    for position, found in zip(positions, loaded, strict=True):
        expected = stream.at(position)
        assert np.array_equal(found.indices, expected.indices)
        assert found.indices.dtype == expected.indices.dtype
        assert list(found.roles) == list(expected.roles)
        for role in expected.roles:
            assert isinstance(found[role], Sequences)
            assert torch.equal(found[role].values, expected[role].values)
            assert torch.equal(found[role].lengths, expected[role].lengths)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_positions_are_taken_a_little_ahead_and_may_have_no_end(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[Position]:
        nonlocal taken
        for taken in itertools.count(1):
            yield Position(0, taken)

    batches = batches_from(Made(), endless(), workers)
    assert taken == 0, "nothing begins before the first batch is asked for"
    for asked in range(1, 20):
        assert int(next(batches).target.values[0, 0]) == asked
        assert taken == asked + workers * AHEAD
    batches.close()


def test_random_states_and_signal_handlers_are_left_alone() -> None:
    def states() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        numbers = np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, set())
        return torch.get_rng_state().tolist(), random.getstate(), numbers, handlers, blocked

    before = states()
    batches = batches_from(Made(), places(30), 2)
    next(batches)
    assert states() == before
    batches.close()
    assert states() == before


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_arrives_as_it_is_after_the_batches_before_it(workers: int) -> None:
    batches = batches_from(Made(7, DataError("train.de:13: undecodable")), places(30), workers)
    assert [int(next(batches).target.values[0, 0]) for _ in range(7)] == list(range(7))
    with pytest.raises(DataError) as found:
        next(batches)
    assert str(found.value) == "train.de:13: undecodable"
    assert not children(), "the workers have ended while the error is still looked at"


def test_a_defect_keeps_the_workers_traceback() -> None:
    batches = batches_from(Made(1, ZeroDivisionError("a defect")), places(30), 2)
    with pytest.raises(ZeroDivisionError, match=r"(?s)Traceback.*in at\b.*a defect"):
        list(batches)
    assert not children()


def test_a_killed_worker_is_told_in_one_line() -> None:
    batches = batches_from(Made(), places(10_000), 2)
    next(batches)
    killed = min(children())
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(DataError) as found:
        for _ in batches:
            pass
    told = str(found.value)
    assert told.startswith("a process that loads data ended by signal 9 (Killed); run the same command to go on")
    assert "data.workers=0" in told
    assert "\n" not in told
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert not children(), "the other worker has ended, too"


# -- when workers end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "dropped", "exhausted"])
def test_workers_end_with_the_iterator(how: str) -> None:
    batches = batches_from(Made(), places(5), 3)
    next(batches)
    assert len(children()) == 3
    if how == "closed":
        batches.close()
    elif how == "dropped":
        del batches
    else:
        assert len(list(batches)) == 4
    assert not children()


def test_an_iterator_that_is_never_asked_starts_nothing() -> None:
    batches = batches_from(Made(), places(5), 3)
    assert not children()
    batches.close()


def test_signals_that_are_meant_for_the_run_do_not_end_workers() -> None:
    """A scheduler sends its termination signal to every process of a job; the run then still needs its batches."""
    batches = batches_from(Made(), places(400), 2)
    next(batches)
    for pid in children():
        # From a process that is not the parent, as a scheduler does.
        subprocess.run(["/bin/sh", "-c", f"kill -TERM {pid}; kill -INT {pid}"], check=True, timeout=60)
    time.sleep(0.5)
    assert len(children()) == 2
    assert len(list(batches)) == 399


PROGRAM = """
import fcntl, multiprocessing, sys, time
import numpy as np, torch
from regard.data.batches import Batch, Position, Sequences
from regard.data.loading import batches_from

class Made:
    def at(self, position):
        ids = torch.zeros(3, 5, dtype=torch.int64)
        return Batch({"target": Sequences(ids, torch.tensor([5, 4, 2]))}, np.arange(3))

with open(sys.argv[1], "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        for number, _ in enumerate(batches_from(Made(), (Position() for _ in range(10**9)), 2)):
            if number == 0:
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_of_a_process_that_is_ended_from_outside(tmp_path: Path, number: signal.Signals) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(lock)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(is_alive, workers))
    if number == signal.SIGKILL:
        os.kill(process.pid, number)  # the process alone, as the kernel does when memory is short
    else:
        os.killpg(process.pid, number)  # Ctrl-C reaches all processes at once
    assert wait_until(lambda: not any(map(is_alive, workers)), PATIENCE_SECONDS)
    out, err = process.communicate(timeout=20)
    assert err == ""
    assert out == ("" if number == signal.SIGKILL else "interrupted\n")
    with lock.open("w") as file:  # nobody holds what the ended process held
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- what travels ------------------------------------------------------------------------------------------------------


def test_a_corpus_travels_as_its_folder(corpus_of: CorpusOf) -> None:
    lengths = [99] * 501
    corpus = corpus_of(source=lengths, target=lengths)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    found = pickle.loads(pickled)
    assert found.sha256 == corpus.sha256
    assert np.array_equal(found["target", 500], corpus["target", 500])
