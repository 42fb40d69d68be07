"""Updates in pieces: the same sums, begun anew with smaller pieces where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CONFIG, models, tiny_trainer
from torch import nn

from regard.data.batches import Batch
from regard.data.corpus import Corpus
from regard.errors import TrainingError
from regard.training.averaging import weights_of
from regard.training.loop import Trainer
from regard.training.objective import Loss

SHORT = replace(CONFIG, max_steps=3, accumulate=2, attention_every=2, final=("last",))


class Said:
    """A watcher that keeps the lines it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, step: int, max_steps: int) -> None: ...

    def stepped(self, step: int, loss: float | None, num_tokens: int, seconds: float) -> None: ...

    def said(self, message: str) -> None:
        self.lines.append(message)


def trainer(
    corpus: Corpus, folder: Path, fails: Callable[[int, int], BaseException | None], config: Any = SHORT
) -> tuple[Trainer, list[int], Said]:
    """A run in float64 without dropout, the rows of each pass it makes, and what it says.

    fails: with what the pass of so many rows in a step fails, if it does.
    """
    made, rows, watcher = models()["without dropout"](), [], Said()

    def objective(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Loss:
        error = fails(run.step, len(batch)) if model.training else None
        if model.training:
            rows.append(len(batch))
        if error is not None:
            raise error
        return made.objective(model, batch, dtype)  # type: ignore[no-any-return]

    run = tiny_trainer(
        corpus,
        folder,
        config,
        model=made.model.double(),
        objective=objective,
        real_queries=made.real_queries,
        validate=lambda model: {"log_likelihood": 1.0},
        watcher=watcher,
    )
    return run, rows, watcher


def test_pieces_add_up_to_the_batch(corpus: Corpus, tmp_path: Path) -> None:
    """Weights and metrics, the looks at attention among them, are those of whole batches."""
    whole, rows, _ = trainer(corpus, tmp_path / "whole", lambda step, rows: None)
    whole.run()
    largest = max(rows)
    assert largest > 6
    split, tried, watcher = trainer(
        corpus, tmp_path / "split", lambda step, rows: MemoryError() if rows > largest // 3 else None
    )
    split.run()
    assert sum(tried[-4:]) < largest * 2
    for name, weight in weights_of(whole.trained).items():
        # The loss is summed in float32.
        torch.testing.assert_close(weights_of(split.trained)[name], weight, rtol=1e-5, atol=1e-7)
    assert [line for line in watcher.lines if "memory" in line] == [
        "step 1: out of memory: from here on every batch is taken in 4 pieces; a run with a lower"
        " data.batch.batch_tokens needs none"
    ]
    looks = [(tmp_path / run / "metrics.jsonl").read_text().splitlines()[0] for run in ("whole", "split")]
    assert looks[0] == looks[1], "six digits of each head's numbers"


def test_what_does_not_fit_is_tried_once(corpus: Corpus, tmp_path: Path) -> None:
    """The number of pieces stays, also after a resume."""
    first, tried, _ = trainer(corpus, tmp_path, lambda step, rows: MemoryError() if rows > 5 else None)
    first.run()
    pieces = first.updates.pieces
    assert pieces in (2, 4)
    assert max(tried) > 5
    again, rows, watcher = trainer(
        corpus, tmp_path, lambda step, rows: MemoryError() if rows > 5 else None, replace(SHORT, max_steps=6)
    )
    again.run()
    assert again.updates.pieces == pieces
    assert max(rows) <= 5
    assert not [line for line in watcher.lines if "memory" in line]


def test_a_row_that_does_not_fit(corpus: Corpus, tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")
    run, tried, _ = trainer(corpus, tmp_path, lambda step, rows: error if step == 2 else None)
    with pytest.raises(TrainingError) as raised:
        run.run()
    assert str(raised.value) == (
        "step 2: out of memory with a single row of a batch; start another run with a lower data.batch.batch_tokens"
        " (CUDA out of memory. Tried to allocate 9 GiB)"
    )
    assert tried[-1] == 1


def test_other_failures_are_no_lack_of_memory(corpus: Corpus, tmp_path: Path) -> None:
    run, tried, _ = trainer(corpus, tmp_path, lambda step, rows: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run.run()
    assert len(tried) == 1
