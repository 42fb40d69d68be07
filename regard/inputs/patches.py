"""Step 1 for pictures by patches: squares of pixels, each one linear map away from a vector. Dosovitskiy et al. 2021.

There is no class token: who wants one vector of a picture pools, see `models/classifier.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.augmentation import AugmentationConfig
from regard.inputs.pixels import GridPositions, GridPositionsConfig, NormalisationConfig, check_whole, normalised
from regard.inputs.source import Represented


@dataclass(frozen=True)
class PatchesConfig:
    """Squares of `patch` pixels a side, one beside the other."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["patches"]
    patch: int  # pixels a side; a rest at the right and lower edge is not seen
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    positions: GridPositionsConfig = field(default_factory=GridPositionsConfig)
    dropout: float = 0.0  # on the vectors

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ConfigError(f"patches: patch is {self.patch}, expected 1 pixel or more")

    @property
    def stride(self) -> int:
        """Pixels from one vector to the next."""
        return self.patch


class Patches(nn.Module):
    """Pixels -> a vector for each patch. Speaks `regard.inputs.source`.

    channels: of a picture. Raises: ConfigError for a normalisation of other channels.
    """

    def __init__(self, channels: int, model_dim: int, config: PatchesConfig) -> None:
        super().__init__()
        config.normalisation.check(channels)
        self.config = config
        self.channels = channels
        self.model_dim = model_dim
        self.projection = nn.Linear(channels * config.patch**2, model_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.positions = GridPositions(model_dim, config.positions, config.dropout)

    def represent(self, values: Tensor, lengths: Tensor) -> Represented:
        """values: uint8 [batch, height, width, channels], all of one height. In training they are augmented.

        Raises: ShapeError for pictures that do not fit, or that are smaller than a patch.
        """
        height, width = values.shape[1:3]
        check_whole(lengths, height)
        patch = self.config.patch
        if values.shape[-1] != self.channels:
            raise ShapeError(f"patches: pictures of {values.shape[-1]} channels, expected {self.channels}")
        if min(height, width) < patch:
            raise ShapeError(f"patches: pictures of {height} x {width} pixels, expected {patch} or more a side")
        grid = (height // patch, width // patch)
        augmentation = self.config.augmentation if self.training else None
        pictures = normalised(values, self.config.normalisation, augmentation, self.projection.weight.dtype)
        pictures = pictures[:, :, : grid[0] * patch, : grid[1] * patch]
        squares = pictures.unflatten(3, (grid[1], patch)).unflatten(2, (grid[0], patch))  # [b, c, rows, p, columns, p]
        flat = squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        vectors = self.positions(self.projection(flat), grid)
        return Represented(vectors, torch.full_like(lengths, grid[0] * grid[1]), patch, grid)
