"""Copying: a decoder that may also repeat a word of its source, by pointing at it.

Around any decoder. Each step has two ways to a word: to generate it from the vocabulary, with probability g, or to copy
one from the source, each with the attention that points at it: p(w) = g P_vocab(w) + (1 - g) sum_i a_i [source_i = w]
(See et al. 2017, eq. 9). A word of the source that the vocabulary does not have is an output like any other: it gets a
temporary id beyond the vocabulary, in each row its own, for as long as the row is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.masks import Padding
from regard.attention.observation import Observation, Observe
from regard.errors import ConfigError
from regard.inputs.embeddings import TextEmbedding
from regard.layers.head import OutputHead
from regard.models.decoder import Step
from regard.models.memory import Memory
from regard.models.recurrent_attention import ReadMemory

LAYER = "decoder.copy"  # what points, where it is a head of its own


@dataclass(frozen=True)
class CopyConfig:
    """How a decoder points at the source."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # Whose attention points. "own": one more head, above the decoder, that does nothing else. "decoder": the decoder's
    # own, the mean over the heads of its last layer, which then must find both context and words (See et al. 2017).
    attention: Literal["own", "decoder"] = "own"


class CopySpace(NamedTuple):
    """The output space of a decoder that copies: ids below `vocab` are token ids, those beyond it are copied words.

    unknown: the token id that is fed back for a copied word that is not in the vocabulary.
    """

    vocab: int
    unknown: int

    @property
    def num_outputs(self) -> int:
        """Of the vocabulary; a step has further columns, as many as its sources have words beyond it."""
        return self.vocab

    def inputs(self, outputs: Tensor) -> Tensor:
        return outputs.masked_fill(outputs >= self.vocab, self.unknown)


class Copied(NamedTuple):
    """What a decoder that copies says of its n tokens, beside the hidden vectors that it generates from.

    gate: [rows, n], logits of generating rather than copying. attention: [rows, n, source_len], where it points; it
    carries gradient. repeated: [rows, n], how much of that went to what had it before, the sum over the source of
    min(attention, coverage) (See et al. 2017, eq. 12).
    """

    gate: Tensor
    attention: Tensor
    repeated: Tensor


@dataclass(frozen=True)
class CopyState:
    """What is carried from token to token.

    inner: the decoder's own state. pointing: what an own head reads. outputs: int64 [rows, source_len], the output id
    of each source word. num_extra: how many ids lie beyond the vocabulary. covered: [rows, source_len], what was
    pointed at.
    """

    inner: Any
    pointing: ReadMemory | None
    outputs: Tensor
    num_extra: int
    covered: Tensor

    def select(self, rows: Tensor) -> CopyState:
        pointing = None if self.pointing is None else self.pointing.select(rows)
        return CopyState(self.inner.select(rows), pointing, self.outputs[rows], self.num_extra, self.covered[rows])


