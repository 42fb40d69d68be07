"""What a kernel of the second pass is asked for and what it returns; `regard.attention.second_pass` chooses the kernel.

A kernel is a function `statistics(pairs, logsumexp, wanted) -> Statistics` that never holds the scores of all pairs,
beside a function `refuses(pairs, wanted)` that says why it cannot serve a call, or None. Three exist: native C on a CPU
(`native`), Triton on a GPU (`triton`) and chunked torch anywhere (`chunked`), which serves everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Wanted:
    """Statistics beyond logsumexp and max_logit, which are always returned.

    weights: [batch or 1, query_len], of `received`, in the dtype of the scores; None counts every query once.
    columns: int64 [num_columns], keys, each at least 0; None for none.
    grid: (rows, columns) of `pooled`; None for none.
    """

    entropy: bool = False
    received: bool = False
    weights: Tensor | None = None
    sink_mass: int = 0
    top_k: int = 0
    columns: Tensor | None = None
    grid: tuple[int, int] | None = None


class Statistics(NamedTuple):
    """As in `Observation`, all in `PairScores.dtype` but top_index, int64. What was not wanted has no elements.

    logsumexp includes the sink. A query that may attend to nothing has logsumexp and max_logit -inf, and 0 elsewhere;
    where there is a sink, its logsumexp is the sink's score. Entropy is -sum w ln w over the keys alone, sink or none.
    """

    logsumexp: Tensor
    max_logit: Tensor
    entropy: Tensor
    received: Tensor
    sink_mass: Tensor
    top_weights: Tensor
    top_index: Tensor
    columns: Tensor
    pooled: Tensor
