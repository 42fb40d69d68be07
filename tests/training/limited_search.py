"""The search for a token budget by the real meter, in a process whose memory nobody has used before.

The objective holds a megabyte for every id; 300 MB may be taken. Prints the trials: [tokens, peak bytes] each.
"""

from __future__ import annotations

import json
import sys

import torch
from tiny_run import tiny_model, tiny_objective
from torch import nn

from regard.data.batches import Batch, BatchStream, TokenBudget
from regard.data.corpus import Corpus
from regard.training import batch_budget
from regard.training.memory import ProcessMemory
from regard.training.objective import Loss


class Limited(ProcessMemory):
    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.limit_bytes = self.held_bytes + (300 << 20)


def objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
    loss = tiny_objective(model, batch, dtype)
    torch.ones(batch.target.values.numel() << 18)
    return loss


def trials(folder: str) -> list[list[int]]:
    batch_budget.PATIENCE, batch_budget.FEWEST_BATCHES = 99, 3
    batch_budget.meter = lambda device, share, processes: Limited(share)  # type: ignore[assignment]
    corpus, model = Corpus.open(folder), tiny_model()
    stream = BatchStream(corpus, TokenBudget(32), seed=1)
    objective(model, stream.at(batch_budget.Position()), torch.float32).objective.backward()  # what is made once
    found = batch_budget.find_batch_tokens(
        model,
        lambda tokens: BatchStream(corpus, TokenBudget(tokens), seed=1),
        objective,
        smallest=17,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return [[trial.batch_tokens, trial.peak_bytes] for trial in found.trials]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(trials(sys.argv[1])))
