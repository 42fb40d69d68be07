"""The attention-RNN decoder of Luong et al. 2015: stacked LSTMs that look at the source after each step.

What differs from `attention_rnn`: the look comes after the recurrence and not before it, so that the query is the
newest state, and what predicts is the attentional vector of state and context, h~_t = tanh(W_c [c_t; h_t]) (eq. 5).
With input feeding (sec. 3.3) the next step reads h~_t beside its token; without it nothing that is attended to flows
back into the recurrence, and all queries of a sequence are one call.

Two things differ from the paper. The stack starts from a learned map of the first and the last memory vector, one of
which has read the whole source whichever way the encoder reads, in place of the encoder's own states. Attention is the
global one (sec. 3.1); the local kind is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.attend import attend
from regard.attention.masks import Padding
from regard.attention.observation import Observation, Observe
from regard.attention.scores import Additive, Dot, Score
from regard.errors import ConfigError
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.layers.dropout import Dropout
from regard.layers.head import HeadConfig, OutputHead
from regard.layers.recurrence import LoopProduct, initialise_recurrence, lstm_update
from regard.models.decoder import Step, Vocabulary
from regard.models.memory import Memory
from regard.models.recurrent_attention import ATTENTION_NAME, LAYER, Looks, ReadMemory, refuse_positions


@dataclass(frozen=True)
class LuongRNNConfig:
    """A stack of LSTMs with one head of attention above it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["luong-rnn"]
    model_dim: int  # width of the embedding and of the attentional vector
    state_dim: int  # width of each LSTM; the score dot wants the memory as wide
    num_layers: int = 1
    # How the newest state is compared with the memory (eq. 8): "dot"; "bilinear", the paper's general; "concat".
    score: Literal["dot", "bilinear", "concat"] = "bilinear"
    input_feeding: bool = True  # the attentional vector is an input of the next step
    # Without positions, which a recurrence knows by itself; others are refused.
    embedding: EmbeddingConfig = field(default_factory=lambda: EmbeddingConfig(positions="none", scale_by_root=False))
    head: HeadConfig = field(default_factory=lambda: HeadConfig(bias=True))
    dropout: float = 0.1  # on the embedded target, between layers and on the attentional vector where it predicts


@dataclass(frozen=True)
class LuongRNNState:
    """What is carried from token to token.

    hidden, cells: [rows, state_dim], one a layer. attentional: [rows, model_dim], h~ of the last token, 0 before the
    first.
    """

    hidden: tuple[Tensor, ...]
    cells: tuple[Tensor, ...]
    attentional: Tensor
    memory: ReadMemory

    def select(self, rows: Tensor) -> LuongRNNState:
        hidden, cells = (tuple(layer[rows] for layer in layers) for layers in (self.hidden, self.cells))
        return LuongRNNState(hidden, cells, self.attentional[rows], self.memory.select(rows))


