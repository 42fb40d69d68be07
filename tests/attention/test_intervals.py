from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_strategies import check_canonical
from torch import Tensor

from regard.attention.intervals import intersection, one_range, trimmed, union

KEY_LEN, QUERY_LEN = 13, 3


def runs(keys: set[int]) -> list[list[int]]:
    """The ranges of a set of keys."""
    begins = sorted(key for key in keys if key - 1 not in keys)
    ends = sorted(key + 1 for key in keys if key + 1 not in keys)
    return [list(span) for span in zip(begins, ends, strict=True)]


@st.composite
def sets(draw: st.DrawFn) -> list[list[set[int]]]:
    """A set of keys for each item and query; of one item or two."""
    keys = st.sets(st.integers(0, KEY_LEN - 1), max_size=KEY_LEN)
    edges = st.sampled_from([set(range(4)), set(range(4, 9)), set(range(9, KEY_LEN)), set(range(KEY_LEN))])
    rows = st.lists(st.one_of(keys, edges), min_size=QUERY_LEN, max_size=QUERY_LEN)
    return [draw(rows) for _ in range(draw(st.sampled_from([1, 2])))]


def as_ranges(items: list[list[set[int]]], spare: int = 0) -> Tensor:
    most = max(max(len(runs(keys)) for rows in items for keys in rows) + spare, 1)
    spans = [[runs(keys) + [[0, 0]] * (most - len(runs(keys))) for keys in rows] for rows in items]
    return torch.tensor(spans, dtype=torch.int32)


@settings(deadline=None, max_examples=200)
@given(first=sets(), second=sets(), spare=st.integers(0, 2))
def test_ranges_join_as_sets_do(first: list[list[set[int]]], second: list[list[set[int]]], spare: int) -> None:
    left, right = as_ranges(first, spare), as_ranges(second)
    items = max(len(first), len(second))
    pairs = [(first[item % len(first)], second[item % len(second)]) for item in range(items)]
    for join, wanted in (
        (intersection(left, right), [[a & b for a, b in zip(*rows, strict=True)] for rows in pairs]),
        (union(left, right), [[a | b for a, b in zip(*rows, strict=True)] for rows in pairs]),
    ):
        for kept in (join, trimmed(join)):
            assert kept.dtype == torch.int32
            for rows, of_item in zip(kept.tolist(), wanted, strict=True):
                for row, keys in zip(rows, of_item, strict=True):
                    check_canonical(row, KEY_LEN)
                    assert [span for span in row if span[1]] == runs(keys)
        assert trimmed(join).shape[2] == max(max(len(runs(keys)) for rows in wanted for keys in rows), 1)


def test_one_range_is_cut_to_the_keys() -> None:
    begin, end = torch.tensor([[-5, 3, 9, 2**31]]), torch.tensor([[2, 3, 2**31, 2**31]])
    found = one_range(begin, end, 4, 11)
    assert found.dtype == torch.int32
    assert found.tolist() == [[[[0, 2]], [[0, 0]], [[9, 11]], [[0, 0]]]]
    assert one_range(torch.tensor([[1], [2]]), torch.tensor([[3]]), 2, 11)[:, :, 0].tolist() == [
        [[1, 3]] * 2,
        [[2, 3]] * 2,
    ]


def test_inputs_are_left_alone() -> None:
    left, right = as_ranges([[{1, 2}, {5}, set()]]), as_ranges([[{2, 3}, {7}, {1}]])
    before = left.clone(), right.clone()
    union(left, right)
    intersection(left, right)
    assert torch.equal(left, before[0]) and torch.equal(right, before[1])
