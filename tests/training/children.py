"""Disturbed runs in processes forked from one server that has imported torch already: fifty kills take seconds."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from disturbed_run import run
from tiny_run import CONFIG, tiny_trainer

from regard.data.corpus import Corpus

# Seconds in which a run of some ten updates must have ended, on a machine however busy.
LIMIT = 120.0
LOOK_SECONDS = 0.02


class Children:
    """Runs orders in processes forked from one server; at most one run at a time, of one or more processes.

    A run that does not end in `LIMIT` is killed, and the server with it; the next order has a new one.
    """

    def __init__(self, corpus: Path) -> None:
        """corpus: the folder of a prepared corpus, for the server to try itself on."""
        self.command = [sys.executable, "-W", "error", __file__, str(corpus)]
        self.server: subprocess.Popen[bytes] | None = None

    def start(self, folder: Path, **order: Any) -> int:
        """Begins a run; returns its process id."""
        [child] = self.start_many(1, folder, **order)
        return child

    def start_many(self, processes: int, folder: Path, **order: Any) -> list[int]:
        """Begins a run of several processes; returns their ids, the first one's first."""
        self._ask({"folder": str(folder), "processes": processes, **order})
        children: list[int] = json.loads(self._answer())
        return children

    def wait(self) -> int:
        """Its exit status; minus the signal that killed it."""
        [status] = self.wait_for_all()
        return status

    def wait_for_all(self) -> list[int]:
        """The exit status of each process."""
        self._ask({})
        return [os.waitstatus_to_exitcode(status) for status in json.loads(self._answer())]

    def run(self, folder: Path, **order: Any) -> tuple[int, str]:
        """Its exit status, and the last line of what it said."""
        [outcome] = self.run_many(1, folder, **order)
        return outcome

    def run_many(self, processes: int, folder: Path, **order: Any) -> list[tuple[int, str]]:
        """The same of several processes."""
        self.start_many(processes, folder, **order)
        statuses = self.wait_for_all()
        said = [said_by(folder, rank).splitlines() for rank in range(processes)]
        return [(status, lines[-1] if lines else "") for status, lines in zip(statuses, said, strict=True)]

    def close(self) -> None:
        """Ends the server and all that it has started."""
        if self.server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.communicate()
            self.server = None

    def _ask(self, order: dict[str, Any]) -> None:
        if self.server is None:
            self.server = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
                start_new_session=True,  # its process group is all that there is to kill
            )
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order).encode() + b"\n")

    def _answer(self) -> str:
        assert self.server is not None
        assert self.server.stdout is not None
        answer, end = b"", time.monotonic() + LIMIT
        try:
            while not answer.endswith(b"\n"):
                ready, _, _ = select.select([self.server.stdout], [], [], max(end - time.monotonic(), 0.0))
                assert ready, f"a run did not end in {LIMIT:.0f} seconds"
                read = self.server.stdout.read(4096)
                assert read, "the server ended"
                answer += read
        except BaseException:  # also the end of a test's time
            self.close()
            raise
        return answer.decode()


def said_by(folder: Path, rank: int = 0) -> str:
    """What a process of the last run in `folder` has said."""
    return (folder / ("said.txt" if rank == 0 else f"said-{rank}.txt")).read_text()


def serve(corpus: str) -> None:
    """Reads an order, answers with the process ids; reads a line, answers with the wait statuses."""
    parent = os.getppid()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:  # a run before the forks, for what is imported at its first use
        tiny_trainer(Corpus.open(corpus), Path(scratch), dataclasses.replace(CONFIG, max_steps=2)).run()
    import_module("torch.distributed.tensor")  # what sharding imports
    assert len(os.listdir("/proc/self/task")) == 1, "a fork is safe while there is one thread"
    while line := sys.stdin.readline():
        order = json.loads(line)
        processes = order.pop("processes")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            children.append(os.fork())
            if children[-1] == 0:
                if processes > 1:
                    place = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "MASTER_PORT": port}
                    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
                os._exit(_in_child(order, rank))
        print(children, flush=True)
        sys.stdin.readline()  # until it is asked for, an ended child keeps its number, so that no kill meets another
        print(_statuses(children, parent), flush=True)


def _statuses(children: list[int], parent: int) -> list[int]:
    """How each has ended. Where the tests that ask are gone, nobody does, and all end."""
    found: dict[int, int] = {}
    while len(found) < len(children):
        for child in set(children) - set(found):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                found[child] = status
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    return [found[child] for child in children]


def _in_child(order: dict[str, Any], rank: int) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    name = "said.txt" if rank == 0 else f"said-{rank}.txt"
    said = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    faulthandler.enable()
    try:
        return run(order)
    except BaseException:
        traceback.print_exc()
        return 99


if __name__ == "__main__":
    serve(sys.argv[1])
