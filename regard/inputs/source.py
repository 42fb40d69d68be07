"""Step 1 as encoders see it: a batch of anything becomes vectors.

| what is read | values |
|---|---|
| text | ids int64 [batch, length] |
| speech | frames float32 [batch, frames, bins] |
| pictures | pixels uint8 [batch, height, width, channels] |
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Represented(NamedTuple):
    """vectors: [batch, num_vectors, model_dim]. lengths: int64 [batch], how many are real; these stand at the front.

    stride: input positions (tokens, frames) that one vector stands for. grid: rows and columns of a picture's vectors,
    which follow each other row by row; None for what has no such order.
    """

    vectors: Tensor
    lengths: Tensor
    stride: int = 1
    grid: tuple[int, int] | None = None


class Source(Protocol):
    """What an encoder reads through. In training it may augment, drawing torch's global random numbers: a trainer sets
    them anew for every part of a step, so that a run resumes exactly."""

    def represent(self, values: Tensor, lengths: Tensor) -> Represented:
        """values: [batch, length, ...], padded with zeros; lengths: int64 [batch], real positions along `length`."""
        ...
