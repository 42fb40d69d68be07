"""Step 3, second half: what changes a score by the positions of query and key, or bounds it.

A modifier is a small object that a score is followed by: ``ScaledDot().then(Rotary(), SoftCap(30.0), ALiBi())``. They
act in the order in which they stand. A modifier of vectors (`regard.attention.rotary.Rotary`) turns queries and keys
before they are compared; the others, here, change the scores.

Positions count on the key axis, and the axes are aligned bottom-right: the last query stands at the last key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores
from regard.errors import ConfigError


class Modifier:
    """Changes queries and keys, or their scores. Abstract: final are `Rotary`, `SoftCap`, `ALiBi`, `RelativeBias`."""

    of_vectors: ClassVar[bool] = False  # whether it changes queries and keys (`turn`) and not the scores (`modify`)

    def turn(self, query: Tensor, key: Tensor, query_index: Tensor, key_index: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, changed; only where `of_vectors`.

        query: [batch, heads, query_len, head_dim]; key: [batch, kv_heads, key_len, head_dim]; query_index: [query_len]
        and key_index: [key_len], positions on the key axis.
        """
        raise TypeError(f"{type(self).__name__} does not change queries and keys")

    def modify(self, scores: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        """Scores, changed: [batch, heads, query_len, key_len], in their own dtype; unless `of_vectors`."""
        raise TypeError(f"{type(self).__name__} does not change scores")

    def lowered(self, pairs: PairScores) -> PairScores | None:
        """The same change of unmaterialised scores; None where `PairScores` cannot say it. Unless `of_vectors`."""
        raise TypeError(f"{type(self).__name__} does not change scores")

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        """Every way in which it does not fit these widths and this many query heads."""
        return []


@dataclass(frozen=True)
class SoftCap(Modifier):
    """cap * tanh(s / cap): bounds scores smoothly to (-cap, cap). Gemma Team 2024 (Gemma 2), sec. 2.

    `PairScores` knows one cap, before the biases: a second one, or one after a bias, is served materialised.

    Raises: ConfigError unless cap is above 0.
    """

    cap: float

    def __post_init__(self) -> None:
        if not self.cap > 0.0 or not math.isfinite(self.cap):
            raise ConfigError(f"SoftCap: cap is {self.cap}, expected a finite number above 0")

    def modify(self, scores: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        return self.cap * torch.tanh(scores / self.cap)

    def lowered(self, pairs: PairScores) -> PairScores | None:
        if pairs.soft_cap is not None or pairs.offset_bias is not None or pairs.bias is not None:
            return None
        return replace(pairs, soft_cap=self.cap)


class OffsetBias(Modifier):
    """Adds to a score what depends on the distance of key and query alone. Abstract: `ALiBi` and `RelativeBias`."""

    def bias(self, offsets: Tensor, heads: int) -> Tensor:
        """[heads, *offsets], float32 or float64; offsets: integers, the key's position minus the query's."""
        raise TypeError(f"{type(self).__name__} does not say what it adds")

    def modify(self, scores: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
        offsets = key_index[None, :] - query_index[:, None]
        return scores + self.bias(offsets, scores.shape[1]).to(scores.dtype)

    def lowered(self, pairs: PairScores) -> PairScores | None:
        # Row i stands at key_len - query_len + i, so that the first entry belongs to key 0 and the last query.
        count = max(pairs.query_len + pairs.key_len - 1, 0)
        offsets = torch.arange(count, device=pairs.query.device) - (pairs.key_len - 1)
        bias = self.bias(offsets, pairs.heads).to(pairs.dtype)
        return replace(pairs, offset_bias=bias if pairs.offset_bias is None else pairs.offset_bias + bias)


def alibi_slopes(heads: int, device: torch.device | str | None = None) -> Tensor:
    """[heads], float32: 2^(-8/n), 2^(-16/n), ... for n = heads heads. Press et al. 2022, sec. 3.

    Where heads is no power of two, the slopes of the next lower power come first, then every second one of the next
    higher power, as in the authors' code.
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (head + 1) / lower) for head in range(lower)]
    slopes += [2.0 ** (-4.0 * (2 * head + 1) / lower) for head in range(heads - lower)]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


@dataclass(frozen=True, eq=False, init=False)
class ALiBi(OffsetBias):
    """Adds -slope * |i - j|: attention with linear biases. Press et al. 2022, sec. 3.

    The paper's case is the causal one; under a mask that shows keys to the right as well, these are counted alike.

    slopes: [heads]; those of the paper (`alibi_slopes`) unless given.
    """

    slopes: Tensor | None

    def __init__(self, slopes: Tensor | Sequence[float] | None = None) -> None:
        given = slopes if slopes is None or isinstance(slopes, Tensor) else torch.tensor(slopes, dtype=torch.float32)
        object.__setattr__(self, "slopes", given)

    def bias(self, offsets: Tensor, heads: int) -> Tensor:
        slopes = alibi_slopes(heads, offsets.device) if self.slopes is None else self.slopes.to(offsets.device)
        slopes = slopes.to(torch.promote_types(slopes.dtype, torch.float32))
        return -slopes.view(-1, *(1,) * offsets.ndim) * offsets.abs()

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        if self.slopes is None or tuple(self.slopes.shape) == (heads,):
            return []
        return [f"ALiBi.slopes has shape {tuple(self.slopes.shape)}, expected ({heads},)"]


@dataclass(frozen=True, eq=False)
class RelativeBias(OffsetBias):
    """Adds a learned number per head and bucket of the distance. Raffel et al. 2020 (T5), sec. 2.1.

    Half of a direction's buckets hold one distance each, the others grow logarithmically up to max_distance, and the
    last holds all beyond it.

    table: [num_buckets, heads]; carries gradient.
    bidirectional: the first half of the buckets is for keys up to the query, the second for those after it; otherwise
        all are for keys up to the query, and those after it share the bucket of distance 0.
    """

    table: Tensor
    bidirectional: bool = True
    max_distance: int = 128

    def buckets(self, offsets: Tensor) -> Tensor:
        """The bucket of each offset, int64, of the same shape."""
        num_buckets = self.table.shape[0]
        if self.bidirectional:
            num_buckets //= 2
            first, distance = (offsets > 0).long() * num_buckets, offsets.abs()
        else:
            first, distance = torch.zeros_like(offsets), (-offsets).clamp(min=0)
        exact = num_buckets // 2
        # In float32, as the models were trained: a boundary falls to another bucket in float64.
        growth = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
        return first + torch.where(distance < exact, distance, far)

    def bias(self, offsets: Tensor, heads: int) -> Tensor:
        table = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        return table.t()[:, self.buckets(offsets).to(table.device)]

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        problems = []
        shape, least = tuple(self.table.shape), 4 if self.bidirectional else 2
        if len(shape) != 2 or shape[1] != heads or shape[0] < least or shape[0] % 2:
            problems.append(
                f"RelativeBias.table has shape {shape}, expected (num_buckets, {heads}) with num_buckets even and at "
                f"least {least}"
            )
        elif self.max_distance <= shape[0] // least:
            problems.append(
                f"RelativeBias.max_distance is {self.max_distance}, expected more than the {shape[0] // least} "
                "distances that have a bucket each"
            )
        return problems
