"""A whole training run in miniature, and ways to disturb it.

`tiny_trainer` makes the run. `Children` runs it in processes of its own, forked from one server that has imported torch
already, so that fifty kills take seconds. `differences` says in what two run directories differ.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import hashlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, Position, TokenBudget
from regard.data.corpus import Corpus, prepare
from regard.data.records import Origin, Record
from regard.errors import RegardError
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.dropout import Dropout
from regard.layers.head import HeadConfig, OutputHead
from regard.tasks import model_directory
from regard.training import disk
from regard.training.averaging import weights_of
from regard.training.config import AdamWConfig, ScheduleConfig, TrainingConfig
from regard.training.loop import Trainer
from regard.training.objective import Loss, cross_entropy

PHASES = ("elsewhere", "first part", "second part", "update", "validation", "checkpoint", "best", "model")
CONFIG = TrainingConfig(
    max_steps=30,
    schedule=ScheduleConfig(peak=0.01, warmup_steps=5),
    optimizer=AdamWConfig(weight_decay=0.01),
    accumulate=2,
    precision="float32",
    ema_decay=0.9,
    validate_every=7,
    checkpoint_every=4,
    keep_checkpoints=3,
    final=("best", "last", "average"),
    log_every=3,
)


class TinyModel(nn.Module):
    """Predicts a target id from the target id before it and the mean of the source, with dropout."""

    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.tokens = nn.Embedding(260, 8)
        self.mix = nn.Linear(8, 8)
        self.dropout = Dropout(dropout)
        self.head = OutputHead(self.tokens.weight, HeadConfig(bias=True))

    def forward(self, source: Tensor, target_inputs: Tensor) -> Tensor:
        hidden = self.tokens(target_inputs) + self.tokens(source).mean(1, keepdim=True)
        return self.dropout(torch.tanh(self.mix(self.dropout(hidden))))


def tiny_model(dropout: float = 0.25) -> TinyModel:
    torch.manual_seed(7)
    return TinyModel(dropout)


def tiny_corpus(folder: Path, num_records: int = 61) -> Corpus:
    """Sentences of 4 to 16 ids; every byte is an id."""
    if folder.is_dir():
        return Corpus.open(folder)
    tokenizer = Tokenizer.train(["a"], TokenizerConfig("bpe", 260))
    texts = [("abcdefghijkl"[: 2 + n * 7 % 11], "mnopqrstuvwxyz"[: 2 + n * 5 % 13]) for n in range(num_records)]
    records = (Record({"source": s, "target": t}, Origin("made", n)) for n, (s, t) in enumerate(texts, start=1))
    return prepare(records, {"source": tokenizer, "target": tokenizer}, folder)


def tiny_objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
    assert isinstance(model, TinyModel)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model(batch.source.ids, batch.target_inputs)
    real = batch.target_outputs != Tokenizer.PAD
    hidden = hidden.to(model.tokens.weight.dtype)[real]
    return cross_entropy(hidden, model.head, batch.target_outputs[real], smoothing=0.1)


def tiny_validate(corpus: Corpus) -> Callable[[nn.Module], dict[str, float]]:
    """Mean log-likelihood; also draws random numbers, which must not reach the training."""

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)
        stream = BatchStream(corpus, TokenBudget(90), seed=1)
        batches = [stream.at(Position(0, index)) for index in range(stream.num_batches(0))]
        nll = sum(float(tiny_objective(model, batch, torch.float32).nll) for batch in batches)
        mean = nll / sum(batch.num_target_tokens for batch in batches)
        return {"log_likelihood": -mean, "perplexity": float(torch.tensor(mean).exp())}

    return validate


def tiny_stream(corpus: Corpus) -> BatchStream:
    return BatchStream(corpus, TokenBudget(80), seed=11, roles=("source", "target"))


def tiny_trainer(corpus: Corpus, folder: Path, config: TrainingConfig = CONFIG, **choices: Any) -> Trainer:
    """The run in `folder`; choices replace arguments of `Trainer`, and `model` its model."""
    given = {
        "objective": tiny_objective,
        "validate": tiny_validate(corpus),
        "metric": "log_likelihood",
        "seed": 3,
        "keep_best": lambda model: save_model(model, folder),
        **choices,
    }
    model, stream = given.pop("model", None) or tiny_model(), given.pop("stream", None) or tiny_stream(corpus)
    return Trainer(model, stream, config, folder, **given)


def save_model(model: nn.Module, folder: Path) -> None:
    weights, texts = weights_of(model), {"note.json": "{}"}
    model_directory.write(folder / "model", task="tiny", config={"width": 8}, weights=weights, texts=texts)


# -- one run in a process of its own, perhaps disturbed ----------------------------------------------------------------


def run(order: dict[str, Any]) -> int:
    """Runs, or goes on with, the run in order["folder"]; returns the exit status. Further keys of the order:

    config: changed fields of the configuration. exit: [stage, n], the process ends there in the n-th write of a
    checkpoint; model_exit: [stage, n], of a model directory. signals: [place, n, [signals]], raised in the n-th call of
    the objective or the validation. poison: the n-th loss is NaN. limit: [n, bytes], from the n-th loss on no file may
    be larger. breathe: seconds that a validation takes more. flush: whether the disk is really waited for, as always
    outside tests; what a kill leaves does not depend on it.
    """
    if not order.get("flush"):
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
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
        loss = tiny_objective(model, batch, dtype)
        if counts["objective"] < order.get("limit", [1 << 40])[0]:
            # The loss shows weights and dropout: one that is seen again after a kill must be the very same number.
            seen = hashlib.sha256(batch.indices.tobytes()).hexdigest()
            os.write(log, f"{trainer.step} {seen} {float(loss.objective.detach()).hex()}\n".encode())
        if counts["objective"] == order.get("poison"):
            loss = loss._replace(objective=loss.objective * torch.nan)
        phase[0] = 3 if counts["objective"] % 2 == 0 else 2
        return loss

    inner = tiny_validate(corpus)

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
        corpus, folder, config, objective=objective, validate=validate, keep_best=keep_best, watcher=Teller()
    )
    trainer.stream = NotingStream(trainer.stream)
    _watch_writes(phase, order)
    try:
        summary = trainer.run()
    except RegardError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    disk.write_atomically(folder / "result.json", lambda file: file.write(json.dumps(summary.__dict__).encode()))
    save_model(trainer.model, folder)
    return 0


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


def _watch_writes(phase: mmap.mmap, order: dict[str, Any]) -> None:
    """Notes when a checkpoint is being written, and ends the process within a write where the order says so."""
    import regard.training.checkpoint as checkpoint

    writes = 0
    write_atomically = disk.write_atomically
    stage, number = order.get("exit", ["", 0])

    def noted(path: Path, write: Any, *, usable: str = "") -> None:
        nonlocal writes
        writes += 1
        phase[0] = 6 if path.name == "best.pt" else 5
        if writes == number:
            if stage == "before":
                os._exit(9)
            if stage == "half-written":
                write = _half(write)
            if stage in ("before rename", "after rename"):
                os.replace = _exiting(os.replace, stage)  # type: ignore[assignment]
        write_atomically(path, write, usable=usable)
        phase[0] = 0

    checkpoint.write_atomically = noted
    if "model_exit" in order:
        _end_in_model_write(*order["model_exit"])


def _half(write: Callable[[Any], object]) -> Callable[[Any], object]:
    def half(file: Any) -> None:
        write(file)
        file.flush()
        os.truncate(file.name, os.path.getsize(file.name) // 2)
        os._exit(9)

    return half


def _exiting(rename: Callable[..., None], stage: str) -> Callable[..., None]:
    def renamed(*places: Any) -> None:
        if stage.startswith("after"):
            rename(*places)
        os._exit(9)

    return renamed


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


# -- many of them ------------------------------------------------------------------------------------------------------


class Children:
    """Runs orders in processes forked from one server; at most one at a time."""

    def __init__(self, corpus: Path) -> None:
        """corpus: the folder of a prepared corpus, for the server to try itself on."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "error", __file__, str(corpus)]
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, folder: Path, **order: Any) -> int:
        """Begins a run; returns its process id."""
        self._ask({"folder": str(folder), **order})
        return int(self._answer())

    def wait(self) -> int:
        """Its exit status; minus the signal that killed it."""
        self._ask({})
        return os.waitstatus_to_exitcode(int(self._answer()))

    def run(self, folder: Path, **order: Any) -> tuple[int, str]:
        """Its exit status, and the last line of what it said."""
        self.start(folder, **order)
        status = self.wait()
        lines = (folder / "said.txt").read_text().splitlines()
        return status, lines[-1] if lines else ""

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


