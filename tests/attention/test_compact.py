from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_strategies import HEADS, masks, read
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from regard.attention import compact
from regard.attention.compact import offsets_of, ranges_of
from regard.attention.masks import Causal, Global, Mask, Padding, Window
from regard.attention.modifiers import RelativeBias

LOWEST = torch.finfo(torch.float32).min


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "BLOCK_ELEMENTS", 60)
    compact._answers.clear()


def written(allowed: Tensor, how: str) -> Tensor:
    """A boolean mask as foreign models write it."""
    if how == "bool":
        return allowed
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "infinite": torch.float64, "half": torch.float16}[
        how
    ]
    lowest = -torch.inf if how == "infinite" else torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, lowest)


def most_ranges(allowed: Tensor) -> int:
    padded = torch.nn.functional.pad(allowed.int(), (1, 0))
    return int((padded.diff(dim=-1) > 0).sum(-1).max())


# -- ranges ------------------------------------------------------------------------------------------------------------


@st.composite
def sized_masks(draw: st.DrawFn, dense: bool) -> tuple[Mask, int, int]:
    query_len, key_len = draw(st.integers(1, 7)), draw(st.integers(1, 13))
    return draw(masks(query_len, key_len, dense=dense)), query_len, key_len


@settings(deadline=None, max_examples=120)
@given(case=sized_masks(dense=True), how=st.sampled_from(["bool", "float32", "bfloat16", "infinite"]))
def test_a_dense_mask_is_read_as_it_is_or_not_at_all(case: tuple[Mask, int, int], how: str) -> None:
    mask, query_len, key_len = case
    allowed = mask.dense(query_len, key_len)
    allowed = allowed.expand(allowed.shape[0], allowed.shape[1], query_len, key_len)
    shares = bool((allowed == allowed[:, :1]).all())
    ranges = ranges_of(written(allowed, how))
    assert (ranges is not None) == (shares and most_ranges(allowed) <= compact.MOST_RANGES)
    if ranges is not None:
        assert torch.equal(read(ranges, None, query_len, key_len)[: len(allowed), :1], allowed[:, :1])


def test_views_of_one_item_head_or_query_are_read_once() -> None:
    keys = torch.tensor([True, True, False, True, False])
    ranges = ranges_of(keys.expand(2, 3, 7, 5))
    assert ranges is not None and ranges.tolist() == [[[[0, 2], [3, 4]]] * 7]
    items = torch.stack([keys, ~keys])[:, None, None].expand(2, 3, 7, 5)
    ranges = ranges_of(items)
    assert ranges is not None and ranges.tolist() == [[[[0, 2], [3, 4]]] * 7, [[[2, 3], [4, 5]]] * 7]
    queries = torch.tensor([True, False, True])[:, None].expand(2, 1, 3, 5)
    ranges = ranges_of(queries)
    assert ranges is not None and ranges.tolist() == [[[[0, 5]], [[0, 0]], [[0, 5]]]]


def test_what_is_no_mask_is_left() -> None:
    allowed = torch.ones(1, 2, 5, 7, dtype=torch.bool)
    allowed[0, 1, 2, 3] = False
    assert ranges_of(allowed) is None, "heads differ"
    assert ranges_of(torch.zeros(1, 1, 5, 7, dtype=torch.int64)) is None
    assert ranges_of(torch.zeros(5, 7, dtype=torch.bool)) is None
    striped = (torch.arange(9) % 2 == 0).expand(1, 1, 3, 9)
    assert ranges_of(striped) is None, "five ranges"
    assert ranges_of(striped[..., :7]) is not None, "four"
    for value in (0.5, -5.0, float("nan"), float("inf"), LOWEST / 4):
        mask = torch.zeros(1, 1, 5, 7)
        mask[0, 0, 4, 6] = value
        assert ranges_of(mask) is None, value
    mask[0, 0, 4, 6] = LOWEST / 2
    assert ranges_of(mask) is not None


