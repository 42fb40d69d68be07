"""Batches of similar length under a token budget, in an order that is a pure function of its position.

What a step trains on depends on (seed, epoch, step) and on nothing else: no iterator has a state to save, and a run
resumed anywhere, by however many processes, sees the batches it would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regard.data.corpus import Corpus
from regard.errors import ConfigError, DataError
from regard.inputs.text import Tokenizer


@dataclass(frozen=True)
class TokenBudget:
    """How large a batch may be.

    The size of a batch is num_sentences * length of its longest sentence in any role, padding and end token included:
    the largest of its padded tensors never holds more than `batch_tokens` ids.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    batch_tokens: int  # the most ids, padding included, in the longest role of a batch
    max_sentences: int | None = None  # the most sentences in a batch; None: as many as the budget allows
    batch_multiple: int = 1  # sentences come in multiples of this where the batch has as many (8 suits tensor cores)
    # Width of the random factor on each length before sorting (0.04: from 0.98 to 1.02), so that long sentences, few of
    # which are equally long, also meet others in each epoch. Padding grows with it, little at
    # 0.04; `BatchStream.padding_share` says how much there is.
    length_noise: float = 0.04

    def __post_init__(self) -> None:
        problems = []
        if self.batch_tokens < 1:
            problems.append(f"batch_tokens is {self.batch_tokens}, expected 1 or more")
        if self.max_sentences is not None and self.max_sentences < 1:
            problems.append(f"max_sentences is {self.max_sentences}, expected 1 or more, or none")
        if self.batch_multiple < 1:
            problems.append(f"batch_multiple is {self.batch_multiple}, expected 1 or more")
        if not 0 <= self.length_noise <= 1:
            problems.append(f"length_noise is {self.length_noise}, expected 0 to 1")
        if problems:
            raise ConfigError("; ".join(problems))


class Sequences(NamedTuple):
    """One role of a batch: rows padded at their end."""

    # [batch, longest, ...], padded with zeros: of text ids int64 (Tokenizer.PAD is 0), each row ended by Tokenizer.EOS;
    # of anything else what its column of the corpus made of it, in the corpus's own number format.
    values: Tensor
    lengths: Tensor  # int64 [batch]; of text with its end token

    @staticmethod
    def padded(ids: Sequence[Sequence[int]]) -> Sequences:
        """Rows of ids without their end, each given its end token and padded to the longest."""
        lengths = torch.tensor([len(row) + 1 for row in ids])
        padded = torch.full((len(ids), int(lengths.max())), Tokenizer.PAD)
        for place, row in enumerate(ids):
            padded[place, : len(row) + 1] = torch.tensor([*row, Tokenizer.EOS])
        return Sequences(padded, lengths)

    @property
    def padding_share(self) -> float:
        """Padding's part of all positions, 0 to 1."""
        return 1.0 - float(self.lengths.sum()) / max(self.num_positions, 1)

    @property
    def num_positions(self) -> int:
        """Positions of all rows, padding included."""
        return self.values.shape[0] * self.values.shape[1]

    def rows(self, begin: int, end: int) -> Sequences:
        """Some of the rows, padded to their own longest."""
        lengths = self.lengths[begin:end]
        return Sequences(self.values[begin:end, : int(lengths.max())], lengths)

    def shifted(self) -> Tensor:
        """int64 [batch, longest]: what a decoder reads to predict ids: the begin token, then ids without the end."""
        inputs = self.values.roll(1, dims=1)
        inputs[:, 0] = Tokenizer.BOS
        past_end = torch.arange(inputs.shape[1], device=inputs.device) >= self.lengths[:, None]
        return inputs.masked_fill(past_end, Tokenizer.PAD)


