"""What a look at every attention head costs the training step that it is taken at; docs/translate.md quotes it.

    .venv/bin/python benchmarks/monitored_step.py [--threads 2] [--repeats 9] [--precision float32]

Transformer-tiny (recipes/translate/multi30k-en-de.yaml) on batches of about 4096 padded target tokens, the recipe's
lengths first, then longer ones. One run each, in which every other step is looked at: forward, backward, update, the
statistics of all heads, their line of metrics and their TensorBoard events, just as `regard train` does it. A ratio is
that of a step to the one before it; the table gives the median and the spread. Peak memory is of the process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from training_step import LONGEST, SENTENCES, VOCAB, Step

from regard.attention.pair_scores import PairScores
from regard.attention.second_pass import kernels
from regard.attention.statistics import Wanted
from regard.data.batches import Batch, Position, Sequences
from regard.inputs.text import Tokenizer
from regard.tasks.translate.job import objective, real_queries
from regard.training.config import ScheduleConfig, TrainingConfig
from regard.training.loop import Trainer
from regard.training.precision import resolved_precision

SIZES = ((SENTENCES, LONGEST), (32, 128), (8, 512))  # sentences, ids in the longest


class OneBatch:
    """A stream of one batch, over and over: random words, lengths within a quarter of the longest."""

    def __init__(self, sentences: int, longest: int) -> None:
        torch.manual_seed(0)
        self.batch = Batch(
            {role: _sequences(sentences, longest) for role in ("source", "target")}, np.arange(sentences)
        )

    def at(self, position: Position) -> Batch:
        return self.batch

    def after(self, position: Position) -> Position:
        return replace(position, index=position.index + 1)


def _sequences(sentences: int, longest: int) -> Sequences:
    lengths = torch.randint(longest * 3 // 4, longest + 1, (sentences,))
    lengths[0] = longest
    ids = torch.randint(4, VOCAB, (sentences, longest))
    return Sequences(ids.masked_fill(torch.arange(longest) >= lengths[:, None], Tokenizer.PAD), lengths)


class Clock:
    """A watcher that notes when steps end, and the most memory that each of them held."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peaks: list[int] = []
        self._before = time.perf_counter()

    def started(self, step: int, max_steps: int) -> None:
        self._restart()

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None:
        self.seconds.append(time.perf_counter() - self._before)
        self.peaks.append(_peak_bytes())
        self._restart()

    def said(self, message: str) -> None:
        if "attention is not monitored" in message:
            raise SystemExit(message)

    def _restart(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._before = time.perf_counter()


def _peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measured(sentences: int, longest: int, precision: str, repeats: int) -> Clock:
    """A run in which every second step is looked at, after two pairs for warming up."""
    clock = Clock()
    steps = 2 * (repeats + 2)
    config = TrainingConfig(
        max_steps=steps,
        schedule=ScheduleConfig("constant", peak=1e-3),
        precision=precision,  # type: ignore[arg-type]  # one of its values, as the command line makes sure
        validate_every=steps + 1,
        checkpoint_every=steps + 1,
        final=("last",),
        log_every=steps + 1,
        attention_every=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            Step().model,
            OneBatch(sentences, longest),  # type: ignore[arg-type]  # all that a trainer asks of a stream
            config,
            Path(folder),
            objective=objective(0.1),
            validate=lambda model: {"score": 0.0},
            metric="score",
            seed=1,
            watcher=clock,
            real_queries=real_queries,
        ).run()
    return clock


def kernel_name() -> str:
    """Of the second pass, as it runs on this machine."""
    pairs, wanted = PairScores(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), 1.0), Wanted(entropy=True)
    serving = next(kernel for kernel in kernels(torch.device("cpu")) if kernel.refuses(pairs, wanted) is None)
    return str(serving.__name__).rpartition(".")[2]  # type: ignore[attr-defined]  # a module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = resolved_precision(arguments.precision, torch.device("cpu"))
    print(f"{arguments.threads} threads, torch {torch.__version__}, {dtype} products, {arguments.repeats} pairs each,")
    print(f"second pass: {kernel_name()}\n")
    print("| sentences | longest | plain step, s | monitored, s | ratio, median | spread | peak memory, MB, of both |")
    print("|---|---|---|---|---|---|---|")
    for sentences, longest in SIZES:
        clock = measured(sentences, longest, arguments.precision, arguments.repeats)
        plain, looked = clock.seconds[4::2], clock.seconds[5::2]
        ratios = [slow / fast for fast, slow in zip(plain, looked, strict=True)]
        peaks = [max(clock.peaks[4::2]) / 1e6, max(clock.peaks[5::2]) / 1e6]
        print(
            f"| {sentences} | {longest} | {statistics.median(plain):.3f} | {statistics.median(looked):.3f} "
            f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} "
            f"| {peaks[0]:.0f}, {peaks[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
