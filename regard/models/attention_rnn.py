"""The attention-RNN decoder: a GRU that looks at the source before each step. Bahdanau et al. 2015, sec. 3.1.

Per token: the state so far is the query, the memory the keys and values; their weighted sum (the context) and the last
token drive the recurrence; state, token and context together predict (eqs. 4 to 6, appendix A.2.2).

Three things differ from the paper. The cell is torch's, which applies the reset gate after the recurrent product, where
the paper applies it before. The readout takes the new state s_i, as eq. 4 does; appendix A.2.2 writes s_{i-1}. The
readout's output is as wide as the embedding, so that the head can be tied to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.masks import Padding
from regard.attention.observation import Observation, Observe, joined, problems_of
from regard.attention.scores import Additive, Bilinear, Dot, Score
from regard.errors import ConfigError, ObservationError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.dropout import Dropout
from regard.layers.head import HeadConfig, OutputHead
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory
from regard.models.recurrent_encoder import initialise_recurrence

LAYER = "decoder.layers.0.cross"  # the one place where this decoder attends


@dataclass(frozen=True)
class AttentionRNNConfig:
    """A GRU decoder with one head of attention."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["attention-rnn"]
    model_dim: int  # width of the embedding, the state and the readout
    attention_dim: int  # width in which states and memory are compared
    score: Literal["additive", "dot", "bilinear"] = "additive"  # Bahdanau 2015; Luong 2015 "dot" and "general"
    # Without positions, which a recurrence knows by itself; others are refused.
    embedding: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False))
    head: HeadConfig = field(default_factory=lambda: HeadConfig(bias=True))
    dropout: float = 0.1  # on the embedded target and on the readout


