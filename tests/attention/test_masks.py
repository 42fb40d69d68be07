from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_strategies import BATCH, HEADS, check_canonical, masks, packed_of, read, whole_by_hand
from torch import Tensor

from regard.attention.masks import Causal, Dense, Global, Mask, Packed, Padding, Prefix, Window, mask_from_record
from regard.errors import ConfigError, RegardError, ShapeError


@st.composite
def sized_masks(draw: st.DrawFn, dense: bool = True) -> tuple[Mask, int, int]:
    query_len, key_len = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    return draw(masks(query_len, key_len, dense=dense)), query_len, key_len


def spans(draw: st.DrawFn, first: int, last: int) -> tuple[int, int]:
    begin = draw(st.integers(first, last - 1))
    return begin, draw(st.integers(begin + 1, last))


@settings(deadline=None, max_examples=120)
@given(case=sized_masks(), data=st.data())
def test_a_mask_is_its_definition(case: tuple[Mask, int, int], data: st.DataObject) -> None:
    """Whole, in tiles, by kind, lowered and after a round trip through its record."""
    mask, query_len, key_len = case
    assert mask.check(BATCH, key_len, heads=HEADS, query_len=query_len) == []
    wanted = whole_by_hand(mask, query_len, key_len)
    whole = mask.dense(query_len, key_len)
    assert whole.dtype == torch.bool
    assert torch.equal(whole.expand(wanted.shape), wanted)

    before = key_len - query_len
    queries, keys = (data.draw(st.composite(spans)(*bounds)) for bounds in ((before, key_len), (0, key_len)))
    tile = wanted[:, :, queries[0] - before : queries[1] - before, slice(*keys)]
    allowed = mask.allowed(torch.arange(*queries), torch.arange(*keys))
    assert torch.equal(allowed.expand(tile.shape), tile)
    kind = mask.kind(queries, keys)
    assert kind != "full" or tile.all()
    assert kind != "empty" or not tile.any()

    lowered = mask.lowered(BATCH, query_len, key_len)
    assert torch.equal(read(*lowered, query_len, key_len), wanted)

    again = mask_from_record(mask.to_record())
    assert type(again) is type(mask)
    assert torch.equal(again.dense(query_len, key_len), whole)
    assert again.kind(queries, keys) == kind


@settings(deadline=None, max_examples=40)
@given(case=sized_masks(dense=False))
def test_only_a_dense_mask_is_carried_densely(case: tuple[Mask, int, int]) -> None:
    mask, query_len, key_len = case
    assert mask.lowered(BATCH, query_len, key_len)[1] is None


@settings(deadline=None, max_examples=40)
@given(case=sized_masks(), seed=st.integers(0, 99))
def test_permuted_indices_permute_what_is_allowed(case: tuple[Mask, int, int], seed: int) -> None:
    mask, query_len, key_len = case
    generator = torch.Generator().manual_seed(seed)
    rows, keys = torch.randperm(query_len, generator=generator), torch.randperm(key_len, generator=generator)
    whole = mask.dense(query_len, key_len).expand(BATCH, HEADS, query_len, key_len)
    permuted = mask.allowed(rows + key_len - query_len, keys).expand(whole.shape)
    assert torch.equal(permuted, whole[:, :, rows][..., keys])


@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(0, 9), min_size=BATCH, max_size=BATCH), left=st.integers(0, 5))
def test_padding_on_either_side_shows_an_item_what_it_sees_alone(lengths: list[int], left: int) -> None:
    """Self-attention over a padded batch: an item's real queries see what they see without the padding."""
    key_len = 9
    positions = Causal() & Window(left, 3) | Global(2)
    at_the_end = (positions & Padding(lengths)).dense(key_len, key_len)
    begins = [key_len - length for length in lengths]
    at_the_front = (Causal() & Window(left, 3) & Padding(lengths, begins=begins)).dense(key_len, key_len)
    for item, length in enumerate(lengths):
        assert torch.equal(at_the_end[item, :, :length, :length], positions.dense(length, length)[0])
        assert not at_the_end[item, :, :, length:].any()
        begin = begins[item]
        alone = (Causal() & Window(left, 3)).dense(length, length)[0]
        assert torch.equal(at_the_front[item, :, begin:, begin:], alone)
        assert not at_the_front[item, :, :, :begin].any()


