"""A run that is killed, stopped or robbed of its disk, and goes on, ends bit for bit as one that nobody disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from children import Children
from compared_runs import differences, read_checkpoint, unequal, weights_in, write_checkpoint
from disturbed_run import MODEL_STAGES, PHASES, STAGES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regard.tasks import model_directory


def test_comparison_finds_a_single_bit(undisturbed: Path, tmp_path: Path) -> None:
    def weight(folder: Path) -> None:
        path = folder / "checkpoints" / "step-000000028"
        content = read_checkpoint(path)
        content["optimizer/exp_avg/mix.weight"].view(torch.int32)[3, 5] ^= 1
        write_checkpoint(path, content)

    def best(folder: Path) -> None:
        path = folder / "checkpoints" / "best"
        content = read_checkpoint(path)
        content["state"]["score"] += 1e-12
        write_checkpoint(path, content)

    def metrics(folder: Path) -> None:
        path = folder / "metrics.jsonl"
        path.write_text(path.read_text().replace("7", "8", 1))

    def model(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")

    def loss(folder: Path) -> None:
        with (folder / "log.txt").open("a") as file:
            file.write("9 another batch\n")

    def fewer(folder: Path) -> None:
        shutil.rmtree(folder / "checkpoints" / "step-000000028")

    for number, change in enumerate((weight, best, metrics, model, loss, fewer)):
        changed = shutil.copytree(undisturbed, tmp_path / str(number))
        assert differences(undisturbed, changed) == []
        change(changed)
        assert len(differences(undisturbed, changed)) == 1, change.__name__
    zeros = torch.zeros(2)
    assert unequal({"a": [zeros, 1]}, {"a": [-zeros, 1]}) == [".a.0"]
    assert unequal(1, 1.0) == [""]
    assert unequal([1], [1, 2]) == [" length"]
    assert unequal({"a": 1, "b": 2}, {"b": 2, "a": 1}) == [" keys"]


def test_killed_at_random_instants(children: Children, runs: Path, undisturbed: Path) -> None:
    phases = _killed(children, runs, undisturbed, "random", num_kills=20)
    assert len(phases) >= 3, f"kills landed in {phases} only"


@pytest.mark.long
def test_killed_at_fifty_random_instants(children: Children, runs: Path, undisturbed: Path) -> None:
    phases = _killed(children, runs, undisturbed, "fifty", num_kills=50)
    print(dict(phases))
    assert {"first part", "second part", "validation", "checkpoint"} <= set(phases), f"kills landed in {phases} only"


def _killed(children: Children, runs: Path, undisturbed: Path, name: str, *, num_kills: int) -> Counter[str]:
    """Kills runs until that has happened `num_kills` times, lets each end, compares; where the kills landed.

    They have data workers, the undisturbed run has none.
    """
    phases: Counter[str] = Counter()
    chance = random.Random()
    number = 0
    while phases.total() < num_kills:
        folder = runs / f"{name}{number}"
        number += 1
        finished = False
        while not finished:
            killing = phases.total() < num_kills
            child = children.start(folder, breathe=0.02, flush=True, workers=2)
            if killing:
                time.sleep(chance.uniform(0.0, 0.5))
                os.kill(child, signal.SIGKILL)
            status = children.wait()
            finished = status == 0
            assert status in (0, -signal.SIGKILL), (folder / "said.txt").read_text()
            if status == -signal.SIGKILL:
                landed = (folder / "phase").read_bytes() if (folder / "phase").exists() else b""
                phases[PHASES[landed[0] if landed else 0]] += 1
        assert differences(undisturbed, folder) == []
        assert _events(folder) == _events(undisturbed)
    return phases


def _events(folder: Path) -> dict[str, list[tuple[int, float | None]]]:
    """What TensorBoard shows of a run; of what depends on the clock, the steps alone."""
    shown = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    clocked = ("tokens_per_second",)
    tags = shown.Tags()["scalars"]
    return {tag: [(e.step, None if tag in clocked else e.value) for e in shown.Scalars(tag)] for tag in tags}


def test_tensorboard_has_every_step_once_after_a_resume(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "events"
    # Killed in the write of step 20: the events of 17 to 20 are there already and come a second time.
    children.run(folder, exit=["before", 7])
    assert [step for step, _ in _events(folder)["loss"]] == [3, 6, 9, 12, 15, 18]
    children.run(folder)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    assert _events(folder) == _events(undisturbed)
    assert [step for step, _ in _events(folder)["loss"]] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30]


@pytest.mark.parametrize(
    ("write", "name", "stages"),
    [
        (1, "step-000000004", STAGES[:5]),  # where there is nothing to replace or to delete
        (5, "best", STAGES[:-1]),  # where there is one already
        (13, "step-000000030", STAGES[-2:]),  # the last one: nothing is written after it
    ],
)
def test_killed_while_writing(
    children: Children, runs: Path, undisturbed: Path, write: int, name: str, stages: tuple[str, ...]
) -> None:
    for stage in stages:
        folder = runs / f"{stage}{write}"
        status, _ = children.run(folder, exit=[stage, write])
        assert status == 9
        left = {path.name for path in (folder / "checkpoints").glob("*.*")}
        expected = {
            "before": set(),
            "old aside": {f"{name}.unfinished", f"{name}.replaced"},
            "after rename": {f"{name}.replaced"} if name == "best" else set(),
            "while deleting": {"step-000000020.deleted"},
        }
        assert left == expected.get(stage, {f"{name}.unfinished"}), stage
        status, said = children.run(folder)
        assert status == 0, said
        assert differences(undisturbed, folder) == [], stage  # also: nothing is left that should not be there


@pytest.mark.parametrize("stage", MODEL_STAGES)
def test_killed_while_writing_the_model(children: Children, runs: Path, undisturbed: Path, stage: str) -> None:
    folder = runs / f"model {stage}"
    number = 3  # the validation of step 21
    status, _ = children.run(folder, model_exit=[stage, number])
    assert status == 9
    newest = read_checkpoint(folder / "checkpoints" / "best")
    assert newest["state"]["step"] == 21
    read = model_directory.read(folder / "model").weights  # whole at every stage: the old one or the new one
    is_new = not unequal(dict(sorted(read.items())), dict(sorted(weights_in(newest, "weights").items())))
    assert is_new == (stage in ("new moved", "old deleted"))
    status, said = children.run(folder)
    assert status == 0, said
    assert differences(undisturbed, folder) == []
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


VALIDATIONS = 5  # of steps 7, 14, 21, 28 and 30; the ways of finishing are validated after these


@pytest.mark.parametrize(
    ("number", "place", "call", "step", "stopped"),
    [
        (signal.SIGINT, "objective", 9, 5, True),  # first part of a step without any duty
        (signal.SIGTERM, "objective", 16, 8, False),  # a checkpoint is due: that one is enough
        (signal.SIGINT, "objective", 14, 7, True),  # a validation is due: it is left for later
        (signal.SIGTERM, "validate", 2, 14, True),
        (signal.SIGINT, "validate", 4, 28, True),  # a checkpoint is due after it
        (signal.SIGINT, "validate", VALIDATIONS + 2, 30, False),
    ],
)
def test_asked_to_stop(
    children: Children, runs: Path, undisturbed: Path, number: int, place: str, call: int, step: int, stopped: bool
) -> None:
    folder = runs / f"stop {number} {place} {call}"
    status, said = children.run(folder, signals=[place, call, [number]])
    assert status == 1
    kept = folder / "checkpoints" / f"{'stopped' if stopped else 'step'}-{step:09d}"
    assert said == f"Interrupted: stopped after step {step}; run the same command to go on from {kept}"
    assert kept.is_dir()
    status, said = children.run(folder)
    assert status == 0, said
    assert differences(undisturbed, folder) == []  # the stopped checkpoint is gone and took no part in the average


def test_a_second_interrupt_stops_at_once(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "second interrupt"
    status, said = children.run(folder, signals=["objective", 3, [signal.SIGINT, signal.SIGINT]])
    way = "run the same command to begin anew: there is no checkpoint yet"
    assert (status, said) == (1, f"Interrupted: stopped at once at step 2; {way}")
    status, said = children.run(folder, signals=["objective", 13, [signal.SIGTERM, signal.SIGINT]])
    newest = folder / "checkpoints" / "step-000000004"
    way = f"run the same command to go on from {newest}"
    assert (status, said) == (1, f"Interrupted: stopped at once at step 7; {way}")
    assert children.run(folder)[0] == 0
    assert differences(undisturbed, folder) == []


def test_stopped_again_and_again(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "again"
    for _ in range(8):
        status, _ = children.run(folder, signals=["objective", 5, [signal.SIGTERM]])
        assert status == 1
        assert len(list((folder / "checkpoints").glob("stopped-*"))) <= 1
    assert children.run(folder)[0] == 0
    assert differences(undisturbed, folder) == []


def test_a_loss_that_is_not_finite(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "poison"
    status, said = children.run(folder, poison=3)
    remedy = "start another run with a lower training.schedule.peak or with training.precision float32"
    what = "step 2: the loss or its gradient is not finite"
    assert (status, said) == (1, f"TrainingError: {what}; no checkpoint was written yet; {remedy}")
    status, said = children.run(folder, poison=20)
    usable = folder / "checkpoints" / "step-000000008"
    what = "step 10: the loss or its gradient is not finite"
    assert (status, said) == (1, f"TrainingError: {what}; the last usable checkpoint is {usable}; {remedy}")
    assert children.run(folder)[0] == 0
    assert differences(undisturbed, folder) == []


def test_a_disk_that_takes_no_more(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "limit"
    status, said = children.run(folder, limit=[19, 20_000])  # smaller than a checkpoint
    path, usable = (folder / "checkpoints" / f"step-0000000{step}" for step in ("12", "08"))
    why = f"not written, file too large; the last usable checkpoint is {usable}"
    assert (status, said) == (1, f"TrainingError: {path}: {why}; make it writable and run the same command again")
    assert not list((folder / "checkpoints").glob("*.unfinished"))
    status, said = children.run(folder, limit=[8, 600])  # smaller than the metrics so far
    assert status == 1
    assert f"{folder}/metrics.jsonl: not written, file too large; " in said
    assert "Traceback" not in (folder / "said.txt").read_text()
    assert children.run(folder)[0] == 0
    assert differences(undisturbed, folder) == []


def test_a_disk_that_takes_no_first_checkpoint(children: Children, runs: Path) -> None:
    folder = runs / "limit of the model"
    status, said = children.run(folder, config={"checkpoint_every": 9}, limit=[13, 9000])
    assert status == 1
    assert "best: not written, file too large; there is no earlier checkpoint; " in said


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "gone"])
def test_a_damaged_checkpoint_is_passed_over(children: Children, runs: Path, undisturbed: Path, how: str) -> None:
    folder = runs / how
    children.run(folder, exit=["before", 6])
    newest = folder / "checkpoints" / "step-000000012"
    tensors = newest / "__0_0.distcp"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 4
    if how == "gone":
        shutil.rmtree(newest)
        newest.mkdir()
    else:
        tensors.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "emptied": b""}[how])
    status, _ = children.run(folder)
    assert status == 0
    told = (folder / "said.txt").read_text().splitlines()
    assert told[:2] == [f"{newest}: damaged, passed over for the checkpoint before it", "started after 8"]
    assert differences(undisturbed, folder) == []


def test_without_any_whole_checkpoint_nothing_is_overwritten(children: Children, runs: Path) -> None:
    folder = runs / "all damaged"
    children.run(folder, exit=["before", 4])
    for path in (folder / "checkpoints").glob("step-*/*.distcp"):
        path.write_bytes(b"damaged")
    status, said = children.run(folder)
    what = f"{folder / 'checkpoints'}: no checkpoint can be read; delete this folder to start the run again"
    assert (status, said) == (1, f"TrainingError: {what}")


def test_metrics_that_somebody_shortened(children: Children, runs: Path, undisturbed: Path) -> None:
    folder = runs / "short metrics"
    children.run(folder, exit=["before", 6])
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:-9])
    assert children.run(folder)[0] == 0
    said = (folder / "said.txt").read_text().splitlines()[0]
    missing = len(b"".join(lines[1:5]))  # the lines of steps 6, 7, 9 and 12
    assert said == f"{path}: {missing} bytes of the steps up to 12 are gone; going on"
    expected = (undisturbed / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert path.read_bytes().splitlines(keepends=True) == [expected[0], *expected[5:]]


@pytest.mark.long
def test_another_process_altogether(children: Children, runs: Path, undisturbed: Path) -> None:
    """The forked children share what was imported; here each part of the run begins from nothing."""
    folder = runs / "fresh"
    program = f"from disturbed_run import run; raise SystemExit(run({{'folder': {str(folder)!r}, **%r}}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    for order, expected in (({"signals": ["objective", 30, [int(signal.SIGKILL)]]}, -signal.SIGKILL), ({}, 0)):
        command = [sys.executable, "-W", "error", "-c", program % order]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert finished.returncode == expected, finished.stderr
    assert differences(undisturbed, folder) == []
