from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.modifiers import ALiBi, Modifier, OffsetBias, RelativeBias, SoftCap, alibi_slopes
from regard.attention.pair_scores import PairScores
from regard.errors import ConfigError

HEADS = 3


def scores(query_len: int = 5, key_len: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, HEADS, query_len, key_len, dtype=torch.float64, generator=generator) * 5


def test_a_soft_cap_bounds_and_keeps_small_scores() -> None:
    capped = SoftCap(2.0).modify(scores(), torch.arange(5), torch.arange(7))
    torch.testing.assert_close(capped, 2.0 * torch.tanh(scores() / 2.0))
    assert capped.abs().max() < 2.0
    small = torch.full((1, 1, 1, 1), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(SoftCap(2.0).modify(small, torch.arange(1), torch.arange(1)), small, rtol=1e-8, atol=0)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_soft_cap_is_above_0(cap: float) -> None:
    with pytest.raises(ConfigError, match=f"SoftCap: cap is {cap}, expected a finite number above 0"):
        SoftCap(cap)


# -- ALiBi -------------------------------------------------------------------------------------------------------------


def test_slopes_are_the_papers() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    torch.testing.assert_close(alibi_slopes(16), torch.tensor([2.0 ** (-power / 2) for power in range(1, 17)]))
    twelve = alibi_slopes(12)
    torch.testing.assert_close(twelve[:8], alibi_slopes(8))
    torch.testing.assert_close(twelve[8:], alibi_slopes(16)[::2][:4])


@pytest.mark.parametrize("heads", [1, 2, 3, 7, 8, 12, 20, 32])
def test_slopes_are_those_of_bloom(heads: int) -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom", reason="transformers is not installed")
    # Its tensor is the slope times the key's position; the last of two keys stands at 1.
    theirs = bloom.build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), theirs)


def test_alibi_counts_the_distance_to_either_side() -> None:
    given = torch.tensor([1.0, 0.5, 0.25])
    added = ALiBi(given).modify(torch.zeros(1, HEADS, 2, 5), torch.tensor([3, 4]), torch.arange(5))
    distance = torch.tensor([[3.0, 2, 1, 0, 1], [4, 3, 2, 1, 0]])
    torch.testing.assert_close(added[0], -given[:, None, None] * distance)
    found = ALiBi().modify(torch.zeros(1, 8, 1, 3), torch.tensor([2]), torch.arange(3))
    torch.testing.assert_close(found[0, :, 0], -alibi_slopes(8)[:, None] * torch.tensor([2.0, 1.0, 0.0]))


def test_a_causal_softmax_sees_blooms_bias_and_ours_alike() -> None:
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom", reason="transformers is not installed")
    places = torch.arange(7)
    theirs = scores(7, 7) + bloom.build_alibi_tensor(torch.ones(1, 7, dtype=torch.int64), HEADS, torch.float32)
    ours = ALiBi().modify(scores(7, 7), places, places)
    future = places[None] > places[:, None]
    torch.testing.assert_close(
        ours.masked_fill(future, -torch.inf).softmax(-1), theirs.masked_fill(future, -torch.inf).softmax(-1)
    )


# -- T5's bias ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (8, 20), (10, 11), (64, 1000), (4, 3), (40, 320), (20, 320)]
)
def test_buckets_are_those_of_t5(bidirectional: bool, num_buckets: int, max_distance: int) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed")
    offsets = torch.arange(-2100, 2101)
    theirs = t5.T5Attention._relative_position_bucket(offsets, bidirectional, num_buckets, max_distance)
    bias = RelativeBias(torch.zeros(num_buckets, HEADS), bidirectional, max_distance)
    assert bias.check(8, 8, heads=HEADS) == []
    assert torch.equal(bias.buckets(offsets), theirs)


