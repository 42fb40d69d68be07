"""The second pass in native C against the materialised oracle."""

from __future__ import annotations

import ctypes
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from second_pass_cases import (
    CASES,
    NEGATIVE_INFINITY,
    SIZES,
    causal,
    compare,
    inputs,
    materialised,
    oracle,
    wanted_everything,
)

from regard.attention import chunked, native
from regard.attention.native import build
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted

# Inputs in bfloat16 are exact in float32, in which all else is computed: both are held to the same bound.
TOLERANCE = 5e-6
# Paths of other processors that this one can run too; the first is what it takes by itself.
FLAVOURS = {"native": (), "plain": ("-DREGARD_NARROW",), "narrower": ("-mno-avx512f",)}


@pytest.fixture(autouse=True)
def native_code(request: pytest.FixtureRequest) -> None:
    if "without_a_compiler" not in request.node.name and (reason := native.unavailable()):
        pytest.skip(f"no native code here: {reason}")


def use_flavour(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library = build.load("second_pass.c", extra_flags=FLAVOURS[flavour])
    except build.BuildError as error:
        pytest.skip(f"the compiler does not make this flavour: {error}")
    monkeypatch.setattr(native, "_loaded", [library])


# -- what it computes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False], ids=["logsumexp given", "found"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str, dtype: torch.dtype, given: bool) -> None:
    for weighted in (True, False):
        pairs = CASES[case](inputs(dtype=dtype))
        wanted = wanted_everything(pairs, weighted=weighted)
        assert native.refuses(pairs, wanted) is None
        compare(native, pairs, wanted, given=given, tolerance=TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str) -> None:
    pairs = inputs(**SIZES[size])
    for case in ("plain", "causal", "sink", "soft cap", "offset bias", "bias of keys", "allowed"):
        for given in (True, False):
            modified = CASES[case](pairs)
            compare(native, modified, wanted_everything(modified), given=given, tolerance=TOLERANCE)


@pytest.mark.parametrize("flavour", list(FLAVOURS)[1:])
def test_the_paths_of_other_processors(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_flavour(flavour, monkeypatch)
    for case in CASES:
        pairs = CASES[case](inputs())
        compare(native, pairs, wanted_everything(pairs), given=False, tolerance=TOLERANCE)
    pairs = CASES["causal"](inputs(**SIZES["wide heads"], dtype=torch.bfloat16))
    compare(native, pairs, wanted_everything(pairs), given=True, tolerance=TOLERANCE)


@pytest.mark.parametrize("grid", [(7, 5), (1, 1), (701, 97), (1153, 30)])
@pytest.mark.parametrize("ranges", [True, False])
def test_queries_in_several_stretches(grid: tuple[int, int], ranges: bool) -> None:
    pairs = inputs(batch=1, heads=2, kv_heads=1, query_len=1153, key_len=97, head_dim=160)
    if ranges:
        pairs = replace(pairs, ranges=causal(pairs))
    wanted = replace(wanted_everything(pairs, weighted=ranges), grid=grid)
    compare(native, pairs, wanted, given=ranges, tolerance=TOLERANCE)


def test_few_queries_of_many_heads_share_their_keys() -> None:
    for heads, kv_heads, queries in ((29, 1, 3), (14, 2, 83), (6, 3, 1)):
        pairs = inputs(heads=heads, kv_heads=kv_heads, query_len=queries, key_len=131)
        pairs = replace(pairs, ranges=causal(pairs), offset_bias=torch.randn(heads, queries + 130))
        compare(native, pairs, wanted_everything(pairs), given=False, tolerance=TOLERANCE)


def test_each_statistic_alone_is_what_it_is_among_others() -> None:
    pairs = CASES["sink"](inputs())
    everything = wanted_everything(pairs)
    logsumexp = oracle(pairs, everything).logsumexp.float()
    whole = native.statistics(pairs, logsumexp, everything)
    for name in ("entropy", "received", "sink_mass", "top_k", "columns", "grid", None):
        alone = Wanted() if name is None else replace(Wanted(), **{name: getattr(everything, name)})
        for given in (logsumexp, None):
            found = native.statistics(pairs, given, alone)
            there = [field for field in Statistics._fields if getattr(found, field).numel()]
            assert len(there) == 2 + (name is not None) + (name == "top_k")
            for field in there:
                torch.testing.assert_close(getattr(found, field), getattr(whole, field), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 16, 17, 67, 70])
def test_the_greatest_in_order(top_k: int) -> None:
    pairs = CASES["padded"](inputs())
    compare(native, pairs, replace(wanted_everything(pairs), top_k=top_k), given=True, tolerance=TOLERANCE)
    found = native.statistics(pairs, None, Wanted(top_k=top_k)).top_weights
    assert (found.diff(dim=-1) <= 0).all()


def test_float32_holds_over_many_keys() -> None:
    """The bounds that docs/observation.md states, where sums are long."""
    pairs = inputs(batch=1, heads=1, kv_heads=1, query_len=1031, key_len=8192, head_dim=64)
    wanted = Wanted(entropy=True, received=True)
    double = replace(pairs, query=pairs.query.double(), key=pairs.key.double())
    right = chunked.statistics(double, None, wanted)
    for logsumexp in (right.logsumexp.float(), None):
        found = native.statistics(pairs, logsumexp, wanted)
        assert ((found.received - right.received).abs() / right.received).max() < 5e-6
        assert (found.entropy - right.entropy).abs().max() < 3e-5
        assert (found.max_logit - right.max_logit).abs().max() < 3e-6
        assert (found.logsumexp - right.logsumexp).abs().max() < 3e-6


@pytest.mark.parametrize("spread", [0.0, 1e-3, 60.0])
def test_flat_and_steep_distributions(spread: float) -> None:
    pairs = CASES["causal"](inputs(spread=spread))
    # A score of size s is known to s / 2^24, and a weight no better: the tolerance grows with the scores.
    compare(native, pairs, wanted_everything(pairs), given=False, tolerance=TOLERANCE * max(1.0, spread))


def test_scores_far_below_the_greatest_weigh_nothing() -> None:
    query = torch.ones(1, 1, 5, 1)
    key = torch.tensor([0.0, -200.0, -1e4, -1e30, -80.0]).view(1, 1, 5, 1)
    for bias in (None, torch.tensor([0.0, 0.0, 0.0, 0.0, -1e4])):
        pairs = PairScores(query, key, 1.0, bias=bias)
        wanted = Wanted(entropy=True, received=True, columns=torch.arange(5))
        for logsumexp in (None, torch.zeros(1, 1, 5)):
            found = native.statistics(pairs, logsumexp, wanted)
            assert found.columns[0, 0, 0, :4].tolist() == [1.0, 0.0, 0.0, 0.0]
            assert found.columns[0, 0, 0, 4] == (0.0 if bias is not None else pytest.approx(1.8048514e-35, rel=1e-5))
            assert found.received[0, 0].tolist()[:4] == [5.0, 0.0, 0.0, 0.0]
            assert found.entropy.abs().max() < 1e-30


# -- what it reads and does not read -------------------------------------------------------------------------------


def test_what_nobody_may_read_may_hold_anything() -> None:
    """Keys outside all ranges, queries without any, values that `allowed` excludes, memory between strided rows."""
    clean = CASES["padded"](inputs(kv_heads=6))
    nan = float("nan")
    query, key = (torch.full((*side.shape[:3], 31), nan)[..., 2:21] for side in (clean.query, clean.key))
    query.copy_(clean.query)
    key.copy_(clean.key)
    query[1, :, -5:] = nan
    key[1, :, -11:] = nan
    wanted = wanted_everything(clean)
    right = native.statistics(clean, None, wanted)
    found = native.statistics(replace(clean, query=query, key=key), None, wanted)
    for name in Statistics._fields:
        assert torch.equal(getattr(found, name), getattr(right, name)), name
    allowed = torch.ones(67, dtype=torch.bool)
    allowed[[0, 13, 66]] = False
    bias = torch.zeros(1, 1, 1, 67)
    bias[..., ~allowed] = NEGATIVE_INFINITY
    poisoned = key.clone()
    poisoned[:, :, ~allowed] = nan
    for masked in ({"allowed": allowed.view(1, 1, 1, 67)}, {"bias": bias}):
        right = native.statistics(replace(clean, **masked), None, wanted)
        found = native.statistics(replace(clean, query=query, key=poisoned, **masked), None, wanted)
        for name in Statistics._fields:
            assert torch.equal(getattr(found, name), getattr(right, name)), name


def test_a_nan_that_is_read_is_shown() -> None:
    clean = inputs()
    query = clean.query.clone()
    query[0, 2, 7, 3] = float("nan")
    for logsumexp in (None, materialised(replace(clean, query=query))[2].float()):
        found = native.statistics(replace(clean, query=query), logsumexp, Wanted(entropy=True, received=True))
        for name in ("logsumexp", "entropy", "max_logit"):
            broken = getattr(found, name).isnan()
            assert broken[0, 2, 7] and broken.sum() == 1, name
        assert found.received.isnan().any(-1).nonzero().tolist() == [[0, 2]]


def test_a_kernel_may_give_anything_where_nothing_is_allowed() -> None:
    for case in ("padded", "finite minimum", "sink"):
        pairs = CASES[case](inputs())
        wanted = wanted_everything(pairs)
        right = native.statistics(pairs, None, wanted)
        empty = right.max_logit == NEGATIVE_INFINITY
        assert empty.any()
        for anything in (0.0, float("nan"), float("inf"), NEGATIVE_INFINITY):
            found = native.statistics(pairs, right.logsumexp.masked_fill(empty, anything), wanted)
            for name in Statistics._fields:
                torch.testing.assert_close(getattr(found, name), getattr(right, name), rtol=1e-5, atol=1e-5, msg=name)


def test_any_strides() -> None:
    plain = CASES["everything"](inputs())
    right = native.statistics(plain, None, wanted_everything(plain, weighted=True))

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        """The same values with the axes in memory the other way round, and a gap between neighbours."""
        turned = torch.zeros(*reversed(tensor.shape), 2, dtype=tensor.dtype)[..., 1].permute(3, 2, 1, 0)
        return turned.copy_(tensor)

    pairs = replace(plain, **{name: turned(getattr(plain, name)) for name in ("query", "key", "bias", "allowed")})
    assert pairs.query.stride(-1) != 1 and pairs.bias is not None and pairs.bias.stride(-1) != 1
    wanted = wanted_everything(plain, weighted=True)
    columns = torch.stack([wanted.columns, wanted.columns], 1)[:, 0]
    pairs = replace(pairs, ranges=torch.stack([plain.ranges, plain.ranges], -1)[..., 0])
    found = native.statistics(pairs, None, replace(wanted, columns=columns))
    for name in Statistics._fields:
        assert torch.equal(getattr(found, name), getattr(right, name)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("strided", [False, True])
def test_a_bias_of_any_dtype(dtype: torch.dtype, strided: bool) -> None:
    pairs = inputs()
    bias = (
        torch.randn(2, 1, 53, 134, dtype=torch.float64).to(dtype)[..., ::2] if strided else torch.randn(1, 67).to(dtype)
    )
    lowest = torch.finfo(dtype).min
    bias[..., 3], bias[..., 5], bias[..., 7], bias[..., 11] = lowest, lowest / 2, NEGATIVE_INFINITY, lowest / 2.2
    bias[..., 13], bias[..., 17] = torch.finfo(dtype).tiny / 8, -0.0
    pairs = replace(pairs, bias=bias)
    wanted = replace(wanted_everything(pairs), columns=torch.tensor([3, 5, 7, 11]))
    compare(native, pairs, wanted, given=False, tolerance=TOLERANCE)
    found = native.statistics(pairs, None, wanted).columns
    assert not found.any()


def test_columns_may_repeat_and_lie_anywhere() -> None:
    pairs = CASES["causal"](inputs())
    wanted = replace(wanted_everything(pairs), columns=torch.tensor([66, 0, 66, 31, 48, 47]))
    compare(native, pairs, wanted, given=True, tolerance=TOLERANCE)


def test_refusals_name_their_reason() -> None:
    pairs = inputs()
    assert native.refuses(inputs(dtype=torch.float64), Wanted()) == "it reads float32 and bfloat16, not torch.float64"
    assert native.refuses(inputs(dtype=torch.float16), Wanted()) == "it reads float32 and bfloat16, not torch.float16"
    meta = replace(pairs, query=pairs.query.to("meta"), key=pairs.key.to("meta"))
    assert native.refuses(meta, Wanted()) == "it runs on a CPU, not on meta"
    narrow = replace(pairs, query=pairs.query[..., :0], key=pairs.key[..., :0])
    assert native.refuses(narrow, Wanted()) == "there is nothing to multiply"
    long = replace(pairs, key=pairs.key[:, :, :1].expand(-1, -1, 2**31, -1))
    assert native.refuses(long, Wanted()) == "it counts queries and keys in 32 bits"


# -- threads and memory --------------------------------------------------------------------------------------------


def test_the_number_of_threads_changes_no_bit() -> None:
    pairs = inputs(batch=1, heads=2, kv_heads=2, query_len=1511, key_len=1511, head_dim=32)
    pairs = replace(pairs, ranges=causal(pairs))
    wanted = wanted_everything(pairs, weighted=True)
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found += [native.statistics(pairs, None, wanted) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name in Statistics._fields:
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are only kept on Linux")
def test_memory_is_linear_in_the_length() -> None:
    length = 70_001  # all pairs would be 20 GB
    pairs = inputs(batch=1, heads=1, kv_heads=1, query_len=length, key_len=length, head_dim=8)
    places = torch.arange(length)
    ranges = torch.stack([(places - 30).clamp(min=0), places + 1], -1).int().view(1, length, 1, 2)
    pairs = replace(pairs, ranges=ranges, offset_bias=torch.randn(1, 2 * length - 1))
    wanted = Wanted(entropy=True, received=True, sink_mass=4, top_k=8, grid=(64, 64))
    native.statistics(inputs(), None, wanted)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, before[1]))
    try:
        found = native.statistics(pairs, None, wanted)
        with pytest.raises((RuntimeError, MemoryError)):  # the limit is one that can be hit
            torch.zeros(length, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert found.received.sum().item() == pytest.approx(length, rel=1e-5)
    assert found.pooled.sum().item() == pytest.approx(length, rel=1e-5)


# -- the functions it is made of -----------------------------------------------------------------------------------

FUNCTIONS = """
#include "vectors.h"
void powers(const float *from, float *to, int count) {
    for (int i = 0; i < count; i += LANES) store(to + i, exp2_of(at_least_least(load(from + i))));
}
void tanhs(const float *from, float *to, int count) {
    for (int i = 0; i < count; i += LANES) store(to + i, tanh_of(load(from + i)));
}
void squares(float *values) {
    floats square[LANES];
    for (int i = 0; i < LANES; i++) square[i] = load(values + i * LANES);
    transpose(square);
    for (int i = 0; i < LANES; i++) store(values + i * LANES, square[i]);
}
int lanes(void) { return LANES; }
"""


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_powers_and_tangents(flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions.c").write_text(FUNCTIONS)
    (tmp_path / "vectors.h").write_text((build.SOURCES / "vectors.h").read_text())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path))
    library = build.load("functions.c", extra_flags=FLAVOURS[flavour])

    def apply(name: str, values: torch.Tensor) -> torch.Tensor:
        found = torch.empty_like(values)
        getattr(library, name)(ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(found.data_ptr()), len(values))
        return found

    last_place = 2.0**-23
    values = torch.linspace(-100.0, 100.0, 2**16)
    right = values.double().exp2()
    assert ((apply("powers", values) - right).abs() / right).max() < 1.5 * last_place / 2 * 2
    edges = torch.tensor([0.0, -0.0, -126.0, -127.0, -1e9, -1e38, NEGATIVE_INFINITY, float("nan")] * 2)
    powers = apply("powers", edges)
    assert powers[:7].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert powers[7].isnan()
    values = torch.cat([torch.linspace(-12.0, 12.0, 2**15), torch.logspace(-30, 1.5, 2**15)])
    right = values.double().tanh()
    assert ((apply("tanhs", values) - right).abs() / right.abs().clamp(min=1e-30)).max() < 3 * last_place
    edges = torch.tensor([0.0, -0.0, 1e38, -1e38, float("inf"), NEGATIVE_INFINITY, float("nan"), 1e-38] * 2)
    found = apply("tanhs", edges)
    assert found[:6].tolist() == [0.0, 0.0, 1.0, -1.0, 1.0, -1.0]
    assert found[6].isnan()
    lanes = library.lanes()
    square = torch.arange(lanes * lanes, dtype=torch.float32).view(lanes, lanes)
    turned = square.clone()
    library.squares(ctypes.c_void_p(turned.data_ptr()))
    assert torch.equal(turned, square.T)
