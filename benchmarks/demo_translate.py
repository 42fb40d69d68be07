"""Runs `regard demo translate` over several seeds and prints the table of benchmarks/results/demo_translate.md.

    .venv/bin/python benchmarks/demo_translate.py [--seeds 1 2 3] [--out FOLDER]

Each seed makes its own corpus, weights and order, in a process of its own. The figures that must hold: at least 98 % of
the held-out phrases exactly right, at least 90 % of the number words' alignment recovered, at most 120 s of training on
two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    arguments = parser.parse_args()
    print(f"`{' '.join(['python', *sys.argv])}`")
    print(f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}, torch {torch.__version__}\n")
    print("| seed | exactly right | held-out phrases | alignment | chance | training, s |")
    print("|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        command = [sys.executable, "-m", "regard", "demo", "--json", "--seed", str(seed)]
        finished = subprocess.run(
            [*command, "--out", str(arguments.out / str(seed))], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(finished.stdout)
        print(
            f"| {seed} | {found['exact_match']:.2%} | {found['num_held_out']} | {found['alignment_accuracy']:.2%} "
            f"| {found['alignment_chance']:.2%} | {found['train_seconds']:.0f} |",
            flush=True,
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