CASES: list[tuple[Mask, tuple[int, int], tuple[int, int], str]] = [
    (Causal(), (6, 7), (0, 7), "full"),
    (Causal(), (5, 7), (0, 7), "partial"),
    (Causal(), (0, 3), (3, 5), "empty"),
    (Causal(), (0, 4), (3, 5), "partial"),
    (Window(2, 1), (3, 5), (2, 5), "full"),
    (Window(2, 1), (3, 5), (1, 5), "partial"),
    (Window(2, 1), (3, 5), (6, 9), "empty"),
    (Window(2, 1), (3, 5), (0, 1), "empty"),
    (Window(2, 1), (3, 5), (0, 2), "partial"),
    (Global(2), (5, 7), (0, 2), "full"),
    (Global(2), (0, 2), (3, 7), "full"),
    (Global(2), (-1, 2), (3, 7), "partial"),
    (Global(2), (2, 7), (2, 7), "empty"),
    (Global(2), (1, 7), (2, 7), "partial"),
    (Prefix([3, 5]), (0, 2), (0, 3), "full"),
    (Prefix([3, 5]), (0, 2), (3, 5), "partial"),
    (Prefix([3, 5]), (0, 2), (5, 7), "empty"),
    (Prefix(4), (0, 7), (0, 4), "full"),
    (Padding(torch.tensor([5, 7])), (0, 7), (0, 5), "full"),
    (Padding(torch.tensor([5, 7])), (0, 7), (0, 6), "partial"),
    (Padding(torch.tensor([5, 7])), (0, 7), (7, 9), "empty"),
    (Padding([3, 2], begins=[4, 5]), (0, 7), (5, 7), "full"),
    (Padding([3, 2], begins=[4, 5]), (0, 7), (4, 7), "partial"),
    (Padding([3, 2], begins=[4, 5]), (0, 7), (0, 4), "empty"),
    (Packed([[0, 0, 0, 1, 1, -1]]), (3, 5), (3, 5), "full"),
    (Packed([[0, 0, 0, 1, 1, -1]]), (3, 5), (2, 5), "partial"),
    (Packed([[0, 0, 0, 1, 1, -1]]), (3, 5), (0, 3), "empty"),
    (Packed([[0, 0, 0, 1, 1, -1]]), (5, 6), (5, 6), "empty"),
    (Packed([[0, 0, 0, 1, 1, -1]]), (-1, 2), (0, 2), "partial"),
    (Dense(torch.tensor([[True, True, False], [True, True, True]])), (1, 3), (0, 2), "full"),
    (Dense(torch.tensor([[True, True, False], [True, True, True]])), (1, 2), (2, 3), "empty"),
    (Dense(torch.tensor([[True, True, False], [True, True, True]])), (0, 3), (0, 2), "partial"),
    (Dense(torch.tensor([True, False])), (0, 7), (0, 1), "full"),
    (Causal() & Padding(torch.tensor([5, 7])), (6, 7), (0, 5), "full"),
    (Causal() & Padding(torch.tensor([5, 7])), (0, 2), (2, 3), "empty"),
    (Causal() | Padding(torch.tensor([5, 7])), (0, 2), (2, 3), "full"),
    (Causal() | Padding(torch.tensor([5, 7])), (0, 2), (5, 7), "partial"),
    (Causal() | Causal(), (0, 2), (5, 7), "empty"),
]


@pytest.mark.parametrize(("mask", "queries", "keys", "kind"), CASES)
def test_kind_is_as_sharp_as_promised(mask: Mask, queries: tuple[int, int], keys: tuple[int, int], kind: str) -> None:
    assert mask.kind(queries, keys) == kind


def test_a_mask_on_another_device_is_judged_without_reading_it() -> None:
    lengths = torch.tensor([5, 7], device="meta")
    assert Padding(lengths).kind((0, 7), (0, 5)) == "partial"
    assert Padding(lengths, shortest=5).kind((0, 7), (0, 5)) == "full"
    assert Padding(lengths, shortest=5).kind((0, 7), (0, 6)) == "partial"
    assert Padding(lengths, begins=lengths, shortest=5).kind((0, 7), (0, 5)) == "partial"
    assert Prefix(lengths).kind((0, 7), (0, 5)) == "partial"
    assert Packed(torch.zeros(1, 7, dtype=torch.int64, device="meta")).kind((0, 7), (0, 5)) == "partial"
    assert Dense(torch.ones(7, 7, dtype=torch.bool, device="meta")).kind((0, 7), (0, 5)) == "partial"


