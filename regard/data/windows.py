"""Documents packed into windows of equal length, for language models; a pure function of the position, as batches are.

The documents of an epoch stand one after the other, each ended by its end token, and are cut into windows wherever a
window ends. Every token is predicted exactly once an epoch, from what stands before it in its window and its document:
the first of a document from the begin token, the first of a later window from the token before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from regard.data.batches import Batch, Position, Sequences
from regard.data.corpus import Corpus
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer

INPUTS, TARGET = "inputs", "target"  # the roles of a batch: what is read, and what follows each of it

Stretch = Callable[[int, int, int], np.ndarray]  # (document, begin, end) -> its ids there, the end token included


@dataclass(frozen=True)
class WindowBudget:
    """How long windows are, and how many make a batch."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    window_tokens: int  # the most tokens that a prediction is made from
    num_windows: int  # in a batch

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, expected 1 or more"
            for name in ("window_tokens", "num_windows")
            if getattr(self, name) < 1
        ]
        if problems:
            raise ConfigError("; ".join(problems))


class Packing:
    """Documents in a given order, cut into windows.

    lengths: int64 [documents], ids of each, the end token included. stretch: reads a part of a document. order: int64,
    documents as they stand. window: ids a window. shift: by how many the first window is shorter.
    """

    def __init__(
        self, lengths: np.ndarray, stretch: Stretch, *, order: np.ndarray, window: int, shift: int = 0
    ) -> None:
        self.order = order
        self.stretch = stretch
        self.window = window
        self.shift = shift
        self.ends = np.cumsum(lengths[order].astype(np.int64))  # of each document in order, in the whole stream
        self.num_ids = int(self.ends[-1]) if len(self.ends) else 0

    def __len__(self) -> int:
        """Number of windows."""
        return -(-(self.num_ids + self.shift) // self.window) if self.num_ids else 0

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(what is read, what follows), both int64 [at most `window`]."""
        begin = max(number * self.window - self.shift, 0)
        end = min((number + 1) * self.window - self.shift, self.num_ids)
        read, follows = [], []
        place = int(np.searchsorted(self.ends, begin, side="right"))
        while begin < end:
            start = int(self.ends[place - 1]) if place else 0
            upto = min(end, int(self.ends[place]))
            first, last = begin - start, upto - start
            ids = self.stretch(int(self.order[place]), max(first - 1, 0), last)
            if first == 0:
                ids = np.concatenate([[Tokenizer.BOS], ids])
            read.append(ids[:-1])
            follows.append(ids[1:])
            begin, place = upto, place + 1
        return np.concatenate(read), np.concatenate(follows)

    def batch(self, numbers: np.ndarray) -> Batch:
        """Some of the windows, shorter ones padded at their end."""
        rows = [self.row(int(number)) for number in numbers]
        lengths = torch.tensor([len(read) for read, _ in rows])
        padded = np.full((2, len(rows), max(len(read) for read, _ in rows)), Tokenizer.PAD, dtype=np.int64)
        for place, row in enumerate(rows):
            for side, ids in enumerate(row):
                padded[side, place, : len(ids)] = ids
        roles = {
            role: Sequences(torch.from_numpy(ids), lengths) for role, ids in zip((INPUTS, TARGET), padded, strict=True)
        }
        return Batch(roles, numbers)


class WindowStream:
    """The training windows, epoch after epoch without end.

    An epoch has its own order of documents, its own place of the first cut, and its own order of windows; every token
    is predicted in each.
    """

    def __init__(self, corpus: Corpus, budget: WindowBudget, *, seed: int, role: str = TARGET) -> None:
        """role: of the corpus. Raises: ConfigError for a seed out of range."""
        if not 0 <= seed < 1 << 63:
            raise ConfigError(f"seed is {seed}, expected a number from 0 to 2^63 - 1")
        self.corpus = corpus
        self.budget = budget
        self.roles = (INPUTS, TARGET)
        self._role = role
        self._seed = seed
        self._cached: dict[int, tuple[Packing, list[np.ndarray]]] = {}  # the last two epochs

    def _epoch(self, epoch: int) -> tuple[Packing, list[np.ndarray]]:
        if epoch not in self._cached:
            chance = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64)))
            lengths, window = self.corpus.lengths(self._role), self.budget.window_tokens
            order = chance.permutation(len(lengths))
            packing = Packing(lengths, self._stretch, order=order, window=window, shift=int(chance.integers(window)))
            windows = chance.permutation(len(packing))
            cuts = range(self.budget.num_windows, len(windows), self.budget.num_windows)
            for former in list(self._cached)[:-1]:
                del self._cached[former]
            self._cached[epoch] = packing, np.split(windows, cuts)
        return self._cached[epoch]

    def _stretch(self, document: int, begin: int, end: int) -> np.ndarray:
        return self.corpus.stretch(self._role, document, begin, end)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The windows of each batch of `epoch`, in training order."""
        return self._epoch(epoch)[1]

    def num_batches(self, epoch: int) -> int:
        """Batches in `epoch`; it may differ by one between epochs."""
        return len(self.batches(epoch))

    def at(self, position: Position) -> Batch:
        """The batch at `position`."""
        packing, batches = self._epoch(position.epoch)
        if not 0 <= position.index < len(batches):
            raise IndexError(f"batch {position.index} of epoch {position.epoch}, which has {len(batches)}")
        return packing.batch(batches[position.index])

    def after(self, position: Position) -> Position:
        """The place that follows `position`."""
        if position.index + 1 < self.num_batches(position.epoch):
            return Position(position.epoch, position.index + 1)
        return Position(position.epoch + 1, 0)

    def padding_share(self, epoch: int = 0) -> dict[str, float]:
        """For each role padding's part of all ids in `epoch`, 0 to 1: next to nothing, as two windows are short."""
        packing, batches = self._epoch(epoch)
        padded = sum(len(batch) for batch in batches) * packing.window
        return dict.fromkeys(self.roles, 1.0 - packing.num_ids / padded)


def evaluation_batches(documents: Sequence[Sequence[int]], budget: WindowBudget) -> Iterator[Batch]:
    """Each token of `documents` (ids without their end) predicted once: windows in order, none overlapping another."""
    ended = [np.array([*ids, Tokenizer.EOS], dtype=np.int64) for ids in documents]
    lengths = np.array([len(ids) for ids in ended], dtype=np.int64)
    order = np.arange(len(ended))
    packing = Packing(
        lengths, lambda number, begin, end: ended[number][begin:end], order=order, window=budget.window_tokens
    )
    for begin in range(0, len(packing), budget.num_windows):
        yield packing.batch(np.arange(begin, min(begin + budget.num_windows, len(packing))))


def document_begins(inputs: Tensor) -> Tensor:
    """bool [rows, length]: where in the windows' `inputs` a document begins."""
    return inputs == Tokenizer.BOS
