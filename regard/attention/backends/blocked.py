"""The reference a block of queries at a time: whatever the reference serves but dropout, in linear memory.

Gradients come by computing a block again when they are asked for (Chen et al. 2016), so that the scores of one block
are the most that is ever held. Statistics are read off the blocks' weights and added up: they are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regard.attention.backends.call import Attended, Call
from regard.attention.observation import Observation, joined, observe_materialised
from regard.attention.scores import Additive, CoverageAware, LocationAware

BLOCK_ELEMENTS = 2**22  # of scores held at once, 16 MiB in float32
BLOCKED_FROM = 2**24  # elements of a call's scores; fewer are quicker held at once, their gradients computed from them


class Blocked:
    """Every score, distribution, mask and statistic, and every dtype."""

    def refuses(self, call: Call) -> str | None:
        if call.dropout > 0:
            return "dropout on the weights is served materialised"
        return None

    def declines(self, call: Call) -> str | None:
        elements = call.num_scores * _elements_of_a_score(call)
        if elements < BLOCKED_FROM:
            return f"{elements} elements of scores, fewer than {BLOCKED_FROM}, are quicker held at once"
        return None

    def run(self, call: Call) -> Attended:
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        of_a_query = call.batch * call.heads * call.key_len * _elements_of_a_score(call)
        num_rows = max(1, BLOCK_ELEMENTS // max(of_a_query, 1))
        with call.exact():
            query, key, value = call.query.to(dtype), call.key.to(dtype), call.value.to(dtype)
            if call.group > 1:
                key, value = (kept.repeat_interleave(call.group, dim=1) for kept in (key, value))
            sides = (call, query, key, value)
            blocks = [
                # What autograd keeps of a block is thrown away, and made again when its gradients are asked for.
                checkpoint(_block, *sides, begin, num_rows, use_reentrant=False, preserve_rng_state=False)
                for begin in range(0, max(call.query_len, 1), num_rows)
            ]
            output = torch.cat([block.output for block in blocks], 2).to(call.value.dtype)
            if call.observe is None:
                return Attended(output, Observation())
            return Attended(output, joined([block.observation for block in blocks], call.observe, call.query_len))


def _elements_of_a_score(call: Call) -> int:
    """How many numbers are held at once to make one score."""
    return call.key.shape[-1] if isinstance(call.score, Additive | CoverageAware | LocationAware) else 1


def _block(call: Call, query: Tensor, key: Tensor, value: Tensor, begin: int, num_rows: int) -> Attended:
    """Output and observation of `num_rows` queries from `begin` on; the sides are wide and ungrouped."""
    end = min(begin + num_rows, call.query_len)
    key_index = torch.arange(call.key_len, device=key.device)
    query_index = torch.arange(begin, end, device=key.device) + (call.key_len - call.query_len)
    scores = call.score.similarity(query[:, :, begin:end], key, query_index)
    allowed = None if call.mask is None else call.mask.allowed(query_index, key_index)
    weights, logsumexp = call.distribution.weights(scores, allowed)
    output = weights @ value
    if call.observe is None:
        return Attended(output, Observation())
    seen = observe_materialised(
        call.observe,
        scores,
        weights,
        logsumexp,
        allowed,
        sink=call.distribution.sink(call.heads, scores),
        pairs=call.masked_pairs if call.observe.trace else None,
        begin=begin,
        query_len=call.query_len,
    )
    return Attended(output, seen)
