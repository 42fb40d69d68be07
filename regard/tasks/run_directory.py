"""A run directory: the resolved recipe, who is training in it, and what came of it.

recipe.yaml     the recipe with every default filled in; resuming with another is refused, but for what does not
                change what is trained (`FREE`)
data/           tokenizers and prepared corpora
checkpoints/    what resuming needs
metrics.jsonl   losses and validations, a line each; tensorboard/ the same as events
model/          the best weights so far, at the end the finished model
result.json     scores of the finished model
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from regard.errors import ConfigError, TrainingError
from regard.tasks.recipe import differences
from regard.tasks.yaml_values import written_yaml
from regard.training.disk import write_atomically

RECIPE = "recipe.yaml"
RESULT = "result.json"
LOCK = ".lock"
# How a run is carried out, which may change from one start to the next.
FREE = frozenset({"data.workers", "training.parallel"})
# The lock of a run that was killed is free as soon as the last process of it has noticed.
LOCK_PATIENCE_SECONDS = 3.0

_ANEW = "restore it, or give another --run to start anew"


@contextmanager
def opened(folder: Path, recipe: Mapping[str, Any], origin: str) -> Iterator[Path]:
    """Holds the run directory for this run alone, with `recipe` (plain values) as its recipe.

    A folder that was made here and holds nothing but the lock at the end is removed.

    Raises: ConfigError naming the keys when a run with another recipe lies there; TrainingError when another process is
    training in it or it cannot be made.
    """
    is_ours = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")  # noqa: SIM115 (held until the run ends)
    except OSError as error:
        why = f"cannot be used as a run directory ({_reason(error)})"
        raise TrainingError(f"{folder}: {why}; give another with --run") from None
    with lock:
        _take(lock, folder)
        try:
            _keep_recipe(folder / RECIPE, recipe, origin)
            yield folder
        finally:
            with suppress(OSError):  # tidying, which must not hide why the run ended
                if is_ours and [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()


def _take(lock: IO[str], folder: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() - began > LOCK_PATIENCE_SECONDS:
                why = "another process is training here"
                raise TrainingError(f"{folder}: {why}; wait for it, or give another --run") from None
            time.sleep(0.1)
        except OSError as error:
            why = f"this disk has no locks ({_reason(error)})"
            raise TrainingError(f"{folder}: {why}; give a --run on a local disk") from None


def _keep_recipe(path: Path, recipe: Mapping[str, Any], origin: str) -> None:
    if path.is_file():
        changed = [key for key in differences(_kept_recipe(path), dict(recipe)) if key not in FREE]
        if changed:
            keys = ", ".join(f"`{key}`" for key in changed)
            raise ConfigError(
                f"{origin}: {path.parent} holds a run whose recipe differs in {keys}; "
                "use the same values to resume it, or another --run"
            )
        return
    write_text(path, written_yaml(dict(recipe)))


def _kept_recipe(path: Path) -> dict[str, Any]:
    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({_reason(error)}); {_ANEW}") from None
    if not isinstance(kept, dict):
        raise ConfigError(f"{path}: damaged, expected the keys of a recipe; {_ANEW}")
    return kept


def write_text(path: Path, content: str) -> None:
    """Writes a small file whole or not at all. Raises: TrainingError when the disk does not take it."""
    write_atomically(path, lambda file: file.write(content.encode()))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Keeps the finished run's scores."""
    write_text(folder / RESULT, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read_result(folder: Path) -> dict[str, Any] | None:
    """The finished run's scores, or None when it has not finished. Raises: TrainingError when the file is damaged."""
    path = folder / RESULT
    if not path.is_file():
        return None
    remedy = "delete it and run the same command to score the model again"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({_reason(error)}); {remedy}") from None
    if not isinstance(result, dict):
        raise TrainingError(f"{path}: damaged, expected an object with scores; {remedy}")
    return result


def _reason(error: Exception) -> str:
    """What went wrong, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())
