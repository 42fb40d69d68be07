"""Weights to begin with: another run's encoder, as far as names and shapes agree."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from regard.errors import ConfigError
from regard.tasks import model_directory

PREFIX = "encoder."


def load_encoder(model: nn.Module, folder: Path) -> tuple[int, int]:
    """Puts the encoder of the model directory `folder` into `model`: every parameter whose name begins with "encoder."
    and whose name and shape are the same in both. The two may be of different tasks.

    Returns how many parameters were taken, and how many the model's encoder has.
    Raises: ModelFileError for a folder that is no model directory; ConfigError where nothing fits.
    """
    theirs = model_directory.read(folder).weights
    ours = {name: parameter for name, parameter in model.named_parameters() if name.startswith(PREFIX)}
    fitting = [name for name, parameter in ours.items() if name in theirs and theirs[name].shape == parameter.shape]
    if not fitting:
        shared = [name for name in ours if name in theirs]
        why = (
            f"{shared[0]} is {list(theirs[shared[0]].shape)} there and {list(ours[shared[0]].shape)} here"
            if shared
            else "it has no parameter of the same name"
        )
        raise ConfigError(f"init_from: {folder}: none of its encoder fits ({why}); use the same model.encoder")
    with torch.no_grad():
        for name in fitting:
            ours[name].copy_(theirs[name])
    return len(fitting), len(ours)
