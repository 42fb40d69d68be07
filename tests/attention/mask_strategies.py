"""Random masks of every kind, their definitions in plain Python, and the reading of a lowered form."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.masks import Both, Causal, Dense, Either, Global, Mask, Packed, Padding, Prefix, Window

BATCH, HEADS = 3, 2


def _lengths(key_len: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, key_len), min_size=BATCH, max_size=BATCH)


@st.composite
def paddings(draw: st.DrawFn, key_len: int) -> Padding:
    lengths = draw(_lengths(key_len))
    if draw(st.booleans()):
        return Padding(torch.tensor(lengths), draw(st.sampled_from([None, min(lengths)])))
    begins = [draw(st.integers(0, key_len - length)) for length in lengths]
    return Padding(torch.tensor(lengths), begins=begins)


def packed_of(lengths: list[list[int]], key_len: int) -> Packed:
    """Documents one after another, from the first position on; what they leave over is padding."""
    rows = [[number for number, length in enumerate(row) for _ in range(length)] for row in lengths]
    padded = [[*row, *[-1] * (key_len - len(row))] for row in rows]
    return Packed(torch.tensor(padded, dtype=torch.int64), contiguous=True)


@st.composite
def documents(draw: st.DrawFn, key_len: int) -> Packed:
    """Packed documents: named in order, or named anyhow, so that a document comes back after another."""
    rows = draw(st.sampled_from([1, BATCH]))
    if draw(st.booleans()):
        lengths = [draw(st.lists(st.integers(0, 3), max_size=key_len // 3)) for _ in range(rows)]
        return packed_of(lengths, key_len)
    names = st.lists(st.integers(-1, draw(st.integers(0, 3))), min_size=key_len, max_size=key_len)
    return Packed(torch.tensor([draw(names) for _ in range(rows)], dtype=torch.int64).view(rows, key_len))


@st.composite
def tensors(draw: st.DrawFn, query_len: int, key_len: int) -> Dense:
    """Of one to four axes, each whole or to be broadcast."""
    shape = [draw(st.sampled_from([1, size])) for size in (BATCH, HEADS, query_len)] + [key_len]
    while shape[0] == 1 and len(shape) > 1 and draw(st.booleans()):
        shape = shape[1:]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return Dense(torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0])))


def masks(query_len: int, key_len: int, *, dense: bool = True) -> st.SearchStrategy[Mask]:
    """Of these sizes, joined up to five times."""
    counts = st.integers(0, key_len + 1)
    leaves: list[st.SearchStrategy[Mask]] = [
        st.just(Causal()),
        st.builds(Window, counts, counts),
        st.builds(Global, counts),
        st.builds(Prefix, st.one_of(counts, _lengths(key_len))),
        paddings(key_len),
        documents(key_len),
    ]
    if dense:
        leaves.append(tensors(query_len, key_len))
    return st.recursive(
        st.one_of(leaves),
        lambda inner: st.one_of(st.builds(Both, inner, inner), st.builds(Either, inner, inner)),
        max_leaves=5,
    )


def by_hand(mask: Mask, item: int, head: int, query: int, key: int, query_len: int, key_len: int) -> bool:
    """What the mask's definition says of one pair, in plain Python; query and key on the key axis."""
    match mask:
        case Causal():
            return key <= query
        case Window():
            return query - mask.left <= key <= query + mask.right
        case Global():
            return key < mask.num_tokens or 0 <= query < mask.num_tokens
        case Prefix():
            lengths = mask.lengths.tolist()
            return key <= query or key < lengths[item % len(lengths)]
        case Padding():
            begin = 0 if mask.begins is None else mask.begins.tolist()[item]
            return begin <= key < begin + mask.lengths.tolist()[item]
        case Packed():
            names = mask.documents.tolist()
            of_item = names[item % len(names)]
            return query >= 0 and of_item[key] >= 0 and of_item[query] == of_item[key]
        case Dense():
            whole = mask.tensor.expand(BATCH, HEADS, query_len, key_len)
            return bool(whole[item, head, query - (key_len - query_len), key])
        case Both():
            places = (item, head, query, key, query_len, key_len)
            return by_hand(mask.first, *places) and by_hand(mask.second, *places)
        case Either():
            places = (item, head, query, key, query_len, key_len)
            return by_hand(mask.first, *places) or by_hand(mask.second, *places)
    raise AssertionError(mask)


def whole_by_hand(mask: Mask, query_len: int, key_len: int) -> Tensor:
    """bool [BATCH, HEADS, query_len, key_len]."""
    rows = range(key_len - query_len, key_len)
    pairs = [
        by_hand(mask, item, head, query, key, query_len, key_len)
        for item in range(BATCH)
        for head in range(HEADS)
        for query in rows
        for key in range(key_len)
    ]
    return torch.tensor(pairs, dtype=torch.bool).view(BATCH, HEADS, query_len, key_len)


def read(ranges: Tensor | None, allowed: Tensor | None, query_len: int, key_len: int) -> Tensor:
    """The lowered form as bool [BATCH, HEADS, query_len, key_len]; checks that it is canonical."""
    whole = torch.ones(BATCH, HEADS, query_len, key_len, dtype=torch.bool)
    if ranges is not None:
        assert ranges.dtype == torch.int32
        assert ranges.is_contiguous()
        assert ranges.shape[0] in (1, BATCH) and ranges.shape[1] == query_len and ranges.shape[3] == 2
        for row in ranges.flatten(0, 1).tolist():
            check_canonical(row, key_len)
        keys = torch.arange(key_len)
        inside = ((ranges[..., :1] <= keys) & (keys < ranges[..., 1:])).any(2)
        whole = whole & inside[:, None]
    return whole if allowed is None else whole & allowed


def check_canonical(row: list[list[int]], key_len: int) -> None:
    """Raises AssertionError unless ranges are ascending, apart, within the keys, and (0, 0) where unused."""
    used = [(begin, end) for begin, end in row if end > begin]
    assert [tuple(span) for span in row] == used + [(0, 0)] * (len(row) - len(used)), row
    bounds = [bound for span in used for bound in span]
    assert bounds == sorted(set(bounds)), row
    assert not bounds or (bounds[0] >= 0 and bounds[-1] <= key_len), row
