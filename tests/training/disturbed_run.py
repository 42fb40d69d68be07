"""One run in a process of its own, or in several, perhaps disturbed: killed, stopped, robbed of its disk or memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
import os
import resource
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tiny_run import CONFIG, models, save_model, tiny_corpus, tiny_trainer, tiny_validate
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream
from regard.errors import RegardError
from regard.tasks import model_directory
from regard.training import checkpoint_folder, disk, processes
from regard.training.objective import Loss
from regard.training.processes import World, opened

PHASES = ("elsewhere", "first part", "second part", "update", "validation", "checkpoint", "best", "model")


def run(order: dict[str, Any]) -> int:
    """Runs, or goes on with, the run in order["folder"]; returns the exit status. Further keys of the order:

    config: changed fields of the configuration. exit: [stage, n], the process ends there in the n-th write of a
    checkpoint; model_exit: [stage, n], of a model directory. signals: [place, n, [signals]], raised in the n-th call of
    the objective or the validation. poison: the n-th loss is NaN. limit: [n, bytes], from the n-th loss on no file may
    be larger. memory: [place, rows], of the most rows that the forward or the backward pass has memory for. breathe:
    seconds that a validation takes more. workers: processes that load data. flush: whether the disk is really waited
    for, as always outside tests; what a kill leaves does not depend on it. model: of `models`. disturbed: of several
    processes, the one that the disturbances are meant for. absent: one that is killed before they meet. patience:
    seconds that they wait for each other until then.
    """
    if "absent" in order and os.environ.get("RANK") == str(order["absent"]):
        os.kill(os.getpid(), signal.SIGKILL)
    if "patience" in order:
        processes.MEETING_PATIENCE = timedelta(seconds=order["patience"])
    if not order.get("flush"):
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        with opened() as world:
            if world.rank != order.get("disturbed", 0):
                for disturbance in ("exit", "model_exit", "signals", "poison", "limit", "memory"):
                    order.pop(disturbance, None)
            _run(order, world)
    except RegardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _run(order: dict[str, Any], world: World) -> None:
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    corpus = tiny_corpus(folder.parent / "corpus")
    config = dataclasses.replace(CONFIG, **order.get("config", {}))
    phase = _phase_file(folder)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    counts = {"objective": 0, "validate": 0}

    def counted(place: str) -> None:
        counts[place] += 1
        where, number, signals = order.get("signals", ["", 0, []])
        if (place, counts[place]) == (where, number):
            for one in signals:
                os.kill(os.getpid(), one)
        if place == "objective" and counts[place] == order.get("limit", [0, 0])[0]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"][1], resource.RLIM_INFINITY))

    def objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        phase[0] = 1 + (trainer.stream.calls % 2 if isinstance(trainer.stream, NotingStream) else 0)
        counted("objective")
        loss = made.objective(model, batch, dtype)
        loss = _within(order.get("memory"), len(batch), loss)
        if counts["objective"] < order.get("limit", [1 << 40])[0]:
            # The loss shows weights and dropout: one that is seen again after a kill must be the very same number.
            seen = hashlib.sha256(batch.indices.tobytes()).hexdigest()
            os.write(log, f"{trainer.step} {seen} {float(loss.objective.detach()).hex()}\n".encode())
        if counts["objective"] == order.get("poison"):
            loss = loss._replace(objective=loss.objective * torch.nan)
        phase[0] = 3 if counts["objective"] % 2 == 0 else 2
        return loss

    made = models()[order.get("model", "tiny")]()
    inner = tiny_validate(corpus, made.objective)

    def validate(model: nn.Module) -> dict[str, float]:
        phase[0] = 4
        counted("validate")
        time.sleep(order.get("breathe", 0.0))
        scores = inner(model)
        phase[0] = 0
        return scores

    def keep_best(model: nn.Module) -> None:
        phase[0] = 7
        save_model(model, folder)
        phase[0] = 0

    trainer = tiny_trainer(
        corpus,
        folder,
        config,
        model=made.model,
        objective=objective,
        validate=validate,
        keep_best=keep_best,
        real_queries=made.real_queries,
        watcher=Teller(),
        workers=order.get("workers", 0),
        world=world,
    )
    trainer.stream = NotingStream(trainer.stream)  # type: ignore[assignment]
    _watch_writes(phase, order)
    summary = trainer.run()
    if world.is_first:
        disk.write_atomically(folder / "result.json", lambda file: file.write(json.dumps(summary.__dict__).encode()))
        save_model(trainer.model, folder)


def _within(memory: list[Any] | None, rows: int, loss: Loss) -> Loss:
    """The loss, whose forward or backward pass asks for more memory than there is where it has too many rows."""
    if memory is None or rows <= memory[1]:
        return loss
    if memory[0] == "forward":
        torch.empty(1 << 55, dtype=torch.uint8)
    return loss._replace(objective=_Greedy.apply(loss.objective))


class _Greedy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.empty(1 << 55, dtype=torch.uint8)


class NotingStream:
    """A stream that counts how many batches it gave."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream
        self.calls = 0

    def at(self, position: Any) -> Batch:
        self.calls += 1
        return self.stream.at(position)

    def after(self, position: Any) -> Any:
        return self.stream.after(position)


