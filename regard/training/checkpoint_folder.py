"""One checkpoint on the disk: a folder that any number of processes writes together and any other number reads.

    __0_0.distcp ... and .metadata   the tensors, as torch.distributed.checkpoint lays them out: every process writes a
                                     part, and a process reads what it needs of all parts
    state.json                       the plain values
    checksums.txt                    SHA-256 of each of these files, as sha256sum prints it; written last

torch checks nothing, and reads a flipped bit as a wrong weight; `whole_state` therefore compares all hashes. A folder
is written under another name, flushed to the disk and renamed: under its own name it is whole. The processes must share
the disk, which is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.errors import TrainingError
from regard.training.disk import UNFINISHED, beside, not_written, os_error_behind, replace_folder
from regard.training.processes import World, is_silence

STATE, CHECKSUMS, LAYOUT = "state.json", "checksums.txt", ".metadata"
PARTS = "*.distcp"
LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)\n")
# What a layout is made of. It is a pickle, which could else run any code.
LAYOUT_TYPES = re.compile(
    r"torch\.distributed\.checkpoint\.(metadata|filesystem)\.\w+|torch\.(Size|u?int\d+|b?float\d*\w*|double|half|long|bool)"
    r"|torch\.serialization\._get_layout|pathlib\.\w+|collections\.OrderedDict"
)


def write(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], world: World, *, usable: str) -> None:
    """Writes a checkpoint; all processes of `world` call it together.

    tensors: in every process the same names; ordinary ones are equal in all, of a sharded one each has its shard.
    state: plain values; the first process's count. usable: what there is to go on from when it cannot be written.
    Raises: TrainingError when the disk does not take it; `path` is then what it was before.
    """
    unfinished = beside(path, UNFINISHED)
    try:
        world.first(lambda: _make_empty(unfinished))
        _write_tensors(unfinished, tensors)
        hashes = world.gathered(_hashes(unfinished, world))
        world.first(
            lambda: _finish(path, unfinished, state, {name: one for some in hashes for name, one in some.items()})
        )
    except BaseException as error:
        if world.is_first:
            shutil.rmtree(unfinished, ignore_errors=True)
        cause = os_error_behind(error)
        if cause is None or not isinstance(error, Exception):
            raise
        raise world.told_once(not_written(path, cause, usable)) from None


def whole_state(path: Path, world: World) -> dict[str, Any] | None:
    """The plain values of a checkpoint; None when anything of it is missing or damaged. All processes call it."""
    if not world.all_agree(_is_whole(path, world)):
        return None
    state: dict[str, Any] = world.first(lambda: json.loads((path / STATE).read_text(encoding="utf-8")))
    return state


def load(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills `tensors` with what a checkpoint holds under their names, each process its own shards; all call it.

    Raises: TrainingError when there is no such tensor in it, or one of another shape.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

    class Reader(checkpoint.FileSystemReader):
        def read_metadata(self, *values: Any, **named: Any) -> Any:
            return found

    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        found = layout(path)
        with _torch_alone():
            checkpoint.load(dict(tensors), storage_reader=Reader(path), planner=planner)
    except (RuntimeError, ValueError) as error:
        if is_silence(error):
            raise  # of another process, and no fault of this checkpoint
        reason = " ".join(str(error).split())
        raise TrainingError(f"{path}: does not fit this model ({reason}); take the regard that wrote it") from None


# -- writing -----------------------------------------------------------------------------------------------------------


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    class Writer(checkpoint.FileSystemWriter):
        def write_data(self, *values: Any) -> Any:
            """Raises what the disk said: other processes would hear only what torch made of it."""
            try:
                return super().write_data(*values)
            except Exception as error:
                cause = os_error_behind(error)
                if cause is None:
                    raise
                raise OSError(cause.errno, cause.strerror) from None

    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _torch_alone():
        checkpoint.save(dict(tensors), storage_writer=Writer(folder), planner=planner)


def _hashes(folder: Path, world: World) -> dict[str, str]:
    """Of the files that this process has written, by name."""
    mine = [*folder.glob(f"__{world.rank}_{PARTS}"), *([folder / LAYOUT] if world.is_first else [])]
    return {path.name: _sha256(path) for path in mine}


def _finish(path: Path, unfinished: Path, state: Mapping[str, Any], hashes: dict[str, str]) -> None:
    elsewhere = sorted(name for name in hashes if not (unfinished / name).is_file())
    if elsewhere:
        raise TrainingError(
            f"{path}: {elsewhere[0]} was written by another process and is not here; give a --run on a disk that all"
            " machines share"
        )
    _write_text(unfinished / STATE, json.dumps(state))
    hashes = {**hashes, STATE: _sha256(unfinished / STATE)}
    _write_text(unfinished / CHECKSUMS, "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)))
    replace_folder(unfinished, path)


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


# -- reading -----------------------------------------------------------------------------------------------------------


def _is_whole(path: Path, world: World) -> bool:
    """Whether every file is there and what it was; the processes share the files among them."""
    try:
        lines = (path / CHECKSUMS).read_bytes().decode("ascii").splitlines(keepends=True)
        matches = [LINE.fullmatch(line) for line in lines]
        hashes = {match[2]: match[1] for match in matches if match}
        there = {STATE, LAYOUT, *(part.name for part in path.glob(PARTS))}
        if hashes.keys() != there or len(lines) != len(hashes):
            return False
        return all(_sha256(path / name) == hashes[name] for name in sorted(hashes)[world.rank :: world.size])
    except (OSError, ValueError):
        return False


def layout(path: Path) -> Any:
    """What a checkpoint says of its tensors: sizes, dtypes, places. Raises: ValueError for a forged one."""
    with (path / LAYOUT).open("rb") as file:
        return _LayoutUnpickler(file).load()


class _LayoutUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not LAYOUT_TYPES.fullmatch(f"{module}.{name}"):
            raise ValueError(f"a layout of tensors knows no {module}.{name}")
        return super().find_class(module, name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _torch_alone() -> Iterator[None]:
    """Within the context torch does not warn of a single process, and fails with the error itself, not a parcel of it.

    Its own kind is a BaseException that holds what went wrong in each process.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as parcel:
        error, _ = parcel.failures[min(parcel.failures)]
        raise error from None