@dataclass(frozen=True)
class AttentionRNNState:
    """What is carried from token to token.

    hidden: [rows, model_dim]. keys [rows, 1, source_len, attention_dim] and values [rows, 1, source_len, memory_dim]:
    the memory, projected once. lengths: [rows], real memory vectors. source: [rows], which source each row reads; lets
    a reordering among rows of one source leave the memory alone.
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    lengths: Tensor
    source: Tensor

    def select(self, rows: Tensor) -> AttentionRNNState:
        source = self.source[rows]
        if torch.equal(source, self.source):
            return AttentionRNNState(self.hidden[rows], self.keys, self.values, self.lengths, source)
        return AttentionRNNState(self.hidden[rows], self.keys[rows], self.values[rows], self.lengths[rows], source)


class AttentionRNNDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py`; reads the memory called "source".

    memory_dim: width of the memory, whose second half is taken to have read the source backwards. token_weight: the
    embedding's matrix when it is shared with the encoder, [vocab, model_dim]. tie_head: whether the head's weight is
    the embedding's.

    Raises: ConfigError when the embedding has positions: a step does not know its own.
    """

    attention_name = "layers.0.cross"  # of the layer, to whoever observes the model: it attends in no module of its own

    def __init__(
        self,
        vocab: int,
        config: AttentionRNNConfig,
        *,
        memory_dim: int,
        token_weight: nn.Parameter | None = None,
        tie_head: bool = True,
    ) -> None:
        super().__init__()
        if config.embedding.positions != "none":
            raise ConfigError(
                f"attention-rnn: embedding.positions is `{config.embedding.positions}`, expected `none`: "
                "a recurrence knows the position by itself"
            )
        dim = config.model_dim
        self.outputs = Vocabulary(vocab)
        self.embedding = TextEmbedding(vocab, dim, config.embedding)
        if token_weight is not None:
            self.embedding.tokens.weight = token_weight
        self.backward_dim = memory_dim - memory_dim // 2
        self.initial = nn.Linear(self.backward_dim, dim)
        self.query = nn.Linear(dim, config.attention_dim, bias=False)
        self.key = nn.Linear(memory_dim, config.attention_dim, bias=True)
        self.score_kind = config.score
        shapes = {"additive": (1, config.attention_dim), "bilinear": (1, config.attention_dim, config.attention_dim)}
        shape = shapes.get(config.score)
        self.score_weight = None if shape is None else nn.Parameter(torch.zeros(shape))
        self.cell = nn.GRUCell(dim + memory_dim, dim)
        self.readout = nn.Linear(dim + dim + memory_dim, 2 * dim)
        self.dropout = Dropout(config.dropout)
        weight = self.embedding.weight if tie_head else nn.Parameter(torch.empty(vocab, dim))
        if not tie_head:
            nn.init.normal_(weight, std=dim**-0.5)
        self.head = OutputHead(weight, config.head)
        self._initialise()

    def _initialise(self) -> None:
        """The recurrence and the additive score by Bahdanau et al. 2015, appendix B.1; the rest by Glorot's bound.

        The paper draws every other matrix, embeddings included, from N(0, 0.01^2), which Adam is slow to leave: a small
        model that learns to reverse its source in 300 updates this way is far from it that way. A bilinear score
        starts as the dot product.
        """
        initialise_recurrence(self.cell)
        for linear in (self.initial, self.readout, self.query, self.key):
            nn.init.xavier_uniform_(linear.weight)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.score_kind == "additive":
            # W_a and U_a from N(0, 0.001^2); v_a stays 0: attention starts uniform and learns through v_a first.
            for linear in (self.query, self.key):
                nn.init.normal_(linear.weight, std=0.001)
        elif self.score_weight is not None:
            with torch.no_grad():
                self.score_weight[0].copy_(torch.eye(self.score_weight.shape[-1]))

    def _score(self) -> Score:
        if self.score_weight is None:
            return Dot()
        return Additive(self.score_weight) if self.score_kind == "additive" else Bilinear(self.score_weight)

    def start(self, memories: Mapping[str, Memory]) -> AttentionRNNState:
        memory = memories["source"]
        # The backward state at the first word has read the whole source: s_0 = tanh(W_s h_1), appendix A.2.2.
        first_backward = memory.vectors[:, 0, -self.backward_dim :]
        rows = torch.arange(memory.vectors.shape[0], device=memory.vectors.device)
        return AttentionRNNState(
            hidden=torch.tanh(self.initial(first_backward)),
            keys=self.key(memory.vectors)[:, None].to(memory.vectors.dtype),  # autocast narrows projections alone
            values=memory.vectors[:, None],
            lengths=memory.lengths,
            source=rows,
        )

    def read(
        self, state: AttentionRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, AttentionRNNState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name)."""
        if observe:
            _check(observe, tokens, state)
        embedded = self.dropout(self.embedding(tokens))
        score, mask = self._score(), Padding(state.lengths)
        hidden = state.hidden
        read, observations = [], []
        for index in range(tokens.shape[1]):
            query = self.query(hidden)[:, None, None].to(state.keys.dtype)
            asked = _of_query(observe, index, tokens.shape[1]) if observe else None
            attended = attend(query, state.keys, state.values, score=score, mask=mask, observe=asked)
            context = attended.output[:, 0, 0]
            token = embedded[:, index]
            hidden = self.cell(torch.cat([token, context], dim=-1), hidden)
            read.append(torch.cat([hidden, token, context], dim=-1))
            observations.append(attended.observation)
        # Maxout over pairs (Goodfellow et al. 2013), appendix A.2.2.
        predicted = self.readout(torch.stack(read, dim=1)).unflatten(-1, (-1, 2)).amax(dim=-1)
        after = AttentionRNNState(hidden, state.keys, state.values, state.lengths, state.source)
        return self.dropout(predicted), after, {LAYER: _join(observations, observe)} if observe else {}

    def advance(
        self, state: AttentionRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, AttentionRNNState]:
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state


def _check(request: Observe, tokens: Tensor, state: AttentionRNNState) -> None:
    """Raises ObservationError, naming all that cannot be observed of n queries that come one by one."""
    problems = problems_of(request, tokens.shape[0], 1, tokens.shape[1], state.keys.shape[2])
    if request.trace:
        problems.append("observe.trace is of one call, and this decoder makes one a token; ask for rows instead")
    if problems:
        raise ObservationError("attention-rnn: " + "; ".join(problems))


def _of_query(request: Observe, index: int, num_queries: int) -> Observe:
    """What is asked of one of the queries, whose call knows no other."""
    rows = request.rows
    if rows is not None and rows != "all":
        rows = (0,) if index in {row % num_queries for row in rows} else ()
    received = request.received
    return replace(
        request,
        received=received[:, index : index + 1] if isinstance(received, Tensor) else received,
        rows=rows,
        pooled=None if request.pooled is None else (1, request.pooled[1]),
        queries=None if request.queries is None else request.queries[:, index : index + 1],
    )


def _join(steps: list[Observation], request: Observe) -> Observation:
    """The observation of n queries that was asked for, out of n observations of one."""
    if request.pooled is not None:
        steps = [_placed(step, index * request.pooled[0] // len(steps), request) for index, step in enumerate(steps)]
    return joined(steps, request, len(steps))


def _placed(step: Observation, row: int, request: Observe) -> Observation:
    """With its one row of the grid where it stands in the whole."""
    assert step.pooled is not None and request.pooled is not None
    pooled = step.pooled.new_zeros(*step.pooled.shape[:2], *request.pooled)
    pooled[:, :, row] = step.pooled[:, :, 0]
    return replace(step, pooled=pooled)
