"""Step 1 for speech: frames become fewer vectors, each of which stands for several frames.

On the way, in this order: in training another speed and another vocal tract; normalisation; deltas; in training masks;
then strided convolution (or several frames stacked) and a linear map to the model's width, and positions if asked for.
Padding is 0 at every place and touches nothing: a sound's vectors do not depend on its company.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.embeddings import sinusoidal_positions
from regard.inputs.frame_statistics import real_frames, utterance_normalised, with_deltas
from regard.inputs.source import Represented
from regard.inputs.spec_augment import AugmentConfig, masked, warped
from regard.layers.dropout import Dropout

_STRIDES = (1, 2, 4, 8)


@dataclass(frozen=True)
class SpeechSourceConfig:
    """How frames become vectors."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: Literal["speech"]
    # "convolution": layers of 3 x 3 over time and bins, each halving the bins and as many as needed the time (Dong et
    # al. 2018; Gulati et al. 2020). "stacked": `stride` frames side by side, and a linear map; 1 is the map alone.
    subsampling: Literal["convolution", "stacked"] = "convolution"
    stride: int = 4  # frames that a vector stands for: 1, 2, 4 or 8 by convolution, any number stacked
    channels: int = 32  # of every convolution
    # "utterance": each bin of each sound to mean 0 and deviation 1. "corpus": by mean and deviation of all training
    # frames, which a run finds and keeps in `mean` and `deviation`.
    normalization: Literal["utterance", "corpus", "none"] = "utterance"
    mean: tuple[float, ...] | None = None  # of each bin; found by the run where it is not given
    deviation: tuple[float, ...] | None = None
    deltas: int = 0  # how many orders of differences along time stand beside the frames
    # "none" is for recurrent encoders and for attention that knows distances by itself (rotary).
    positions: Literal["sinusoidal", "none"] = "none"
    dropout: float = 0.0  # of the vectors
    augment: AugmentConfig | None = None  # in training

    def __post_init__(self) -> None:
        problems = []
        if self.subsampling == "convolution" and self.stride not in _STRIDES:
            problems.append(f"stride is {self.stride}, expected 1, 2, 4 or 8 by convolution")
        if self.stride < 1:
            problems.append(f"stride is {self.stride}, expected 1 or more")
        if self.channels < 1:
            problems.append(f"channels is {self.channels}, expected 1 or more")
        if not 0 <= self.deltas <= 3:
            problems.append(f"deltas is {self.deltas}, expected 0 to 3")
        if (self.mean is None) != (self.deviation is None) or len(self.mean or ()) != len(self.deviation or ()):
            problems.append("mean and deviation differ in length, expected one of each a bin, or neither")
        if problems:
            raise ConfigError(f"embedding: {'; '.join(problems)}")


class SpeechSource(nn.Module):
    """Frames [batch, frames, bins] -> vectors [batch, ceil(frames / stride), model_dim].

    Raises: ConfigError for sinusoids of an odd width, and for statistics of another number of bins.
    """

    def __init__(self, bins: int, model_dim: int, config: SpeechSourceConfig) -> None:
        super().__init__()
        self.config = config
        self.bins = bins
        self.model_dim = model_dim
        if config.positions == "sinusoidal":
            sinusoidal_positions(0, 1, model_dim)  # refuses odd widths
        if config.mean is not None and len(config.mean) != bins:
            raise ConfigError(f"embedding: mean has {len(config.mean)} numbers, expected {bins}, one a bin")
        planes = 1 + config.deltas
        self.convolutions = nn.ModuleList()
        width = bins
        if config.subsampling == "convolution":
            halvings = _STRIDES.index(config.stride)
            for place in range(max(halvings, 2)):
                time = 2 if place < halvings else 1
                inputs = planes if place == 0 else config.channels
                self.convolutions.append(nn.Conv2d(inputs, config.channels, 3, stride=(time, 2), padding=1))
                width = (width + 1) // 2
            self.linear = nn.Linear(config.channels * width, model_dim)
        else:
            self.linear = nn.Linear(config.stride * planes * bins, model_dim)
        self.dropout = Dropout(config.dropout)

    def represent(self, values: Tensor, lengths: Tensor) -> Represented:
        """values: [batch, frames, bins], padded; lengths: [batch]. Raises: ShapeError for another number of bins."""
        if values.dim() != 3 or values.shape[2] != self.bins:
            raise ShapeError(f"speech: received frames {list(values.shape)}, expected [batch, frames, {self.bins}]")
        config = self.config
        dtype = self.linear.weight.dtype
        # Frames are prepared in float32 whatever the model computes in: a logarithm of energy wants its digits.
        frames = values.float() if dtype != torch.float64 else values.double()
        augment = config.augment if self.training else None
        if augment is not None:
            frames, lengths = warped(frames, lengths, augment)
        frames = self._normalised(frames, lengths)
        planes = with_deltas(frames, lengths, config.deltas) if config.deltas else frames[:, :, None]
        if augment is not None:
            planes = masked(planes, lengths, augment)
        if config.subsampling == "convolution":
            vectors, lengths = self._convolved(planes.to(dtype), lengths)
        else:
            vectors, lengths = self._stacked(planes.to(dtype), lengths)
        vectors = self.linear(vectors)
        if config.positions == "sinusoidal":
            length = vectors.shape[1]
            vectors = vectors + sinusoidal_positions(0, length, self.model_dim, vectors.device, vectors.dtype)
        vectors = self.dropout(vectors)
        return Represented(vectors.masked_fill(~real_frames(lengths, vectors.shape[1]), 0.0), lengths, config.stride)

    forward = represent

    def _normalised(self, frames: Tensor, lengths: Tensor) -> Tensor:
        config = self.config
        if config.normalization == "utterance":
            return utterance_normalised(frames, lengths)
        if config.normalization == "corpus":
            if config.mean is None or config.deviation is None:
                raise ConfigError("embedding: normalization is corpus, but mean and deviation are missing; give both")
            mean, deviation = (frames.new_tensor(values) for values in (config.mean, config.deviation))
            frames = (frames - mean) / deviation
        return frames * real_frames(lengths, frames.shape[1])

    def _convolved(self, planes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, frames, planes, bins] -> [batch, ceil(frames / stride), channels * bins left]."""
        hidden = planes.transpose(1, 2)
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d)
            hidden = layer(hidden).relu()
            time = layer.stride[0]
            lengths = (lengths + time - 1) // time
            # What a bias made of padding would reach real frames through the next layer.
            hidden = hidden * real_frames(lengths, hidden.shape[2])[:, None]
        return hidden.transpose(1, 2).flatten(2), lengths

    def _stacked(self, planes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        stride = self.config.stride
        flat = planes.flatten(2)
        flat = F.pad(flat, (0, 0, 0, -flat.shape[1] % stride))
        return flat.unflatten(1, (-1, stride)).flatten(2), (lengths + stride - 1) // stride
