"""Runs of several processes: the same as one process makes, whoever is stopped, killed or out of memory on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from children import Children, said_by
from compared_runs import differences, read_checkpoint, weights_in

from regard.tasks import model_directory

CONFIG: dict[str, Any] = {"accumulate": 4, "max_steps": 30, "attention_every": None}
LOST = (
    "another process of this run has ended or cannot be reached (",
    "); its own message, if any, says why; run the same command to go on from the last checkpoint",
)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path, steps: int, *, of_norm: float = 1e-5) -> None:
    """Every number of the metrics within 1e-5 of the other run's, gradients' norms within `of_norm`.

    steps: how many losses there must be.
    """
    lines = metrics(one), metrics(other)
    assert [line.keys() for line in lines[0]] == [line.keys() for line in lines[1]]
    assert sum("loss" in line for line in lines[0]) == steps
    for mine, theirs in zip(*lines, strict=True):
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=of_norm if name == "gradient_norm" else 1e-5), (mine, name)


def finish(children: Children, processes: int, folder: Path, **order: Any) -> Path:
    outcomes = children.run_many(processes, folder, **order)
    assert [status for status, _ in outcomes] == [0] * processes, outcomes
    return folder


@pytest.fixture(scope="module")
def alone(children: Children, runs: Path) -> Path:
    """What one process comes to in 100 steps, dropout, moving average and accumulation on."""
    return finish(children, 1, runs / "alone", config={**CONFIG, "max_steps": 100, "log_every": 1})


@pytest.mark.parametrize(("processes", "parallel"), [(2, "replicate"), (4, "replicate"), (2, "shard")])
def test_the_curve_is_that_of_one_process(
    children: Children, runs: Path, alone: Path, processes: int, parallel: str
) -> None:
    folder = runs / f"{processes} {parallel}"
    config = {**CONFIG, "max_steps": 100, "log_every": 1, "parallel": parallel}
    finish(children, processes, folder, config=config)
    assert_alike(alone, folder, steps=100)
    assert said_by(folder, 1) == "", "the first process speaks for all"
    parts = sorted(path.name for path in (folder / "checkpoints" / "step-000000100").glob("*.distcp"))
    assert parts == [f"__{rank}_0.distcp" for rank in range(processes)], "each writes its part"
    mine, theirs = (read_checkpoint(one / "checkpoints" / "step-000000100") for one in (alone, folder))
    for kind in ("weights", "average", "optimizer"):
        for name, tensor in weights_in(mine, kind).items():
            torch.testing.assert_close(weights_in(theirs, kind)[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    ["transformer", "recurrent", *(pytest.param(name, marks=pytest.mark.long) for name in ("pyramid", "conformer"))],
)
def test_real_models_and_looks_at_their_attention(children: Children, runs: Path, model: str) -> None:
    """Tied weights, memories projected outside of their layer, recurrences; looks at the batches of all processes."""
    order: dict[str, Any] = {"model": model, "config": {**CONFIG, "max_steps": 7, "log_every": 1, "attention_every": 3}}
    alone = finish(children, 1, runs / f"{model} alone", **order)
    looks = [line for line in metrics(alone) if "attention" in line]
    assert [line["step"] for line in looks] == [1, 3, 6]
    for parallel in ("replicate", "shard"):
        folder = runs / f"{model} {parallel}"
        order["config"]["parallel"] = parallel
        finish(children, 2, folder, **order)
        seen = [line for line in metrics(folder) if "attention" in line]
        for mine, theirs in zip(looks, seen, strict=True):
            assert mine["attention"].keys() == theirs["attention"].keys()
            for layer, numbers in mine["attention"].items():
                for name, values in numbers.items():
                    # A bias on keys changes no weight, so that Adam blows up the noise that is its gradient: scores,
                    # though nothing that follows from them, drift apart.
                    if None not in values and (mine["step"] == 1 or name != "max_logit"):
                        assert theirs["attention"][layer][name] == pytest.approx(values, rel=1e-4), (layer, name)
        plain = [[line for line in metrics(one) if "attention" not in line] for one in (alone, folder)]
        for mine, theirs in zip(*plain, strict=True):
            assert theirs == pytest.approx(mine, rel=1e-5)
        sizes = [
            {name: one.shape for name, one in model_directory.read(run / "model").weights.items()}
            for run in (alone, folder)
        ]
        assert sizes[0] == sizes[1], "a single file holds all of the model"


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
@pytest.mark.parametrize(("accumulate", "processes"), [(1, 6), (2, 4)])
def test_more_processes_than_batches(
    children: Children, runs: Path, accumulate: int, processes: int, parallel: str
) -> None:
    """Several to a batch, each with its share of the rows: the recipe of one process, but for dropout. Looks, too.

    Some batches have 4 rows, so that of six processes two have none.
    """
    config = {**CONFIG, "accumulate": accumulate, "max_steps": 12, "log_every": 1, "attention_every": 4}
    order: dict[str, Any] = {"model": "without dropout", "config": config}
    alone = runs / f"{accumulate} alone"
    if not alone.exists():
        finish(children, 1, alone, **order)
    order["config"] = {**config, "parallel": parallel}
    folder = finish(children, processes, runs / f"{accumulate} among {processes} {parallel}", **order)
    plain = [[line for line in metrics(one) if "attention" not in line] for one in (alone, folder)]
    assert len(plain[0]) == len(plain[1]) >= 12
    for mine, theirs in zip(*plain, strict=True):
        share = mine.pop("padding_share", 0.0), theirs.pop("padding_share", 0.0)  # shares are padded for themselves
        assert share[1] <= share[0] + 1e-9
        assert theirs == pytest.approx(mine, rel=1e-5)
    looks = [[line for line in metrics(one) if "attention" in line] for one in (alone, folder)]
    assert [line["step"] for line in looks[1]] == [1, 4, 8, 12]
    for layer, numbers in looks[0][0]["attention"].items():
        assert looks[1][0]["attention"][layer]["entropy"] == pytest.approx(numbers["entropy"], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["replicate", "shard"])
@pytest.mark.parametrize("model", ["transformer", "recurrent"])
def test_the_curves_of_real_models_over_a_hundred_steps(
    children: Children, runs: Path, model: str, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("children.LIMIT", 1200.0)  # seconds; a hundred steps of four processes
    order: dict[str, Any] = {"model": model, "config": {**CONFIG, "max_steps": 100, "log_every": 1}}
    alone = runs / f"hundred {model}"
    if not alone.exists():
        finish(children, 1, alone, **order)
    order["config"]["parallel"] = parallel
    for processes in (2, 4):
        folder = finish(children, processes, runs / f"hundred {model} {processes} {parallel}", **order)
        # A recurrence takes rounding errors further in its gradient, 1.02e-5 of the norm, than in its loss, 1.1e-6.
        assert_alike(alone, folder, 100, of_norm=1e-4 if model == "recurrent" else 1e-5)


# -- going on ----------------------------------------------------------------------------------------------------------


def test_it_goes_on_with_any_number_of_processes(children: Children, runs: Path) -> None:
    """Stopped three times: begun by two, gone on with by one, by four with shards, and ended by two with shards."""
    config = {**CONFIG, "log_every": 1}
    whole = finish(children, 1, runs / "whole", config=config)
    folder = runs / "changing"
    shard = {**config, "parallel": "shard"}
    changes = "this run began with "
    for processes, at, choice, told in (
        (2, 10, config, ""),
        (1, 24, config, "processes 2, now 1"),
        (4, 6, shard, "processes 1, now 4"),
        (2, None, shard, "processes 4, now 2"),
    ):
        signals = None if at is None else ["objective", at, [signal.SIGTERM]]
        outcomes = children.run_many(processes, folder, config=choice, **({"signals": signals} if signals else {}))
        assert [status for status, _ in outcomes] == [int(at is not None)] * processes, outcomes
        assert (changes + told in said_by(folder)) == bool(told)
    assert_alike(whole, folder, steps=30)


def test_resumed_with_as_many_it_is_the_same_to_the_last_bit(children: Children, runs: Path) -> None:
    whole = finish(children, 2, runs / "two", config=CONFIG)
    folder = runs / "two again"
    for call, who in ((9, 1), (13, 0)):  # whichever process hears the signal, all stop after the same step
        order = {"signals": ["objective", call, [signal.SIGTERM]], "disturbed": who}
        outcomes = children.run_many(2, folder, config=CONFIG, **order)
        assert [status for status, _ in outcomes] == [1, 1]
        assert all(said.startswith("Interrupted: stopped after step ") for _, said in outcomes)
        assert (folder / "checkpoints" / outcomes[0][1].rpartition("/")[2]).is_dir()
    finish(children, 2, folder, config=CONFIG)
    assert differences(whole, folder) == []


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_run_which_then_goes_on(
    children: Children, runs: Path, killed: int, parallel: str
) -> None:
    config = {**CONFIG, "parallel": parallel}
    whole = runs / f"two {parallel}"
    if not whole.exists():
        finish(children, 2, whole, config=config)
    folder = runs / f"killed {killed} {parallel}"
    order = {"signals": ["objective", 13, [signal.SIGKILL]], "disturbed": killed}
    outcomes = children.run_many(2, folder, config=config, **order)
    assert outcomes[killed][0] == -signal.SIGKILL
    status, said = outcomes[1 - killed]
    place = "" if killed else "process 2 of 2: "
    kind = "TrainingError" if killed else "OfOneProcess"
    assert status == 1, said
    assert said.startswith(f"{kind}: {place}{LOST[0]}")
    assert said.endswith(LOST[1])
    assert "Traceback" not in said_by(folder, 1 - killed)
    finish(children, 2, folder, config=config)
    assert differences(whole, folder) == []


def test_killed_at_random_instants(children: Children, runs: Path) -> None:
    """One of two processes, or both, also in a checkpoint that they write together."""
    whole = finish(children, 2, runs / "undisturbed two", config=CONFIG)
    folder = runs / "random two"
    chance = torch.Generator()
    chance.seed()
    kills = 0
    while kills < 4 or not (folder / "result.json").exists():
        # One that is killed before they have met is waited for in vain.
        processes = children.start_many(2, folder, config=CONFIG, breathe=0.02, flush=True, patience=10)
        if kills < 4:
            time.sleep(float(torch.rand((), generator=chance)) * 1.5)
            for process in processes[: 1 + kills % 2]:
                os.kill(process, signal.SIGKILL)
        statuses = children.wait_for_all()
        assert set(statuses) <= {0, 1, -signal.SIGKILL}, said_by(folder)
        kills += -signal.SIGKILL in statuses
    assert differences(whole, folder) == []


@pytest.mark.parametrize("absent", [0, 1])
def test_a_process_that_is_killed_before_they_have_met(children: Children, runs: Path, absent: int) -> None:
    """Nobody can be told of its end; the others wait for some minutes, here for two seconds, and say who is missing."""
    folder = runs / f"absent {absent}"
    outcomes = children.run_many(3, folder, config={**CONFIG, "accumulate": 6}, absent=absent, patience=2)
    assert outcomes[absent][0] == -signal.SIGKILL
    for rank in {0, 1, 2} - {absent}:
        status, said = outcomes[rank]
        assert status == 1
        if rank == 0:
            assert said.startswith("TrainingError: process 2 of 3 did not come within 0.0333 minutes; its own message")
        else:  # they meet at the first one: where it has never been, or has ended before, that is what is said
            waited = "the other processes did not all come within|another process of this run has ended or cannot be"
            assert re.match(rf"OfOneProcess: process {rank + 1} of 3: ({waited})", said), said
        assert said.endswith("; run the same command to go on from the last checkpoint")
        assert "Traceback" not in said_by(folder, rank)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_memory_that_one_process_lacks(children: Children, runs: Path) -> None:
    """Its batches, and the other's, are taken in halves from then on; the curve stays the same."""
    order = {"config": {**CONFIG, "log_every": 1, "max_steps": 13}, "model": "without dropout"}
    plenty = finish(children, 2, runs / "plenty", **order)
    folder = finish(children, 2, runs / "scarce", **order, memory=["forward", 6], disturbed=1)
    assert_alike(plenty, folder, steps=13)
    [line] = [line for line in said_by(folder).splitlines() if "memory" in line]
    assert line.endswith(
        ": out of memory: from here on every batch is taken in 2 pieces; a run with a lower data.batch.batch_tokens"
        " needs none"
    )
    assert read_checkpoint(folder / "checkpoints" / "step-000000013")["state"]["pieces"] == 2


