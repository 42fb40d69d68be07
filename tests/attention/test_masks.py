from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.masks import Both, Causal, Either, Mask, Padding, mask_from_record
from regard.errors import ConfigError

BATCH, KEY_LEN = 3, 11


@st.composite
def paddings(draw: st.DrawFn) -> Padding:
    lengths = draw(st.lists(st.integers(0, KEY_LEN), min_size=BATCH, max_size=BATCH))
    return Padding(torch.tensor(lengths), draw(st.sampled_from([None, min(lengths)])))


masks = st.recursive(
    st.one_of(st.just(Causal()), paddings()),
    lambda inner: st.one_of(st.builds(Both, inner, inner), st.builds(Either, inner, inner)),
    max_leaves=4,
)


def ranges(first: int) -> st.SearchStrategy[tuple[int, int]]:
    bounds = st.lists(st.integers(first, KEY_LEN), min_size=2, max_size=2, unique=True)
    return bounds.map(lambda pair: (min(pair), max(pair)))


def by_hand(mask: Mask, item: int, query: int, key: int) -> bool:
    """What the mask's definition says of one pair, in plain Python."""
    match mask:
        case Causal():
            return key <= query
        case Padding():
            return key < mask.lengths.tolist()[item]
        case Both():
            return by_hand(mask.first, item, query, key) and by_hand(mask.second, item, query, key)
        case Either():
            return by_hand(mask.first, item, query, key) or by_hand(mask.second, item, query, key)
    raise AssertionError(mask)


@settings(deadline=None, max_examples=150)
@given(mask=masks, queries=ranges(-5), keys=ranges(0))
def test_allowed_is_the_definition_and_kind_agrees(mask: Mask, queries: tuple[int, int], keys: tuple[int, int]) -> None:
    allowed = mask.allowed(torch.arange(*queries), torch.arange(*keys))
    assert allowed.dtype == torch.bool
    allowed = allowed.expand(BATCH, 1, queries[1] - queries[0], keys[1] - keys[0])
    wanted = [
        [[by_hand(mask, item, query, key) for key in range(*keys)] for query in range(*queries)]
        for item in range(BATCH)
    ]
    assert allowed[:, 0].tolist() == wanted
    kind = mask.kind(queries, keys)
    assert kind != "full" or allowed.all()
    assert kind != "empty" or not allowed.any()


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "kind"),
    [
        (Causal(), (6, 7), (0, 7), "full"),
        (Causal(), (5, 7), (0, 7), "partial"),
        (Causal(), (0, 3), (3, 5), "empty"),
        (Causal(), (0, 4), (3, 5), "partial"),
        (Padding(torch.tensor([5, 7])), (0, 7), (0, 5), "full"),
        (Padding(torch.tensor([5, 7])), (0, 7), (0, 6), "partial"),
        (Causal() & Padding(torch.tensor([5, 7])), (6, 7), (0, 5), "full"),
        (Causal() & Padding(torch.tensor([5, 7])), (0, 2), (2, 3), "empty"),
        (Causal() | Padding(torch.tensor([5, 7])), (0, 2), (2, 3), "full"),
        (Causal() | Padding(torch.tensor([5, 7])), (0, 2), (5, 7), "partial"),
        (Causal() | Causal(), (0, 2), (5, 7), "empty"),
    ],
)
def test_kind_is_as_sharp_as_promised(mask: Mask, queries: tuple[int, int], keys: tuple[int, int], kind: str) -> None:
    assert mask.kind(queries, keys) == kind


def test_padding_on_another_device_is_full_only_when_told() -> None:
    lengths = torch.tensor([5, 7], device="meta")
    assert Padding(lengths).kind((0, 7), (0, 5)) == "partial"
    assert Padding(lengths, shortest=5).kind((0, 7), (0, 5)) == "full"
    assert Padding(lengths, shortest=5).kind((0, 7), (0, 6)) == "partial"


@settings(deadline=None, max_examples=60)
@given(mask=masks)
def test_records_round_trip(mask: Mask) -> None:
    again = mask_from_record(mask.to_record())
    assert type(again) is type(mask)
    assert torch.equal(again.dense(5, KEY_LEN), mask.dense(5, KEY_LEN))
    assert again.kind((3, 5), (0, 4)) == mask.kind((3, 5), (0, 4))


def test_an_unknown_record_is_told() -> None:
    with pytest.raises(ConfigError, match="`casual` is not known, did you mean `causal`\\?; known: causal, padding"):
        mask_from_record({"mask": "casual"})
    with pytest.raises(ConfigError, match="`None` is not known; known"):
        mask_from_record({})


def test_causal_is_aligned_bottom_right() -> None:
    assert Causal().dense(2, 5)[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    # Queries before the first key see nothing.
    assert Causal().dense(4, 2)[0, 0].tolist() == [[False] * 2, [False] * 2, [True, False], [True, True]]


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