@dataclass(frozen=True)
class Batch:
    """Some records of a corpus, by role: translation has "source" and "target", a language model "target" alone."""

    roles: dict[str, Sequences]
    indices: np.ndarray  # int64 [batch], places in the corpus

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, role: str) -> Sequences:
        return self.roles[role]

    @property
    def source(self) -> Sequences:
        return self.roles["source"]

    @property
    def target(self) -> Sequences:
        return self.roles["target"]

    @property
    def target_inputs(self) -> Tensor:
        """int64 [batch, target_len]: the begin token and the target without its end token."""
        return self.target.shifted()

    @property
    def target_outputs(self) -> Tensor:
        """int64 [batch, target_len]: the target with its end token."""
        return self.target.values

    def num_tokens(self, role: str) -> int:
        """Number of ids of `role` that are not padding, end tokens included."""
        return int(self.roles[role].lengths.sum())

    @property
    def num_target_tokens(self) -> int:
        """How many predictions the loss is summed over."""
        return self.num_tokens("target")

    @property
    def padding_share(self) -> float:
        """Padding's part of the ids of all roles, 0 to 1."""
        num_positions = sum(sequences.num_positions for sequences in self.roles.values())
        return 1.0 - sum(self.num_tokens(role) for role in self.roles) / max(num_positions, 1)

    def split(self, num_pieces: int) -> list[Batch]:
        """The same rows in so many pieces of nearly equal size, each padded to its own longest.

        There are fewer pieces where there are fewer rows. Sums over the pieces are sums over the batch.
        """
        if num_pieces == 1:
            return [self]
        ends = np.linspace(0, len(self), min(num_pieces, len(self)) + 1).astype(int).tolist()
        return [
            Batch({role: part.rows(begin, end) for role, part in self.roles.items()}, self.indices[begin:end])
            for begin, end in itertools.pairwise(ends)
        ]

    def to(self, device: torch.device | str) -> Batch:
        """The same with its tensors on `device`."""
        moved = {
            role: Sequences(values.to(device, non_blocking=True), lengths.to(device, non_blocking=True))
            for role, (values, lengths) in self.roles.items()
        }
        return Batch(moved, self.indices)


@dataclass(frozen=True, order=True)
class Position:
    """A place in the stream: batch `index` of `epoch`, both from 0."""

    epoch: int = 0
    index: int = 0


class BatchStream:
    """The training batches, epoch after epoch without end.

    Every sentence is in exactly one batch in each epoch. An epoch's batches are cut anew from sentences in order of
    length, ties broken by chance, and come in random order.
    """

    def __init__(self, corpus: Corpus, budget: TokenBudget, *, seed: int, roles: Sequence[str] | None = None) -> None:
        """roles: which roles a batch holds, all of the corpus by default.

        Raises: ConfigError for a seed out of range; DataError when a sentence alone exceeds the budget.
        """
        if not 0 <= seed < 1 << 63:
            raise ConfigError(f"seed is {seed}, expected a number from 0 to 2^63 - 1")
        self.corpus = corpus
        self.budget = budget
        self.roles = tuple(roles) if roles is not None else corpus.roles
        self._seed = seed
        self._lengths = [corpus.lengths(role) for role in self.roles]
        self._longest = np.maximum.reduce(self._lengths)
        _check_budget(corpus, self._longest, budget.batch_tokens)
        self._cached: dict[int, list[np.ndarray]] = {}  # the last two epochs: loading ahead may be in the next one

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The corpus places of each batch of `epoch`, in training order."""
        if epoch not in self._cached:
            chance = np.random.Generator(np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64)))
            order = _shuffled_by_length(self._lengths, chance, self.budget.length_noise)
            ends = cut(self._longest[order], self.budget)
            batches = np.split(order, ends[:-1])
            for former in list(self._cached)[:-1]:
                del self._cached[former]
            self._cached[epoch] = [batches[place] for place in chance.permutation(len(batches))]
        return self._cached[epoch]

    def num_batches(self, epoch: int) -> int:
        """Batches in `epoch`; it may differ a little between epochs."""
        return len(self.batches(epoch))

    def at(self, position: Position) -> Batch:
        """The batch at `position`."""
        batches = self.batches(position.epoch)
        if not 0 <= position.index < len(batches):
            raise IndexError(f"batch {position.index} of epoch {position.epoch}, which has {len(batches)}")
        return load(self.corpus, batches[position.index], self.roles)

    def after(self, position: Position) -> Position:
        """The place that follows `position`."""
        if position.index + 1 < self.num_batches(position.epoch):
            return Position(position.epoch, position.index + 1)
        return Position(position.epoch + 1, 0)

    def padding_share(self, epoch: int = 0) -> dict[str, float]:
        """For each role padding's part of all ids in `epoch`, 0 to 1."""
        batches = self.batches(epoch)
        shares = {}
        for role, lengths in zip(self.roles, self._lengths, strict=True):
            of_batches = [lengths[batch] for batch in batches]
            padded = sum(len(of_batch) * int(of_batch.max()) for of_batch in of_batches)
            shares[role] = 1.0 - sum(int(of_batch.sum(dtype=np.int64)) for of_batch in of_batches) / padded
        return shares


