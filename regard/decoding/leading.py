"""The k largest entries of each row, with ties broken the same way wherever a row stands."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # entries looked at through their maximum alone; 32 to 128 are equally fast on a CPU


def leading(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k largest entries of each row, largest first; among equals the lowest index first.

    scores: [rows, entries]; k: at most `entries`. Returns two [rows, k].
    Cost: one pass over the scores for the maxima of blocks; the k largest entries lie in the k blocks of largest
    maximum, so that only these are looked into. On a CPU that takes a fraction of torch.topk's time, and topk alone
    leaves the order of ties open, which would make results depend on the batch.
    """
    entries = scores.shape[-1]
    assert 1 <= k <= entries, f"leading: k {k} of {entries} entries"
    if k == entries:
        values, index = scores.sort(dim=-1, descending=True, stable=True)
        return values, index
    values, index = _largest(scores, k + 1)
    edge = values[:, k - 1]
    # One more than asked for shows whether the set itself is a matter of ties; entries of -inf are never used.
    tied = (edge == values[:, k]) & (edge > float("-inf"))
    index, order = index[:, :k].sort(dim=-1)
    values, order = values[:, :k].gather(-1, order).sort(dim=-1, descending=True, stable=True)
    index = index.gather(-1, order)
    if bool(tied.any()):
        exact, exact_index = scores[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], index[tied] = exact[:, :k], exact_index[:, :k]
    return values, index


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, largest first, ties in any order."""
    rows, entries = scores.shape
    num_blocks = entries // BLOCK
    if num_blocks < 4 * k:
        return scores.topk(k, dim=-1)
    covered = num_blocks * BLOCK
    maxima = scores[:, :covered].unflatten(-1, (num_blocks, BLOCK)).amax(-1)
    blocks = maxima.topk(k, dim=-1).indices
    index = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)).flatten(1)
    if covered < entries:
        rest = torch.arange(covered, entries, device=scores.device).expand(rows, -1)
        index = torch.cat([index, rest], dim=-1)
    values, order = scores.gather(-1, index).topk(k, dim=-1)
    return values, index.gather(-1, order)
