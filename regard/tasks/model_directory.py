"""Model directories: what a run shares with others. Self-contained, loadable by path alone, never a pickle.

    config.json        format_version, task, everything needed to build the model again, and each file's size and hash
    model.safetensors  the weights
    tokenizer*.json    the trained tokenizers
    README.md          the model card, with its scores

A directory is written under another name and renamed, so that it is whole or not there. An older format is migrated by the
functions in `MIGRATIONS`, a newer one refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from regard.errors import ModelFileError, TrainingError

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"

# version -> a function that turns that version's config into the next one's.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class ModelDirectory(NamedTuple):
    """What was read: the config, the weights by parameter name, and the further files' contents by name."""

    path: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    texts: dict[str, str]


def write(
    folder: Path, *, task: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], texts: Mapping[str, str]
) -> None:
    """Writes a model directory, replacing the one before only when the new one is whole.

    texts: further files by name, such as tokenizers and the card. Raises: TrainingError when it cannot be written.
    """
    from safetensors.torch import save_file

    unfinished = folder.with_name(f".{folder.name}.unfinished")
    replaced = folder.with_name(f".{folder.name}.replaced")
    try:
        recover(folder)
        unfinished.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, unfinished / WEIGHTS)
        for name, content in texts.items():
            (unfinished / name).write_text(content, encoding="utf-8")
        files = {name: {"bytes": (unfinished / name).stat().st_size, "sha256": _sha256(unfinished / name)}
                 for name in sorted([WEIGHTS, *texts]) if not name.endswith(".md")}
        about = {"format_version": FORMAT_VERSION, "task": task, **config, "files": files}
        (unfinished / CONFIG).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(unfinished, folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise TrainingError(f"{folder}: not written ({error.strerror}); make room and run the same command again") from None


def recover(folder: Path) -> None:
    """Undoes what a kill in the middle of `write` left: the directory is then the old one or the new one, whole."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    if replaced.exists() and not folder.exists():
        os.rename(replaced, folder)
    for leftover in (replaced, folder.with_name(f".{folder.name}.unfinished")):
        shutil.rmtree(leftover, ignore_errors=True)


def read(folder: str | os.PathLike[str]) -> ModelDirectory:
    """Reads a model directory and checks every file against its recorded size and hash.

    Raises: ModelFileError for what is missing, damaged or of a newer format.
    """
    folder = Path(folder)
    config = read_config(folder)
    for name, expected in config["files"].items():
        path = folder / name
        if not path.is_file():
            raise ModelFileError(f"{path}: missing from the model directory; copy the whole directory again")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise ModelFileError(f"{path}: damaged (its size or hash is not what {CONFIG} says); copy it again")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS)
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in config["files"] if name != WEIGHTS}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{folder}: cannot be read ({error}); copy the directory again") from None
    return ModelDirectory(folder, config, weights, texts)


def read_config(folder: Path) -> dict[str, Any]:
    """A model directory's configuration, migrated to this version. Raises: ModelFileError."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise ModelFileError(f"{folder}: no such model directory; give the `model` folder inside a run directory")
    if not path.is_file():
        inner = folder / "model" / CONFIG
        hint = f"did you mean {folder / 'model'}?" if inner.is_file() else "is this the `model` folder of a run?"
        raise ModelFileError(f"{path}: missing from the model directory; {hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
        if not (isinstance(version, int) and isinstance(config["task"], str) and isinstance(config["files"], dict)):
            raise ValueError("format_version, task or files is of the wrong kind")
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); copy the model directory again") from None
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{folder}: format {version}, this regard reads up to {FORMAT_VERSION}; upgrade regard")
    while version < FORMAT_VERSION:
        if version not in MIGRATIONS:
            raise ModelFileError(f"{path}: format {version} was never written by regard; copy the directory again")
        config = MIGRATIONS[version](config)
        version += 1
    result: dict[str, Any] = config
    return result


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
