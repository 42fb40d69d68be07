"""`regard.load`: a model directory becomes the object that does its job, whichever job that is."""

from __future__ import annotations

import os
from typing import Any

import torch

from regard.errors import ConfigError, ModelFileError, suggestion
from regard.tasks import model_directory
from regard.tasks.jobs import TASKS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.float32,
) -> Any:
    """The trained model in the model directory at `path`, ready to use: for the task `translate` a Translator.

    device: where it computes, as in "cpu", "cuda" or "cuda:1".
    dtype: in what it computes: float32, bfloat16 or float64, as torch's dtype or by name.

    Raises: ConfigError for a device that is not there or another dtype; ModelFileError for a directory that is missing,
    damaged, of a newer format, or made for a task that this regard does not know.
    """
    place, number = _device(device), _dtype(dtype)
    directory = model_directory.read(path)
    task = directory.config["task"]
    if task not in TASKS:
        raise ModelFileError(
            f"{directory.path / model_directory.CONFIG}: task {task!r} is not known to this regard, which knows "
            f"{', '.join(TASKS)}; upgrade regard"
        )
    return TASKS[task]().model.load(directory, place, number)


def _device(device: str | torch.device) -> torch.device:
    known = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU here)"
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"load: device `{device}` is none that torch knows; expected {known}") from None
    try:
        torch.empty(1, device=place).cpu()  # says whether it is really there; one without memory fails, too
    except Exception as error:  # torch raises a different kind for each device that is missing
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ConfigError(f"load: device `{device}` cannot be used ({reason}); expected {known}") from None
    return place


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        hint = suggestion(name, DTYPES)
        raise ConfigError(f"load: dtype `{name}` cannot be used{hint or ','} expected {', '.join(DTYPES)}")
    return DTYPES[name]