@pytest.mark.parametrize(("query_len", "key_len"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_is_a_mask_too(query_len: int, key_len: int) -> None:
    ranges = ranges_of(torch.zeros(2, 1, query_len, key_len, dtype=torch.bool))
    assert ranges is not None and ranges.tolist() == [[[[0, 0]]] * query_len] * 2
    assert offsets_of(torch.zeros(1, 2, query_len, key_len)) is None


# -- offsets -----------------------------------------------------------------------------------------------------------


def by_offset(query_len: int, key_len: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(a number per head and offset, the dense bias of it)."""
    generator = torch.Generator().manual_seed(query_len + 100 * key_len)
    values = torch.randn(HEADS, query_len + key_len - 1, generator=generator, dtype=torch.float64).to(dtype)
    place = torch.arange(key_len)[None] - torch.arange(query_len)[:, None] + query_len - 1
    return values, values[:, place][None]


@settings(deadline=None, max_examples=120)
@given(
    case=sized_masks(dense=False),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    added=st.booleans(),
)
def test_a_bias_of_offsets_is_found_under_any_mask(
    case: tuple[Mask, int, int], dtype: torch.dtype, added: bool
) -> None:
    """The mask is added, as T5 does it, or written over the bias."""
    mask, query_len, key_len = case
    values, bias = by_offset(query_len, key_len, dtype)
    allowed = mask.dense(query_len, key_len).expand(-1, 1, query_len, key_len)
    lowest = torch.zeros((), dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    bias = bias + lowest if added else torch.where(allowed, bias, torch.finfo(dtype).min)
    found = offsets_of(bias)
    if most_ranges(allowed) > compact.MOST_RANGES:
        assert found is None
        return
    assert found is not None
    offset_bias, ranges = found
    assert offset_bias.dtype == torch.promote_types(dtype, torch.float32)
    assert offset_bias.shape == values.shape
    assert torch.equal(read(ranges, None, query_len, key_len)[: len(allowed), :1], allowed)
    used = torch.zeros(len(values[0]), dtype=torch.bool)
    place = torch.arange(key_len)[None] - torch.arange(query_len)[:, None] + query_len - 1
    used[place[allowed.any(0)[0]]] = True
    assert torch.equal(offset_bias, torch.where(used, values, 0.0).to(offset_bias.dtype))


@settings(deadline=None, max_examples=60)
@given(case=sized_masks(dense=False), seed=st.integers(0, 99))
def test_one_value_that_is_off_is_noticed(case: tuple[Mask, int, int], seed: int) -> None:
    mask, query_len, key_len = case
    _, bias = by_offset(query_len, key_len)
    allowed = mask.dense(query_len, key_len).expand(-1, 1, query_len, key_len)
    bias = torch.where(allowed, bias, LOWEST).contiguous()
    places = allowed.expand(bias.shape).nonzero()
    if not len(places):
        return
    place = tuple(places[seed % len(places)].tolist())
    changed = bias.clone()
    changed[place] += 1.0
    of_this_offset = int(allowed[:, 0].diagonal(place[3] - place[2], 1, 2).sum())
    assert offsets_of(changed) is None or of_this_offset == 1, "unless no other pair has its offset"


def test_t5s_bias_with_its_mask_is_found() -> None:
    t5 = pytest.importorskip("transformers.models.t5", reason="transformers is not installed")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed")
    for decoder in (False, True):
        config = t5.T5Config(num_heads=3, d_model=12, d_kv=4, is_decoder=decoder)
        attention = modeling.T5Attention(config, has_relative_attention_bias=True)
        with torch.no_grad():
            bias = attention.compute_bias(7, 7)
            mask = torch.zeros(7, 7).masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), LOWEST)
            found = offsets_of(bias + mask if decoder else bias)
            assert found is not None
            table = RelativeBias(attention.relative_attention_bias.weight, bidirectional=not decoder)
            wanted = table.bias(torch.arange(13) - 6, 3)
            assert (found[1] is not None) == decoder
            assert torch.equal(found[0][:, :7], wanted[:, :7])
            assert decoder or torch.equal(found[0], wanted)


def test_a_bias_over_heads_that_are_one_view() -> None:
    _, bias = by_offset(5, 7)
    found = offsets_of(bias[:, :1].expand(2, 4, 5, 7))
    assert found is not None and found[0].shape == (4, 11) and found[1] is None


def test_a_bias_that_is_none_is_left() -> None:
    generator = torch.Generator().manual_seed(0)
    assert offsets_of(torch.randn(1, 2, 5, 7, generator=generator)) is None
    assert offsets_of(torch.zeros(1, 2, 5, 7, dtype=torch.int64)) is None
    _, bias = by_offset(5, 7)
    bias = bias.clone()
    bias[0, 1, 2, 3] = torch.nan
    assert offsets_of(bias) is None
    apart = torch.where(torch.rand(1, HEADS, 5, 7, generator=generator) < 0.5, by_offset(5, 7)[1], LOWEST)
    assert offsets_of(apart) is None, "heads attend to different keys"


# -- cost --------------------------------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that `_ranges_of` was asked about."""
    asked: list[int] = []
    found = compact._ranges_of

    def counting(mask: Tensor) -> Tensor | None:
        asked.append(mask.numel())
        return found(mask)

    monkeypatch.setattr(compact, "_ranges_of", counting)
    return asked


def test_layers_that_share_a_mask_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
    first = ranges_of(mask)
    assert first is not None and ranges_of(mask) is first
    assert ranges_of(mask[:, :, :, :]) is first, "another view of the same place"
    assert len(asked) == 1
    cut = ranges_of(mask[..., :6])
    assert cut is not None and cut[0, 0, 0].tolist() == [0, 6]
    mask[0, 0, 2, 3:] = False
    written_to = ranges_of(mask)
    assert written_to is not None and written_to[0, 2, 0].tolist() == [0, 3]
    striped = (torch.arange(13) % 2 == 0).expand(1, 1, 3, 13)
    del asked[:]
    assert ranges_of(striped) is None and ranges_of(striped) is None
    assert len(asked) == 1, "that it is no mask is remembered as well"


def test_an_answer_goes_with_its_tensor() -> None:
    for length in range(2, 100):
        ranges = ranges_of(torch.ones(1, 1, 3, length, dtype=torch.bool))
        assert ranges is not None and ranges[0, 0, 0].tolist() == [0, length], "memory is used again"
    gc.collect()
    assert len(compact._answers) <= compact.MOST_KEPT
    kept = [torch.ones(1, 1, 1, 2, dtype=torch.bool) for _ in range(2 * compact.MOST_KEPT)]
    assert all(ranges_of(mask) is not None for mask in kept)
    assert len(compact._answers) <= compact.MOST_KEPT


def test_inference_tensors_are_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch)
    with torch.inference_mode():
        mask = torch.ones(1, 1, 5, 7, dtype=torch.bool)
        assert ranges_of(mask) is not None
        mask[0, 0, 2, 3:] = False
        changed = ranges_of(mask)
    assert changed is not None and changed[0, 2, 0].tolist() == [0, 3]
    assert len(asked) == 2


class Largest(TorchDispatchMode):
    """The size of the largest tensor that an operation made, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        views = ("slice", "select", "expand", "view", "detach", "unfold", "alias", "transpose", "t.default")
        if isinstance(result, Tensor) and not any(name in str(function) for name in views):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("toeplitz", [True, False])
def test_no_more_than_a_block_is_held(toeplitz: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "BLOCK_ELEMENTS", 2**12)
    length = 257
    mask = Window(17, 3) if toeplitz else (Window(17, 0) | Global(2)) & Causal() & Padding([length - 50])
    allowed = mask.dense(length, length)
    bias = torch.where(allowed, by_offset(length, length)[1], LOWEST)
    with Largest() as largest:
        assert ranges_of(allowed) is not None
        assert compact._is_toeplitz(bias) == toeplitz
        assert offsets_of(bias) is not None
    assert 0 < largest.elements <= 2**14, "of the mask's 2^16"


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def test_reading_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask is read at less than the cost of one product of such scores."""
    monkeypatch.setattr(compact, "BLOCK_ELEMENTS", 2**18)
    mask = torch.ones(1, 1, 2048, 2048, dtype=torch.bool).tril()
    query = torch.randn(8, 2048, 64)

    def read_afresh() -> None:
        compact._answers.clear()
        assert ranges_of(mask) is not None

    reading = min(seconds(read_afresh) for _ in range(5))
    scoring = min(seconds(lambda: query @ query.transpose(1, 2)) for _ in range(3))
    assert reading < scoring
