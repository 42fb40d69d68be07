"""What a record is in a safetensors file; docs/record_format.md is the format in words.

A file that is opened is mapped, and none of its tensors is read: a layer's observation is made of views when it is
first asked for, an axis is decoded when it is first asked for. A file is trusted in nothing. That its tensors fit each
other is checked from the header when it is opened (`record_schema`); that indices and ranges lie within bounds when
their layer is first asked for, before any kernel sees them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.attention.observation import Observation
from regard.attention.pair_scores import PairScores
from regard.attention.records.axis import Axis, PictureGrid, SoundFrames
from regard.attention.records.record_schema import (
    AXIS_PARTS,
    PICTURE_PARTS,
    SIDES,
    SOUND_PARTS,
    is_axis,
    is_known,
    level_of,
    problems,
)
from regard.attention.records.tensor_file import (
    TensorFile,
    loads,
    open_tensors,
    replacing,
    version_of,
    write_tensors,
)
from regard.errors import ModelFileError, ObservationError

FORMAT = "regard.attention"
FORMAT_VERSION = 3
LEAST_STORED_SIDE = 64  # levels of a pooled map whose finer one is no larger are quicker summed than looked up


class Stored(NamedTuple):
    """An opened record. axes: per side what reads its axis, where the file describes it."""

    layers: StoredLayers
    axes: dict[str, Callable[[], Axis]]
    backend: dict[str, str]


# -- writing -----------------------------------------------------------------------------------------------------------


def write(
    path: Path, layers: Mapping[str, Observation], axes: Mapping[str, Axis | None], backend: Mapping[str, str]
) -> None:
    """Writes a record whole or not at all.

    Raises: ObservationError for an axis or trace that the format cannot say; ConfigError where `path` cannot be
    written.
    """
    tensors: dict[str, Tensor] = {}
    traces: dict[str, dict[str, float | None]] = {}
    for name, observation in layers.items():
        for statistic, tensor in observation.tensors().items():
            tensors[f"{name}/{statistic}"] = tensor
        if observation.pooled is not None:
            for level, coarse in enumerate(_stored_levels(observation.pooled), 1):
                tensors[f"{name}/pooled.{level}"] = coarse
        if observation.trace is not None:
            if observation.logsumexp is None:
                raise ObservationError(f"layer `{name}` holds a trace without its logsumexp; observe with trace=True")
            for part, tensor in observation.trace.tensors().items():
                tensors[f"{name}/trace.{part}"] = _compact(part, tensor)
            traces[name] = {"scale": observation.trace.scale, "soft_cap": observation.trace.soft_cap}
    for side, axis in axes.items():
        if axis is not None:
            try:
                parts = _encoded(axis)
            except ValueError as error:
                raise ObservationError(f"{path}: the record's {side} axis cannot be stored: {error}") from None
            tensors |= {f"{side}/{part}": tensor for part, tensor in parts.items()}
    wrong = problems(tensors, traces)
    if wrong:
        raise ObservationError(f"{path}: the record cannot be stored: {'; '.join(wrong)}")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "layers": json.dumps(list(layers)),
        "backend": json.dumps(dict(backend)),
        "traces": json.dumps(traces),
    }
    with replacing(path) as file:
        write_tensors(file, tensors, metadata)


def coarser(pooled: Tensor) -> Tensor:
    """The next coarser level of a pooled map: the sums of 2 x 2 cells; a last odd row or column stays alone."""
    return _paired(_paired(pooled, -1), -2)


def _paired(pooled: Tensor, axis: int) -> Tensor:
    length = pooled.shape[axis]
    if length <= 1:
        return pooled
    pairs = pooled.narrow(axis, 0, length - length % 2).unflatten(axis, (length // 2, 2)).sum(axis)
    return torch.cat([pairs, pooled.narrow(axis, length - 1, 1)], axis) if length % 2 else pairs


def _stored_levels(pooled: Tensor) -> Iterator[Tensor]:
    pooled = pooled.detach()
    while max(pooled.shape[-2:]) > LEAST_STORED_SIDE:
        pooled = coarser(pooled)
        yield pooled


def _compact(part: str, tensor: Tensor) -> Tensor:
    """What may be broadcast, with four axes, each that merely repeats one entry cut down to that entry."""
    axes = {"bias": range(4), "allowed": range(4), "ranges": range(1)}.get(part)
    if axes is None:
        return tensor
    tensor = tensor[(None,) * (4 - tensor.dim())]
    for axis in axes:
        if tensor.shape[axis] > 1 and tensor.stride(axis) == 0:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def _encoded(axis: Axis) -> dict[str, Tensor]:
    """The parts of an axis. Halves of surrogate pairs are kept, as three bytes each."""
    text = axis.text.encode("utf-8", "surrogatepass")
    tokens = [token.encode("utf-8", "surrogatepass") for token in axis.tokens]
    spans = torch.tensor([list(span) for span in axis.spans], dtype=torch.int64).view(-1, 2)
    _check_spans(spans, len(axis.text))
    picture = axis.picture
    of_picture = {}
    if picture is not None:
        of_picture = {
            "pixels": picture.pixels.contiguous(),
            "grid": torch.tensor([picture.rows, picture.columns]),
            "box": torch.tensor(picture.box, dtype=torch.float64),
        }
    sound = axis.sound
    of_sound = {}
    if sound is not None:
        of_sound = {
            "frames": sound.frames.contiguous(),
            "seconds": torch.tensor([sound.begin_seconds, sound.frame_seconds], dtype=torch.float64),
            "frames_a_position": torch.tensor([sound.frames_a_position]),
        }
    return {
        "text": _bytes(text),
        "tokens": _bytes(b"".join(tokens)),
        "token_ends": torch.tensor([len(token) for token in tokens], dtype=torch.int64).cumsum(0),
        "spans": spans,
        **of_picture,
        **of_sound,
    }


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _check_spans(spans: Tensor, length: int) -> None:
    wrong = (spans[:, 0] < 0) | (spans[:, 0] > spans[:, 1]) | (spans[:, 1] > length)
    if wrong.any():
        place = int(wrong.int().argmax())
        begin, end = spans[place].tolist()
        raise ValueError(f"token {place} has the span ({begin}, {end}), but the text has {length} characters")


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Stored:
    """Opens a record of this version or an older one. Raises: ModelFileError when it is missing, damaged or newer."""
    try:
        file = open_tensors(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFileError(f"{path}: no such record; write one with `record.save({path.name!r})`") from None
    except OSError as error:
        raise _damaged(path, error.strerror) from None
    except ValueError as error:
        raise _damaged(path, error) from None
    version = version_of(file.metadata.get("format_version", "0"))
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{path}: format {version}, this regard reads up to {FORMAT_VERSION}; upgrade regard")
    if "format" in file.metadata and version < 1:
        raise _damaged(path, f"its format_version {file.metadata.get('format_version')!r:.40} is no version")
    if file.metadata.get("format") != FORMAT:
        raise ModelFileError(f"{path}: not an attention record; write one with `record.save(...)`")
    unknown = [name.rpartition("/")[2] for name in file.entries if not is_known(name)]
    if unknown:
        raise ModelFileError(f"{path}: statistic `{unknown[0][:80]}` is not known; upgrade regard")
    try:
        if version == 1:
            return _version_1(path, file)
        return _opened(path, file)
    except ValueError as error:
        raise _damaged(path, error) from None


def _opened(path: Path, file: TensorFile) -> Stored:
    traces = _object(file.metadata, "traces")
    for name, about in traces.items():
        if not isinstance(about, dict) or set(about) != {"scale", "soft_cap"}:
            raise ValueError(f"the trace of layer {name!r:.80} lacks its scale and soft_cap")
    backend = _object(file.metadata, "backend")
    if not all(isinstance(value, str) for value in backend.values()):
        raise ValueError("its backends are no texts by layer")
    axes = {
        side: _axis_reader(path, file, side)
        for side in SIDES
        if any(f"{side}/{part}" in file.entries for part in AXIS_PARTS)
    }
    return Stored(_layers(path, file, traces), axes, backend)


def _version_1(path: Path, file: TensorFile) -> Stored:
    """Version 1 held its axes as JSON in the metadata and neither traces nor backends."""
    axes: dict[str, Callable[[], Axis]] = {}
    for side, about in _object(file.metadata, "axes").items():
        if side not in SIDES or not isinstance(about, dict):
            raise ValueError(f"its axis {side!r:.80} is not known")
        axis = _axis_1(about)
        axes[side] = partial(_known, axis)
    return Stored(_layers(path, file, {}), axes, {})


def _known(axis: Axis) -> Axis:
    return axis


def _axis_1(about: dict[str, Any]) -> Axis:
    text, tokens, spans = (about.get(part) for part in ("text", "tokens", "spans"))
    if not isinstance(text, str) or not isinstance(tokens, list) or not isinstance(spans, list):
        raise ValueError("an axis lacks its text, tokens and spans")
    if len(tokens) != len(spans) or not all(isinstance(token, str) for token in tokens):
        raise ValueError("the tokens of an axis are no texts with a span each")
    if not all(isinstance(span, list) and len(span) == 2 and all(type(end) is int for end in span) for span in spans):
        raise ValueError("a span of an axis is no pair of places")
    if not all(0 <= begin <= end <= len(text) for begin, end in spans):
        raise ValueError("a span of an axis lies outside its text")
    return Axis(text, tuple(tokens), tuple((begin, end) for begin, end in spans))


def _layers(path: Path, file: TensorFile, traces: Mapping[str, Any]) -> StoredLayers:
    parts = [name for name in file.entries if not is_axis(name)]
    wrong = problems(file.entries, traces)
    if wrong:
        raise ValueError("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    listed = loads(file.metadata.get("layers", "[]"))
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError("its layers are no list of names")
    # A layer of which nothing was kept has no tensors; one that no list names stands at the end.
    names = list(dict.fromkeys([*listed, *(name.rpartition("/")[0] for name in parts)]))
    statistics: dict[str, list[str]] = {name: [] for name in names}
    for part in parts:
        layer, _, statistic = part.rpartition("/")
        statistics[layer].append(statistic)
    return StoredLayers(path, file, statistics, traces)


class StoredLayers(Mapping[str, Observation]):
    """The layers of a record in a file; an observation is made, of views of the file, when it is first asked for."""

    def __init__(
        self, path: Path, file: TensorFile, statistics: dict[str, list[str]], traces: Mapping[str, Any]
    ) -> None:
        self._path, self._file, self._statistics, self._traces = path, file, statistics, traces
        self._made: dict[str, Observation] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics)

    def __len__(self) -> int:
        return len(self._statistics)

    def __getitem__(self, layer: str) -> Observation:
        """Raises: KeyError for an unknown layer; ModelFileError where its indices or ranges are out of bounds."""
        if layer not in self._made:
            self._made[layer] = self._observation(layer)
        return self._made[layer]

    def level(self, layer: str, level: int) -> Tensor | None:
        """A coarser level of the pooled map, [batch, heads, rows, columns], where the file holds it."""
        name = f"{layer}/pooled.{level}"
        return self._file.tensor(name) if name in self._file.entries else None

    def _observation(self, layer: str) -> Observation:
        found: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        for statistic in self._statistics[layer]:
            if statistic.startswith("trace."):
                parts[statistic.removeprefix("trace.")] = self._file.tensor(f"{layer}/{statistic}")
            elif level_of(statistic) < 1:
                found[statistic] = self._file.tensor(f"{layer}/{statistic}")
        observation = Observation(**found)
        if parts:
            about = self._traces[layer]
            soft_cap = about["soft_cap"]
            pairs = PairScores(scale=float(about["scale"]), soft_cap=soft_cap and float(soft_cap), **parts)
            observation = replace(observation, trace=pairs)
        problem = _out_of_bounds(observation)
        if problem:
            raise _damaged(self._path, f"layer {layer!r:.80} holds {problem}")
        return observation


def _out_of_bounds(observation: Observation) -> str | None:
    """What of an observation's indices and ranges points to where there is nothing."""
    pairs = observation.trace
    if pairs is not None and pairs.ranges is not None and pairs.ranges.numel():
        smallest, largest = torch.aminmax(pairs.ranges)
        if smallest < 0 or largest > pairs.key_len or bool((pairs.ranges[..., 0] > pairs.ranges[..., 1]).any()):
            return f"ranges that do not lie within its {pairs.key_len} keys"
    keys = [tensor.shape[-1] for tensor in (observation.rows, observation.received) if tensor is not None]
    queries = [
        tensor.shape[2]
        for tensor in (observation.logsumexp, observation.entropy, observation.max_logit, observation.columns)
        if tensor is not None
    ]
    for name, index, sizes in (
        ("row_index", observation.row_index, queries),
        ("column_index", observation.column_index, keys),
        ("head_index", observation.head_index, []),
    ):
        if index is not None and index.numel():
            smallest, largest = torch.aminmax(index)
            if smallest < 0 or largest >= min(sizes, default=2**31):
                return f"a {name} out of bounds"
    return None


