"""The protocol that every decoder speaks, and the only thing that decoding knows of a model.

`start` reads the memories; `advance` takes n >= 1 tokens a row, which covers prefill, forced prefixes, rescoring and
single steps; `state.select` covers reordering for beams, compaction, growth and removal of rows. State is a plain
structure of tensors and is never changed in place: `advance` returns a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self, TypeVar

from torch import Tensor

from regard.attention.observation import Observation, Observe
from regard.models.memory import Memory


class OutputSpace(Protocol):
    """What the columns of a step's log-probabilities stand for, so that a copied word is an ordinary id."""

    @property
    def num_outputs(self) -> int:
        """The number of columns."""
        ...

    def inputs(self, outputs: Tensor) -> Tensor:
        """The token ids that are fed back for chosen output ids; same shape."""
        ...


class Vocabulary(NamedTuple):
    """The plain output space: output ids are token ids."""

    size: int

    @property
    def num_outputs(self) -> int:
        return self.size

    def inputs(self, outputs: Tensor) -> Tensor:
        return outputs


class DecoderState(Protocol):
    """Whatever a decoder carries from step to step; the first axis of every tensor in it is rows."""

    def select(self, rows: Tensor) -> Self:
        """The state of chosen rows, in the order given; a row may be taken many times or never."""
        ...


State = TypeVar("State", bound=DecoderState)


class Step(NamedTuple):
    """What one `advance` yields.

    log_probs: [rows, n, num_outputs], float32 (or the model's dtype if wider); position i follows tokens[:, i].
    attention: layer name -> Observation whose `rows` is [rows, heads, n, key_len]; empty unless asked for.
    """

    log_probs: Tensor
    attention: Mapping[str, Observation]


class Decoder(Protocol[State]):
    """A model's decoder. `outputs` is its output space."""

    @property
    def outputs(self) -> OutputSpace: ...

    def start(self, memories: Mapping[str, Memory]) -> State:
        """The state before the first token; as many rows as the memories have."""
        ...

    def advance(self, state: State, tokens: Tensor, observe: Observe | None = None) -> tuple[Step, State]:
        """Feeds tokens [rows, n], n >= 1, and returns what follows each of them, and the state after the last."""
        ...
