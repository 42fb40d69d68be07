"""Sound becomes frames: log-mel filter banks or cepstra, computed for a whole batch at once.

Two conventions, each equal to the program that set it: Kaldi's (without dither), and that of Sphinx, in which the AN4
corpus is handed round. Nothing here is learnt and nothing depends on the sounds of a corpus; what does (normalisation)
belongs to the model's source, regard/inputs/speech.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import ConfigError, DataError
from regard.inputs.filter_banks import Convention, bands_of_cepstra, cepstral_transform, mel_filters

# Both programs count in the steps of 16-bit sound; a sample of 1.0 is full scale here.
FULL_SCALE = 32768.0
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz: what a sound can sensibly be sampled at
_PREEMPHASIS = 0.97
# What a filter catches is at least this before the logarithm: the smallest step of float32 near 1, Sphinx' own floor.
_FLOORS = {"kaldi": float(torch.finfo(torch.float32).eps), "sphinx": 1e-4}
_FRAMES_AT_ONCE = 512  # transformed at a time: a megabyte


@dataclass(frozen=True)
class FrontEndConfig:
    """How frames are computed from sound."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "log-mel": the logarithm of what each filter catches. "mfcc": its cosine transform, the zeroth cepstrum included.
    # "cepstral-bands": cepstra turned back into num_mels bands, which are smooth, but have an axis of frequency again:
    # a corpus of which cepstra alone are at hand can be masked, warped and drawn along it.
    kind: Literal["log-mel", "mfcc", "cepstral-bands"] = "log-mel"
    # "kaldi": frames inside the sound alone, mean taken off, Povey's window. "sphinx": the last frame filled up with
    # silence, Hamming's window; AN4's features are kind mfcc, num_mels 40, low_hz 130, high_hz 6800, 25.625 ms.
    convention: Convention = "kaldi"
    sample_rate: int = 16000  # Hz; sound at another rate is resampled to it
    num_mels: int = 80  # filters
    num_cepstra: int = 13  # of mfcc and cepstral-bands: how many of the cosine transform's values are kept
    low_hz: float = 20.0  # where the first filter begins
    high_hz: float = 0.0  # where the last filter ends; 0 and below count from half the sampling rate
    frame_milliseconds: float = 25.0  # length of a frame
    shift_milliseconds: float = 10.0  # from one frame to the next

    def __post_init__(self) -> None:
        problems = []
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            problems.append(f"sample_rate is {self.sample_rate}, expected {MIN_RATE} to {MAX_RATE} Hz")
        if self.num_mels < 2:
            problems.append(f"num_mels is {self.num_mels}, expected 2 or more")
        if not 1 <= self.num_cepstra <= self.num_mels:
            problems.append(f"num_cepstra is {self.num_cepstra}, expected 1 to num_mels ({self.num_mels})")
        if not 0.0 <= self.low_hz < self.end_hz <= self.sample_rate / 2:
            problems.append(
                f"low_hz is {self.low_hz:g} and high_hz {self.end_hz:g}, expected 0 <= low_hz < high_hz <= "
                f"{self.sample_rate / 2:g}, half the sampling rate"
            )
        if not 1.0 <= self.shift_milliseconds <= self.frame_milliseconds <= 1000.0:
            problems.append(
                f"frame_milliseconds is {self.frame_milliseconds:g} and shift_milliseconds "
                f"{self.shift_milliseconds:g}, expected 1 <= shift <= frame <= 1000"
            )
        if problems:
            raise ConfigError(f"front_end: {'; '.join(problems)}")

    @property
    def bins(self) -> int:
        """Numbers a frame."""
        return self.num_cepstra if self.kind == "mfcc" else self.num_mels

    @property
    def end_hz(self) -> float:
        return self.high_hz if self.high_hz > 0 else self.sample_rate / 2 + self.high_hz

    @property
    def frame_samples(self) -> int:
        return int(self.sample_rate * self.frame_milliseconds / 1000)

    @property
    def shift_samples(self) -> int:
        return int(self.sample_rate * self.shift_milliseconds / 1000)

    @property
    def shift_seconds(self) -> float:
        return self.shift_samples / self.sample_rate

    @property
    def fft_size(self) -> int:
        return 1 << (self.frame_samples - 1).bit_length()

    def num_frames(self, num_samples: int) -> int:
        """How many frames a sound of so many samples has; 0 where it is shorter than one frame."""
        if num_samples < self.frame_samples:
            return 0
        whole, rest = divmod(num_samples - self.frame_samples, self.shift_samples)
        return 1 + whole + (1 if self.convention == "sphinx" and rest else 0)


