"""Which tensors a stored record may hold, and what makes them fit each other.

Everything here looks at types and shapes alone, so that a file is checked by its header before a tensor of it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from regard.attention.records.tensor_file import DTYPES, version_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64,)
BYTES = (torch.uint8,)
PER_QUERY = ("batch", "heads", "query_len")
Part = tuple[tuple[torch.dtype, ...], tuple[str, ...]]

# Part of a layer -> its types and the names of its axes. Equal names are equal sizes within a layer; "name?" may be 1.
STATISTICS: dict[str, Part] = {
    "logsumexp": (FLOATS, PER_QUERY),
    "entropy": (FLOATS, PER_QUERY),
    "max_logit": (FLOATS, PER_QUERY),
    "received": (FLOATS, ("batch", "heads", "key_len")),
    "sink_mass": (FLOATS, PER_QUERY),
    "top_weights": (FLOATS, (*PER_QUERY, "top_k")),
    "top_index": (INTEGERS, (*PER_QUERY, "top_k")),
    "rows": (FLOATS, ("batch", "heads", "num_rows", "key_len")),
    "row_index": (INTEGERS, ("num_rows",)),
    "columns": (FLOATS, (*PER_QUERY, "num_columns")),
    "column_index": (INTEGERS, ("num_columns",)),
    "pooled": (FLOATS, ("batch", "heads", "grid_rows", "grid_columns")),
    "head_index": (INTEGERS, ("heads",)),
    "trace.query": (FLOATS, (*PER_QUERY, "head_dim")),
    "trace.key": (FLOATS, ("batch", "kv_heads", "key_len", "head_dim")),
    "trace.offset_bias": (FLOATS, ("heads", "offsets")),
    "trace.bias": (FLOATS, ("batch?", "heads?", "query_len?", "key_len?")),
    "trace.ranges": ((torch.int32,), ("batch?", "query_len", "num_ranges", "begin_and_end")),
    "trace.allowed": ((torch.bool,), ("batch?", "heads?", "query_len?", "key_len?")),
    "trace.sink": (FLOATS, ("heads",)),
}
AXIS_PARTS: dict[str, Part] = {
    "text": (BYTES, ("text_bytes",)),
    "tokens": (BYTES, ("token_bytes",)),
    "token_ends": (INTEGERS, ("num_tokens",)),
    "spans": (INTEGERS, ("num_tokens", "begin_and_end")),
}
# What an axis that is a picture holds besides.
PICTURE_PARTS: dict[str, Part] = {
    "pixels": (BYTES, ("picture_height", "picture_width", "colours")),
    "grid": (INTEGERS, ("rows_and_columns",)),
    "box": (FLOATS, ("corners",)),
}
# And one that is a sound.
SOUND_PARTS: dict[str, Part] = {
    "frames": (BYTES, ("num_frames", "bins")),
    "seconds": (FLOATS, ("begin_and_step",)),
    "frames_a_position": (INTEGERS, ("one",)),
}
SIDES = ("query", "key")
_OF_AXES = AXIS_PARTS | PICTURE_PARTS | SOUND_PARTS
MOST_LEVELS = 64


class Shaped(Protocol):
    """A tensor, or a header's word of one."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def is_axis(name: str) -> bool:
    """Whether a tensor is part of an axis and not of a layer."""
    part = name.rpartition("/")[2]
    return part in AXIS_PARTS or part in PICTURE_PARTS or part in SOUND_PARTS


def is_known(name: str) -> bool:
    """Whether the format has a tensor of this name: "layer/statistic", or "query/text" and the like."""
    owner, _, part = name.rpartition("/")
    if is_axis(name):
        return owner in SIDES
    return part in STATISTICS or 1 <= level_of(part) <= MOST_LEVELS


def level_of(part: str) -> int:
    """The level of a pooled map that a part is: 0 for the finest, -1 for what is none."""
    if part == "pooled":
        return 0
    return version_of(part.removeprefix("pooled.")) if part.startswith("pooled.") else -1