def test_memory_that_runs_out_amid_an_exchange(children: Children, runs: Path) -> None:
    """The run cannot go on by itself, but the same command does, in pieces that fit."""
    order = {"config": {**CONFIG, "accumulate": 2, "log_every": 1, "max_steps": 6}, "model": "without dropout"}
    plenty = finish(children, 2, runs / "plenty amid", **order)
    for parallel, place in (("replicate", "backward"), ("shard", "forward")):
        folder = runs / f"amid {parallel}"
        order["config"] = {**order["config"], "parallel": parallel}
        short = {**order, "memory": [place, 6], "disturbed": 1}
        outcomes = children.run_many(2, folder, **short)
        assert [status for status, _ in outcomes] == [1, 1]
        assert outcomes[0][1].startswith(f"TrainingError: {LOST[0]}")
        said = outcomes[1][1]
        assert said.startswith("OfOneProcess: process 2 of 2: step ")
        what = "out of memory amid an exchange with the other processes, which cannot begin anew"
        same = "run the same command to go on with every batch in 2 pieces"
        assert f": {what}; {same}, or start another run with a lower data.batch.batch_tokens (" in said
        assert "you tried to allocate" in said
        assert "Traceback" not in said_by(folder, 1)
        assert_alike(plenty, finish(children, 2, folder, **short), steps=6)