def test_buckets_by_hand() -> None:
    """8 buckets, 4 a direction, the first 2 of one distance each, then to 4 and beyond."""
    bias = RelativeBias(torch.zeros(8, HEADS), max_distance=8)
    assert bias.buckets(torch.arange(-9, 10)).tolist() == [3, 3, 3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7, 7, 7, 7]
    one_way = RelativeBias(torch.zeros(4, HEADS), bidirectional=False, max_distance=8)
    assert one_way.buckets(torch.tensor([3, 0, -1, -2, -3, -4, -100])).tolist() == [0, 0, 1, 2, 2, 3, 3]


def test_the_bias_is_looked_up_by_head_and_bucket() -> None:
    table = torch.arange(24.0, dtype=torch.float64).view(8, HEADS)
    bias = RelativeBias(table, max_distance=8)
    queries, keys = torch.arange(2, 7), torch.arange(7)
    added = bias.modify(torch.zeros(1, HEADS, 5, 7, dtype=torch.float64), queries, keys)
    for row, query in enumerate(queries.tolist()):
        for key in range(7):
            bucket = int(bias.buckets(torch.tensor(key - query)))
            assert added[0, :, row, key].tolist() == table[bucket].tolist()


@settings(deadline=None, max_examples=40)
@given(query_len=st.integers(0, 9), key_len=st.integers(0, 9), twice=st.booleans())
def test_lowered_biases_sum_to_the_modified_scores(query_len: int, key_len: int, twice: bool) -> None:
    generator = torch.Generator().manual_seed(query_len + 10 * key_len)
    table = torch.randn(8, HEADS, dtype=torch.float64, generator=generator)
    sides = (torch.randn(2, HEADS, size, 4, dtype=torch.float64, generator=generator) for size in (query_len, key_len))
    pairs = PairScores(*sides, 0.5)
    rows = torch.arange(query_len)
    wanted = pairs.of_queries(rows)
    modifiers: list[OffsetBias] = [RelativeBias(table, max_distance=5), *([ALiBi()] if twice else [])]
    lowered: PairScores | None = pairs
    for modifier in modifiers:
        assert lowered is not None
        wanted = modifier.modify(wanted, rows + key_len - query_len, torch.arange(key_len))
        lowered = modifier.lowered(lowered)
    assert lowered is not None and lowered.offset_bias is not None
    assert lowered.offset_bias.shape == (HEADS, max(query_len + key_len - 1, 0))
    torch.testing.assert_close(lowered.of_queries(rows), wanted)
    assert SoftCap(1.0).lowered(lowered) is None


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_modifier_says_what_does_not_fit() -> None:
    assert SoftCap(1.0).check(4, 5, heads=HEADS) == []
    assert ALiBi().check(4, 5, heads=HEADS) == []
    assert ALiBi(torch.ones(2)).check(4, 4, heads=HEADS) == ["ALiBi.slopes has shape (2,), expected (3,)"]
    wanted = "expected (num_buckets, 3) with num_buckets even and at least"
    for shape, bidirectional, least in (((2, 3), True, 4), ((8, 2), True, 4), ((5, 3), False, 2), ((8,), False, 2)):
        problems = RelativeBias(torch.zeros(shape), bidirectional).check(4, 4, heads=HEADS)
        assert problems == [f"RelativeBias.table has shape {shape}, {wanted} {least}"]
    assert RelativeBias(torch.zeros(32, 3), max_distance=8).check(4, 4, heads=HEADS) == [
        "RelativeBias.max_distance is 8, expected more than the 8 distances that have a bucket each"
    ]
    assert RelativeBias(torch.zeros(32, 3), max_distance=9).check(4, 4, heads=HEADS) == []


def test_a_new_modifier_must_say_how() -> None:
    index = torch.arange(1)
    for call in (
        lambda: Modifier().modify(scores(), index, index),
        lambda: Modifier().turn(scores(), scores(), index, index),
        lambda: Modifier().lowered(PairScores(scores(), scores(), 1.0)),
        lambda: OffsetBias().bias(index, 1),
    ):
        with pytest.raises(TypeError, match=re.escape("does not")):
            call()