class FrontEnd:
    """Computes frames. dtype: of the arithmetic; float64 follows the conventions to more digits at half the speed."""

    def __init__(self, config: FrontEndConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config = config
        self.dtype = dtype
        filters = mel_filters(
            config.convention, config.num_mels, config.fft_size, config.sample_rate, config.low_hz, config.end_hz
        )
        self._filters = filters.T.to(dtype).contiguous()
        self._window = _window(config).to(dtype)
        shape = (config.convention, config.num_cepstra, config.num_mels)
        self._cosines = cepstral_transform(*shape).T.to(dtype).contiguous() if config.kind != "log-mel" else None
        self._bands = bands_of_cepstra(*shape).T.to(dtype).contiguous() if config.kind == "cepstral-bands" else None

    def __call__(self, sounds: Sequence[np.ndarray | Tensor]) -> list[Tensor]:
        """Sounds [samples] at the configured rate, full scale 1 -> for each [frames, bins], float32.

        A sound shorter than a frame has 0 frames. Frames do not depend on what else is in the batch.
        Raises: DataError for what is no vector of real numbers, or holds numbers that are not finite.
        """
        checked = [self._checked(sound) for sound in sounds]
        counts = [self.config.num_frames(len(sound)) for sound in checked]
        total = sum(counts)
        result = torch.empty(total, self.config.bins)
        # One small buffer, filled again and again, stays in the cache; behind a frame it is 0, as the transform wants.
        buffer = torch.zeros(min(total, _FRAMES_AT_ONCE), self.config.fft_size, dtype=self.dtype)
        filled = done = 0
        for sound, count in zip(checked, counts, strict=True):
            views = self._views(sound, count)
            begin = 0
            while begin < count:
                end = min(begin + len(buffer) - filled, count)
                self._fill(buffer[filled : filled + end - begin], *(view[begin:end] for view in views))
                filled, begin = filled + end - begin, end
                if filled == len(buffer):
                    result[done : done + filled] = self._transformed(buffer)
                    filled, done = 0, done + filled
        if filled:
            result[done:] = self._transformed(buffer[:filled])
        return list(result.split(counts))

    def of_features(self, features: np.ndarray, name: str = "features") -> np.ndarray:
        """float32 [frames, bins] of frames that another program computed: as they are, or bands of their cepstra.

        Raises: DataError for another number of columns, and for numbers that are not finite.
        """
        config = self.config
        widths = {config.bins} | ({config.num_cepstra} if self._bands is not None else set())
        if features.ndim != 2 or features.shape[1] not in widths:
            expected = " or ".join(str(width) for width in sorted(widths))
            raise DataError(
                f"{name}: {list(features.shape)} numbers, expected [frames, {expected}] as front_end has it; set "
                "front_end.num_mels or num_cepstra to what the features are"
            )
        features = np.ascontiguousarray(features, dtype=np.float32)
        if not np.isfinite(features).all():
            raise DataError(f"{name}: holds numbers that are not finite; look at how they were made")
        if self._bands is not None and features.shape[1] == config.num_cepstra != config.bins:
            features = features @ self._bands.float().numpy()
        return features

    def _checked(self, sound: np.ndarray | Tensor) -> Tensor:
        tensor = torch.as_tensor(sound)
        if tensor.dim() != 1 or not tensor.dtype.is_floating_point:
            raise DataError(
                f"sound: received {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}, expected one "
                "vector of floating-point samples, full scale 1; mix channels down, and divide 16-bit samples by 32768"
            )
        tensor = tensor.to(self.dtype)
        if len(tensor) and not torch.isfinite(tensor.sum()):
            raise DataError("sound: holds samples that are not finite; look at how it was made")
        return tensor

    def _views(self, sound: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The frames of a sound in steps of 16-bit sound, after pre-emphasis and before it: views [count, samples]."""
        config = self.config
        needed = (count - 1) * config.shift_samples + config.frame_samples if count else 0
        # A zero stands before the first sample.
        raw = F.pad(sound[:needed], (1, max(needed - len(sound), 0))) * FULL_SCALE
        filtered = raw[1:] - _PREEMPHASIS * raw[:-1]
        if not count:
            return filtered[None, :0], raw[None, :0]
        size, shift = config.frame_samples, config.shift_samples
        return filtered.unfold(0, size, shift), raw[1:].unfold(0, size, shift)

    def _fill(self, rows: Tensor, filtered: Tensor, raw: Tensor) -> None:
        """Writes windowed frames to the front of `rows`."""
        frames = rows[:, : self.config.frame_samples]
        if self.config.convention == "kaldi":
            # Kaldi filters each frame by itself, after taking off its mean. Its first sample, which has none before it,
            # does not matter: Povey's window is 0 there.
            torch.sub(filtered, (1.0 - _PREEMPHASIS) * raw.mean(1, keepdim=True), out=frames)
            frames *= self._window
        else:
            torch.mul(filtered, self._window, out=frames)

    def _transformed(self, windowed: Tensor) -> Tensor:
        """[frames, fft_size] -> [frames, bins]."""
        config = self.config
        spectrum = torch.fft.rfft(windowed)
        power = spectrum.real.square() + spectrum.imag.square()
        caught = power @ self._filters
        if config.convention == "kaldi":
            logs = caught.clamp_(min=_FLOORS["kaldi"]).log_()
        else:
            logs = caught.add_(_FLOORS["sphinx"]).log_()
        cepstra: Tensor = logs if self._cosines is None else logs @ self._cosines
        return cepstra if self._bands is None else cepstra @ self._bands


def _window(config: FrontEndConfig) -> Tensor:
    """[frame_samples], float64: Povey's window, a power of Hann's that does without Hamming's jump, or Hamming's."""
    angle = torch.arange(config.frame_samples, dtype=torch.float64) * (2.0 * math.pi / (config.frame_samples - 1))
    if config.convention == "kaldi":
        return (0.5 - 0.5 * torch.cos(angle)).clamp(min=0.0) ** 0.85
    return 0.54 - 0.46 * torch.cos(angle)
