"""Two torchrun agents, as on two machines: a killed process is started again with all others, and the run ends well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from children import Children
from compared_runs import differences
from process_tree import descendants, kill

PROGRAM = Path(__file__).with_name("elastic_run.py")
CONFIG: dict[str, Any] = {"accumulate": 2, "max_steps": 12, "attention_every": None}
LIMIT_SECONDS = 200  # of all starts together, on a machine however busy


def agent(port: int, folder: Path, plan: list[Any]) -> subprocess.Popen[str]:
    """torchrun of one of two machines, with one process each."""
    launch = "--nnodes 2 --nproc-per-node 1 --max-restarts 2 --monitor-interval 0.1 --rdzv-backend c10d --rdzv-id tiny"
    words = [sys.executable, "-m", "torch.distributed.run", *launch.split(), "--rdzv-endpoint", f"127.0.0.1:{port}"]
    return subprocess.Popen(
        [*words, str(PROGRAM), str(folder), json.dumps(plan), json.dumps({"config": CONFIG})],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("plan", [["meeting"], pytest.param(["meeting", 7], marks=pytest.mark.long)])
def test_killed_while_they_meet_and_while_they_train(children: Children, runs: Path, plan: list[Any]) -> None:
    """After the first kill the agents count restarts differently, and the store still has what the dead one asked."""
    whole = runs / "not elastic"
    if not whole.exists():
        assert [status for status, _ in children.run_many(2, whole, config=CONFIG)] == [0, 0]
    folder = runs / f"elastic {len(plan)}"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents: list[subprocess.Popen[str]] = []
    try:
        agents += [agent(port, folder, plan) for _ in range(2)]
        said = [one.communicate(timeout=LIMIT_SECONDS)[0] for one in agents]
    finally:
        for one in agents:  # those that have ended have no process any more
            kill([one.pid, *descendants(one.pid)] if one.returncode is None else [])
            one.communicate()
    assert [one.returncode for one in agents] == [0, 0], "\n".join(said)
    counts = [(folder / f"restarts-{rank}").read_text(encoding="utf-8").split() for rank in (0, 1)]
    assert counts[1] == [str(number) for number in range(len(plan) + 1)], "\n".join(said)
    assert len(counts[0]) == len(plan) + 1
    assert counts[0][1] == "0", "else nothing was shown: the agents are to count differently"
    assert differences(whole, folder) == []
