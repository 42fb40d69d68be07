"""Decoders small enough to enumerate, and searches plain enough to be believed: the oracles of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention.observation import Observation, Observe
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory

BOS, EOS = 0, 1
CONTEXTS = 1009


@dataclass(frozen=True)
class TableState:
    context: Tensor

    def select(self, rows: Tensor) -> TableState:
        return TableState(self.context[rows])


class TableDecoder:
    """Log-probabilities looked up by a hash of the whole history and of the memory's real vectors."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.outputs = Vocabulary(table.shape[1])
        self.rows_advanced: list[int] = []
        self.tokens_advanced: list[int] = []

    @staticmethod
    def random(vocab: int, seed: int, sharpness: float = 1.5) -> TableDecoder:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(CONTEXTS, vocab, generator=generator, dtype=torch.float64) * sharpness
        return TableDecoder(logits.log_softmax(-1))

    def start(self, memories: Mapping[str, Memory]) -> TableState:
        memory = memories["source"]
        real = torch.arange(memory.vectors.shape[1]) < memory.lengths[:, None]
        keys = (memory.vectors[:, :, 0].masked_fill(~real, 0.0) * 1000).long().sum(1)
        return TableState((keys * 31 + memory.lengths * 7) % CONTEXTS)

    def advance(self, state: TableState, tokens: Tensor, observe: Observe | None = None) -> tuple[Step, TableState]:
        self.rows_advanced.append(len(tokens))
        self.tokens_advanced.append(tokens.shape[1])
        context, found = state.context, []
        for position in range(tokens.shape[1]):
            context = (context * 37 + tokens[:, position] * 101 + 13) % CONTEXTS
            found.append(self.table[context])
        return Step(torch.stack(found, 1), {}), TableState(context)


@dataclass(frozen=True)
class RecurrentState:
    hidden: Tensor
    vectors: Tensor
    lengths: Tensor

    def select(self, rows: Tensor) -> RecurrentState:
        return RecurrentState(self.hidden[rows], self.vectors[rows], self.lengths[rows])


class RecurrentDecoder:
    """A random recurrent network with dot attention of two heads, whose rows depend on the whole history."""

    def __init__(self, vocab: int, seed: int, width: int = 6, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

        self.embedding = matrix(vocab, width, scale=1.5)
        self.recurrent = matrix(width, width, scale=0.6)
        self.queries = matrix(2, width, width)
        self.read = matrix(2 * width, width, scale=0.7)
        self.out = matrix(width, vocab, scale=1.2)
        self.outputs = Vocabulary(vocab)
        self.width = width

    def start(self, memories: Mapping[str, Memory]) -> RecurrentState:
        memory = memories["source"]
        hidden = memory.vectors.new_zeros(len(memory.lengths), self.width)
        return RecurrentState(hidden, memory.vectors, memory.lengths)

    def advance(
        self, state: RecurrentState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, RecurrentState]:
        log_probs, rows = [], []
        hidden = state.hidden
        allowed = torch.arange(state.vectors.shape[1]) < state.lengths[:, None]
        for position in range(tokens.shape[1]):
            hidden = torch.tanh(self.embedding[tokens[:, position]] + hidden @ self.recurrent)
            query = torch.einsum("rw,hwv->rhv", hidden, self.queries)
            scores = torch.einsum("rhw,rkw->rhk", query, state.vectors)
            weights = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(-1)
            context = torch.einsum("rhk,rkw->rhw", weights, state.vectors.masked_fill(~allowed[:, :, None], 0.0))
            hidden = torch.tanh(hidden + context.flatten(1) @ self.read)
            log_probs.append((hidden @ self.out).log_softmax(-1))
            rows.append(weights)
        attention = {"decoder.cross": Observation(rows=torch.stack(rows, 2))} if observe else {}
        return Step(torch.stack(log_probs, 1), attention), replace(state, hidden=hidden)


def memories(lengths: list[int], *, seed: int, width: int = 6, dtype: torch.dtype = torch.float64) -> dict[str, Memory]:
    """Random vectors of given real lengths; padding is filled with large numbers that must never matter."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(len(lengths), max(lengths), width, generator=generator, dtype=torch.float64).to(dtype)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return {"source": Memory(vectors.masked_fill(padding[:, :, None], 1e4), torch.tensor(lengths))}


def alone(given: Mapping[str, Memory], row: int) -> dict[str, Memory]:
    """One row of a batch without its padding."""
    return {
        name: Memory(memory.vectors[row : row + 1, : int(memory.lengths[row])], memory.lengths[row : row + 1])
        for name, memory in given.items()
    }


def next_log_probs(decoder: TableDecoder | RecurrentDecoder, given: Mapping[str, Memory]) -> Callable:
    """history -> log-probabilities of what follows, from scratch each time; `given` has one row."""

    def follow(history: tuple[int, ...]) -> list[float]:
        step, _ = decoder.advance(decoder.start(given), torch.tensor([[BOS, *history]]))  # type: ignore[arg-type]
        return step.log_probs[0, -1].tolist()

    return follow


Scored = tuple[tuple[int, ...], float, bool]  # tokens, score, finished


def ranked(outputs: list[Scored], num_best: int) -> list[Scored]:
    return sorted(outputs, key=lambda output: (not output[2], -output[1]))[:num_best]


def exhaustive(follow: Callable, vocab: int, max_length: int, length_penalty: float) -> list[Scored]:
    """Every output there is, best first."""
    totals: dict[tuple[int, ...], float] = {(): 0.0}
    outputs: list[Scored] = []
    for length in range(1, max_length + 1):
        grown: dict[tuple[int, ...], float] = {}
        for history, total in totals.items():
            for token, log_prob in enumerate(follow(history)):
                grown[(*history, token)] = total + log_prob
        for history, total in grown.items():
            if history[-1] == EOS or length == max_length:
                outputs.append((history, total / length**length_penalty, history[-1] == EOS))
        totals = {history: total for history, total in grown.items() if history[-1] != EOS}
    assert len(totals) == (vocab - 1) ** max_length
    return ranked(outputs, len(outputs))


def patient_beam(
    follow: Callable, beam_size: int, num_best: int, max_length: int, length_penalty: float
) -> list[Scored]:
    """Beam search by lists and dictionaries, which never stops before max_length."""
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    outputs: list[Scored] = []
    for length in range(1, max_length + 1):
        grown = [
            ((*history, token), total + log_prob, (place, token))
            for place, (history, total) in enumerate(live)
            for token, log_prob in enumerate(follow(history))
        ]
        grown.sort(key=lambda item: (-item[1], item[2]))
        for history, total, _ in grown[:beam_size]:
            if history[-1] == EOS:
                outputs.append((history, total / length**length_penalty, True))
        live = [(history, total) for history, total, _ in grown if history[-1] != EOS][:beam_size]
    outputs.extend((history, total / max_length**length_penalty, False) for history, total in live)
    return ranked(outputs, num_best)
