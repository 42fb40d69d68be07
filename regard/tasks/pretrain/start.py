"""Another task's beginning: the weights and the tokenizer of a pre-trained encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from regard.errors import ConfigError
from regard.tasks import model_directory
from regard.tasks.pretrain.filler import Filler
from regard.training.averaging import load_weights, weights_of


def pretrained(path: Path) -> Filler:
    """The pre-trained encoder at `path`. Raises: ModelFileError for a damaged one; ConfigError for another task's."""
    directory = model_directory.read(path)
    if directory.config["task"] != "pretrain":
        raise ConfigError(
            f"init_from: {path} is a model of the task {directory.config['task']}, expected one of the task pretrain"
        )
    return Filler.load(directory, "cpu", torch.float32)


def begin_with(encoder: nn.Module, filler: Filler) -> None:
    """Puts the pre-trained weights into `encoder`. Raises: ConfigError naming a weight that differs."""
    weights = weights_of(filler.model.encoder)
    wanted = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))[0]
        raise ConfigError(
            f"model.encoder: {wrong} is {list(wanted.get(wrong, ()))}, but {list(found.get(wrong, ()))} in the encoder"
            " of init_from; give both recipes the same encoder"
        )
    load_weights(encoder, weights)