def serve(corpus: str) -> None:
    """Reads an order, answers with the process id; reads a line, answers with the wait status."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:  # a run before the forks, for what is imported at its first use
        tiny_trainer(Corpus.open(corpus), Path(scratch), dataclasses.replace(CONFIG, max_steps=2)).run()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork is safe while there is one thread"
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            os._exit(_in_child(json.loads(line)))
        print(child, flush=True)
        sys.stdin.readline()  # until it is asked for, an ended child keeps its number, so that no kill meets another
        print(os.waitpid(child, 0)[1], flush=True)


def _in_child(order: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(order["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    faulthandler.enable()
    try:
        return run(order)
    except BaseException:
        traceback.print_exc()
        return 99


# -- comparing ---------------------------------------------------------------------------------------------------------


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ: checkpoints, best weights, metrics, result, model, and what each loss was."""
    found = []
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (one, other)]
    if names[0] != names[1]:
        found.append(f"checkpoints {names[0]} and {names[1]}")
    for name in sorted(set(names[0]) & set(names[1])):
        states = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (one, other)]
        found += [f"{name}: {place}" for place in unequal(*states)]
    for name in ("metrics.jsonl", "result.json", "model/model.safetensors", "model/config.json", "model/note.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    losses = [set((folder / "log.txt").read_text().splitlines()) for folder in (one, other)]
    found += [f"loss of {line.split()[0]}" for line in sorted(losses[0] ^ losses[1])]
    return found


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested structures differ; tensors bit for bit."""
    if type(one) is not type(other):
        return [place]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [place]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{place} keys"]
        return [found for key in one for found in unequal(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{place} length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, (a, b) in pairs for found in unequal(a, b, f"{place}.{index}")]
    return [] if one == other else [place]


if __name__ == "__main__":
    serve(sys.argv[1])
