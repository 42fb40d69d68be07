"""What a search returns, and the trail of back-pointers from which it is read off at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.models.memory import Memory


@dataclass(frozen=True)
class Hypothesis:
    """One output of a search.

    tokens: output ids without BOS; the last one is EOS if `finished`.
    score: what ranking used: (log_prob + votes of scorers) / num_tokens ** length_penalty.
    log_prob: the model's own total log-probability, before temperature, truncation and scorers.
    token_log_probs: its terms, one a token.
    finished: False when max_length cut it off, or when scorers left no way to go on.
    attention: layer -> [heads, num_tokens, key_len]; row t belongs to the step that chose token t. Empty unless
    observed; key_len is the real length of the memory that the layer looks at.
    """

    tokens: list[int]
    score: float
    log_prob: float
    token_log_probs: list[float]
    finished: bool
    attention: dict[str, Tensor] = field(default_factory=dict)


class Ends(NamedTuple):
    """Where hypotheses end on a trail; every tensor is [ends].

    num_tokens: length, EOS counted. row: the row, in the layout of step num_tokens - 1, that chose the last token.
    token, token_log_prob: that last token. score: as in Hypothesis. finished: whether the last token is EOS.
    """

    num_tokens: Tensor
    row: Tensor
    token: Tensor
    token_log_prob: Tensor
    score: Tensor
    finished: Tensor

    def take(self, chosen: Tensor) -> Ends:
        """Chosen ends, by index or by a boolean mask."""
        return Ends(*(part[chosen] for part in self))

    @staticmethod
    def join(ends: list[Ends]) -> Ends:
        """All of them, in order."""
        return Ends(*(torch.cat(parts) for parts in zip(*ends, strict=True)))


class Trail:
    """Every choice of a search, step by step; histories are never copied, they are traced once at the end.

    A step has a layout of rows. Row r of step t + 1 goes on from row parents[t][r] of step t, which chose tokens[t][r].
    """

    def __init__(self) -> None:
        self.parents: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.token_log_probs: list[Tensor] = []
        self.attention: list[dict[str, Tensor]] = []  # of every step: layer -> [rows, heads, key_len]

    def __len__(self) -> int:
        """The number of steps whose choices were taken."""
        return len(self.tokens)

    def observe(self, attention: Mapping[str, Observation]) -> None:
        """Keeps one step's rows of attention, of its last query where a prefix was read with it."""
        self.attention.append(
            {layer: seen.rows[:, :, -1].detach() for layer, seen in attention.items() if seen.rows is not None}
        )

    def choose(self, parents: Tensor, tokens: Tensor, token_log_probs: Tensor) -> None:
        """The layout of the next step; all [new rows]."""
        self.parents.append(parents)
        self.tokens.append(tokens)
        self.token_log_probs.append(token_log_probs)

    def before(self, rows: Tensor, score: Tensor) -> Ends:
        """Unfinished ends at the tokens that rows of the coming step were made of; for rows with no way to go on."""
        length = torch.full_like(rows, len(self))
        finished = torch.zeros_like(rows, dtype=torch.bool)
        if not self.tokens:
            return Ends(length, rows, torch.zeros_like(rows), score.new_zeros(rows.shape), score, finished)
        chosen = (self.parents[-1][rows], self.tokens[-1][rows], self.token_log_probs[-1][rows].to(score.dtype))
        return Ends(length, *chosen, score, finished)

    def trace(self, ends: Ends, sentences: Tensor, memories: Mapping[str, Memory]) -> list[Hypothesis]:
        """The hypotheses that end at `ends`, in their order; sentences: [ends], the batch row of each."""
        if not len(ends.num_tokens):
            return []
        longest = int(ends.num_tokens.max())
        count = len(ends.num_tokens)
        tokens = ends.token[:, None].expand(count, longest).clone()
        log_probs = ends.token_log_prob[:, None].expand(count, longest).clone()
        rows = ends.row[:, None].expand(count, longest).clone()  # the row that chose each token, in its step's layout
        for step in range(longest - 2, -1, -1):
            longer = (ends.num_tokens > step + 1).nonzero()[:, 0]
            child = rows[longer, step + 1]
            tokens[longer, step] = self.tokens[step][child]
            log_probs[longer, step] = self.token_log_probs[step][child].to(log_probs.dtype)
            rows[longer, step] = self.parents[step][child]
        lengths = ends.num_tokens.tolist()
        attention = self._attention(ends.num_tokens, rows, sentences, memories)
        return [
            Hypothesis(
                tokens=row_tokens[:length],
                score=score,
                log_prob=sum(row_log_probs[:length]),
                token_log_probs=row_log_probs[:length],
                finished=finished,
                attention=seen,
            )
            for row_tokens, row_log_probs, length, score, finished, seen in zip(
                tokens.tolist(),
                log_probs.tolist(),
                lengths,
                ends.score.tolist(),
                ends.finished.tolist(),
                attention,
                strict=True,
            )
        ]

    def _attention(
        self, num_tokens: Tensor, rows: Tensor, sentences: Tensor, memories: Mapping[str, Memory]
    ) -> list[dict[str, Tensor]]:
        """Attention of every hypothesis; rows: [ends, longest]."""
        results: list[dict[str, Tensor]] = [{} for _ in range(len(rows))]
        for layer, first in (self.attention[0] if self.attention else {}).items():
            memory = looked_at(layer, [step[layer].shape[-1] for step in self.attention], memories)
            if memory is None:
                continue
            key_lengths = memory.lengths[sentences].tolist()
            kept = first.new_zeros((len(rows), first.shape[1], rows.shape[1], first.shape[2]))
            for step in range(rows.shape[1]):
                reached = (num_tokens > step).nonzero()[:, 0]
                kept[reached, :, step] = self.attention[step][layer][rows[reached, step]]
            for index, (length, key_length) in enumerate(zip(num_tokens.tolist(), key_lengths, strict=True)):
                results[index][layer] = kept[index, :, :length, :key_length].clone()
        return results


def looked_at(layer: str, key_lengths: list[int], memories: Mapping[str, Memory]) -> Memory | None:
    """The memory that a layer attends to, or None for a layer that attends to something else.

    It is a memory of the observed width; of several, the one whose name is part of the layer's name, else the first.
    A layer whose width changes from step to step looks at the output itself (self-attention) and is left out.
    """
    fitting = {
        name: memory
        for name, memory in memories.items()
        if all(memory.vectors.shape[1] == key_length for key_length in key_lengths)
    }
    named = [memory for name, memory in fitting.items() if name in layer.split(".")]
    return next(iter([*named, *fitting.values()]), None)
