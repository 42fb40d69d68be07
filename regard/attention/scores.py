"""Step 3: each query is compared with each key.

A score is a small object that turns queries and keys into a number per pair. Learned parameters of a score (the matrix
of `Bilinear`, the vector of `Additive`) belong to the layer that makes it and are handed in as tensors, so that this
file stays a set of formulas; so does state that a score takes (`LocationAware`, `CoverageAware`).

A score may be followed by modifiers: ``ScaledDot().then(Rotary(), SoftCap(30.0))``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regard.attention.modifiers import Modifier
from regard.attention.pair_scores import PairScores
from regard.attention.rotary import Rotary as Rotary
from regard.errors import ConfigError


class Sizes(TypedDict, total=False):
    """The sizes of a call, where they are known."""

    batch: int
    query_len: int
    key_len: int


class Score:
    """A similarity of queries and keys. Abstract: the classes below are final."""

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        """The score of every pair, [batch, heads, query_len, key_len], without mask; differentiable.

        query: [batch, heads, query_len, query_dim]; key: [batch, heads, key_len, key_dim].
        query_index: int64 [query_len], positions of the queries on the key axis; bottom-right unless given (the last
            query at the last key). It lets a block of queries be scored alone; scores that know no positions ignore it.
        """
        raise TypeError(f"{type(self).__name__} does not say how to compare")

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        """The same scores unmaterialised, without mask and sink; None where they are no product of query and key.

        query: [batch, heads, query_len, query_dim]; key: [batch, kv_heads, key_len, key_dim], heads ungrouped.
        Gradients flow through the form's tensors to queries, keys and parameters.
        """
        return None

    def then(self, *modifiers: Modifier) -> Modified:
        """This score followed by modifiers, in the order given. Raises: ConfigError, see `Modified`."""
        return Modified(self, modifiers)

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        """Every way in which the score does not fit these widths, this many query heads and, where given, sizes."""
        return [] if query_dim == key_dim else [f"query width {query_dim} and key width {key_dim} differ"]


@dataclass(frozen=True)
class ScaledDot(Score):
    """scale * q . k, with 1/sqrt(head_dim) unless a scale is given. Vaswani et al. 2017, eq. 1."""

    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not (isinstance(self.scale, Real) and math.isfinite(self.scale)):
            raise ConfigError(f"ScaledDot: scale is {self.scale!r}, expected a finite number, or leave it out")

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        return self._scale(query) * (query @ key.transpose(-2, -1))

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        return PairScores(query, key, self._scale(query))

    def _scale(self, query: Tensor) -> float:
        return 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale


@dataclass(frozen=True)
class Dot(Score):
    """q . k. Luong et al. 2015, eq. 8, 'dot'."""

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        return query @ key.transpose(-2, -1)

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        return PairScores(query, key, 1.0)


@dataclass(frozen=True, eq=False)
class Bilinear(Score):
    """q W k. Luong et al. 2015, eq. 8, 'general'.

    weight: [heads or 1, query_dim, key_dim].
    """

    weight: Tensor

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        return (query @ self.weight.to(query.dtype)) @ key.transpose(-2, -1)

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        return PairScores(query @ self.weight.to(query.dtype), key, 1.0)

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        return _misfits("Bilinear.weight", self.weight, heads, query_dim, key_dim)


@dataclass(frozen=True, eq=False)
class Cosine(Score):
    """cos(q, k) / temperature. Liu et al. 2022 (Swin Transformer V2), eq. 2; Henry et al. 2020 learn its inverse.

    temperature: [heads or 1], above 0; how it is kept so is for the layer that learns it to decide.
    Numerics: lengths in float32 at least; a vector shorter than 1e-6 is divided by 1e-6, so that a zero one scores 0.
    """

    temperature: Tensor

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        return self._heated(query) @ _unit(key).transpose(-2, -1)

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        return PairScores(self._heated(query), _unit(key), 1.0)

    def _heated(self, query: Tensor) -> Tensor:
        return _unit(query, self.temperature.view(-1, 1, 1))

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        return super().check(query_dim, key_dim, heads=heads) + _misfits("Cosine.temperature", self.temperature, heads)


def _unit(vectors: Tensor, temperature: Tensor | None = None) -> Tensor:
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    unit = F.normalize(wide, dim=-1, eps=1e-6)
    return (unit if temperature is None else unit / temperature.to(unit)).to(vectors.dtype)


@dataclass(frozen=True, eq=False)
class Additive(Score):
    """v . tanh(q + k), query and key being projected already. Bahdanau et al. 2015, appendix A.1.2 (W_a s + U_a h).

    vector: [heads or 1, head_dim].
    Cost: materialises [batch, heads, query_len, key_len, head_dim].
    """

    vector: Tensor

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        return _additive(query[:, :, :, None, :], key[:, :, None, :, :], self.vector)

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        return super().check(query_dim, key_dim, heads=heads) + _misfits("Additive.vector", self.vector, heads, key_dim)


def _additive(left: Tensor, right: Tensor, vector: Tensor) -> Tensor:
    """v . tanh(left + right), [batch, heads, query_len, key_len]; the sides broadcast to that and head_dim."""
    scores: Tensor = _AdditiveScores.apply(left, right, vector.to(left.dtype))
    return scores


class _AdditiveScores(torch.autograd.Function):
    """tanh x is 2 sigmoid(2 x) - 1, whose sigmoid torch does in an eighth of the time of its tanh on a CPU.

    Right to a rounding of 1 where tanh is near 0. One tensor of all sums is held, in place of four.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, vector: Tensor) -> Tensor:
        gates = (left + right).mul_(2.0).sigmoid_()
        ctx.save_for_backward(gates, vector)
        ctx.shapes = left.shape, right.shape
        if len(vector) == 1:
            return (gates @ vector[0]).mul_(2.0).sub_(vector.sum())
        return (gates @ vector[:, None, :, None]).squeeze(-1).mul_(2.0).sub_(vector.sum(-1)[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, vector = ctx.saved_tensors
        gradient = gradients[0][..., None]
        # d tanh = 4 s (1 - s), which `sigmoid_backward` does in one pass.
        of_sums = torch.ops.aten.sigmoid_backward(gradient * (4.0 * vector)[:, None, None], gates)
        if len(vector) == 1:
            of_vector = gradient.reshape(1, -1) @ gates.reshape(-1, gates.shape[-1])
            of_vector = of_vector.mul_(2.0).sub_(gradient.sum())
        else:
            of_vector = (gradient.mT @ gates).mul_(2.0).sub_(gradient.sum(-2, keepdim=True)).sum((0, 2, 3))
        left, right = ctx.shapes
        return of_sums.sum_to_size(left), of_sums.sum_to_size(right), of_vector


@dataclass(frozen=True, eq=False)
class LocationAware(Score):
    """v . tanh(q + k + U f), where f are filters run over where this query's predecessor attended.

    Chorowski et al. 2015, eq. 8 and 9; query and key are projected already (their W s and V h + b).

    vector: [heads or 1, head_dim], the paper's w.
    filters: [heads or 1, num_filters, width], width odd: the paper's F. Key j sees the previous attention of the keys
        from j - width//2 to j + width//2, as a correlation; beyond the ends it is 0.
    location: [heads or 1, num_filters, head_dim], the paper's U.
    previous: [batch, heads, query_len, key_len], the weights of each query's predecessor; query_len may be 1.
    Cost: materialises [batch, heads, query_len, key_len, head_dim].
    """

    vector: Tensor
    filters: Tensor
    location: Tensor
    previous: Tensor

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        previous = self.previous.to(query.dtype)
        batch, heads, query_len, key_len = previous.shape
        if query_index is not None and query_len > 1:
            previous = previous[:, :, query_index - (key_len - query_len)]
            query_len = previous.shape[2]
        num_filters, width = self.filters.shape[1:]
        filters = self.filters.to(query.dtype).expand(heads, num_filters, width).reshape(-1, 1, width)
        rows = previous.transpose(1, 2).flatten(0, 1)  # [batch * query_len, heads, key_len]
        seen = F.conv1d(rows, filters, padding=width // 2, groups=heads)
        seen = seen.view(batch, query_len, heads, num_filters, key_len).permute(0, 2, 1, 4, 3)
        located = seen @ self.location.to(query.dtype)[:, None]
        return _additive(query[:, :, :, None, :] + located, key[:, :, None, :, :], self.vector)

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        problems = super().check(query_dim, key_dim, heads=heads)
        problems += _misfits("LocationAware.vector", self.vector, heads, key_dim)
        num_filters = self.filters.shape[1] if self.filters.ndim == 3 else None
        if num_filters is None or self.filters.shape[0] not in (1, heads) or self.filters.shape[2] % 2 == 0:
            problems.append(
                f"LocationAware.filters has shape {tuple(self.filters.shape)}, expected ({heads} or 1, num_filters, an "
                "odd width)"
            )
        else:
            problems += _misfits("LocationAware.location", self.location, heads, num_filters, key_dim)
        return problems + _misfit_of_pairs("LocationAware.previous", self.previous, heads, sizes)


@dataclass(frozen=True, eq=False)
class CoverageAware(Score):
    """v . tanh(q + k + w c), c the attention that a key has received so far; query and key are projected already.

    See et al. 2017, eq. 11 (their W_s s + b and W_h h). What one filter of width 1 makes of `LocationAware`.

    vector, weight: [heads or 1, head_dim], the paper's v and w_c.
    covered: [batch, heads, query_len, key_len], what earlier queries gave to each key; query_len may be 1.
    Cost: materialises [batch, heads, query_len, key_len, head_dim].
    """

    vector: Tensor
    weight: Tensor
    covered: Tensor

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        covered = self.covered.to(query.dtype)
        query_len, key_len = covered.shape[2:]
        if query_index is not None and query_len > 1:
            covered = covered[:, :, query_index - (key_len - query_len)]
        weighed = covered[..., None] * self.weight.to(query.dtype)[:, None, None]
        return _additive(query[:, :, :, None, :] + weighed, key[:, :, None, :, :], self.vector)

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        problems = super().check(query_dim, key_dim, heads=heads)
        problems += _misfits("CoverageAware.vector", self.vector, heads, key_dim)
        problems += _misfits("CoverageAware.weight", self.weight, heads, key_dim)
        return problems + _misfit_of_pairs("CoverageAware.covered", self.covered, heads, sizes)


def _misfit_of_pairs(name: str, state: Tensor, heads: int, sizes: Sizes) -> list[str]:
    """What is wrong with state of shape [batch, heads, query_len or 1, key_len]."""
    wanted = {"batch": None, "heads": heads, "query_len": None, "key_len": None, **sizes}
    found = tuple(state.shape)
    if len(found) == 4 and all(
        size in ((1, known) if axis == "query_len" else (known,))
        for size, (axis, known) in zip(found, wanted.items(), strict=True)
        if known is not None
    ):
        return []
    shape = ", ".join(axis if known is None else str(known) for axis, known in wanted.items())
    return [f"{name} has shape {found}, expected ({shape})"]


def _misfits(name: str, parameter: Tensor, heads: int, *shape: int) -> list[str]:
    """What is wrong with a parameter of shape [heads or 1, *shape]."""
    if not isinstance(parameter, Tensor):
        return [f"{name} is {type(parameter).__name__}, expected a tensor"]
    found = tuple(parameter.shape)
    if found in {(1, *shape), (heads, *shape)}:
        return []
    wanted = ", ".join([f"{heads} or 1", *map(str, shape)])
    return [f"{name} has shape {found}, expected ({wanted}{'' if shape else ','})"]


@dataclass(frozen=True, eq=False)
class Modified(Score):
    """A score followed by modifiers, which act in their order; made by `Score.then`.

    Modifiers of vectors (`Rotary`) act before the comparison, so they stand first.
    Raises: ConfigError for one that follows a modifier of scores, and for what is no modifier.
    """

    score: Score
    modifiers: tuple[Modifier, ...]

    def __post_init__(self) -> None:
        for place, modifier in enumerate(self.modifiers):
            if not isinstance(modifier, Modifier):
                raise ConfigError(
                    f"then: {type(modifier).__name__} was given, expected modifiers such as Rotary() or SoftCap(30.0)"
                )
            before = [kind for kind in self.modifiers[:place] if not kind.of_vectors]
            if modifier.of_vectors and before:
                name, first = type(modifier).__name__, type(before[0]).__name__
                raise ConfigError(
                    f"then: {name} turns queries and keys before they are compared; put it before {first}"
                )

    def then(self, *modifiers: Modifier) -> Modified:
        return Modified(self.score, (*self.modifiers, *modifiers))

    def similarity(self, query: Tensor, key: Tensor, query_index: Tensor | None = None) -> Tensor:
        key_index = torch.arange(key.shape[2], device=key.device)
        if query_index is None:
            query_index = _bottom_right(query, key)
        query, key = self._turned(query, key, query_index, key_index)
        scores = self.score.similarity(query, key, query_index)
        for modifier in self.modifiers:
            if not modifier.of_vectors:
                scores = modifier.modify(scores, query_index, key_index)
        return scores

    def pairs(self, query: Tensor, key: Tensor) -> PairScores | None:
        key_index = torch.arange(key.shape[2], device=key.device)
        lowered = self.score.pairs(*self._turned(query, key, _bottom_right(query, key), key_index))
        for modifier in self.modifiers:
            if lowered is not None and not modifier.of_vectors:
                lowered = modifier.lowered(lowered)
        return lowered

    def _turned(self, query: Tensor, key: Tensor, query_index: Tensor, key_index: Tensor) -> tuple[Tensor, Tensor]:
        for modifier in self.modifiers:
            if modifier.of_vectors:
                query, key = modifier.turn(query, key, query_index, key_index)
        return query, key

    def check(self, query_dim: int, key_dim: int, *, heads: int, **sizes: Unpack[Sizes]) -> list[str]:
        problems = self.score.check(query_dim, key_dim, heads=heads, **sizes)
        for modifier in self.modifiers:
            problems += modifier.check(query_dim, key_dim, heads=heads)
        return problems


def _bottom_right(query: Tensor, key: Tensor) -> Tensor:
    return torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=key.device)
