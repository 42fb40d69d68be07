"""The second pass in native C, for float32 and bfloat16 on a CPU: `regard.attention.statistics` says what it returns.

Compiled where it first runs (`build`), checked against the chunked kernel, and left out, with one line that says so,
where that cannot be done. REGARD_NATIVE=0 leaves it out without a word. Scores are computed in float32; not a bit of
the result depends on the number of threads, which is torch's.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from dataclasses import replace

import torch
from torch import Tensor

from regard.attention import chunked
from regard.attention.native import build
from regard.attention.native.pairs import COUNT, POINTER, Pairs, Reading
from regard.attention.native.pairs import refuses as unreadable
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted

logger = logging.getLogger("regard")

SELF_CHECK_TOLERANCE = 1e-4  # far above float32's rounding, far below what a wrong tile would do


class _SecondPass(ctypes.Structure):
    """`struct second_pass` of second_pass.c."""

    _fields_ = [
        ("pairs", Pairs),
        ("given", POINTER),
        ("weights", POINTER),
        ("weights_batch_stride", COUNT),
        ("columns", POINTER),
        ("places", POINTER),
        *((name, COUNT) for name in ("num_columns", "sink_mass", "top_k", "grid_rows", "grid_columns", "threads")),
        *((name, POINTER) for name in ("logsumexp", "max_logit", "entropy", "received", "sink_masses")),
        *((name, POINTER) for name in ("top_weights", "column_weights", "pooled", "top_index")),
    ]


def refuses(pairs: PairScores, wanted: Wanted) -> str | None:
    """Why this kernel cannot serve a call, or None. Compiles it at the first call that it could serve."""
    return unreadable(pairs) or unavailable()


def statistics(pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
    """See `regard.attention.statistics`; the call is one that `refuses` does not refuse."""
    reason = unavailable()
    assert reason is None, reason
    return _run(_loaded[0], pairs, logsumexp, wanted)


# -- the library ---------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_loaded: list[ctypes.CDLL | str] = []  # empty until first asked for; then the library, or why there is none


def unavailable() -> str | None:
    """Why there is no native code here, or None. Compiles and checks it when first asked."""
    if os.environ.get("REGARD_NATIVE") == "0":
        return "REGARD_NATIVE=0 turns native code off"
    if not _loaded:
        with _lock:
            if not _loaded:
                _loaded.append(_load())
    found = _loaded[0]
    return found if isinstance(found, str) else None


def _load() -> ctypes.CDLL | str:
    try:
        library = build.load("second_pass.c")
        library.regard_size_of_second_pass.restype = ctypes.c_int64
        if library.regard_size_of_second_pass() != ctypes.sizeof(_SecondPass) or not _is_right(library):
            raise build.BuildError("the compiled code gives wrong results")
    except build.BuildError as error:
        logger.warning(
            "regard: statistics of attention run without native code and take about five times as long: %s; "
            "install a C compiler (gcc or clang), or silence this with REGARD_NATIVE=0",
            error,
        )
        return str(error)
    return library


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether a small problem that takes every path comes out as it does in plain torch."""
    generator = torch.Generator().manual_seed(7)
    query, key = (torch.randn(1, heads, 61, 5, generator=generator) for heads in (2, 1))
    ends = torch.arange(3, 64).clamp(max=61)
    ranges = torch.stack([ends // 2, ends], -1).int().view(1, 61, 1, 2)
    plain = PairScores(query, key, 0.7, ranges=ranges)
    allowed = torch.rand(61, 61, generator=generator)[None, None] > 0.2
    capped = replace(plain, soft_cap=2.0, bias=allowed.log(), allowed=allowed, sink=torch.tensor([0.5, -0.5]))
    wanted = Wanted(entropy=True, received=True, sink_mass=2, top_k=3, columns=torch.tensor([7, 2]), grid=(5, 3))
    for pairs in (plain, capped):
        right = chunked.statistics(pairs, None, wanted)
        for logsumexp in (None, right.logsumexp):
            found = _run(library, pairs, logsumexp, wanted)
            for name in set(Statistics._fields) - {"top_index"}:
                one, other = getattr(right, name), getattr(found, name)
                if not torch.allclose(one, other, rtol=SELF_CHECK_TOLERANCE, atol=SELF_CHECK_TOLERANCE):
                    return False
    return True


# -- a call --------------------------------------------------------------------------------------------------------


def _run(library: ctypes.CDLL | str, pairs: PairScores, logsumexp: Tensor | None, wanted: Wanted) -> Statistics:
    batch, heads, query_len, key_len = pairs.batch, pairs.heads, pairs.query_len, pairs.key_len
    per_query = (batch, heads, query_len)
    assert isinstance(library, ctypes.CDLL), library
    columns = places = None
    if wanted.columns is not None and wanted.columns.numel():
        columns, places = wanted.columns.sort()
    num_columns = 0 if columns is None else len(columns)

    def zeros(is_wanted: object, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape if is_wanted else (0,), dtype=dtype)

    found = Statistics(
        logsumexp=torch.empty(per_query),
        max_logit=torch.empty(per_query),
        entropy=zeros(wanted.entropy, *per_query),
        received=zeros(wanted.received, batch, heads, key_len),
        sink_mass=zeros(wanted.sink_mass, *per_query),
        top_weights=zeros(wanted.top_k, *per_query, wanted.top_k),
        top_index=zeros(wanted.top_k, *per_query, wanted.top_k, dtype=torch.int64),
        columns=zeros(num_columns, *per_query, num_columns),
        pooled=zeros(wanted.grid, batch, heads, *(wanted.grid or ())),
    )
    if 0 in per_query:
        return found
    reading = Reading()
    weights = wanted.weights if wanted.received else None
    call = _SecondPass(
        pairs=reading.pairs(pairs),
        given=reading.address(logsumexp, torch.float32),
        weights=reading.address(weights, torch.float32),
        weights_batch_stride=0 if weights is None or weights.shape[0] == 1 else query_len,
        columns=reading.address(columns),
        places=reading.address(places),
        num_columns=num_columns,
        sink_mass=wanted.sink_mass,
        top_k=wanted.top_k,
        grid_rows=wanted.grid[0] if wanted.grid else 0,
        grid_columns=wanted.grid[1] if wanted.grid else 0,
        threads=torch.get_num_threads(),
        logsumexp=found.logsumexp.data_ptr(),
        max_logit=found.max_logit.data_ptr(),
        entropy=found.entropy.data_ptr() if wanted.entropy else None,
        received=found.received.data_ptr() if wanted.received else None,
        sink_masses=found.sink_mass.data_ptr() if wanted.sink_mass else None,
        top_weights=found.top_weights.data_ptr() if wanted.top_k else None,
        column_weights=found.columns.data_ptr() if num_columns else None,
        pooled=found.pooled.data_ptr() if wanted.grid else None,
        top_index=found.top_index.data_ptr() if wanted.top_k else None,
    )
    if library.regard_second_pass(ctypes.byref(call)):
        raise MemoryError(f"no memory for the statistics of {query_len} queries and {key_len} keys")
    return found
