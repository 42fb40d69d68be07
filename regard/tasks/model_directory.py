"""Model directories: what a run shares with others. Self-contained, loadable by path alone, never a pickle.

config.json        format_version, task, everything needed to build the model again, each file's size and hash, its own
model.safetensors  the weights
tokenizer*.json    the trained tokenizers
README.md          the model card, with its scores; anybody may edit it, so it has no hash

A directory is written under another name and renamed, so that it is whole or not there. For the instant between the
old one's leaving and the new one's coming, `read` knows where the old one lies. An older format is migrated by the
functions in `MIGRATIONS`, a newer one refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from regard.errors import ModelFileError
from regard.training.disk import flush_folder, not_written, os_error_behind

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
OWN_HASH = "config_sha256"  # in config.json: the hash of all its other keys

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
    assert all(_is_plain(name) for name in texts), "files lie in the directory itself"
    unfinished, replaced = _unfinished(folder), _replaced(folder)
    try:
        recover(folder)
        unfinished.mkdir(parents=True)
        for name, content in texts.items():
            _write_file(unfinished / name, content.encode())
        _write_weights(unfinished / WEIGHTS, weights)
        hashed = sorted([WEIGHTS, *(name for name in texts if not name.endswith(".md"))])
        files = {
            name: {"bytes": (unfinished / name).stat().st_size, "sha256": _sha256(unfinished / name)} for name in hashed
        }
        about = {"format_version": FORMAT_VERSION, "task": task, **config, "files": files}
        about = json.loads(json.dumps(about))  # as it will be read: keys are texts, sequences lists
        about[OWN_HASH] = _hash_of(about)
        _write_file(unfinished / CONFIG, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())
        flush_folder(unfinished)
        if folder.exists():
            os.rename(folder, replaced)
        os.rename(unfinished, folder)
        flush_folder(folder.parent)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        cause = os_error_behind(error)
        if cause is None:
            raise
        raise not_written(folder, cause) from None
    shutil.rmtree(replaced, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undoes what a kill in the middle of `write` left: the directory is then the old one or the new one, whole."""
    if _replaced(folder).exists() and not folder.exists():
        os.rename(_replaced(folder), folder)
    for leftover in (_replaced(folder), _unfinished(folder)):
        shutil.rmtree(leftover, ignore_errors=True)


def read(folder: str | os.PathLike[str]) -> ModelDirectory:
    """Reads a model directory and checks every file against its recorded size and hash.

    Raises: ModelFileError for what is missing, damaged or of a newer format.
    """
    if not isinstance(folder, str | os.PathLike):
        raise ModelFileError(f"load: {folder!r} is no path; give the `model` folder inside a run directory")
    folder = Path(folder)
    config = read_config(folder)
    place = _place(folder)
    for name, expected in config["files"].items():
        path = place / name
        if not path.is_file():
            raise ModelFileError(f"{path}: missing from the model directory; copy the whole directory again")
        try:
            whole = path.stat().st_size == expected["bytes"] and _sha256(path) == expected["sha256"]
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
        if not whole:
            raise ModelFileError(f"{path}: damaged (its size or hash is not what {CONFIG} says); copy it again")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(place / WEIGHTS)
        texts = {name: (place / name).read_text(encoding="utf-8") for name in config["files"] if name != WEIGHTS}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{folder}: cannot be read ({error}); copy the directory again") from None
    return ModelDirectory(folder, config, weights, texts)


def read_config(folder: Path) -> dict[str, Any]:
    """A model directory's configuration, migrated to this version. Raises: ModelFileError."""
    place = _place(folder)
    path = place / CONFIG
    if not place.is_dir():
        raise ModelFileError(f"{folder}: no such model directory; give the `model` folder inside a run directory")
    if not path.is_file():
        inner = folder / "model" / CONFIG
        hint = f"did you mean {folder / 'model'}?" if inner.is_file() else "is this the `model` folder of a run?"
        raise ModelFileError(f"{path}: missing from the model directory; {hint}")
    config, version = _parsed(path)
    if version > FORMAT_VERSION:
        raise ModelFileError(f"{folder}: format {version}, this regard reads up to {FORMAT_VERSION}; upgrade regard")
    # Looked at after the version: what a newer format hashes is not known here.
    if OWN_HASH in config and config.pop(OWN_HASH) != _hash_of(config):
        remedy = f"copy it again, or remove `{OWN_HASH}` from it if you changed it on purpose"
        raise ModelFileError(f"{path}: damaged (its content is not what its hash says); {remedy}")
    while version < FORMAT_VERSION:
        if version not in MIGRATIONS:
            raise ModelFileError(f"{path}: format {version} was never written by regard; copy the directory again")
        config = MIGRATIONS[version](config)
        version += 1
    mistake = _mistake(config)
    if mistake:
        raise ModelFileError(f"{path}: damaged ({mistake}); copy the model directory again")
    return config


def _parsed(path: Path) -> tuple[dict[str, Any], int]:
    """The content of config.json, whatever its version, and that version."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format_version"]
        if not isinstance(version, int):
            raise ValueError("format_version is not a whole number")
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged ({error}); copy the model directory again") from None
    except KeyError as error:
        raise ModelFileError(f"{path}: damaged (no key {error}); copy the model directory again") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    return config, version


def _mistake(config: Mapping[str, Any]) -> str:
    """What is wrong with a configuration of this version, or the empty string."""
    if not isinstance(config.get("task"), str):
        return "no task"
    files = config.get("files")
    if not isinstance(files, dict) or WEIGHTS not in files:
        return f"no list of files with {WEIGHTS}"
    for name, expected in files.items():
        # A name that leads elsewhere could make a stranger's model read any file of this machine.
        if not _is_plain(name):
            return f"{name!r} is not the name of a file in the directory"
        if not isinstance(expected, dict) or not {"bytes", "sha256"} <= expected.keys():
            return f"no size and hash of {name}"
    return ""


def _is_plain(name: str) -> bool:
    return name == os.path.basename(name) and name not in ("", ".", "..", CONFIG) and not set(name) & set("\\:\0")


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.unfinished")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _place(folder: Path) -> Path:
    """Where the model is: `folder`, unless a kill, or this instant, fell between the two renames of `write`."""
    folder = folder.absolute() if folder.name in ("", "..") else folder
    if folder.name and not folder.exists() and _replaced(folder).is_dir():
        return _replaced(folder)
    return folder


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives; safetensors makes files that only their owner can read
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
    except SafetensorError as error:  # a full disk arrives as text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error)) from None
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _hash_of(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration's values, however they are laid out."""
    return hashlib.sha256(
        json.dumps(config, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
