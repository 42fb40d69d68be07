"""Fused attention in parts: the tiles of a plan, each one call of a fused kernel, merged by their logsumexp.

A query's output over several tiles is the mean of the tiles' outputs, each weighted by exp(its logsumexp - that of
all). The kernels' own backward, fed with the merged output and logsumexp, yields exact gradients part by part: it
restores each weight as exp(score - logsumexp) and needs sum(gradient * output) of the whole row (Dao et al. 2022,
appendix B). A sink is a part without values: it rescales the output, and the gradient of its logit is
-sum(weight of the sink * sum(gradient * output)).

A bias that depends on the offset of key and query alone is a mask whose diagonals are constant. With the queries in
reverse order its element (i, j) stands at i + j of a vector, so that it is a strided view: no bias is ever laid out but
on the narrow tiles where it meets a mask.

Both directions are custom ops: in a compiled graph they stand as one node each, and plan on the host when they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.attention.backends.kernels import Inputs, Kernel, kernel_for, mask_dtype
from regard.attention.backends.plan import Abilities, Block, Tile, plan
from regard.attention.pair_scores import PairScores

# Query-key pairs of a sequence up to which one call with a mask of all of them is quicker than several without, and the
# most numbers of such a mask over a batch, and over its heads where there is a bias.
FEW_PAIRS = 2**17
MOST_IN_A_MASK = 2**23
MASKS_KEPT = 8  # masks of tiles that are kept for the next tile with the same pattern


def attend_in_parts(pairs: PairScores, value: Tensor) -> tuple[Tensor, Tensor]:
    """(output [batch, heads, query_len, value_dim], logsumexp [batch, heads, query_len], detached).

    pairs: without soft-cap and without `bias`; carries gradient to query, key and sink. value: as wide as the key.
    """
    assert pairs.soft_cap is None and pairs.bias is None
    output, logsumexp = _forward(
        pairs.query,
        pairs.key,
        value,
        pairs.scale,
        pairs.offset_bias,
        pairs.ranges,
        pairs.allowed,
        pairs.sink,
    )
    return output, logsumexp


class _Call:
    """One call: what its tiles read. With an offset bias the queries stand in reverse order."""

    def __init__(self, pairs: PairScores, value: Tensor) -> None:
        self.reverse = pairs.offset_bias is not None
        self.scale = pairs.scale
        self.query_len = pairs.query_len
        self.query = self.turned(pairs.query)
        self.key, self.value = pairs.key, value
        self.mask_dtype = mask_dtype(pairs.query)
        self.bias = None
        if pairs.offset_bias is not None:
            self.bias = pairs.offset_bias.to(self.mask_dtype).contiguous()
        self.allowed, self.plan = _planned(pairs)
        self.masks: dict[tuple[object, ...], tuple[Tensor, Tensor | None]] = {}

    def turned(self, side: Tensor) -> Tensor:
        """Along the queries (the third axis), in the order in which they are computed, or back."""
        return side.flip(2) if self.reverse else side

    def place(self, block: Block) -> tuple[slice, slice, slice]:
        """Where a block's queries stand: in the batch, over the heads, along the queries as they are computed."""
        begin, end = block.begin, block.end
        if self.reverse:
            begin, end = self.query_len - end, self.query_len - begin
        return slice(block.first_item, block.last_item), slice(None), slice(begin, end)

    def inputs(self, block: Block, tile: Tile) -> tuple[Inputs, Tensor | None]:
        """What the kernel reads, and which queries may attend to nothing in this tile; None for none."""
        items, _, rows = place = self.place(block)
        mask, empty = self._mask(block, tile, rows)
        keys = (items, slice(None), slice(tile.begin, tile.end))
        sides = (self.query[place], self.key[keys], self.value[keys])
        return Inputs(*sides, self.scale, tile.kind == "causal", mask), empty

    def _mask(self, block: Block, tile: Tile, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        bias = None
        if self.bias is not None:
            heads, length = self.bias.shape
            shape = (1, heads, block.end - block.begin, tile.end - tile.begin)
            bias = self.bias.as_strided(shape, (0, length, 1, 1), rows.start + tile.begin)
        if tile.kind != "masked":
            return bias, None
        if self.allowed is not None:
            return self._additive(self._allowed(block, tile, self.allowed), bias)
        assert tile.ranges is not None, "a tile without ranges is masked by the dense mask alone"
        # The same pattern under the same diagonals: windows repeat both from block to block.
        diagonal = rows.start + tile.begin if self.reverse else 0
        name = (tile.ranges.tobytes(), tile.ranges.shape, tile.end - tile.begin, diagonal)
        if name not in self.masks:
            if len(self.masks) >= MASKS_KEPT:
                self.masks.pop(next(iter(self.masks)))
            self.masks[name] = self._additive(self._allowed(block, tile, None), bias)
        return self.masks[name]

    def _allowed(self, block: Block, tile: Tile, dense: Tensor | None) -> Tensor:
        """bool, [batch or 1, heads or 1, queries, keys] of a tile, in the order in which queries are computed."""
        pattern = tile.pattern()
        found = None if pattern is None else torch.from_numpy(pattern).to(self.query.device)[None, None]
        if dense is not None:
            if dense.shape[0] > 1:
                dense = dense[block.first_item : block.last_item]
            if dense.shape[2] > 1:
                dense = dense[:, :, block.begin : block.end]
            if dense.shape[3] > 1:
                dense = dense[:, :, :, tile.begin : tile.end]
            dense = dense.expand(-1, -1, block.end - block.begin, tile.end - tile.begin)
            found = dense if found is None else found & dense
        assert found is not None
        return self.turned(found)

    def _additive(self, allowed: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        nothing = torch.zeros((), dtype=self.mask_dtype, device=allowed.device) if bias is None else bias
        mask = torch.where(allowed, nothing, float("-inf")).to(self.mask_dtype)
        empty = ~allowed.any(-1)
        return mask, empty if bool(empty.any()) else None


def _planned(pairs: PairScores) -> tuple[Tensor | None, list[Block]]:
    """(what is allowed besides the ranges of the tiles, the blocks)."""
    batch, query_len, key_len = pairs.batch, pairs.query_len, pairs.key_len
    biased = pairs.offset_bias is not None
    if not batch * query_len * key_len:
        return None, []
    if pairs.ranges is None and pairs.allowed is None:
        return None, [Block(0, batch, 0, query_len, (Tile(0, key_len),))]
    in_a_mask = query_len * key_len * batch * (pairs.heads if biased else 1)
    if query_len * key_len <= FEW_PAIRS and in_a_mask <= MOST_IN_A_MASK:
        rows, keys = (torch.arange(length, device=pairs.query.device) for length in (query_len, key_len))
        return pairs.allowed_pairs(rows, keys), [Block(0, batch, 0, query_len, (Tile(0, key_len, "masked"),))]
    ranges = None if pairs.ranges is None else pairs.ranges.cpu().numpy()
    abilities = Abilities(causal=not biased, dense=pairs.allowed is not None, biased=biased)
    return pairs.allowed, plan(ranges, batch, query_len, key_len, abilities)


def _kernel(inputs: Inputs) -> Kernel:
    kernel = kernel_for(inputs)
    assert kernel is not None, "the fused backend has asked before"
    return kernel


def _run(pairs: PairScores, value: Tensor) -> tuple[Tensor, Tensor]:
    call = _Call(pairs, value)
    per_query = pairs.query.shape[:3]
    if len(call.plan) == 1 and len(call.plan[0].tiles) == 1:
        output, logsumexp = _merged(call, call.plan[0])
    else:
        output = value.new_zeros(*per_query, value.shape[-1])
        logsumexp = value.new_full(per_query, float("-inf"), dtype=pairs.dtype)
        for block in call.plan:
            if block.tiles:
                output[call.place(block)], logsumexp[call.place(block)] = _merged(call, block)
    output, logsumexp = call.turned(output), call.turned(logsumexp)
    if pairs.sink is not None:
        with_sink = torch.logaddexp(logsumexp, pairs.sink.to(logsumexp)[None, :, None])
        share = (logsumexp - _finite(with_sink)).exp()  # of the keys; 0 where there are none
        output, logsumexp = (output * share[..., None]).to(output.dtype), with_sink
    return output, logsumexp


def _merged(call: _Call, block: Block) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of a block over all of its tiles; the output wide where several are merged."""
    output = logsumexp = None
    for tile in block.tiles:
        inputs, empty = call.inputs(block, tile)
        of_tile, own = _part(inputs, empty)
        if output is None or logsumexp is None:
            output, logsumexp = of_tile, own
            continue
        total = torch.logaddexp(logsumexp, own)
        finite = _finite(total)
        before, now = ((part - finite).exp()[..., None] for part in (logsumexp, own))
        output, logsumexp = output * before + of_tile * now, total
    assert output is not None and logsumexp is not None
    return output, logsumexp


def _part(inputs: Inputs, empty: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of one tile; a query that may attend to nothing has output 0 and logsumexp -inf."""
    if empty is None:
        return _kernel(inputs).forward(inputs)
    if inputs.query.device.type != "cpu":
        # Kernels differ in what they make of an empty row, not-a-number included: let it see everything.
        assert inputs.mask is not None
        inputs = inputs._replace(mask=inputs.mask.masked_fill(empty[..., None], 0.0))
    output, logsumexp = _kernel(inputs).forward(inputs)
    return output.masked_fill(empty[..., None], 0.0), logsumexp.masked_fill(empty, float("-inf"))


def _finite(logsumexp: Tensor) -> Tensor:
    return logsumexp.masked_fill(logsumexp == float("-inf"), 0.0)


def _run_backward(
    gradient: Tensor, pairs: PairScores, value: Tensor, output: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sink (without elements where there is none)."""
    call = _Call(pairs, value)
    of_sink = pairs.query.new_zeros(0)
    if pairs.sink is not None:
        weight = (pairs.sink.to(logsumexp)[None, :, None] - _finite(logsumexp)).exp()
        of_sink = -(weight * (gradient.to(weight) * output.to(weight)).sum(-1)).sum((0, 2)).to(pairs.sink.dtype)
    gradient, output = call.turned(gradient.contiguous()), call.turned(output)
    # -inf becomes 0: an empty row's scores are all -inf, and so are they less 0.
    logsumexp = call.turned(_finite(logsumexp))
    tiles = call.plan[0].tiles if len(call.plan) == 1 else ()
    if len(tiles) == 1 and (tiles[0].begin, tiles[0].end) == (0, pairs.key_len):
        inputs, _ = call.inputs(call.plan[0], tiles[0])
        of_query, of_key, of_value = _kernel(inputs).backward(inputs, gradient, output, logsumexp)
        return call.turned(of_query), of_key, of_value, of_sink
    of_query, of_key, of_value = (torch.zeros_like(side, dtype=pairs.dtype) for side in (call.query, call.key, value))
    for block in call.plan:
        place = call.place(block)
        for tile in block.tiles:
            inputs, _ = call.inputs(block, tile)
            keys = (place[0], slice(None), slice(tile.begin, tile.end))
            found = _kernel(inputs).backward(inputs, gradient[place], output[place], logsumexp[place])
            of_query[place] += found[0]
            of_key[keys] += found[1]
            of_value[keys] += found[2]
    dtype = pairs.query.dtype
    return call.turned(of_query).to(dtype), of_key.to(dtype), of_value.to(dtype), of_sink


# -- the custom ops ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("regard::attend_in_parts", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    offset_bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor]:
    pairs = PairScores(query, key, scale, offset_bias=offset_bias, ranges=ranges, allowed=allowed, sink=sink)
    output, logsumexp = _run(pairs, value)
    return output.contiguous(), logsumexp.contiguous()


@_forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    offset_bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor]:
    per_query = query.shape[:3]
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(*per_query, value.shape[-1]), query.new_empty(per_query, dtype=dtype)


@torch.library.custom_op("regard::attend_in_parts_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
    offset_bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pairs = PairScores(query, key, scale, offset_bias=offset_bias, ranges=ranges, allowed=allowed, sink=sink)
    of_query, of_key, of_value, of_sink = _run_backward(gradient, pairs, value, output, logsumexp)
    return of_query.contiguous(), of_key.contiguous(), of_value.contiguous(), of_sink


@_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
    offset_bias: Tensor | None,
    ranges: Tensor | None,
    allowed: Tensor | None,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_sides = (side.new_empty(side.shape) for side in (query, key, value))
    return (*of_sides, query.new_empty(0) if sink is None else sink.new_empty(sink.shape))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, ctx.scale, offset_bias, ranges, allowed, sink = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, *output, offset_bias, ranges, allowed, sink)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradients[0] is None:
        return (None,) * 8
    query, key, value, output, logsumexp, offset_bias, ranges, allowed, sink = ctx.saved_tensors
    of_query, of_key, of_value, of_sink = _backward(
        gradients[0], query, key, value, output, logsumexp, ctx.scale, offset_bias, ranges, allowed, sink
    )
    return of_query, of_key, of_value, None, None, None, None, None if sink is None else of_sink


_forward.register_autograd(_differentiate, setup_context=_save)
