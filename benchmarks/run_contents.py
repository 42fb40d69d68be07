"""What a finished run consists of, byte for byte, and in what two runs differ; benchmarks/kills.py compares with it.

Left out is what depends on the clock, and nothing else. `flipped_bits_noticed` shows that a single bit is seen.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regard.training import checkpoint_folder
from regard.training.processes import World

UNCOMPARED = {".lock", "tensorboard"}  # the latter's numbers are compared, not its files, of which each start has one
CLOCKED = {"seconds_of_last_part", "tokens_per_second", "config_sha256"}  # the last one is a hash over such a number


def content(run: Path) -> dict[str, Any]:
    """Everything in a finished run that is a function of its recipe, by name."""
    found: dict[str, Any] = {}
    for path in sorted((run / "checkpoints").iterdir()):
        found[f"checkpoints/{path.name}"] = checkpoint(path)
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        if path.is_file() and name.parts[0] not in {*UNCOMPARED, "checkpoints"}:
            found[str(name)] = values(path) if path.suffix == ".json" else path.read_bytes()
    found["tensorboard"] = events(run / "tensorboard")
    return found


def checkpoint(path: Path) -> dict[str, Any] | str:
    """Tensors as bytes, by name, and the plain values."""
    state = checkpoint_folder.whole_state(path, World())
    if state is None:
        return "damaged"
    tensors = {name: (str(one.dtype), tuple(one.shape), bytes_of(one)) for name, one in tensors_of(path).items()}
    return {"state": state, **tensors}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    layout = checkpoint_folder.layout(path).state_dict_metadata
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in sorted(layout.items())}
    checkpoint_folder.load(path, tensors)
    return tensors


def values(path: Path) -> Any:
    """Of a JSON file, without what depends on the clock."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(inner) for key, inner in value.items() if key not in CLOCKED}
        return [timeless(inner) for inner in value] if isinstance(value, list) else value

    try:
        return timeless(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return "damaged"


def events(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """What TensorBoard shows; of what depends on the clock, the steps alone."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every restart
    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return {
        tag: [(event.step, None if tag in CLOCKED else event.value) for event in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs between the contents of two runs."""
    return [name for name in sorted({*one, *other}) if name not in one or name not in other or one[name] != other[name]]


def flipped_bits_noticed(run: Path, scratch: Path, chance: random.Random) -> int:
    """Flips a bit of every kind of file, and one of every kind of tensor under fresh hashes -> how many were flipped.

    Ends the benchmark where one is not noticed.
    """
    expected = content(run)
    newest = max((run / "checkpoints").glob("step-*"))
    files = [run / name for name in ("metrics.jsonl", "result.json", "model/model.safetensors", "model/config.json")]
    files += [*(run / "data").rglob("*.*"), *newest.iterdir(), *(run / "checkpoints" / "best").iterdir()]
    flips = [path.relative_to(run) for path in files if path.is_file() and path.stat().st_size]
    for name in flips:
        changed = shutil.copytree(run, scratch)
        written = bytearray((changed / name).read_bytes())
        written[timeless_place(written, chance)] ^= 1 << chance.randrange(8)
        (changed / name).write_bytes(written)
        _must_differ(expected, changed, str(name))
    state = checkpoint_folder.whole_state(newest, World())
    assert state is not None
    kinds: dict[str, str] = {}
    for name in tensors_of(newest):
        kinds.setdefault(f"{name.split('/')[0]} {name.rpartition('.')[2]}", name)
    for name in kinds.values():
        changed = shutil.copytree(run, scratch)
        tensors = tensors_of(newest)
        flat = tensors[name].reshape(-1).view(torch.uint8)  # shares its memory
        flat[chance.randrange(len(flat))] ^= 1 << chance.randrange(8)
        checkpoint_folder.write(changed / "checkpoints" / newest.name, tensors, state, World(), usable="")
        _must_differ(expected, changed, f"{newest.name}: {name}")
    return len(flips) + len(kinds)


def timeless_place(written: bytes, chance: random.Random) -> int:
    """A byte in no line that depends on the clock: such lines are not compared."""
    while True:
        place = chance.randrange(len(written))
        line = written[:place].rpartition(b"\n")[2] + written[place:].partition(b"\n")[0]
        if not any(key.encode() in line for key in CLOCKED):
            return place


def _must_differ(expected: dict[str, Any], changed: Path, name: str) -> None:
    try:
        found = differences(expected, content(changed))
    except Exception:  # whatever cannot be read any more
        found = [name]
    shutil.rmtree(changed)
    if not found:
        sys.exit(f"a flipped bit in {name} was not noticed: nothing that follows would mean anything")
