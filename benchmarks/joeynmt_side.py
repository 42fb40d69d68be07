"""JoeyNMT's side of `joeynmt_speed.py`: its own trainer, halted after each round until it is told to go on.

    python joeynmt_side.py CONFIG.yaml     (with the Python that has JoeyNMT; regard is not needed there)

Standard output gets one JSON object a round: the steps so far, and the round's seconds and target tokens. A line on
standard input begins the next.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from joeynmt import training
from joeynmt.config import load_config

report = sys.stdout
sys.stdout = sys.stderr  # whatever JoeyNMT prints


class InTurn(training.TrainManager):
    """Logs a round, then waits; its seconds begin when the wait ends."""

    began = 0.0
    tokens = 0

    def _train_step(self, batch: Any) -> Any:
        if not self.began:
            self.wait()
        return super()._train_step(batch)

    def _log_scores(self, *arguments: Any) -> None:
        seconds = time.perf_counter() - self.began
        fresh = self.stats.total_tokens - self.tokens
        print(json.dumps({"steps": self.stats.steps, "seconds": seconds, "tokens": fresh}), file=report, flush=True)
        super()._log_scores(*arguments)
        self.wait()

    def wait(self) -> None:
        sys.stdin.readline()
        self.tokens = self.stats.total_tokens
        self.began = time.perf_counter()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    training.TrainManager = InTurn
    training.train(rank=0, world_size=None, cfg=load_config(sys.argv[1]), skip_test=True)
