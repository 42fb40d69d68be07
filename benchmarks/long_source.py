"""Memory of a long source under window plus global attention, forward and backward, and what all pairs would take.

    python benchmarks/long_source.py [--lengths 4096 8192 16384] [--window 128] [--num-global 4]

Each length in a process of its own: a Transformer encoder (2 layers, width 128, 4 heads, float32) reads one source and
its gradient is taken; printed is the peak of resident memory above what the process held with the model and the source
in place, the ratio to the length before, and the time. Bound: 2.2 times for twice the tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.transformer_encoder import TransformerEncoder, TransformerEncoderConfig
from regard.training.memory import ProcessMemory

VOCAB, DIM, LAYERS, HEADS = 1000, 128, 2, 4
BOUND = 2.2


def step(length: int, window: int | None, num_global: int) -> dict[str, float]:
    """Peak bytes above the model's, and seconds, of one forward and backward pass."""
    torch.manual_seed(0)
    attention = AttentionConfig(HEADS, window=window, num_global=num_global)
    config = TransformerEncoderConfig(DIM, LAYERS, attention, FeedForwardConfig(4 * DIM), dropout=0.0)
    model = TransformerEncoder(VOCAB, config)
    ids, lengths = torch.randint(1, VOCAB, (1, length)), torch.tensor([length])

    def work() -> None:
        memory, _ = model(ids, lengths)
        memory.vectors.square().sum().backward()

    short = torch.randint(1, VOCAB, (1, 256))
    model(short, torch.tensor([256]))[0].vectors.sum().backward()  # what is made once: kernels, threads, gradients
    memory = ProcessMemory(share=1.0)
    began = time.perf_counter()
    peak = memory.peak(work)
    return {"bytes": peak - memory.held_bytes, "seconds": time.perf_counter() - began}


def measured(length: int, window: int | None, num_global: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, str(Path(__file__)), "--one", str(length), "--num-global", str(num_global)]
    command += [] if window is None else ["--window", str(window)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--num-global", type=int, default=None)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(step(given.one, given.window, given.num_global or 0)))
        return
    window = 128 if given.window is None else given.window
    num_global = 4 if given.num_global is None else given.num_global
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads, window {window} to each"
    )
    print(f"side, {num_global} global tokens; {LAYERS} layers, width {DIM}, {HEADS} heads, float32, batch 1\n")
    print("| tokens | peak above the model, MB | times the row above | seconds |\n|---|---|---|---|")
    before = None
    worst = 0.0
    for length in given.lengths:
        found = measured(length, window, num_global)
        ratio = None if before is None else found["bytes"] / before
        worst = max(worst, ratio or 0.0)
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"| {length:,} | {found['bytes'] / 1e6:.0f} | {shown} | {found['seconds']:.1f} |", flush=True)
        before = found["bytes"]
    pairs = 4 * HEADS * given.lengths[-1] ** 2 / 1e6
    print(f"\nOne float32 number for every pair of the longest, in one layer alone: {pairs:,.0f} MB.")
    print(f"Largest ratio {worst:.2f}, bound {BOUND}: {'held' if worst <= BOUND else 'NOT HELD'}.")


if __name__ == "__main__":
    main()
