"""The attention-RNN decoder: a GRU that looks at the source before each step. Bahdanau et al. 2015, sec. 3.1.

Per token: the state so far is the query, the memory the keys and values; their weighted sum (the context) and the last
token drive the recurrence; state, token and context together predict (eqs. 4 to 6, appendix A.2.2).

Three things differ from the paper. The cell is torch's, which applies the reset gate after the recurrent product, where
the paper applies it before. The readout takes the new state s_i, as eq. 4 does; appendix A.2.2 writes s_{i-1}. The
readout's output is as wide as the embedding, so that the head can be tied to it.

The conditional GRU (Sennrich et al. 2017, Nematus, sec. 3) has the same parts, but a transition of its own for the
token, so that the query knows the token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.observation import Observation, Observe
from regard.attention.scores import Additive, Bilinear, Dot, Score
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.dropout import Dropout
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.recurrence import LoopProduct, gru_update, initialise_recurrence
from regard.models.coverage_attention import Coverage
from regard.models.decoder import Step, Vocabulary
from regard.models.location_attention import LocationFilters
from regard.models.memory import Memory
from regard.models.recurrent_attention import ATTENTION_NAME, Looks, ReadMemory, RememberingLooks, refuse_positions
from regard.models.recurrent_attention import LAYER as LAYER

# A step of a recurrence: (the token's part of the gates, state) -> (next state, context).
Transition = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AttentionRNNConfig:
    """A GRU decoder with one head of attention."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["attention-rnn"]
    model_dim: int  # width of the embedding, the state and the readout
    attention_dim: int  # width in which states and memory are compared
    # Bahdanau 2015; Luong 2015 "dot" and "general"; "location": additive, and knows the weights of the look before
    # (Chorowski 2015), for sources of frames, many of which sound alike; "coverage": additive, and knows what each
    # source word has received so far (See 2017), for summaries, which tend to come back to what they have said.
    score: Literal["additive", "dot", "bilinear", "location", "coverage"] = "additive"
    location_filters: int = 10  # score location only: filters over the weights of the look before
    location_width: int = 25  # of a filter, in memory vectors; odd. It should span about a word
    # What a token does. "gru": look, then one transition on token and context (Bahdanau 2015). "conditional-gru": a
    # transition on the token, look, a transition on the context (Sennrich et al. 2017).
    cell: Literal["gru", "conditional-gru"] = "gru"
    # Without positions, which a recurrence knows by itself; others are refused.
    embedding: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False))
    head: HeadConfig = field(default_factory=lambda: HeadConfig(bias=True))
    dropout: float = 0.1  # on the embedded target and on the readout


@dataclass(frozen=True)
class AttentionRNNState:
    """What is carried from token to token.

    hidden: [rows, model_dim]. attended: [rows, 1, 1, source_len], what the score remembers of earlier looks: the last
    weights, or the sum of all; None where it remembers nothing.
    """

    hidden: Tensor
    memory: ReadMemory
    attended: Tensor | None = None

    def select(self, rows: Tensor) -> AttentionRNNState:
        attended = None if self.attended is None else self.attended[rows]
        return AttentionRNNState(self.hidden[rows], self.memory.select(rows), attended)