def load(corpus: Corpus, indices: np.ndarray, roles: Sequence[str] | None = None) -> Batch:
    """The records at `indices` as one padded batch."""
    loaded = {}
    for role in corpus.roles if roles is None else roles:
        values, lengths = corpus.padded(role, indices)
        loaded[role] = Sequences(torch.from_numpy(values), torch.from_numpy(np.ascontiguousarray(lengths)))
    return Batch(loaded, indices)


def cut(lengths: np.ndarray, budget: TokenBudget) -> np.ndarray:
    """int64 [batches]: where each batch of the sentences in this order ends, taking as many as the budget holds.

    A sentence over the budget is a batch of its own here; BatchStream refuses it beforehand.
    Steps over batches, not sentences: ten million sentences take about a second.
    """
    ends: list[int] = []
    start = 0
    while start < len(lengths):
        most = max(budget.batch_tokens // int(lengths[start]), 1)
        if budget.max_sentences is not None:
            most = min(most, budget.max_sentences)
        longest_so_far = np.maximum.accumulate(lengths[start : start + most].astype(np.int64))
        sizes = longest_so_far * np.arange(1, len(longest_so_far) + 1)
        count = max(int(np.searchsorted(sizes, budget.batch_tokens, side="right")), 1)
        if count > budget.batch_multiple and start + count < len(lengths):
            count -= count % budget.batch_multiple
        start += count
        ends.append(start)
    return np.array(ends, dtype=np.int64)


def by_length(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """int64 [batch] each: the places of sequences of like lengths, the shortest first, to be read without training.

    A batch has at most batch_tokens tokens, padding included, but for a sequence that is longer by itself.
    """
    if len(lengths):
        order = np.argsort(lengths, kind="stable")
        budget = TokenBudget(max(batch_tokens, int(lengths.max())))
        yield from np.split(order, cut(lengths[order], budget)[:-1])


def _shuffled_by_length(lengths: Sequence[np.ndarray], chance: np.random.Generator, noise: float) -> np.ndarray:
    """int64 [sentences]: an order in which neighbours have like lengths in every role; ties fall by `chance`.

    The first key is the longest role's length, which the budget counts; then the roles' lengths, the last role's first.
    Where one key steps up, the next turns round, so that a batch across the border does not join the longest of one
    with the shortest of the next.
    """
    num_sentences = len(lengths[0])
    order = chance.permutation(num_sentences)
    keys = [values[order].astype(np.int64) for values in lengths]
    width = 1 << (31 // len(keys))  # int64 holds the longest length and all keys, which beyond this no longer differ
    if noise:
        for key in keys:
            key[:] = np.rint(key * (1.0 + noise * (chance.random(num_sentences) - 0.5)))
    combined = np.maximum.reduce(keys)
    upwards = combined % 2 == 0
    for key in reversed(keys):
        key = np.minimum(key, width - 1)
        combined = combined * width + np.where(upwards, key, width - 1 - key)
        upwards ^= key % 2 == 1
    return order[np.argsort(combined, kind="stable")]


def _check_budget(corpus: Corpus, longest: np.ndarray, batch_tokens: int) -> None:
    over = np.flatnonzero(longest > batch_tokens)
    if len(over):
        raise DataError(
            f"{corpus.folder}: {len(over)} sentences exceed batch_tokens {batch_tokens} alone (record {over[0]} has"
            f" {longest[over[0]]} tokens); raise batch_tokens or prepare the corpus with a smaller max_tokens"
        )
