"""Step 3: each query is compared with each key.

A score is a small object that turns queries and keys into a number per pair. Learned parameters of a score (the matrix
of `Bilinear`, the vector of `Additive`) belong to the layer that makes it and are handed in as tensors, so that this
file stays a set of formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from regard.errors import ShapeError


class Score:
    """A similarity of queries and keys. Abstract: the classes below are final."""

    is_dot: ClassVar[bool] = False  # whether it is a product with the key, which lets a fused kernel serve it: `as_dot`

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        """The score of every pair, [batch, heads, query_len, key_len].

        query: [batch, heads, query_len, query_dim]; key: [batch, heads, key_len, key_dim].
        """
        raise TypeError(f"{type(self).__name__} does not say how to compare")

    def as_dot(self, query: Tensor) -> tuple[Tensor, float]:
        """(query', scale) such that the score is scale * query' . key; only where `is_dot`."""
        raise TypeError(f"{type(self).__name__} is no product of a query and a key")

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        """Every way in which the score does not fit these widths and this many query heads."""
        return [] if query_dim == key_dim else [f"query width {query_dim} and key width {key_dim} differ"]


@dataclass(frozen=True)
class ScaledDot(Score):
    """scale * q . k, with 1/sqrt(head_dim) unless a scale is given. Vaswani et al. 2017, eq. 1."""

    is_dot = True
    scale: float | None = None

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        return self._scale(query) * (query @ key.transpose(-2, -1))

    def as_dot(self, query: Tensor) -> tuple[Tensor, float]:
        return query, self._scale(query)

    def _scale(self, query: Tensor) -> float:
        return 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale


@dataclass(frozen=True)
class Dot(Score):
    """q . k. Luong et al. 2015, eq. 8, 'dot'."""

    is_dot = True

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-2, -1)

    def as_dot(self, query: Tensor) -> tuple[Tensor, float]:
        return query, 1.0


@dataclass(frozen=True, eq=False)
class Bilinear(Score):
    """q W k. Luong et al. 2015, eq. 8, 'general'.

    weight: [heads or 1, query_dim, key_dim].
    """

    is_dot = True
    weight: Tensor

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        return (query @ self.weight.to(query.dtype)) @ key.transpose(-2, -1)

    def as_dot(self, query: Tensor) -> tuple[Tensor, float]:
        return query @ self.weight.to(query.dtype), 1.0

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        shape = tuple(self.weight.shape)
        if shape in {(1, query_dim, key_dim), (heads, query_dim, key_dim)}:
            return []
        return [f"Bilinear.weight has shape {shape}, expected ({heads} or 1, {query_dim}, {key_dim})"]


@dataclass(frozen=True, eq=False)
class Additive(Score):
    """v . tanh(q + k), query and key being projected already. Bahdanau et al. 2015, appendix A.1.2 (W_a s + U_a h).

    vector: [heads or 1, head_dim].
    Cost: materialises [batch, heads, query_len, key_len, head_dim].
    """

    vector: Tensor

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        hidden = torch.tanh(query[:, :, :, None, :] + key[:, :, None, :, :])
        return (hidden @ self.vector.to(query.dtype)[:, None, :, None]).squeeze(-1)

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        problems = super().check(query_dim, key_dim, heads=heads)
        shape = tuple(self.vector.shape)
        if shape not in {(1, key_dim), (heads, key_dim)}:
            problems.append(f"Additive.vector has shape {shape}, expected ({heads} or 1, {key_dim})")
        return problems


@dataclass(frozen=True)
class Rotary:
    """A modifier of dot scores: rotates pairs of channels by an angle that grows with the position.

    The product of a rotated query and a rotated key depends on their distance alone (Su et al. 2021, eq. 15). Keys are
    rotated once, before they are cached. Channel i pairs with i + head_dim/2 (the GPT-NeoX layout).

    base: the wavelengths run from 2 pi to 2 pi * base positions.
    """

    base: float = 10_000.0

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """vectors: [batch, heads, length, head_dim]; positions: [length] or [batch, length], counted from 0.

        Numerics: angles in float64, because float32 loses a far position's last digits; products in float32 at least.
        Raises: ShapeError when head_dim is odd.
        """
        half = vectors.shape[-1] // 2
        if vectors.shape[-1] % 2:
            raise ShapeError(f"Rotary: head_dim is {vectors.shape[-1]}, expected an even number")
        frequency = self.base ** (-torch.arange(half, device=vectors.device, dtype=torch.float64) / half)
        angle = positions.to(torch.float64)[..., None] * frequency
        angle = angle[:, None] if angle.ndim == 3 else angle
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        cosine, sine = angle.cos().to(dtype), angle.sin().to(dtype)
        first, second = vectors[..., :half], vectors[..., half:]
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(vectors.dtype)