def test_what_the_first_process_finds_ends_all(children: Children, runs: Path) -> None:
    outcomes = children.run_many(2, runs / "poison two", config=CONFIG, poison=5, disturbed=1)
    what = "step 3: the loss or its gradient is not finite; no checkpoint was written yet; start another run with a"
    assert outcomes[0][1].startswith(f"TrainingError: {what}")
    assert outcomes[1][1].startswith(f"ToldByFirst: {what}")
    folder = runs / "limit two"
    outcomes = children.run_many(2, folder, config=CONFIG, limit=[5, 9000], disturbed=1)
    what = f"{folder}/checkpoints/step-000000004: not written, file too large; there is no earlier checkpoint"
    assert outcomes[0][1].startswith(f"TrainingError: {what}")
    assert outcomes[1][1].startswith(f"ToldByFirst: {what}")
    assert list((folder / "checkpoints").iterdir()) == []


def test_parts_that_cannot_be_shared_out(children: Children, runs: Path) -> None:
    outcomes = children.run_many(2, runs / "odd", config={"accumulate": 3})
    what = (
        "training.accumulate is 3, but 2 processes share the batches of an update; expected a multiple of 2 or a"
        " divisor of it, e.g. training.accumulate=4 with data.batch.batch_tokens made 1.33 times smaller, which leaves"
        " an update as large as it is"
    )
    assert outcomes == [(1, f"ConfigError: {what}"), (1, f"ToldByFirst: {what}")]