def test_causal_is_aligned_bottom_right() -> None:
    assert Causal().dense(2, 5)[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    # Queries before the first key see nothing.
    assert Causal().dense(4, 2)[0, 0].tolist() == [[False] * 2, [False] * 2, [True, False], [True, True]]


def test_lowered_by_hand() -> None:
    ranges, allowed = ((Window(1, 0) | Global(1)) & Causal()).lowered(1, 4, 5)
    assert allowed is None
    assert ranges.tolist() == [[[[0, 2], [0, 0]], [[0, 3], [0, 0]], [[0, 1], [2, 4]], [[0, 1], [3, 5]]]]
    assert Causal().lowered(2, 1, 5) == (None, None), "the last query sees everything"
    assert (Padding([5, 5]) | Dense(torch.zeros(3, 5, dtype=torch.bool))).lowered(2, 3, 5) == (None, None)


def test_no_lowered_form_is_as_large_as_all_pairs() -> None:
    length = 4099
    for mask in (
        Causal() & Padding([length - 3, length]),
        (Window(64, 3) | Global(4)) & Causal() & Padding([length - 3, length]),
        Prefix([7, 8]) & packed_of([[2000, 1001], [3000]], length),
    ):
        ranges, allowed = mask.lowered(2, length, length)
        assert allowed is None
        assert ranges.shape[:2] == (2, length) and ranges.shape[2] <= 2


def test_documents_in_many_pieces_are_carried_densely() -> None:
    striped = Packed((torch.arange(40) % 2)[None])
    ranges, allowed = striped.lowered(2, 40, 40)
    assert ranges is None and torch.equal(allowed, striped.dense(40, 40))
    ranges, allowed = Packed((torch.arange(16) % 2)[None]).lowered(2, 16, 16)
    assert allowed is None and ranges.shape == (1, 16, 8, 2)


def test_the_canonical_form_can_be_broken() -> None:
    check_canonical([[0, 2], [3, 5], [0, 0]], 5)
    for row in ([[0, 0], [1, 2]], [[1, 3], [3, 5]], [[3, 5], [0, 2]], [[2, 6]], [[-1, 2]], [[2, 2]], [[0, 3], [2, 5]]):
        with pytest.raises(AssertionError):
            check_canonical(row, 5)


def test_a_joined_mask_is_compiled_in_one_graph() -> None:
    lengths, documents = torch.tensor([3, 7, 5]), torch.tensor([[0, 0, 1, 1, 1, 2, -1]])

    def lowered(lengths: Tensor, documents: Tensor) -> Tensor | None:
        mask = (Window(2, 1) | Global(1)) & Causal() & Padding(lengths) & Packed(documents, contiguous=True)
        return mask.lowered(BATCH, 5, 7)[0]

    compiled = torch.compile(lowered, backend="eager", fullgraph=True)
    wanted = read(lowered(lengths, documents), None, 5, 7)
    assert torch.equal(read(compiled(lengths, documents), None, 5, 7), wanted)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_mask_says_what_does_not_fit() -> None:
    assert Padding(torch.tensor([1, 2])).check(2, 5) == []
    assert Padding(torch.tensor([1])).check(2, 5) == []
    both = Padding(torch.tensor([1, 2, 3])) & Padding(torch.tensor([0.5, 1.0]))
    assert both.check(2, 5) == [
        "Padding.lengths has shape (3,), expected (2,)",
        "Padding.lengths is torch.float32, expected integers",
    ]
    assert (both | Causal()).check(2, 5) == both.check(2, 5)
    assert Padding(torch.tensor([[1]])).check(1, 5) == ["Padding.lengths has shape (1, 1), expected (1,)"]
    assert Padding([1, 2], begins=[3, 4, 5]).check(2, 5) == ["Padding.begins has shape (3,), expected (2,)"]
    assert Prefix([1, 2, 3]).check(2, 5) == ["Prefix.lengths has shape (3,), expected (2,)"]
    assert Packed([[0, 1]]).check(3, 5) == ["Packed.documents has shape (1, 2), expected (3, 5)"]
    assert Dense(torch.ones(2, 7, 5)).check(2, 5, heads=3, query_len=7) == [
        "Dense.tensor has shape (2, 7, 5), expected one that broadcasts to (2, 3, 7, 5)",
        "Dense.tensor is torch.float32, expected torch.bool, True where attending is allowed",
    ]
    assert Dense(torch.ones(7, 6, dtype=torch.bool)).check(2, 5) == [
        "Dense.tensor has shape (7, 6), expected one that broadcasts to (2, heads, query_len, 5)"
    ]
    assert Dense(torch.ones(7, 1, dtype=torch.bool)).check(2, 5, query_len=7) == [
        "Dense.tensor has shape (7, 1), one key for 7 queries; expand it: tensor.expand(7, 5)"
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(-1, 0), "Window: left is -1, expected an integer of at least 0"),
        (lambda: Window(2, 0.5), "Window: right is 0.5, expected an integer of at least 0"),
        (lambda: Window(True, -3), "Window: left is True; right is -3, expected an integer of at least 0"),
        (lambda: Global(-2), "Global: num_tokens is -2, expected an integer of at least 0"),
        (lambda: Padding([[1], [2, 3]]), "Padding.lengths is list, expected a tensor or list of integers"),
        (lambda: Dense([[True]]), "Dense.tensor is list, expected a tensor of booleans"),
        (lambda: Padding("abc"), "Padding.lengths is str, expected a tensor or list of integers"),
        (lambda: Causal() & torch.ones(2), "mask & Tensor: two masks are expected; wrap a boolean tensor in Dense"),
        (lambda: Causal() | "causal", "mask | str: two masks are expected; give a mask such as Causal()"),
    ],
)
def test_a_mistake_is_told_in_one_line(make: Any, message: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=re.escape(message)) as told:
        make()
    assert "\n" not in str(told.value)