class LuongAttention(nn.Module):
    """The parameters of the score, and of the map from state and context to the attentional vector."""

    def __init__(self, config: LuongRNNConfig, memory_dim: int) -> None:
        super().__init__()
        dim = config.state_dim
        if config.score == "dot" and memory_dim != dim:
            raise ConfigError(
                f"luong-rnn: score `dot` compares states of width {dim} with a memory of width {memory_dim}; set "
                f"state_dim to {memory_dim}, or score to bilinear"
            )
        self.vector = self.query = self.key = None
        if config.score != "dot":
            # h W m: W turns the memory, once a source, and the rest is a dot product.
            self.key = nn.Linear(memory_dim, dim, bias=False)
        if config.score == "concat":
            # v . tanh(W [h; m]) is the additive score: W's left half is its query projection, the right half its key's.
            self.query = nn.Linear(dim, dim, bias=False)
            self.vector = nn.Parameter(torch.empty(1, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.attentional = nn.Linear(memory_dim + dim, config.model_dim, bias=False)
        for linear in (self.query, self.key, self.attentional):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)

    def score(self) -> Score:
        return Dot() if self.vector is None else Additive(self.vector)

    def keys(self, memory: Tensor) -> Tensor:
        """[rows, source_len, memory_dim] -> what states are compared with."""
        keys: Tensor = memory if self.key is None else self.key(memory)
        return keys


class LuongRNNDecoder(nn.Module):
    """Speaks the protocol of `models/decoder.py`; reads the memory called "source".

    memory_dim: width of the memory. token_weight: the embedding's matrix when it is shared with the encoder,
    [vocab, model_dim]. tie_head: whether the head's weight is the embedding's.

    Raises: ConfigError when the embedding has positions, when there is no layer, or when the score does not fit.
    """

    attention_name = ATTENTION_NAME

    def __init__(
        self,
        vocab: int,
        config: LuongRNNConfig,
        *,
        memory_dim: int,
        token_weight: nn.Parameter | None = None,
        tie_head: bool = True,
    ) -> None:
        super().__init__()
        refuse_positions("luong-rnn", config.embedding)
        if config.num_layers < 1 or config.state_dim < 1:
            raise ConfigError(
                f"luong-rnn: num_layers is {config.num_layers} and state_dim {config.state_dim}, expected 1 or more"
            )
        dim, state_dim = config.model_dim, config.state_dim
        self.num_layers = config.num_layers
        self.input_feeding = config.input_feeding
        self.token_dim = dim
        self.outputs = Vocabulary(vocab)
        self.embedding = TextEmbedding(vocab, dim, config.embedding)
        if token_weight is not None:
            self.embedding.tokens.weight = token_weight
        self.initial = nn.Linear(2 * memory_dim, 2 * config.num_layers * state_dim)
        nn.init.xavier_uniform_(self.initial.weight)
        nn.init.zeros_(self.initial.bias)
        read_dim = 2 * dim if config.input_feeding else dim
        self.layers = nn.ModuleList(
            nn.LSTMCell(read_dim if index == 0 else state_dim, state_dim) for index in range(config.num_layers)
        )
        for layer in self.layers:
            initialise_recurrence(layer)
        self.attention = LuongAttention(config, memory_dim)
        self.dropout = Dropout(config.dropout)
        weight = self.embedding.weight if tie_head else nn.Parameter(torch.empty(vocab, dim))
        if not tie_head:
            nn.init.normal_(weight, std=dim**-0.5)
        self.head = OutputHead(weight, config.head)

    def start(self, memories: Mapping[str, Memory]) -> LuongRNNState:
        memory = memories["source"]
        vectors = memory.vectors
        rows = torch.arange(vectors.shape[0], device=vectors.device)
        ends = torch.cat([vectors[:, 0], vectors[rows, (memory.lengths - 1).clamp_min(0)]], dim=-1)
        states = torch.tanh(self.initial(ends)).to(vectors.dtype).chunk(2 * self.num_layers, dim=-1)
        return LuongRNNState(
            hidden=states[: self.num_layers],
            cells=states[self.num_layers :],
            attentional=vectors.new_zeros(vectors.shape[0], self.token_dim),
            memory=ReadMemory.of(self.attention.keys(vectors), vectors, memory.lengths),
        )

    def read(
        self, state: LuongRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Tensor, LuongRNNState, dict[str, Observation]]:
        """tokens [rows, n] -> (hidden [rows, n, model_dim], the state after them, observations by layer name)."""
        embedded = self.dropout(self.embedding(tokens))
        read = self._read_feeding if self.input_feeding else self._read_at_once
        attentional, after, observations = read(state, embedded, observe)
        return self.dropout(attentional), after, observations

    def _read_feeding(
        self, state: LuongRNNState, embedded: Tensor, observe: Observe | None
    ) -> tuple[Tensor, LuongRNNState, dict[str, Observation]]:
        """Step by step through the whole stack, because a step's attentional vector is the next one's input."""
        looks = Looks("luong-rnn", state.memory, self.attention.score(), embedded.shape[1], observe)
        first, *above = cast("list[nn.LSTMCell]", list(self.layers))
        token_gates = F.linear(embedded, first.weight_ih[:, : self.token_dim], first.bias_ih)
        # One product of [what flows in; the layer's own state] a layer.
        fed = torch.cat([first.weight_ih[:, self.token_dim :], first.weight_hh], dim=1)
        products = [LoopProduct(fed, first.bias_hh)]
        products += [
            LoopProduct(torch.cat([layer.weight_ih, layer.weight_hh], dim=1), layer.bias_ih + layer.bias_hh)
            for layer in above
        ]
        query = None if self.attention.query is None else LoopProduct(self.attention.query.weight)
        joined = LoopProduct(self.attention.attentional.weight)
        hidden, cells, attentional = list(state.hidden), list(state.cells), state.attentional
        found = []
        for gates in token_gates.unbind(1):
            below = attentional
            for index, product in enumerate(products):
                of_states = product(torch.cat([below, hidden[index]], dim=-1))
                hidden[index], cells[index] = lstm_update(of_states, cells[index], None if index else gates)
                below = self.dropout(hidden[index]) if index + 1 < len(products) else hidden[index]
            context = looks.at(below if query is None else query(below))
            attentional = torch.tanh(joined(torch.cat([context, below], dim=-1))).to(state.attentional.dtype)
            found.append(attentional)
        after = LuongRNNState(tuple(hidden), tuple(cells), attentional, state.memory)
        return torch.stack(found, 1), after, looks.observations()

    def _read_at_once(
        self, state: LuongRNNState, embedded: Tensor, observe: Observe | None
    ) -> tuple[Tensor, LuongRNNState, dict[str, Observation]]:
        """Layer by layer through all steps; then one call attends for all of them."""
        vectors, hidden, cells = embedded, list(state.hidden), list(state.cells)
        for index, layer in enumerate(cast("list[nn.LSTMCell]", list(self.layers))):
            if index:
                vectors = self.dropout(vectors)
            product = LoopProduct(layer.weight_hh, layer.bias_hh)
            states = []
            for gates in F.linear(vectors, layer.weight_ih, layer.bias_ih).unbind(1):
                hidden[index], cells[index] = lstm_update(gates, cells[index], product(hidden[index]))
                states.append(hidden[index])
            vectors = torch.stack(states, 1)
        queries = vectors if self.attention.query is None else self.attention.query(vectors)
        memory = state.memory
        attended = attend(
            queries[:, None].to(memory.keys.dtype),
            memory.keys,
            memory.values,
            score=self.attention.score(),
            mask=Padding(memory.lengths),
            observe=observe,
        )
        joined = self.attention.attentional(torch.cat([attended.output[:, 0], vectors], dim=-1))
        attentional = torch.tanh(joined).to(state.attentional.dtype)
        after = LuongRNNState(tuple(hidden), tuple(cells), attentional[:, -1], memory)
        return attentional, after, {LAYER: attended.observation} if observe else {}

    def advance(
        self, state: LuongRNNState, tokens: Tensor, observe: Observe | None = None
    ) -> tuple[Step, LuongRNNState]:
        hidden, state, observations = self.read(state, tokens, observe)
        return Step(self.head.log_probs(hidden), observations), state
