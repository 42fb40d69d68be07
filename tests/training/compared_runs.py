"""What a run left on the disk, and in what two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.training import checkpoint_folder
from regard.training.processes import World


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's tensors, whole, and its plain values under "state". A damaged one fails."""
    state = checkpoint_folder.whole_state(path, World())
    assert state is not None, f"{path} is damaged"
    layout = sorted(checkpoint_folder.layout(path).state_dict_metadata.items())
    tensors = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in layout}
    checkpoint_folder.load(path, tensors)
    return {**tensors, "state": state}


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """What `read_checkpoint` read, perhaps changed."""
    tensors = {name: value for name, value in content.items() if name != "state"}
    checkpoint_folder.write(path, tensors, content["state"], World(), usable="")


def weights_in(content: dict[str, Any], kind: str) -> dict[str, Tensor]:
    """The "weights" or "average" of a checkpoint that was read, by their own names."""
    return {name.partition("/")[2]: tensor for name, tensor in content.items() if name.startswith(f"{kind}/")}


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ: checkpoints, best weights, metrics, result, model, and what each loss was."""
    found = []
    names = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (one, other)]
    if names[0] != names[1]:
        found.append(f"checkpoints {names[0]} and {names[1]}")
    for name in sorted(set(names[0]) & set(names[1])):
        states = [read_checkpoint(folder / "checkpoints" / name) for folder in (one, other)]
        found += [f"{name}: {place}" for place in unequal(*states)]
    for name in ("metrics.jsonl", "result.json", "model/model.safetensors", "model/config.json", "model/note.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    losses = [set((folder / "log.txt").read_text().splitlines()) for folder in (one, other)]
    found += [f"loss of {line.split()[0]}" for line in sorted(losses[0] ^ losses[1])]
    return found


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested structures differ; tensors bit for bit."""
    if type(one) is not type(other):
        return [place]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.numpy().tobytes() == other.numpy().tobytes() else [place]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{place} keys"]
        return [found for key in one for found in unequal(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{place} length"]
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, (a, b) in pairs for found in unequal(a, b, f"{place}.{index}")]
    return [] if one == other else [place]