class Teller:
    """Prints what is said."""

    def started(self, step: int, max_steps: int) -> None:
        print(f"started after {step}", flush=True)

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None: ...

    def said(self, message: str) -> None:
        print(message, flush=True)


def _phase_file(folder: Path) -> mmap.mmap:
    """One byte that says where the run is; a shared page survives a kill."""
    path = folder / "phase"
    with path.open("a+b") as file:
        file.truncate(1)
        phase = mmap.mmap(file.fileno(), 1)
    phase[0] = 0
    return phase


# Where a write of a checkpoint can end: nothing yet, a cut file, tensors without their values, all but the hashes, all
# under another name, the former one (of `best`) aside, done. A deletion of an old one: under another name.
STAGES = ("before", "half-written", "tensors", "state", "before rename", "old aside", "after rename", "while deleting")


def _watch_writes(phase: mmap.mmap, order: dict[str, Any]) -> None:
    """Notes when a checkpoint is being written, and ends the process within a write where the order says so."""
    writes = 0
    write = checkpoint_folder.write
    stage, number = order.get("exit", ["", 0])

    def noted(path: Path, *values: Any, **named: Any) -> None:
        nonlocal writes
        writes += 1
        phase[0] = 6 if path.name == "best" else 5
        if writes == number:
            _end_in_write(stage)
        write(path, *values, **named)
        phase[0] = 0

    checkpoint_folder.write = noted  # type: ignore[assignment]
    if "model_exit" in order:
        _end_in_model_write(*order["model_exit"])


def _end_in_write(stage: str) -> None:
    """Ends the process at a stage of the checkpoint that is written next."""
    rename = os.rename

    def end(*values: Any) -> Any:
        os._exit(9)

    def cut(folder: Path, world: World) -> Any:
        [tensors] = folder.glob(checkpoint_folder.PARTS)
        os.truncate(tensors, tensors.stat().st_size // 2)
        os._exit(9)

    def write_text(path: Path, text: str) -> None:
        if path.name == checkpoint_folder.CHECKSUMS:
            os._exit(9)
        path.write_text(text)

    def renamed(old: Any, new: Any) -> None:
        rename(old, new)
        aside = {disk.REPLACED: "old aside", disk.DELETED: "while deleting"}.get(Path(new).suffix)
        if stage == ("after rename" if Path(old).suffix == disk.UNFINISHED else aside):
            os._exit(9)

    match stage:
        case "before":
            os._exit(9)
        case "half-written":
            checkpoint_folder._hashes = cut
        case "tensors":
            checkpoint_folder._hashes = end
        case "state":
            checkpoint_folder._write_text = write_text
        case "before rename":
            checkpoint_folder.replace_folder = end
        case _:
            os.rename = renamed  # type: ignore[assignment]


MODEL_STAGES = ("weights", "config", "old moved", "new moved", "old deleted")


def _end_in_model_write(stage: str, number: int) -> None:
    """Ends the process in the `number`-th write of a model directory, after the given stage."""
    writes, renames = 0, 0
    write, write_weights, write_file = (
        model_directory.write,
        model_directory._write_weights,
        model_directory._write_file,
    )
    rename, rmtree = os.rename, model_directory.shutil.rmtree

    def reached(name: str) -> None:
        if writes == number and name == stage:
            os._exit(9)

    def counted(*values: Any, **options: Any) -> None:
        nonlocal writes, renames
        writes, renames = writes + 1, 0
        write(*values, **options)

    def weights(*values: Any) -> None:
        write_weights(*values)
        reached("weights")

    def file(path: Path, content: bytes) -> None:
        write_file(path, content)
        if path.name == model_directory.CONFIG:
            reached("config")

    def renamed(old: Any, new: Any) -> None:
        nonlocal renames
        rename(old, new)
        renames += 1
        reached("old moved" if str(new).endswith(".replaced") else "new moved")

    def deleted(path: Any, **options: Any) -> None:
        rmtree(path, **options)
        if renames == 2:
            reached("old deleted")

    model_directory.write = counted  # type: ignore[assignment]
    model_directory._write_weights, model_directory._write_file = weights, file
    os.rename, model_directory.shutil.rmtree = renamed, deleted  # type: ignore[assignment]