def test_an_unknown_record_is_told() -> None:
    with pytest.raises(ConfigError, match="`casual` is not known, did you mean `causal`\\?; known: causal, window"):
        mask_from_record({"mask": "casual"})
    with pytest.raises(ConfigError, match="`None` is not known; known"):
        mask_from_record({})


deep: dict[str, Any] = {"mask": "causal"}
for _ in range(5000):
    deep = {"mask": "and", "first": deep, "second": {"mask": "causal"}}


@pytest.mark.parametrize(
    "record",
    [
        "causal",
        {"mask": ["causal"]},
        {"mask": "window", "left": 3},
        {"mask": "window", "left": "3", "right": 0},
        {"mask": "window", "left": 10**30, "right": -1},
        {"mask": "global", "num_tokens": None},
        {"mask": "padding", "lengths": "many"},
        {"mask": "padding", "lengths": [1, 2], "shortest": "1"},
        {"mask": "padding", "lengths": [1, [2]]},
        {"mask": "packed", "documents": {"a": 1}},
        {"mask": "dense", "tensor": None},
        {"mask": "and", "first": {"mask": "causal"}},
        {"mask": "or", "first": {"mask": "causal"}, "second": 3},
        deep,
    ],
)
def test_a_damaged_record_is_told(record: Any) -> None:
    with pytest.raises(RegardError, match=r"mask record|expected an integer of at least 0"):
        mask_from_record(record)


def test_a_record_may_hold_lists_for_tensors() -> None:
    mask = Packed([[0, 0, 1]]) & Padding([3]) & Dense(torch.tensor([[True, False, True]]))
    listed = {"mask": "and", "first": {}, "second": {"mask": "dense", "tensor": [[True, False, True]]}}
    listed["first"] = {
        "mask": "and",
        "first": {"mask": "packed", "documents": [[0, 0, 1]], "contiguous": None},
        "second": {"mask": "padding", "lengths": [3], "shortest": None, "begins": None},
    }
    assert torch.equal(mask_from_record(listed).dense(3, 3), mask.dense(3, 3))