class LookThenUpdate(nn.GRUCell):
    """s_i = GRU([y_{i-1}; c_i], s_{i-1}), c_i looked up with s_{i-1}. Bahdanau et al. 2015, appendix A.1.2."""

    def __init__(self, token_dim: int, memory_dim: int, dim: int) -> None:
        super().__init__(token_dim + memory_dim, dim)
        self.token_dim = token_dim

    def of_tokens(self, embedded: Tensor) -> Tensor:
        """[rows, n, token_dim] -> what tokens add to the gates, for all steps at once."""
        return F.linear(embedded, self.weight_ih[:, : self.token_dim], self.bias_ih)

    def transition(self, look: Callable[[Tensor], Tensor]) -> Transition:
        """The step of one loop. look: state -> context."""
        of_context = LoopProduct(self.weight_ih[:, self.token_dim :])
        of_hidden = LoopProduct(self.weight_hh, self.bias_hh)

        def step(token: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            context = look(hidden)
            return gru_update(token, of_hidden(hidden), hidden, of_context(context)), context

        return step


class UpdateLookUpdate(nn.Module):
    """s'_i = GRU_1(y_{i-1}, s_{i-1}); s_i = GRU_2(c_i, s'_i), c_i looked up with s'_i. Sennrich et al. 2017, sec. 3."""

    def __init__(self, token_dim: int, memory_dim: int, dim: int) -> None:
        super().__init__()
        self.first = nn.GRUCell(token_dim, dim)
        self.second = nn.GRUCell(memory_dim, dim)

    def of_tokens(self, embedded: Tensor) -> Tensor:
        """[rows, n, token_dim] -> what tokens add to the first gates, for all steps at once."""
        return F.linear(embedded, self.first.weight_ih, self.first.bias_ih)

    def transition(self, look: Callable[[Tensor], Tensor]) -> Transition:
        """The step of one loop. look: state -> context."""
        of_context = LoopProduct(self.second.weight_ih, self.second.bias_ih)
        of_hidden, of_middle = (LoopProduct(cell.weight_hh, cell.bias_hh) for cell in (self.first, self.second))

        def step(token: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            middle = gru_update(token, of_hidden(hidden), hidden)
            context = look(middle)
            return gru_update(of_context(context), of_middle(middle), middle), context

        return step


CELLS: dict[str, type[LookThenUpdate | UpdateLookUpdate]] = {"gru": LookThenUpdate, "conditional-gru": UpdateLookUpdate}


class AttentionRNNDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py`; reads the memory called "source".

    memory_dim: width of the memory, whose second half is taken to have read the source backwards. token_weight: the
    embedding's matrix when it is shared with the encoder, [vocab, model_dim]. tie_head: whether the head's weight is
    the embedding's.

    Raises: ConfigError when the embedding has positions: a step does not know its own.
    """

    attention_name = ATTENTION_NAME

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
        refuse_positions("attention-rnn", config.embedding)
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
        self.location = self.coverage = None
        if config.score == "location":
            self.location = LocationFilters(config.location_filters, config.location_width, config.attention_dim)
        elif config.score == "coverage":
            self.coverage = Coverage(config.attention_dim)
        self.cell: LookThenUpdate | UpdateLookUpdate = CELLS[config.cell](dim, memory_dim, dim)
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
        starts as the dot product. The scores location and coverage start from Glorot's bound, too: over hundreds
        of frames or words the small start takes thousands of updates to leave.
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

    @property
    def _remembered(self) -> LocationFilters | Coverage | None:
        return self.coverage if self.location is None else self.location

    def _score(self) -> Score:
        if self.score_weight is None:
            return Dot()
        return Additive(self.score_weight) if self.score_kind == "additive" else Bilinear(self.score_weight)

    def start(self, memories: Mapping[str, Memory]) -> AttentionRNNState:
        memory = memories["source"]
        # The backward state at the first word has read the whole source: s_0 = tanh(W_s h_1), appendix A.2.2.
        first_backward = memory.vectors[:, 0, -self.backward_dim :]
        hidden = torch.tanh(self.initial(first_backward)).to(memory.vectors.dtype)  # autocast narrows products alone
        read = ReadMemory.of(self.key(memory.vectors), memory.vectors, memory.lengths)
        return AttentionRNNState(hidden, read, None if self._remembered is None else self._remembered.first(read))

    def read(
        self, state: AttentionRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, AttentionRNNState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name)."""
        looks = self._looks(state, tokens.shape[1], observe)
        query = LoopProduct(self.query.weight)
        step = self.cell.transition(lambda hidden: looks.at(query(hidden)))
        embedded = self.dropout(self.embedding(tokens))
        hidden, states, contexts = state.hidden, [], []
        # Unbound, not indexed: the gradient of an index is as large as the whole.
        for token in self.cell.of_tokens(embedded).unbind(1):
            hidden, context = step(token, hidden)
            states.append(hidden)
            contexts.append(context)
        read = torch.cat([torch.stack(states, 1), embedded, torch.stack(contexts, 1)], dim=-1)
        # Maxout over pairs (Goodfellow et al. 2013), appendix A.2.2.
        predicted = self.readout(read).unflatten(-1, (-1, 2)).amax(dim=-1)
        attended = looks.attended if isinstance(looks, RememberingLooks) else None
        return self.dropout(predicted), AttentionRNNState(hidden, state.memory, attended), looks.observations()

    def _looks(self, state: AttentionRNNState, num_queries: int, observe: Observe | None) -> Looks:
        if self._remembered is None:
            return Looks("attention-rnn", state.memory, self._score(), num_queries, observe)
        assert state.attended is not None
        return RememberingLooks("attention-rnn", state.memory, self._remembered, state.attended, num_queries, observe)

    def advance(
        self, state: AttentionRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, AttentionRNNState]:
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state
