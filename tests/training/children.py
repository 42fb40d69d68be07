"""Disturbed runs in processes forked from one server that has imported torch already: fifty kills take seconds."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from disturbed_run import run
from tiny_run import CONFIG, tiny_trainer

from regard.data.corpus import Corpus


class Children:
    """Runs orders in processes forked from one server; at most one run at a time, of one or more processes."""

    def __init__(self, corpus: Path) -> None:
        """corpus: the folder of a prepared corpus, for the server to try itself on."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", __file__, str(corpus)]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

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
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait(20)

    def _ask(self, order: dict[str, Any]) -> None:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        answer = self.server.stdout.readline()
        assert answer, "the server ended"
        return answer


def said_by(folder: Path, rank: int = 0) -> str:
    """What a process of the last run in `folder` has said."""
    return (folder / ("said.txt" if rank == 0 else f"said-{rank}.txt")).read_text()


def serve(corpus: str) -> None:
    """Reads an order, answers with the process ids; reads a line, answers with the wait statuses."""
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
        print([os.waitpid(child, 0)[1] for child in children], flush=True)


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
