"""Step 1 for pictures by convolution: a small residual network, whose last grid is the sequence of vectors.

Source: He et al. 2016, sec. 3 (residual blocks of two 3 x 3 convolutions, each stage at half the size and more
channels). What differs: normalisation is over groups of channels of one picture (Wu and He 2018) and never over the
batch, so that a picture's vectors do not depend on its company; the stem is one convolution without pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.augmentation import AugmentationConfig
from regard.inputs.pixels import GridPositions, GridPositionsConfig, NormalisationConfig, check_whole, normalised
from regard.inputs.source import Represented

GROUP_CHANNELS = 8  # that are normalised together; Wu and He 2018 find 8 to 32 alike


@dataclass(frozen=True)
class ConvolutionConfig:
    """A stem, then stages of blocks; each stage but the first halves the grid."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["convolution"]
    channels: tuple[int, ...]  # of each stage; multiples of 8
    blocks: int = 1  # of each stage
    # "residual": two convolutions and a way around them. "plain": one convolution, for a small receptive field, so
    # that a vector speaks of its own place alone.
    block: Literal["residual", "plain"] = "residual"
    stem_kernel: int = 3  # pixels
    stem_stride: int = 2  # pixels; the grid's is stem_stride * 2 ** (len(channels) - 1)
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    positions: GridPositionsConfig = field(default_factory=GridPositionsConfig)
    dropout: float = 0.0  # on the vectors

    def __post_init__(self) -> None:
        problems = []
        if not self.channels or any(count < 1 or count % GROUP_CHANNELS for count in self.channels):
            problems.append(f"channels is {list(self.channels)}, expected multiples of {GROUP_CHANNELS}, one a stage")
        for name in ("blocks", "stem_kernel", "stem_stride"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, expected 1 or more")
        if problems:
            raise ConfigError("convolution: " + "; ".join(problems))

    @property
    def stride(self) -> int:
        """Pixels from one vector to the next."""
        return self.stem_stride << (len(self.channels) - 1)


class Convolved(nn.Sequential):
    """A convolution without bias, and the norm that has one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015
        super().__init__(convolution, nn.GroupNorm(outputs // GROUP_CHANNELS, outputs))


class ResidualBlock(nn.Module):
    """relu(x + f(x)), f two convolutions; starts as the way around alone (Goyal et al. 2017, sec. 5.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = Convolved(inputs, outputs, 3, stride)
        self.second = Convolved(outputs, outputs, 3, 1)
        self.stride = stride
        self.around = Convolved(inputs, outputs, 1, 1) if stride > 1 or inputs != outputs else nn.Identity()
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(pictures)))
        # Every stride-th pixel first, in place of a stride in a convolution of one pixel: oneDNN's gradient of that
        # writes beyond its memory where there is AVX-512 (torch 2.13, 8 channels to 16, channels last).
        return F.relu(inner + self.around(pictures[:, :, :: self.stride, :: self.stride]))


class PlainBlock(nn.Module):
    """relu of one convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.only = Convolved(inputs, outputs, 3, stride)

    def forward(self, pictures: Tensor) -> Tensor:
        return F.relu(self.only(pictures))


BLOCKS: dict[str, type[ResidualBlock | PlainBlock]] = {"residual": ResidualBlock, "plain": PlainBlock}


class Convolution(nn.Module):
    """Pixels -> a vector for each place of the last stage's grid. Speaks `regard.inputs.source`.

    channels: of a picture. Raises: ConfigError for a normalisation of other channels.
    """

    def __init__(self, channels: int, model_dim: int, config: ConvolutionConfig) -> None:
        super().__init__()
        config.normalisation.check(channels)
        self.config = config
        self.channels = channels
        self.model_dim = model_dim
        width = config.channels[0]
        self.stem = Convolved(channels, width, config.stem_kernel, config.stem_stride)
        blocks: list[nn.Module] = []
        for stage, outputs in enumerate(config.channels):
            for place in range(config.blocks):
                blocks.append(BLOCKS[config.block](width, outputs, 2 if stage and not place else 1))
                width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, model_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.positions = GridPositions(model_dim, config.positions, config.dropout)

    def represent(self, values: Tensor, lengths: Tensor) -> Represented:
        """values: uint8 [batch, height, width, channels], all of one height. In training they are augmented.

        Raises: ShapeError for pictures that do not fit, or that are smaller than what the stem takes.
        """
        height, width = values.shape[1:3]
        check_whole(lengths, height)
        if values.shape[-1] != self.channels:
            raise ShapeError(f"convolution: pictures of {values.shape[-1]} channels, expected {self.channels}")
        if min(height, width) < self.config.stem_kernel:
            raise ShapeError(
                f"convolution: pictures of {height} x {width} pixels, expected {self.config.stem_kernel} or more a side"
            )
        augmentation = self.config.augmentation if self.training else None
        pictures = normalised(values, self.config.normalisation, augmentation, self.projection.weight.dtype)
        # Channels last in memory, as the vectors will be: on a CPU convolutions are faster so, too.
        features = F.relu(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            features = block(features)
        grid = (features.shape[2], features.shape[3])
        vectors = self.projection(self.norm(features.permute(0, 2, 3, 1).flatten(1, 2)))
        vectors = self.positions(vectors, grid)
        count = torch.full_like(lengths, grid[0] * grid[1])
        return Represented(vectors, count, self.config.stride, grid)
