"""What an encoder hands to a decoder: vectors, how many of them are real, and where they lie on the input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.attention.masks import Padding


@dataclass(frozen=True)
class Memory:
    """vectors: [batch, source_len, memory_dim]; lengths: [batch], how many are real; these stand at the front.

    stride: input positions (tokens, frames) that one vector stands for. grid: rows and columns of a picture's vectors,
    which follow each other row by row.
    outputs: int64 [batch, source_len], the ids of the words that the vectors stand for, for decoders that copy.
    """

    vectors: Tensor
    lengths: Tensor
    stride: int = 1
    grid: tuple[int, int] | None = None
    outputs: Tensor | None = None

    @property
    def mask(self) -> Padding:
        return Padding(self.lengths)

    def select(self, rows: Tensor) -> Memory:
        """The memory of chosen rows, in the order given; a row may be taken many times or never."""
        outputs = None if self.outputs is None else self.outputs[rows]
        return replace(self, vectors=self.vectors[rows], lengths=self.lengths[rows], outputs=outputs)

    @staticmethod
    def of(vectors: Tensor, lengths: Tensor | None = None) -> Memory:
        """Memory of `vectors`, all of them real unless `lengths` says otherwise."""
        if lengths is None:
            lengths = torch.full((vectors.shape[0],), vectors.shape[1], dtype=torch.int64, device=vectors.device)
        return Memory(vectors, lengths)