def problems(tensors: Mapping[str, Shaped], traces: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Everything in which a record's tensors do not fit the format or each other, one text for each.

    traces: per layer that holds a trace its scale and soft_cap.
    """
    owners: dict[str, dict[str, Shaped]] = {layer: {} for layer in traces}
    for name, tensor in tensors.items():
        owner, _, part = name.rpartition("/")
        owners.setdefault(owner, {})[part] = tensor
    found = []
    for owner, parts in owners.items():
        wrong = _unfit(parts)
        if owner in traces or any(part.startswith("trace.") for part in parts):
            wrong += _unfit_trace(parts, traces.get(owner))
        found += [f"{owner!r:.80}: {problem}" for problem in wrong]
    return found


def _unfit(parts: Mapping[str, Shaped]) -> list[str]:
    """Types, numbers of axes, and sizes that the parts of one layer or axis do not agree upon."""
    found: list[str] = []
    # Name of an axis -> size, and who says so.
    fixed = {"begin_and_end": 2, "rows_and_columns": 2, "corners": 4, "colours": 3, "begin_and_step": 2, "one": 1}
    sizes: dict[str, tuple[int, str]] = {axis: (size, "the format") for axis, size in fixed.items()}
    loose: list[tuple[str, str, tuple[int, ...], int]] = []  # part, axis, the sizes that it may have unless unknown
    for part, tensor in parts.items():
        level = level_of(part)
        types, axes = STATISTICS["pooled"] if level > 0 else STATISTICS.get(part) or _OF_AXES[part]
        if tensor.dtype not in types:
            known = ", ".join(name for name, dtype in DTYPES.items() if dtype in types)
            found.append(f"{part} is of type {str(tensor.dtype).removeprefix('torch.')}, expected {known}")
        if len(tensor.shape) != len(axes):
            found.append(f"{part} has {len(tensor.shape)} axes, expected {', '.join(axes)}")
            continue
        for axis, size in zip(axes, tensor.shape, strict=True):
            if axis.endswith("?") or (level > 0 and axis.startswith("grid_")):
                loose.append((part, axis.removesuffix("?"), (1,) if axis.endswith("?") else (), size))
            elif sizes.setdefault(axis, (size, part))[0] != size:
                found.append(f"{part} has {axis} {size}, {sizes[axis][1]} has {sizes[axis][0]}")
    for part, axis, besides, size in loose:
        whole, teller = sizes.get(axis, (None, ""))
        if whole is not None:
            expected = -(-whole // 2 ** max(level_of(part), 0))  # each level halves, rounding up
            if size != expected and size not in besides:
                found.append(f"{part} has {axis} {size}, expected {expected} as {teller} has {whole}")
        elif not besides:
            found.append(f"{part} stands there without the map that it is a level of")
    return found


def _unfit_trace(parts: Mapping[str, Shaped], about: Mapping[str, Any] | None) -> list[str]:
    """What a trace lacks beyond sizes that agree."""
    found = [f"a trace without {part}" for part in ("trace.query", "trace.key", "logsumexp") if part not in parts]
    if about is None:
        return [*found, "a trace without its scale"]
    scale, soft_cap = about["scale"], about["soft_cap"]
    if not _is_finite(scale):
        found.append(f"scale {scale!r:.40} is no finite number")
    if soft_cap is not None and not (_is_finite(soft_cap) and soft_cap > 0):
        found.append(f"soft_cap {soft_cap!r:.40} is no positive number")
    if "trace.query" in parts and "trace.key" in parts:
        query, key = parts["trace.query"].shape, parts["trace.key"].shape
        if len(query) == len(key) == 4:
            if key[1] == 0 or query[1] % key[1]:
                found.append(f"{query[1]} heads do not divide among {key[1]} key heads")
            if query[3] == 0:
                found.append("its vectors have no elements")
            offsets = parts["trace.offset_bias"].shape if "trace.offset_bias" in parts else ()
            if len(offsets) == 2 and offsets[1] != max(query[2] + key[2] - 1, 0):
                found.append(f"trace.offset_bias has {offsets[1]} offsets, expected {query[2]} + {key[2]} - 1")
    return found


def _is_finite(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**53
    return isinstance(value, float) and math.isfinite(value)
