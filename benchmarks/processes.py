"""How training speeds up with processes: one with one or two threads, two with one each, each with all of the model or
a shard of it.

    .venv/bin/python benchmarks/processes.py --out benchmarks/results/processes.md

Each round starts every case once, in turn, through `regard train` or torchrun: Transformer-tiny
(recipes/translate/multi30k-en-de.yaml) on Multi30k's first 5,000 pairs, the same updates of 4 batches of 1,024 tokens.
Speeds are real target tokens a second of each update after the first few, from TensorBoard's files; the losses of all
cases must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "recipes" / "translate" / "multi30k-en-de.yaml"
PAIRS = {"train": 5000, "val": 1}
WARM_UP = 5  # updates
# Name: (processes, threads of each, how they hold the model).
CASES = {
    "1 process, 1 thread": (1, 1, "replicate"),
    "1 process, 2 threads": (1, 2, "replicate"),
    "2 processes of 1 thread, each with all of the model": (2, 1, "replicate"),
    "2 processes of 1 thread, each with a shard": (2, 1, "shard"),
}
TOLERANCE = 1e-4  # relative, between the losses of the cases: sums in another order, in float32


def write_data(folder: Path, shared: Path) -> None:
    for name, count in PAIRS.items():
        for side in ("en", "de"):
            lines = (shared / f"{name}.{side}").read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / f"{name}.{side}").write_text("".join(lines[:count]), encoding="utf-8")


def train(case: str, data: Path, run: Path, updates: int) -> tuple[list[float], list[float]]:
    """Trains in `run` -> (target tokens a second of each update after the warm-up, losses)."""
    processes, threads, parallel = CASES[case]
    changes = {
        "data.root": data,
        "data.test": "null",
        "data.batch.batch_tokens": 1024,
        "tokenizers.source.vocab_size": 4000,
        "training.accumulate": 4,
        "training.parallel": parallel,
        "training.precision": "float32",
        "training.max_steps": updates,
        "training.validate_every": updates,
        "training.checkpoint_every": updates,
        "training.attention_every": "null",
        "training.log_every": 1,
        "training.final": "[last]",
    }
    words = ["regard", "train", str(RECIPE), *(f"{key}={value}" for key, value in changes.items()), "--run", str(run)]
    launch = [sys.executable, "-m"]
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        words = [*torchrun, words[0], "--", *words[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([*launch, *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{case}: ended with status {done.returncode}:\n{done.stderr}")
    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    speeds = [event.value for event in shown.Scalars("tokens_per_second")][WARM_UP:]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return speeds, [values["loss"] for line in lines if "loss" in (values := json.loads(line))]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "multi30k")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=25)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {case: [] for case in CASES}  # the median of each round
    losses: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                write_data(folder, arguments.data)
                found, losses[case] = train(case, folder, folder / "run", arguments.updates)
            speeds[case].append(statistics.median(found))
            print(f"round {number + 1}: {case}: {speeds[case][-1]:,.0f} target tokens/s", flush=True)
    first, *others = losses.values()
    apart = max(abs(a - b) / abs(a) for other in others for a, b in zip(first, other, strict=True))
    if apart > TOLERANCE:
        sys.exit(f"the losses differ by {apart:.2g}: no speed is quoted from a red check")
    one = speeds["1 process, 1 thread"]
    lines = [
        "# Processes",
        "",
        f"`python benchmarks/processes.py --rounds {arguments.rounds} --updates {arguments.updates}`",
        "",
        f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, gloo, float32; the losses of all cases"
        f" differ by {apart:.1g} at most, relative.",
        "",
        "| case | target tokens/s, median | times one process of one thread | spread |",
        "|---|---|---|---|",
    ]
    for case, of_rounds in speeds.items():
        ratios = [speed / alone for speed, alone in zip(of_rounds, one, strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        lines.append(f"| {case} | {statistics.median(of_rounds):,.0f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
