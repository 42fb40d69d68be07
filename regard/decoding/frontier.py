"""The rows that a search is extending: the decoder's state, the scorers' states and the trail, moved together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regard.attention.observation import Observe
from regard.decoding.coverage import Onlooker
from regard.decoding.hypotheses import Trail
from regard.decoding.scorers import Scorer
from regard.errors import RegardError, ShapeError
from regard.models.decoder import Decoder
from regard.models.memory import Memory


def start_rows(
    decoder: Decoder, memories: Mapping[str, Memory], prefix: Tensor | None
) -> tuple[Any, int, torch.device]:
    """The decoder's first state, the number of its rows and their device.

    Without memories (a language model) the state of one row is repeated for every row of `prefix`.

    Raises: ShapeError when memories and prefix differ in rows.
    """
    rows = {f"memory `{name}`": len(memory.lengths) for name, memory in memories.items()}
    if prefix is not None:
        rows["prefix"] = len(prefix)
    if len(set(rows.values())) > 1:
        received = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise ShapeError(f"decode: {received} rows; expected as many in each: one a sentence")
    count = next(iter(rows.values()), 1)
    tensors = [memory.vectors for memory in memories.values()] + ([] if prefix is None else [prefix])
    device = tensors[0].device if tensors else torch.device("cpu")
    state = decoder.start(memories)
    if not memories:
        state = state.select(torch.zeros(count, dtype=torch.int64, device=device))
    return state, count, device


def first_inputs(decoder: Decoder, bos: int, prefix: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """BOS, then the prefix: token ids [rows, 1 + prefix_len]."""
    inputs = torch.full((rows, 1), bos, dtype=torch.int64, device=device)
    return inputs if prefix is None else torch.cat([inputs, decoder.outputs.inputs(prefix)], dim=1)


class Frontier:
    """Alternate `advance` and `select`; `trail` records what was selected, and what was observed."""

    def __init__(
        self,
        decoder: Decoder,
        memories: Mapping[str, Memory],
        *,
        bos: int,
        prefix: Tensor | None,
        scorers: Sequence[Scorer],
        observe: Observe | None,
    ) -> None:
        self.decoder = decoder
        self.scorers = list(scorers)
        self.observe = observe
        self.trail = Trail()
        self.state, self.num_rows, self.device = start_rows(decoder, memories, prefix)
        self.inputs = first_inputs(decoder, bos, prefix, self.num_rows, self.device)
        sentences = torch.arange(self.num_rows, device=self.device)
        self.votes = [scorer.start(sentences) for scorer in self.scorers]
        self.onlookers = [place for place, scorer in enumerate(self.scorers) if isinstance(scorer, Onlooker)]

    def advance(self) -> tuple[Tensor, Tensor]:
        """The decoder's log-probabilities of the next token, and those plus all votes; both [rows, num_outputs]."""
        asked = self.observe or (Observe(rows="all") if self.onlookers else None)
        step, self.state = self.decoder.advance(self.state, self.inputs, asked)
        if self.observe is not None:
            self.trail.observe(step.attention)
        for place in self.onlookers:
            onlooker = self.scorers[place]
            assert isinstance(onlooker, Onlooker)
            self.votes[place] = onlooker.look(self.votes[place], step.attention)
        log_probs = scores = step.log_probs[:, -1]
        for scorer, state in zip(self.scorers, self.votes, strict=True):
            votes = scorer.score(state, log_probs)
            if votes is not None:
                scores = scores + votes
        return log_probs, scores

    def select(self, rows: Tensor, tokens: Tensor, token_log_probs: Tensor) -> None:
        """Goes on with chosen rows, each followed by its token; rows may repeat, move and disappear."""
        identity = len(rows) == self.num_rows and torch.equal(rows, torch.arange(len(rows), device=rows.device))
        if not identity:
            self.state = self.state.select(rows)
        self.num_rows = len(rows)
        self.votes = [
            scorer.select(state, rows, tokens) for scorer, state in zip(self.scorers, self.votes, strict=True)
        ]
        self.trail.choose(rows, tokens, token_log_probs)
        self.inputs = self.decoder.outputs.inputs(tokens)[:, None]


def precise(values: Tensor) -> Tensor:
    """Values in float64, in which totals are kept so that a long sum does not depend on its company; MPS has none."""
    return values.double() if values.device.type != "mps" else values.float()


def refuse_nan(values: Tensor, step: int) -> None:
    """Raises: RegardError when a model's scores are not numbers."""
    if bool(values.isnan().any()):
        raise RegardError(
            f"decode: the model's log-probabilities at token {step + 1} are NaN, expected numbers; the weights or the"
            " inputs hold NaN or infinity: take an earlier checkpoint or look at the input"
        )
