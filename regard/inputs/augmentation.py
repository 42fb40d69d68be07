"""Pictures changed at random while a model trains, a whole batch at once.

Crop, size, flip and turn are one resampling of the batch; brightness, contrast and colour are one affine map of each
picture's pixels. All draws come from torch's global generator, which a trainer seeds for every part of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import ConfigError

GREY = (0.299, 0.587, 0.114)  # what red, green and blue add to lightness; ITU-R BT.601


@dataclass(frozen=True)
class AugmentationConfig:
    """What happens to pictures in training; nothing unless asked for."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # The smallest share of the picture's area that a random crop keeps; it is brought back to the picture's size. 1: no
    # crop. Szegedy et al. 2015 take 0.08, which suits a million pictures; a caption is often wrong below one half.
    crop: float = 1.0
    stretch: float = 1.0  # how much wider or higher the crop's shape may become: factors from 1 / stretch to stretch
    shift: float = 0.0  # moved by up to this share of each side, edges repeated
    flip: bool = False  # left and right exchanged in half of the pictures; captions that name sides become wrong
    turn: bool = False  # by 0, 90, 180 or 270 degrees, for pictures that have no upper side; wants square pictures
    brightness: float = 0.0  # all channels times a factor from 1 - this to 1 + this
    contrast: float = 0.0  # the distance from the picture's mean, likewise
    colour: float = 0.0  # the distance from grey, likewise
    erase: float = 0.0  # the largest share of the area that one rectangle covers with grey (DeVries and Taylor 2017)

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 < self.crop <= 1.0:
            problems.append(f"crop is {self.crop}, expected above 0 to 1")
        if not 1.0 <= self.stretch <= 4.0:
            problems.append(f"stretch is {self.stretch}, expected 1 to 4")
        for name in ("shift", "brightness", "contrast", "colour", "erase"):
            if not 0.0 <= getattr(self, name) < 1.0:
                problems.append(f"{name} is {getattr(self, name)}, expected 0 to below 1")
        if problems:
            raise ConfigError("augmentation: " + "; ".join(problems))

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        return self.crop < 1.0 or self.stretch > 1.0 or self.shift > 0.0 or self.flip or self.turn


def augment(pictures: Tensor, config: AugmentationConfig) -> Tensor:
    """pictures: float [batch, channels, height, width], 0 to 1 -> the same shape, each changed by itself.

    Raises: ConfigError for turns of pictures that are not square.
    """
    if config.moves:
        pictures = _moved(pictures, config)
    if config.brightness or config.contrast or config.colour:
        pictures = _recoloured(pictures, config)
    if config.erase:
        pictures = _erased(pictures, config.erase)
    return pictures


def _uniform(like: Tensor, low: float, high: float, *shape: int) -> Tensor:
    """One draw a picture, or `shape` of them."""
    return torch.rand(like.shape[0], *shape, dtype=like.dtype, device=like.device) * (high - low) + low


def _moved(pictures: Tensor, config: AugmentationConfig) -> Tensor:
    """Crop, flip, shift and turn: where each pixel comes from is an affine map of its place, from -1 to 1 a side."""
    batch, _, height, width = pictures.shape
    if config.turn and height != width:
        raise ConfigError(f"augmentation: turn wants square pictures, received {height} x {width}; set turn to false")
    area = _uniform(pictures, config.crop, 1.0)
    shape = torch.exp(_uniform(pictures, -math.log(config.stretch), math.log(config.stretch)))
    across = (area * shape).sqrt().clamp(max=1.0)
    down = (area / shape).sqrt().clamp(max=1.0)
    free = _uniform(pictures, -1.0, 1.0, 2) * (1.0 - torch.stack([across, down], 1))
    free = free + _uniform(pictures, -2.0 * config.shift, 2.0 * config.shift, 2)
    if config.flip:
        across = across * torch.where(torch.rand_like(across) < 0.5, -1.0, 1.0)
    turns = torch.randint(4, (batch,), device=pictures.device) if config.turn else torch.zeros_like(area)
    angle = turns.to(pictures.dtype) * (math.pi / 2)
    cosine, sine = angle.cos().round(), angle.sin().round()
    maps = torch.stack(
        [
            torch.stack([across * cosine, -across * sine, free[:, 0]], 1),
            torch.stack([down * sine, down * cosine, free[:, 1]], 1),
        ],
        1,
    )
    places = F.affine_grid(maps, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, places, mode="bilinear", padding_mode="border", align_corners=False)


def _recoloured(pictures: Tensor, config: AugmentationConfig) -> Tensor:
    def factor(strength: float) -> Tensor:
        return _uniform(pictures, 1.0 - strength, 1.0 + strength)[:, None, None, None]

    channels = pictures.shape[1]
    weights = pictures.new_tensor(GREY if channels == len(GREY) else (1.0 / channels,) * channels)
    pictures = pictures * factor(config.brightness)
    if config.colour:
        grey = (pictures * weights[:, None, None]).sum(1, keepdim=True)
        pictures = torch.lerp(grey, pictures, factor(config.colour))
    if config.contrast:
        mean = (pictures.mean((2, 3)) * weights).sum(1)[:, None, None, None]
        pictures = torch.lerp(mean, pictures, factor(config.contrast))
    return pictures.clamp(0.0, 1.0)


def _erased(pictures: Tensor, largest: float) -> Tensor:
    """One rectangle of each picture covered with grey: its area up to `largest`, its shape up to 1 : 2 either way."""
    _, _, height, width = pictures.shape
    area = _uniform(pictures, 0.0, largest)
    shape = torch.exp(_uniform(pictures, -math.log(2.0), math.log(2.0)))
    sides = torch.stack([(area / shape).sqrt() * height, (area * shape).sqrt() * width], 1)
    middle = torch.rand_like(sides) * pictures.new_tensor([height, width])
    rows = torch.arange(height, device=pictures.device)[None] + 0.5
    columns = torch.arange(width, device=pictures.device)[None] + 0.5
    inside_rows = (rows - middle[:, :1]).abs() * 2 < sides[:, :1]
    inside_columns = (columns - middle[:, 1:]).abs() * 2 < sides[:, 1:]
    covered = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return pictures.masked_fill(covered, 0.5)