def _axis_reader(path: Path, file: TensorFile, side: str) -> Callable[[], Axis]:
    missing = [part for part in AXIS_PARTS if f"{side}/{part}" not in file.entries]
    if missing:
        raise ValueError(f"its {side} axis lacks {', '.join(missing)}")
    of_picture = [part for part in PICTURE_PARTS if f"{side}/{part}" in file.entries]
    if of_picture and len(of_picture) < len(PICTURE_PARTS):
        raise ValueError(f"its {side} axis has of a picture only {', '.join(of_picture)}")

    def picture(num_positions: int) -> PictureGrid | None:
        if not of_picture:
            return None
        pixels, grid, box = (file.tensor(f"{side}/{part}") for part in PICTURE_PARTS)
        rows, columns = grid.tolist()
        left, upper, right, lower = box.double().tolist()
        if rows < 1 or columns < 1 or rows * columns != num_positions or not pixels.numel():
            raise ValueError(f"a grid of {rows} x {columns} for {num_positions} positions, or no pixels")
        if not (math.isfinite(left + upper + right + lower) and left < right and upper < lower):
            raise ValueError(f"a box {left, upper, right, lower} that is none")
        return PictureGrid(rows, columns, pixels, (left, upper, right, lower))

    of_sound = [part for part in SOUND_PARTS if f"{side}/{part}" in file.entries]
    if of_sound and len(of_sound) < len(SOUND_PARTS):
        raise ValueError(f"its {side} axis has of a sound only {', '.join(of_sound)}")

    def sound() -> SoundFrames | None:
        if not of_sound:
            return None
        frames, seconds, stride = (file.tensor(f"{side}/{part}") for part in SOUND_PARTS)
        begin, step = seconds.double().tolist()
        if not frames.numel() or not (math.isfinite(begin) and 0 < step < math.inf) or int(stride) < 1:
            raise ValueError(f"a sound without frames, or of {begin} and {step} seconds and {int(stride)} frames")
        return SoundFrames(frames, begin, step, int(stride))

    def decoded() -> Axis:
        text, tokens, ends, spans = (file.tensor(f"{side}/{part}") for part in AXIS_PARTS)
        try:
            whole = text.numpy().tobytes().decode("utf-8", "surrogatepass")
            packed = tokens.numpy().tobytes()
            places = [0, *ends.tolist()]
            if places != sorted(places) or places[-1] != len(packed):
                raise ValueError("the ends of its tokens do not rise to the end of their bytes")
            _check_spans(spans, len(whole))
            found = tuple(
                packed[begin:end].decode("utf-8", "surrogatepass") for begin, end in itertools.pairwise(places)
            )
            on, heard = picture(len(found)), sound()
        except ValueError as error:  # what is no UTF-8 among them
            raise _damaged(path, f"{side} axis: {error}") from None
        return Axis(whole, found, tuple((begin, end) for begin, end in spans.tolist()), on, heard)

    return decoded


def _object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    found = loads(metadata.get(name, "{}"))
    if not isinstance(found, dict):
        raise ValueError(f"its {name} are no JSON object")
    return found


def _damaged(path: Path, why: object) -> ModelFileError:
    return ModelFileError(f"{path}: not a readable attention record ({why}); write it again")