def with_temporary_ids(ids: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Numbers the unknown words of each row anew: (ids, the words that the new numbers stand for).

    ids: int64 [rows, length]; from `vocab` on they are of unknown words, whatever their numbers, as a corpus has them.
    Returns ids in which a row's k unknown words are vocab, ..., vocab + k - 1, in order of their former numbers, and
    int64 [rows, most k of any row]: these former numbers, 0 where there is none.
    """
    unknown = ids >= vocab
    ordered, order = ids.masked_fill(~unknown, -1).sort(dim=1)
    before = F.pad(ordered, (1, 0), value=-1)[:, :-1]
    first = (ordered >= 0) & (ordered != before)
    rank = first.cumsum(1) - 1
    numbered = torch.empty_like(ids).scatter_(1, order, vocab + rank)
    num_extra = int(first.sum(1).max()) if ids.numel() else 0
    words = ids.new_zeros(ids.shape[0], num_extra)
    row, place = first.nonzero(as_tuple=True)
    words[row, rank[row, place]] = ordered[row, place]
    return torch.where(unknown, numbered, ids), words


class CopyingDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py` for `decoder`, any decoder with a head, and adds copying.

    It reads the memory called "source", whose `outputs` say what its words are. memory_dim: that memory's width.
    model_dim: of the decoder's hidden vectors. unknown: see `CopySpace`.
    """

    def __init__(
        self, decoder: Any, config: CopyConfig, *, vocab: int, model_dim: int, memory_dim: int, unknown: int
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.outputs = CopySpace(vocab, unknown)
        self.points_itself = config.attention == "own"
        self.gate = nn.Linear(model_dim + (memory_dim if self.points_itself else 0), 1)
        linears = [self.gate]
        if self.points_itself:
            self.query = nn.Linear(model_dim, model_dim, bias=False)
            self.key = nn.Linear(memory_dim, model_dim, bias=False)
            linears += [self.query, self.key]
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.gate.bias)

    @property
    def head(self) -> OutputHead:
        head: OutputHead = self.decoder.head
        return head

    @property
    def embedding(self) -> TextEmbedding:
        embedding: TextEmbedding = self.decoder.embedding
        return embedding

    def start(self, memories: Mapping[str, Memory]) -> CopyState:
        """Raises: ConfigError when the memory does not say what its words are."""
        memory = memories["source"]
        if memory.outputs is None:
            raise ConfigError(
                "copying: the source does not say what its words are; encode it as text of the vocabulary"
            )
        real = torch.arange(memory.outputs.shape[1], device=memory.outputs.device) < memory.lengths[:, None]
        outputs, words = with_temporary_ids(memory.outputs.masked_fill(~real, 0), self.outputs.vocab)
        pointing = None
        if self.points_itself:
            pointing = ReadMemory.of(self.key(memory.vectors), memory.vectors, memory.lengths)
        covered = memory.vectors.new_zeros(outputs.shape, dtype=_wide(memory.vectors))
        return CopyState(self.decoder.start(memories), pointing, outputs, words.shape[1], covered)

    def read_copying(
        self, state: CopyState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, Copied, CopyState, dict[str, Observation]]:
        """tokens [rows, n], output ids or token ids -> (hidden [rows, n, model_dim], what is copied, the state after
        them, observations by layer name)."""
        asked = observe or None
        within = asked if self.points_itself else replace(asked or Observe(), rows="all", heads=None)
        inputs = self.outputs.inputs(tokens)
        hidden, inner, observations = self.decoder.read(state.inner, inputs, within)
        if self.points_itself:
            assert state.pointing is not None
            weights, context, seen = self._point(hidden, state.pointing, asked)
            observations = {**observations, **({LAYER: seen} if asked else {})}
            gate = self.gate(torch.cat([hidden, context], dim=-1))
        else:
            weights = _last_layer(observations)
            gate = self.gate(hidden)
        if asked is None:
            observations = {}
        weights = weights.to(state.covered.dtype)
        # What was pointed at before each token: the sum of all earlier rows, without a tensor for each pair of them.
        covered = state.covered[:, None] + weights.cumsum(1)
        repeated = torch.minimum(weights, covered - weights).sum(-1)
        after = replace(state, inner=inner, covered=covered[:, -1])
        return hidden, Copied(gate[..., 0].to(weights.dtype), weights, repeated), after, observations

    def read(
        self, state: CopyState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, CopyState, dict[str, Observation]]:
        """As the decoder's own: tokens [rows, n] -> (hidden [rows, n, model_dim], state, observations)."""
        hidden, _, after, observations = self.read_copying(state, tokens, observe)
        return hidden, after, observations

    def advance(self, state: CopyState, tokens: Tensor, observe: Observe | None = None) -> tuple[Step, CopyState]:
        """The step's columns are the vocabulary, then the rows' unknown words; those that a row lacks are -inf."""
        hidden, copied, after, observations = self.read_copying(state, tokens, observe)
        log_probs = self.head.log_probs(hidden)
        return Step(_mixed(log_probs, copied, state.outputs, state.num_extra), observations), after

    def _point(self, hidden: Tensor, memory: ReadMemory, observe: Observe | None) -> tuple[Tensor, Tensor, Observation]:
        """Where to copy from [rows, n, source_len], the mean of what stands there [rows, n, memory_dim], and what was
        asked for."""
        query = self.query(hidden)[:, None].to(memory.keys.dtype)
        with_rows = replace(observe or Observe(), rows="all", heads=None)
        mask = Padding(memory.lengths)
        attended = attend(query, memory.keys, memory.values, mask=mask, observe=with_rows)
        weights = attended.observation.rows
        assert weights is not None
        return weights[:, 0], attended.output[:, 0], attended.observation


def _last_layer(observations: Mapping[str, Observation]) -> Tensor:
    """The mean over the heads of the last layer's attention, [rows, n, source_len]."""
    weights = list(observations.values())[-1].rows
    assert weights is not None
    return weights.mean(1)


def _mixed(log_probs: Tensor, copied: Copied, outputs: Tensor, num_extra: int) -> Tensor:
    """log p of the vocabulary and of the words beyond it, [rows, n, vocab + num_extra]. log_probs: [rows, n, vocab]."""
    rows, length, vocab = log_probs.shape
    mass = copied.attention.new_zeros(rows, length, vocab + num_extra)
    mass = mass.scatter_add(2, outputs[:, None].expand(rows, length, -1), copied.attention)
    gate = copied.gate.to(mass.dtype)[..., None]
    tiny = torch.finfo(mass.dtype).tiny
    # Held above 0 before the logarithm, so that what has no mass has no gradient either, and is no NaN.
    of_copies = (mass.clamp_min(tiny).log() + F.logsigmoid(-gate)).masked_fill(mass == 0, float("-inf"))
    generated = log_probs.to(mass.dtype) + F.logsigmoid(gate)
    known = torch.logaddexp(generated, of_copies[..., :vocab])
    return torch.cat([known, of_copies[..., vocab:]], dim=-1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
