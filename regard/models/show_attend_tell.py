"""The decoder of Show, Attend and Tell: an LSTM that looks at a picture before each word. Xu et al. 2015, sec. 3.1.2.

Per word: the state so far is the query, the picture's vectors are keys and values; their weighted sum, times a gate
between 0 and 1 that the state decides (sec. 4.2.1, "the gating scalar beta"), drives the LSTM with the last word; word,
new state and gated context together predict (eq. 7). The state begins from the mean of all vectors (sec. 3.1.2).

What differs: the sum of eq. 7 goes through a tanh before the head. Attention is the soft kind (sec. 4.2). That each
place of the picture should be looked at about once over a caption (eq. 14) is part of the loss, not of the model: see
`tasks/caption/objective.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.attention.scores import Additive, Dot, Score
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.dropout import Dropout
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.recurrence import LoopProduct, initialise_recurrence, lstm_update
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory
from regard.models.recurrent_attention import ATTENTION_NAME, Looks, ReadMemory, refuse_positions


@dataclass(frozen=True)
class ShowAttendTellConfig:
    """An LSTM with one head of gated attention."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["show-attend-tell"]
    model_dim: int  # width of the embedding and of the readout
    state_dim: int  # width of the LSTM
    attention_dim: int  # width in which states and vectors are compared
    score: Literal["additive", "dot"] = "additive"  # the paper's is additive
    # What the state begins from. "mean": the mean of all vectors, as in the paper, which tells of the whole picture at
    # once. "learned": the same numbers for every picture, so that nothing is known but what was looked at.
    initial: Literal["mean", "learned"] = "mean"
    # In training, how often a step's look is kept from the recurrence, though not from the word that it is for. What
    # was seen earlier is then no safe ground: a word that names something had better look at it itself.
    forgetting: float = 0.0
    # Without positions, which a recurrence knows by itself; others are refused.
    embedding: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False))
    head: HeadConfig = field(default_factory=lambda: HeadConfig(bias=True))
    dropout: float = 0.1  # on the embedded words and on the readout


@dataclass(frozen=True)
class ShowAttendTellState:
    """What is carried from word to word. hidden, cell: [rows, state_dim]. says: weight and bias of the one product that
    tells all that a state decides, joined once a caption; no rows."""

    hidden: Tensor
    cell: Tensor
    memory: ReadMemory
    says: tuple[Tensor, Tensor]

    def select(self, rows: Tensor) -> ShowAttendTellState:
        return replace(self, hidden=self.hidden[rows], cell=self.cell[rows], memory=self.memory.select(rows))


class ShowAttendTellDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py`; reads the memory called "source".

    memory_dim: width of the memory. token_weight: the embedding's matrix when it is shared with the encoder,
    [vocab, model_dim]. tie_head: whether the head's weight is the embedding's.

    Raises: ConfigError when the embedding has positions, or a width is below 1.
    """

    attention_name = ATTENTION_NAME

    def __init__(
        self,
        vocab: int,
        config: ShowAttendTellConfig,
        *,
        memory_dim: int,
        token_weight: nn.Parameter | None = None,
        tie_head: bool = True,
    ) -> None:
        super().__init__()
        refuse_positions("show-attend-tell", config.embedding)
        if min(config.state_dim, config.attention_dim) < 1:
            raise ConfigError(
                f"show-attend-tell: state_dim is {config.state_dim} and attention_dim {config.attention_dim}, expected"
                " 1 or more"
            )
        if not 0.0 <= config.forgetting < 1.0:
            raise ConfigError(f"show-attend-tell: forgetting is {config.forgetting}, expected 0 to below 1")
        self.forgetting = config.forgetting
        dim, state_dim = config.model_dim, config.state_dim
        self.token_dim = dim
        self.widths = (4 * state_dim, config.attention_dim, 1)  # of what the state says: gates, query, beta
        self.outputs = Vocabulary(vocab)
        self.embedding = TextEmbedding(vocab, dim, config.embedding)
        if token_weight is not None:
            self.embedding.tokens.weight = token_weight
        self.initial = nn.Linear(memory_dim, 2 * state_dim) if config.initial == "mean" else None
        self.first = nn.Parameter(torch.zeros(2 * state_dim)) if config.initial == "learned" else None
        self.query = nn.Linear(state_dim, config.attention_dim, bias=False)
        self.key = nn.Linear(memory_dim, config.attention_dim)
        self.beta = nn.Linear(state_dim, 1)
        self.score_weight = None
        if config.score == "additive":
            self.score_weight = nn.Parameter(torch.empty(1, config.attention_dim))
            nn.init.normal_(self.score_weight, std=config.attention_dim**-0.5)
        self.cell = nn.LSTMCell(dim + memory_dim, state_dim)
        initialise_recurrence(self.cell)
        nn.init.xavier_uniform_(self.cell.weight_ih)
        self.of_state = nn.Linear(state_dim, dim, bias=False)
        self.of_context = nn.Linear(memory_dim, dim, bias=False)
        for linear in (self.initial, self.query, self.key, self.beta, self.of_state, self.of_context):
            if linear is None:
                continue
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.dropout = Dropout(config.dropout)
        weight = self.embedding.weight if tie_head else nn.Parameter(torch.empty(vocab, dim))
        if not tie_head:
            nn.init.normal_(weight, std=dim**-0.5)
        self.head = OutputHead(weight, config.head)

    def _score(self) -> Score:
        return Dot() if self.score_weight is None else Additive(self.score_weight)

    def start(self, memories: Mapping[str, Memory]) -> ShowAttendTellState:
        memory = memories["source"]
        vectors = memory.vectors
        begin = self.first
        if self.initial is not None:
            real = torch.arange(vectors.shape[1], device=vectors.device) < memory.lengths[:, None]
            count = memory.lengths.clamp_min(1)[:, None].to(vectors.dtype)
            begin = self.initial((vectors * real[..., None].to(vectors.dtype)).sum(1) / count)
        assert begin is not None
        both = torch.tanh(begin).to(vectors.dtype).expand(vectors.shape[0], -1)
        hidden, cell = both.chunk(2, dim=-1)
        # Its part of the gates, the query, and beta.
        weight = torch.cat([self.cell.weight_hh, self.query.weight, self.beta.weight])
        bias = torch.cat([self.cell.bias_hh, self.cell.bias_hh.new_zeros(self.widths[1]), self.beta.bias])
        read = ReadMemory.of(self.key(vectors), vectors, memory.lengths)
        return ShowAttendTellState(hidden, cell, read, (weight, bias))

    def read(
        self, state: ShowAttendTellState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, ShowAttendTellState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name)."""
        looks = Looks("show-attend-tell", state.memory, self._score(), tokens.shape[1], observe)
        embedded = self.dropout(self.embedding(tokens))
        of_tokens = F.linear(embedded, self.cell.weight_ih[:, : self.token_dim], self.cell.bias_ih)
        says = LoopProduct(*state.says)
        of_context = LoopProduct(self.cell.weight_ih[:, self.token_dim :])
        hidden, cell, states, contexts = state.hidden, state.cell, [], []
        kept = None
        if self.training and self.forgetting:
            drawn = torch.rand(*tokens.shape, 1, device=tokens.device) >= self.forgetting
            kept = drawn.to(state.memory.values.dtype).unbind(1)
        for place, token in enumerate(of_tokens.unbind(1)):
            gates, query, beta = says(hidden).split(self.widths, dim=-1)
            context = looks.at(query) * torch.sigmoid(beta).to(state.memory.values.dtype)
            remembered = context if kept is None else context * kept[place]
            hidden, cell = lstm_update(token + gates, cell, of_context(remembered))
            states.append(hidden)
            contexts.append(context)
        predicted = embedded + self.of_state(torch.stack(states, 1)) + self.of_context(torch.stack(contexts, 1))
        after = replace(state, hidden=hidden, cell=cell)
        return self.dropout(torch.tanh(predicted)), after, looks.observations()

    def advance(
        self, state: ShowAttendTellState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, ShowAttendTellState]:
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state
