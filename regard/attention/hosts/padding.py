"""Which queries of self-attention are padding, read off the mask that the model itself built.

A mask says of every key who may attend to it. In self-attention the i-th query and one of the keys are the same
position; where nobody may attend to that key the position is padding, and so is its query. What a padded query attends
to means nothing, yet in a right-padded batch it attends to real keys and would be counted in what they receive.

In a cache that is allocated whole the last query does not stand at the last key. There a causal mask shows where the
queries stand: each sees up to itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regard.attention.pair_scores import PairScores


def real_queries(pairs: PairScores) -> Tensor | None:
    """bool [batch, query_len], False for padding; None where all are real or the mask does not tell.

    pairs: of self-attention, with all of its masks. Cost: linear in queries and keys, and one reading of a dense mask
    where there may be padding.
    """
    query_len, key_len = pairs.query_len, pairs.key_len
    if query_len == 1 or query_len > key_len or (pairs.ranges is None and pairs.allowed is None and pairs.bias is None):
        return None
    begin = 0 if query_len == key_len else _begin(pairs)
    if begin is None:
        return None
    place = torch.arange(begin, begin + query_len, device=pairs.query.device)
    own = _own_allowed(pairs, place)
    if bool(own.all()):
        return None
    real = own | _anyone_allowed(pairs)[:, place]
    return None if bool(real.all()) else real.expand(pairs.batch, query_len)


def _begin(pairs: PairScores) -> int | None:
    """The key at which the first query stands, where there are more keys than queries; None where it does not show."""
    if pairs.ranges is None:
        return None
    last = pairs.ranges[..., 1].amax(-1) - 1  # [batch or 1, query_len], -1 of a query that may attend to nothing
    begins = last - torch.arange(pairs.query_len, device=last.device)
    begins = torch.where(last < 0, begins.amax(-1, keepdim=True), begins)
    causal = (begins == begins[:, :1]).all(-1)
    return int(begins.amax()) if bool(causal.any()) and int(begins.amax()) >= 0 else None


def _own_allowed(pairs: PairScores, place: Tensor) -> Tensor:
    """bool [batch or 1, query_len]: whether each query may attend to its own place, under any head."""
    found = torch.ones(1, pairs.query_len, dtype=torch.bool, device=place.device)
    if pairs.ranges is not None:
        at = place[:, None]
        found = found & ((pairs.ranges[..., 0] <= at) & (at < pairs.ranges[..., 1])).any(-1)
    if pairs.allowed is not None:
        found = found & _diagonal(pairs.allowed, place).any(1)
    if pairs.bias is not None:
        found = found & (_diagonal(pairs.bias, place) > torch.finfo(pairs.bias.dtype).min / 2).any(1)
    return found


def _diagonal(tensor: Tensor, place: Tensor) -> Tensor:
    """tensor[..., i, place[i]] of a tensor that may be broadcast along either axis."""
    rows = torch.arange(len(place), device=place.device) if tensor.shape[-2] != 1 else torch.zeros_like(place)
    return tensor[..., rows, place if tensor.shape[-1] != 1 else torch.zeros_like(place)]


def _anyone_allowed(pairs: PairScores) -> Tensor:
    """bool [batch or 1, key_len]: whether any query may attend to the key."""
    found = torch.ones(1, pairs.key_len, dtype=torch.bool, device=pairs.query.device)
    if pairs.ranges is not None:
        # A range adds one at its begin and takes it away at its end: the running sum counts who may attend.
        steps = torch.zeros(pairs.ranges.shape[0], pairs.key_len + 1, dtype=torch.int64, device=pairs.query.device)
        begins, ends = pairs.ranges[..., 0].flatten(1).long(), pairs.ranges[..., 1].flatten(1).long()
        steps.scatter_add_(1, begins, torch.ones_like(begins)).scatter_add_(1, ends, -torch.ones_like(ends))
        found = found & (steps[:, :-1].cumsum(1) > 0)
    if pairs.allowed is not None:
        found = found & pairs.allowed.any(-2).any(1)
    if pairs.bias is not None:
        found = found & (pairs.bias.amax(-2) > torch.finfo(pairs.bias.dtype).min / 2).any(1)
    return found
