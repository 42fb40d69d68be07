"""`torchrun -m regard train`: several processes, one of them killed, started again by torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Command, Trained
from tiny_language import write_recipe


def workers_of(launcher: subprocess.Popen[bytes]) -> dict[str, int]:
    """The process of each rank."""
    found = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update(
            {entry.decode().removeprefix("RANK="): int(child) for entry in environment if entry[:5] == b"RANK="}
        )
    return found


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to find processes in")
def test_a_killed_worker_is_started_again_and_the_run_ends_as_one_process_ends_it(
    trained: Trained, command: Command, tmp_path: Path
) -> None:
    changes = {"max_steps": 24, "accumulate": 2, "validate_every": 12, "checkpoint_every": 4, "log_every": 1}
    recipe = write_recipe(
        tmp_path / "r.yaml", trained.data, **{f"training__{key}": value for key, value in changes.items()}
    )
    run = tmp_path / "run"
    # Behind a bare -- torchrun takes no --run for one of its own options.
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "regard", "--"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "train", str(recipe), "--run", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while launcher.poll() is None and not (run / "checkpoints" / "step-000000004").is_dir():
        time.sleep(0.05)
    os.kill(workers_of(launcher)["1"], signal.SIGKILL)
    out, err = (text.decode() for text in launcher.communicate(timeout=240))
    assert launcher.returncode == 0, err
    [line] = [line for line in err.splitlines() if line.startswith("regard: error:")]
    assert "another process of this run has ended or cannot be reached" in line
    assert "Traceback" not in err
    assert out.count("model: ") == 1, "the first process alone prints what it came to"
    assert command("train", recipe, "--run", tmp_path / "alone").status == 0
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, tmp_path / "alone")
    ]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for mine, theirs in zip(*lines, strict=True):
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
