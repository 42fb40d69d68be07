"""What every source of pictures shares: pixels become numbers around 0, and vectors learn where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.augmentation import AugmentationConfig, augment
from regard.inputs.embeddings import sinusoidal_positions
from regard.layers.dropout import Dropout


@dataclass(frozen=True)
class NormalisationConfig:
    """(pixel / 255 - mean) / std, a pair a channel, or one for all. Kept with the model, so that whoever uses it later
    gives it what it learnt from. Statistics of the batch at hand are never used."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    def __post_init__(self) -> None:
        if not self.mean or not self.std or any(not value > 0 for value in self.std):
            raise ConfigError(f"normalisation: mean {self.mean}, std {self.std}, expected a std above 0 for each mean")

    def check(self, channels: int) -> None:
        """Raises: ConfigError where the numbers are neither one nor one a channel."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ConfigError(
                    f"normalisation: {name} has {len(values)} values for {channels} channels; give one or {channels}"
                )


def normalised(
    pixels: Tensor, config: NormalisationConfig, augmentation: AugmentationConfig | None, dtype: torch.dtype
) -> Tensor:
    """uint8 [batch, height, width, channels] -> [batch, channels, height, width] in `dtype`.

    augmentation: applied between the two where it is given, in float32 at least.
    Raises: ShapeError for anything but 8-bit pictures.
    """
    if pixels.ndim != 4 or pixels.dtype != torch.uint8:
        raise ShapeError(
            f"pictures: received {pixels.dtype} of shape {tuple(pixels.shape)}, expected torch.uint8"
            " (batch, height, width, channels)"
        )
    pictures = pixels.permute(0, 3, 1, 2)
    wide = torch.promote_types(dtype, torch.float32)
    mean, std = (torch.tensor(values, dtype=wide, device=pixels.device)[:, None, None] for values in _pair(config))
    if augmentation is not None:
        changed = augment(pictures.to(wide) / 255.0, augmentation)
        return ((changed - mean) / std).to(dtype)
    return ((pictures.to(wide) - 255.0 * mean) / (255.0 * std)).to(dtype)


def _pair(config: NormalisationConfig) -> tuple[Sequence[float], Sequence[float]]:
    return config.mean, config.std


@dataclass(frozen=True)
class GridPositionsConfig:
    """How a vector of a grid learns its row and its column."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "learned": a vector a row and a vector a column, added. "sinusoidal": half of the channels say the row, half the
    # column (Vaswani et al. 2017, sec. 3.5, in each). "none": a vector knows what it shows, not where.
    kind: Literal["learned", "sinusoidal", "none"] = "learned"
    most: int = 64  # rows and columns that are learnt; a larger grid is refused


class GridPositions(nn.Module):
    """Adds positions to the vectors of a grid, then drops out.

    Raises: ConfigError for sinusoids whose halves are odd; ShapeError where a grid outgrows what was learnt.
    """

    def __init__(self, model_dim: int, config: GridPositionsConfig, dropout: float) -> None:
        super().__init__()
        self.config = config
        self.rows = self.columns = None
        if config.kind == "learned":
            self.rows, self.columns = (nn.Parameter(torch.empty(config.most, model_dim)) for _ in range(2))
            for table in (self.rows, self.columns):
                nn.init.normal_(table, std=0.5)  # together half of the variance of vectors of unit variance
        elif config.kind == "sinusoidal" and model_dim % 4:
            raise ConfigError(
                f"grid positions: sinusoids of rows and columns want a model_dim that is a multiple of 4, not"
                f" {model_dim}"
            )
        self.dropout = Dropout(dropout)

    def forward(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        """vectors [batch, rows * columns, model_dim], row by row -> the same shape."""
        num_rows, num_columns = grid
        if self.rows is not None and self.columns is not None:
            if max(grid) > self.config.most:
                raise ShapeError(
                    f"grid positions: a grid of {num_rows} x {num_columns}, but {self.config.most} a side are learnt;"
                    " give smaller pictures or train with a larger positions.most"
                )
            places = self.rows[:num_rows, None] + self.columns[None, :num_columns]
            vectors = vectors + places.flatten(0, 1)
        elif self.config.kind == "sinusoidal":
            half = vectors.shape[-1] // 2
            down, across = (sinusoidal_positions(0, n, half, vectors.device, vectors.dtype) for n in grid)
            places = torch.cat(
                [down[:, None].expand(-1, num_columns, -1), across[None].expand(num_rows, -1, -1)], dim=-1
            )
            vectors = vectors + places.flatten(0, 1)
        result: Tensor = self.dropout(vectors)
        return result


def check_whole(lengths: Tensor, height: int) -> None:
    """Raises: ShapeError where pictures of one batch differ in height: none may be padded."""
    if bool((lengths != height).any()):
        raise ShapeError(
            f"pictures: heights {sorted(set(lengths.tolist()))} in one batch, expected one; bring them to one size"
        )
