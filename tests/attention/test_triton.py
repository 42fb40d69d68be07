"""The second pass in Triton: interpreted against the oracle, compiled for devices that are absent, run where one is.

This file is also the program that runs calls in Triton's interpreter, which has to be chosen before triton is imported:
`python test_triton.py` reads calls as JSON from standard input and prints what was wrong with each, or null.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from second_pass_cases import CASES, SIZES, compare, inputs, oracle, wanted_everything
from torch import Tensor

from regard.attention import chunked
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted
from regard.attention.triton import kernel as triton_kernel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of weights, logsumexp, max logit and entropy. Products of two bfloat16 or float16 numbers are exact in float32: that
# inputs were rounded makes no difference to what is computed from them.
TOLERANCE = 5e-6
TOLERANCE_ON_DEVICE = 2e-5  # tensor cores cut off what they add
GRIDS = {"many cells": (7, 5), "few cells": (2, 3), "one cell": (1, 1), "more cells than keys": (19, 131)}
FEW = {"heads": 2, "kv_heads": 1, "query_len": 41}


# -- calls, in the interpreter -----------------------------------------------------------------------------------------


def call(case: str, size: str | None = None, dtype: str = "float32", given: bool = True, **more: Any) -> dict[str, Any]:
    return {"case": case, "size": size, "dtype": dtype, "given": given, **more}


def name_of(asked: dict[str, Any]) -> str:
    return ", ".join(f"{value}" if key in ("case", "dtype") else f"{key} {value}" for key, value in asked.items())


CALLS = [
    *(call(case, given=place % 2 == 0) for place, case in enumerate(CASES)),
    *(call("plain", size, given=place % 2 == 1) for place, size in enumerate(SIZES)),
    *(
        call(case, dtype="bfloat16", given=place % 2 == 1, grid="few cells")
        for place, case in enumerate(["causal", "everything"])
    ),
    call("window and global", grid="one cell", top_k=1),
    call("padded", grid="few cells", top_k=32),
    call("causal", grid="more cells than keys"),
    call("causal", spread=40.0, given=False, tolerance=5e-5),  # scores near 100 have fewer digits behind the point
    call("plain", "one key", equal=True),
    call("padded", equal=True, given=False),
    call("padded", poison=True),
    call("everything", poison=True, given=False),
]
# Whose masks and biases have something to say about a single query or key.
OF_TINY_SIZES = [
    "plain",
    "causal",
    "soft cap",
    "offset bias",
    "bias of all heads",
    "bias of keys",
    "allowed",
    "strided",
]
LONG_CALLS = [
    *(
        call(case, size, dtype, given, grid=grid)
        for case in CASES
        for size in SIZES
        if case in OF_TINY_SIZES or size not in ("one query", "one key", "no keys")
        for dtype, given, grid in (("float32", True, "many cells"), ("bfloat16", False, "few cells"))
    ),
    *(call(case, None, "float16", given) for case in CASES for given in (True, False)),
]


def pairs_of(asked: dict[str, Any]) -> PairScores:
    sizes = FEW if asked["size"] is None else {**SIZES[asked["size"]], "heads": 2}
    sizes = {**sizes, "kv_heads": 1}
    made = inputs(**sizes, dtype=DTYPES[asked["dtype"]], spread=asked.get("spread", 1.0))  # type: ignore[arg-type]
    if asked.get("equal"):
        made = replace(made, query=torch.zeros_like(made.query))
    return CASES[asked["case"]](made)


def wanted_of(asked: dict[str, Any], pairs: PairScores) -> Wanted:
    wanted = wanted_everything(pairs, weighted=asked["given"])
    return replace(wanted, grid=GRIDS[asked.get("grid", "many cells")], top_k=asked.get("top_k", 5))


def poisoned(pairs: PairScores) -> PairScores:
    """The same with no number wherever nobody may look: around the tensors, and at what no query may attend to."""
    allowed = pairs.of_queries(torch.arange(pairs.query_len)) > float("-inf")

    def within(tensor: Tensor) -> Tensor:
        *outer, length, width = tensor.shape
        around = torch.full((*outer, length + 9, width + 3), float("nan"), dtype=tensor.dtype)
        around[..., 4 : 4 + length, 2 : 2 + width] = tensor
        return around[..., 4 : 4 + length, 2 : 2 + width]

    seen_by_none = ~allowed.any(-2).unflatten(1, (-1, pairs.group)).any(2)
    key = pairs.key.masked_fill(seen_by_none[..., None], float("nan"))
    query = pairs.query.masked_fill(~allowed.any(-1, keepdim=True), float("nan"))
    bias = None
    if pairs.bias is not None:
        hidden = ~allowed.any(1, keepdim=True)
        bias = within(pairs.bias.expand(pairs.batch, 1, *allowed.shape[2:]).masked_fill(hidden, float("nan")))
    return replace(pairs, query=within(query), key=within(key), bias=bias)


def hidden_logsumexp(pairs: PairScores, wanted: Wanted) -> Tensor:
    """As kernels return it: no number where a query may attend to nothing."""
    truth = oracle(pairs, wanted)
    return truth.logsumexp.to(pairs.dtype).masked_fill(truth.max_logit == float("-inf"), float("nan"))


def what_is_wrong(asked: dict[str, Any]) -> str | None:
    pairs = pairs_of(asked)
    wanted = wanted_of(asked, pairs)
    kernel = triton_kernel
    if asked.get("poison"):
        kernel = types.ModuleType("poisoned")  # compares what comes out of poisoned inputs with the clean ones' truth

        def statistics(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
            given = None if logsumexp is None else hidden_logsumexp(pairs, wanted)
            return triton_kernel.statistics(poisoned(pairs), given, wanted)

        kernel.statistics = statistics  # type: ignore[attr-defined]
    try:
        compare(kernel, pairs, wanted, given=asked["given"], tolerance=asked.get("tolerance", TOLERANCE))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]
    return None


def prepare_interpreter() -> None:
    """Repairs its product of bfloat16 matrices, and has it patch triton's language once, not at every call."""
    import triton.language as tl
    from triton.runtime import interpreter

    product, patch = interpreter.InterpreterBuilder.create_dot, interpreter._patch_lang
    patched: dict[int, Any] = {}

    def create_dot(self: Any, first: Any, second: Any, *others: Any) -> Any:
        # It would multiply the integers that the bits spell.
        sides = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (first, second)]
        return product(self, *sides, *others)

    def patch_once(function: Any) -> Any:
        names = id(function.__globals__)
        if names not in patched:
            patched[names] = patch(function)
            patched[names].restore = lambda: None
            tl.tensor.__index__ = lambda self: self.handle.data.item()  # triton 3.6's own fails with numpy 2.4
        return patched[names]

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._patch_lang = patch_once


