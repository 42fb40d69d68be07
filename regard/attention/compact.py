"""Dense masks and biases of foreign models, brought to a form that grows linearly with the length.

Most dense masks are a few ranges of keys a query (causal, window, padding), and most dense biases depend on the
distance of key and query alone (T5's). Both are found out here by reading the tensor a block of rows at a time, and
what is found is exact: where a tensor is anything else the answer is None. Answers are kept as long as the tensor lives
and is not written to, because the layers of a model share one mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from regard.attention.intervals import intersection, one_range, trimmed

MOST_RANGES = 4  # of one query; what needs more stays dense
BLOCK_ELEMENTS = 2**18  # read at once: 1 MiB of float32, which stays in a core's cache
MOST_KEPT = 32  # answers; a model has a few masks at a time

Answer = TypeVar("Answer")


def ranges_of(mask: Tensor) -> Tensor | None:
    """A dense mask as ranges, int32 [batch or 1, query_len, num_ranges, 2]; None where it is no such mask.

    mask: [batch, heads or 1, query_len, key_len]; bool, True where attending is allowed, or added to the scores: 0
        where it is, half of its dtype's lowest value or less where it is not. Axes may be broadcast views.
    The ranges are ascending and disjoint, unused ones (0, 0) at the end, at most `MOST_RANGES`; batch is 1 where the
    items share one view. None: heads differ, a row has more ranges, a value is neither, another dtype, or while a graph
    is compiled.
    """
    return _remembered(mask, "ranges", _ranges_of)


def offsets_of(bias: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """A dense bias as (offset_bias, ranges), as `PairScores` wants them; None where it is no such bias.

    bias: [batch, heads, query_len, key_len], added to the scores; half of its dtype's lowest value or less disallows.
    offset_bias: [heads, query_len + key_len - 1], float32 or float64, detached; 0 at offsets that are allowed nowhere.
    ranges: as of `ranges_of`, None where everything is allowed.
    None: an allowed value depends on more than the offset, or what is allowed is no mask that `ranges_of` can say.
    """
    return _remembered(bias, "offsets", _offsets_of)


# -- ranges ------------------------------------------------------------------------------------------------------------


def _ranges_of(mask: Tensor) -> Tensor | None:
    if mask.dtype == torch.bool:
        return _ranges(mask, lambda block: block)
    if not mask.is_floating_point():
        return None

    def allowed(block: Tensor) -> Tensor | None:
        kept = block == 0
        return kept if _all(kept | _disallows(block)) else None

    return _ranges(mask, allowed)


def _disallows(block: Tensor) -> Tensor:
    return block <= torch.finfo(block.dtype).min / 2


def _all(facts: Tensor) -> bool:
    """Whether all are true; as numbers, whose minimum torch finds on a CPU 20 times faster than `all`."""
    return not facts.numel() or bool(facts.view(torch.uint8).amin())


def _ranges(mask: Tensor, allowed: Callable[[Tensor], Tensor | None]) -> Tensor | None:
    """allowed: of a block of rows, what it allows; None where it is no mask at all."""
    query_len = mask.shape[2]
    mask = _distinct(mask)
    batch, heads, rows, key_len = mask.shape
    found = torch.zeros(batch, rows, MOST_RANGES, 2, dtype=torch.int32, device=mask.device)
    used = 1
    step = max(1, BLOCK_ELEMENTS // max(batch * heads * key_len, 1))
    for begin in range(0, rows if key_len else 0, step):
        block = allowed(mask[:, :, begin : begin + step])
        if block is None or not _all(block[:, 1:] == block[:, :1]):
            return None
        most = _runs(block[:, 0], found[:, begin : begin + step])
        if most is None:
            return None
        used = max(used, most)
    return found[:, :, :used].expand(-1, query_len, -1, -1).contiguous()


def _distinct(tensor: Tensor) -> Tensor:
    """Without the repetitions of items, heads and queries that are views of one."""
    for axis in (0, 1, 2):
        if tensor.stride(axis) == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _runs(allowed: Tensor, found: Tensor) -> int | None:
    """Writes the ranges of allowed [batch, rows, key_len] to found; how many a row has at most, None where too many."""
    changes = allowed[..., 1:] != allowed[..., :-1]
    edges = torch.cat([allowed[..., :1], changes, allowed[..., -1:]], -1)
    counts = edges.sum(-1).flatten() // 2
    most = int(counts.max()) if counts.numel() else 0
    if most > MOST_RANGES:
        return None
    item, row, place = edges.nonzero(as_tuple=True)
    # In reading order the edges of a row alternate: a range begins, a range ends.
    line = (item * allowed.shape[1] + row)[::2]
    rank = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line]
    found[item[::2], row[::2], rank] = place.view(-1, 2).to(torch.int32)
    return most


# -- offsets -----------------------------------------------------------------------------------------------------------


def _offsets_of(bias: Tensor) -> tuple[Tensor, Tensor | None] | None:
    bias = bias.detach()
    _, _, query_len, key_len = bias.shape
    if not bias.is_floating_point() or not query_len or not key_len:
        return None
    if _is_toeplitz(bias):
        # What is disallowed depends on the offset alone as well: the first column and the first row say it all.
        values = torch.cat([bias[0, :, 1:, 0].flip(1), bias[0, :, 0]], 1)
        allowed = ~_disallows(values)
        spans = _ranges(allowed[None, :, None, :], lambda block: block)
        if spans is None:
            return None
        # Query i sees key_len offsets, from query_len - 1 - i on.
        first = query_len - 1 - torch.arange(query_len, device=bias.device)
        seen = one_range(first[None], first[None] + key_len, query_len, query_len + key_len)
        ranges = trimmed(intersection(spans.expand(1, query_len, -1, -1), seen))
        ranges = (ranges - first.to(torch.int32)[:, None, None]) * (ranges[..., :1] < ranges[..., 1:])
        values = values.masked_fill(~allowed, 0.0)
    else:
        found = _ranges(bias, lambda block: ~_disallows(block))
        if found is None:
            return None
        ranges, values = found, _values(bias, found)
        if not _holds(bias, values):
            return None
    everything = ranges.shape[2] == 1 and _all((ranges[..., 0] == 0) & (ranges[..., 1] == key_len))
    return values.to(torch.promote_types(values.dtype, torch.float32)), None if everything else ranges


def _is_toeplitz(bias: Tensor) -> bool:
    """Whether the items are views of one whose every value equals that of the next key for the next query."""
    distinct = _distinct(bias)
    _, heads, query_len, key_len = bias.shape
    if distinct.shape[0] > 1 or (distinct.shape[2] == 1 and query_len > 1):
        return False
    step = max(1, BLOCK_ELEMENTS // (heads * key_len))
    for begin in range(0, query_len - 1, step):
        end = min(begin + step, query_len - 1)
        if not _all(distinct[:, :, begin + 1 : end + 1, 1:] == distinct[:, :, begin:end, :-1]):
            return False
    return True


def _holds(bias: Tensor, values: Tensor) -> bool:
    """Whether every allowed value of the bias is that of its offset."""
    _, heads, query_len, key_len = bias.shape
    windows = values.unfold(-1, key_len, 1)  # window w is what query query_len - 1 - w adds to its keys
    distinct = _distinct(bias)
    step = max(1, BLOCK_ELEMENTS // (distinct.shape[0] * heads * key_len))
    for begin in range(0, query_len, step):
        end = min(begin + step, query_len)
        block = distinct if distinct.shape[2] == 1 else distinct[:, :, begin:end]
        expected = windows[:, query_len - end : query_len - begin].flip(1)
        if not _all((block == expected) | _disallows(block)):
            return False
    return True


def _values(bias: Tensor, ranges: Tensor) -> Tensor:
    """[heads, query_len + key_len - 1]: the bias at one allowed pair of each offset, 0 where there is none."""
    _, heads, query_len, key_len = bias.shape
    batch, _, num_ranges, _ = ranges.shape
    row = torch.arange(query_len, device=bias.device)[:, None]
    spans = ranges + (query_len - 1 - row)[..., None]  # the offsets that each range holds
    item = torch.arange(batch, device=bias.device)[:, None, None]
    used = (ranges[..., 0] < ranges[..., 1]).flatten()
    item, row = (index.expand(batch, query_len, num_ranges).flatten()[used] for index in (item, row))
    values = bias.new_zeros(heads, query_len + key_len - 1)
    if not len(item):
        return values
    # Of the ranges that begin at or before an offset, the one that ends last holds it if any does.
    begins, order = spans[..., 0].flatten()[used].sort()
    latest, which = spans[..., 1].flatten()[used][order].cummax(0)
    offset = torch.arange(values.shape[1], device=bias.device, dtype=begins.dtype)
    holder = torch.searchsorted(begins, offset, right=True) - 1
    held = (holder >= 0) & (latest[holder.clamp(min=0)] > offset)
    source = order[which[holder[held]]]
    item, row, offset = item[source], row[source], offset[held].long()
    values[:, held] = bias[item, :, row, offset - (query_len - 1) + row].t()
    return values


# -- answers that are kept ---------------------------------------------------------------------------------------------

_answers: dict[tuple[object, ...], tuple[StorageWeakRef, object]] = {}


def _remembered(tensor: Tensor, question: str, answer: Callable[[Tensor], Answer | None]) -> Answer | None:
    """The answer about a tensor's values, computed once for as long as its memory lives and is not written to."""
    if torch.compiler.is_compiling() or tensor.ndim != 4:
        return None
    with torch.no_grad():
        if tensor.is_inference():  # counts no writes, so that nothing would tell a stale answer
            return answer(tensor)
        storage = StorageWeakRef(tensor.untyped_storage())
        place = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        key = (question, storage.cdata, tensor._version, *place)
        if key in _answers:
            return _answers[key][1]  # type: ignore[return-value]
        found = answer(tensor)
    for old, (memory, _) in list(_answers.items()):
        if memory.expired() or len(_answers) >= MOST_KEPT:
            _answers.pop(old, None)
    _answers[key] = (storage, found)
    return found