def interpret(calls: list[dict[str, Any]]) -> dict[str, str | None]:
    """name -> what was wrong with the call, None where nothing was."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    pytest.importorskip("triton", reason="triton is not installed")
    return interpret([*CALLS, call("plain", tolerance=0.0)])


@pytest.fixture(scope="module")
def interpreted_long() -> dict[str, str | None]:
    pytest.importorskip("triton", reason="triton is not installed")
    return interpret(LONG_CALLS)


@pytest.mark.parametrize("asked", CALLS, ids=name_of)
def test_interpreted_against_the_oracle(asked: dict[str, Any], interpreted: dict[str, str | None]) -> None:
    wrong = interpreted[name_of(asked)]
    assert wrong is None, wrong


def test_what_is_wrong_comes_back_from_the_interpreter(interpreted: dict[str, str | None]) -> None:
    wrong = interpreted[name_of(call("plain", tolerance=0.0))]
    assert wrong is not None and "logsumexp" in wrong


@pytest.mark.long
@pytest.mark.parametrize("asked", LONG_CALLS, ids=name_of)
def test_interpreted_every_case_and_size(asked: dict[str, Any], interpreted_long: dict[str, str | None]) -> None:
    wrong = interpreted_long[name_of(asked)]
    assert wrong is None, wrong


# -- compiling for a device that need not be there ---------------------------------------------------------------------

TRITON_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}
HEALTH = Wanted(entropy=True, received=True)


def launched(
    pairs: PairScores, wanted: Wanted, given: bool, way: triton_kernel.Blocks, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Any, dict[str, Any]]]:
    """(kernel, arguments) of what a call launches."""
    from regard.attention.triton import choose as triton_choose
    from regard.attention.triton import sweep as triton_sweep

    seen: list[tuple[Any, dict[str, Any]]] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda **arguments: seen.append((self.kernel, arguments))

    with monkeypatch.context() as patch:
        patch.setattr(triton_sweep, "sweep", Recorder(triton_sweep.sweep))
        patch.setattr(triton_choose, "choose", Recorder(triton_choose.choose))
        logsumexp = torch.zeros(pairs.batch, pairs.heads, pairs.query_len) if given else None
        triton_kernel._run(pairs, logsumexp, wanted, way)
    return seen


def compiled(kernel: Any, arguments: dict[str, Any], capability: int) -> Any:
    """A kernel, made for the arguments as a launch would make it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, alignment = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        kind = "constexpr"
        if parameter.is_constexpr or value is None:
            constants[parameter.name] = value
        elif isinstance(value, Tensor):
            kind = "*" + TRITON_NAMES[value.dtype]
            alignment[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            kind = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            constants[parameter.name] = 1
        else:
            kind = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                alignment[(place,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    source = ASTSource(kernel, signature, constants, alignment)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    ("case", "given", "everything", "capability"),
    [("causal", True, False, 80), ("causal", True, False, 90), ("everything", False, True, 90)],
    ids=["health, 8.0", "health, 9.0", "everything, 9.0"],
)
def test_compiles(
    case: str, given: bool, everything: bool, capability: int, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = CASES[case](inputs(**SIZES["aligned"], dtype=torch.bfloat16))  # type: ignore[arg-type]
    wanted = wanted_everything(pairs) if everything else HEALTH
    [way, *_] = triton_kernel.ways_to_cut(pairs, wanted)
    seen = launched(pairs, wanted, given, way, monkeypatch)
    assert [kernel.__name__ for kernel, _ in seen] == (["sweep", "choose"] if everything else ["sweep"])
    for kernel, arguments in seen:
        made = compiled(kernel, arguments, capability)
        assert made.metadata.shared <= 99 * 1024, "what the smallest devices of these generations have"
        if kernel.__name__ == "sweep":
            text = made.asm["ptx"]
            assert ("wgmma" if capability == 90 else "mma.sync") in text, "products by tensor cores"
            assert "red.global" in text or "atom.global" in text


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("top_k", [0, 8, 32])
def test_every_way_to_cut_compiles(
    top_k: int, head_dim: int, dtype: str, capability: int, own_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = inputs(query_len=256, key_len=256, head_dim=head_dim, dtype=DTYPES[dtype])
    for case in ("causal", "everything"):
        pairs = CASES[case](plain)
        wanted = replace(wanted_everything(pairs), top_k=top_k, grid=(2, 2))
        for way in triton_kernel.ways_to_cut(pairs, wanted):
            for kernel, arguments in launched(pairs, wanted, case == "causal", way, monkeypatch):
                assert compiled(kernel, arguments, capability).asm["cubin"]


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "top_k", "reason"),
    [
        ({"dtype": torch.float64}, 0, "float64"),
        ({"head_dim": 257}, 0, "heads are 257 wide; it serves widths up to 256"),
        ({}, 33, "top_k is 33; it serves up to 32"),
        ({}, 0, "the tensors are on cpu; it needs a CUDA device"),
    ],
)
def test_refusals_say_why(changed: dict[str, Any], top_k: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "_triton_is_there", lambda: True)
    found = triton_kernel.refuses(inputs(**changed), Wanted(top_k=top_k))
    assert found is not None and reason in found


def test_a_machine_without_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernel, "_triton_is_there", lambda: False)
    assert triton_kernel.refuses(inputs(), Wanted()) == "triton is not installed"


def test_empty_calls_need_no_kernel() -> None:
    for sizes in ({"key_len": 0}, {"batch": 0}):
        pairs = inputs(**sizes)  # type: ignore[arg-type]
        compare(triton_kernel, pairs, wanted_everything(pairs), given=False, tolerance=0.0)


@pytest.mark.parametrize("length", [1, 7, 64, 257, 1024])
@pytest.mark.parametrize("cells", [1, 3, 8, 64, 300])
@pytest.mark.parametrize("block", [16, 32])
def test_blocks_span_no_more_cells_than_said(length: int, cells: int, block: int) -> None:
    of_places = (torch.arange(length) * cells // length).split(block)
    assert max(int(part[-1] - part[0]) + 1 for part in of_places) <= triton_kernel._cells_spanned(cells, length, block)


def test_large_calls_are_cut_as_was_fastest_and_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[triton_kernel.Blocks] = []

    def milliseconds(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted, way: triton_kernel.Blocks) -> float:
        timed.append(way)
        return -float(way.queries)

    monkeypatch.setattr(triton_kernel, "_milliseconds", milliseconds)
    monkeypatch.setattr(triton_kernel, "_FOUND_FASTEST", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    side = torch.zeros(1, 1, 1, 64, dtype=torch.bfloat16).expand(1, 8, 16384, 64)
    large, small = PairScores(side, side, 1.0), PairScores(side[:, :, :512], side[:, :, :512], 1.0)
    assert triton_kernel._fastest(small, None, HEALTH) == triton_kernel.ways_to_cut(small, HEALTH)[0] and not timed
    fastest = max(triton_kernel.ways_to_cut(large, HEALTH))
    assert [triton_kernel._fastest(large, None, HEALTH) for _ in range(3)] == [fastest] * 3
    assert timed == [*triton_kernel.ways_to_cut(large, HEALTH)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert triton_kernel._fastest(large, None, Wanted(entropy=True)) == triton_kernel.ways_to_cut(large, HEALTH)[0]


# -- on a device -------------------------------------------------------------------------------------------------------


def moved(pairs: PairScores, device: str) -> PairScores:
    there: dict[str, Any] = {name: tensor.to(device) for name, tensor in pairs.tensors().items()}
    return replace(pairs, **there)


class OnDevice(types.ModuleType):
    """The kernel, with inputs from the CPU and results back on it."""

    def statistics(self, pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
        there = moved(pairs, "cuda")
        sent = {name: value.cuda() for name in ("weights", "columns") if (value := getattr(wanted, name)) is not None}
        wanted = replace(wanted, **sent)
        assert triton_kernel.refuses(there, wanted) is None
        found = triton_kernel.statistics(there, None if logsumexp is None else logsumexp.cuda(), wanted)
        return Statistics(*(tensor.cpu() for tensor in found))


@pytest.fixture
def device() -> str:
    pytest.importorskip("triton", reason="triton is not installed")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a CUDA device of compute capability 8.0 or later")
    return "cuda"


@pytest.mark.gpu
@pytest.mark.parametrize("given", [True, False], ids=["logsumexp given", "found"])
@pytest.mark.parametrize("case", CASES)
def test_every_case_on_a_device(case: str, given: bool, device: str) -> None:
    place = [*CASES].index(case) + given
    dtype = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float16][place % 4]
    pairs = CASES[case](inputs(query_len=517, key_len=641, head_dim=64, dtype=dtype))
    wanted = replace(wanted_everything(pairs, weighted=given), grid=[*GRIDS.values()][place % len(GRIDS)])
    compare(OnDevice("device"), pairs, wanted, given=given, tolerance=TOLERANCE_ON_DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_on_a_device(size: str, dtype: str, device: str) -> None:
    pairs = inputs(**SIZES[size], dtype=DTYPES[dtype])  # type: ignore[arg-type]
    compare(OnDevice("device"), pairs, wanted_everything(pairs), given=False, tolerance=TOLERANCE_ON_DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [0, 8, 16, 32])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_way_to_cut_on_a_device(dtype: str, head_dim: int, top_k: int, device: str) -> None:
    pairs = CASES["causal"](inputs(query_len=301, key_len=301, head_dim=head_dim, dtype=DTYPES[dtype]))
    wanted = replace(wanted_everything(pairs), top_k=top_k)
    for way in triton_kernel.ways_to_cut(pairs, wanted):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_kernel, "_fastest", lambda *call, way=way: way)
            compare(OnDevice("device"), pairs, wanted, given=True, tolerance=TOLERANCE_ON_DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["plain", "causal", "window and global", "soft cap"])
def test_long_calls_equal_the_chunked_pass(case: str, device: str) -> None:
    pairs = CASES[case](
        inputs(batch=1, heads=8, kv_heads=2, query_len=8191, key_len=8191, head_dim=64, dtype=torch.bfloat16)
    )
    pairs = moved(pairs, device)
    wanted = wanted_everything(pairs)
    wanted = replace(wanted, grid=(64, 64), columns=None if wanted.columns is None else wanted.columns.to(device))
    truth = chunked.statistics(pairs, None, wanted)
    for logsumexp in (None, truth.logsumexp):
        found = triton_kernel.statistics(pairs, logsumexp, wanted)  # large enough to be timed
        for name in Statistics._fields:
            if name != "top_index":
                torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=2e-5, atol=2e-5, msg=name)


@pytest.mark.gpu
def test_poison_is_not_read_on_a_device(device: str) -> None:
    for asked in (call("padded"), call("everything"), call("padded", "aligned", "bfloat16")):
        pairs = pairs_of(asked)
        wanted = wanted_of(asked, pairs)
        clean = OnDevice("device").statistics(pairs, None, wanted)
        found = OnDevice("device").statistics(poisoned(pairs), None, wanted)
        for name in Statistics._fields:
            torch.testing.assert_close(getattr(found, name), getattr(clean, name), rtol=1e-6, atol=1e-6, msg=name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare_interpreter()
    print(json.dumps({name_of(asked): what_is_wrong(asked) for asked in json.load(sys.stdin)}))
