"""Rotary positions: a modifier that turns queries and keys, so that their product knows their distance.

A scaling stretches the wavelengths of a model trained on short texts over longer ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from regard.attention.modifiers import Modifier
from regard.errors import ConfigError, ShapeError


class RotaryScaling:
    """Changes the frequencies of `Rotary`. Abstract: the classes below are final.

    frequencies: [dims/2], float64, radians a position, falling. base: of the unscaled frequencies. length: how many
    positions the sequence has.
    """

    needs_length: ClassVar[bool] = False  # whether the frequencies depend on the sequence's length

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        """The frequencies to use, of the same shape."""
        raise TypeError(f"{type(self).__name__} does not say how to scale")

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return 1.0


@dataclass(frozen=True)
class PositionInterpolation(RotaryScaling):
    """Every position divided by `factor`. Chen et al. 2023, eq. 3; 'linear' elsewhere."""

    factor: float

    def __post_init__(self) -> None:
        _at_least(self, factor=1.0)

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTKAware(RotaryScaling):
    """A larger base, by which the lowest frequency is divided by `factor` and the highest kept.

    bloc97 2023, 'NTK-aware scaled RoPE'; Peng et al. 2023 (YaRN), sec. 3.1.
    """

    factor: float

    def __post_init__(self) -> None:
        _at_least(self, factor=1.0)

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        return _rebased(frequencies, self.factor)


@dataclass(frozen=True)
class DynamicNTK(RotaryScaling):
    """As `NTKAware`, with a factor that grows with the sequence: nothing changes up to trained_len positions.

    The factor is factor * length / trained_len - (factor - 1). All keys of a call are to be turned for one length:
    keys cached when the sequence was shorter do not match later ones. emozilla 2023; Peng et al. 2023, sec. 3.3.

    trained_len: positions the model was trained on.
    """

    needs_length = True
    factor: float
    trained_len: int

    def __post_init__(self) -> None:
        _at_least(self, factor=1.0, trained_len=1)

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        longer = max(length, self.trained_len) / self.trained_len
        return _rebased(frequencies, self.factor * longer - (self.factor - 1.0))


@dataclass(frozen=True)
class YaRN(RotaryScaling):
    """Long wavelengths interpolated, short ones kept, a ramp between; scores sharpened. Peng et al. 2023, sec. 3.4.

    trained_len: positions the model was trained on. fast, slow: how many turns over trained_len keep a wavelength
    whole, and how few have it interpolated altogether (the paper's beta and alpha). attention_factor: multiplies
    rotated queries and keys; 0.1 ln(factor) + 1 unless given (eq. 22). truncate: whether the ramp's ends are moved
    outwards to whole channels, as in the authors' code.
    """

    factor: float
    trained_len: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _at_least(self, factor=1.0, trained_len=1)
        if not self.fast > self.slow > 0:
            raise ConfigError(f"YaRN: fast is {self.fast} and slow {self.slow}, expected fast above slow above 0")

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        dims = 2 * frequencies.numel()
        ends = [
            dims * math.log(self.trained_len / (turns * 2.0 * math.pi)) / (2.0 * math.log(base))
            for turns in (self.fast, self.slow)
        ]
        low, high = (math.floor(ends[0]), math.ceil(ends[1])) if self.truncate else ends
        low, high = max(low, 0), min(high, dims - 1)
        channel = torch.arange(frequencies.numel(), dtype=frequencies.dtype, device=frequencies.device)
        # The ramp of a single point has no slope: a thousandth of a channel stands in, as in the authors' code.
        ramp = ((channel - low) / ((high - low) or 0.001)).clamp(0.0, 1.0)
        return frequencies * (1.0 - ramp) + frequencies / self.factor * ramp

    @property
    def magnitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class Llama3(RotaryScaling):
    """Wavelengths longer than trained_len/low divided by `factor`, those below trained_len/high kept, others between.

    Llama Team 2024 (Llama 3.1): the authors' code.
    """

    factor: float
    trained_len: int
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        _at_least(self, factor=1.0, trained_len=1)
        if not self.high > self.low > 0:
            raise ConfigError(f"Llama3: low is {self.low} and high {self.high}, expected high above low above 0")

    def scaled(self, frequencies: Tensor, base: float, length: int) -> Tensor:
        turns = self.trained_len * frequencies / (2.0 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return frequencies * kept + frequencies / self.factor * (1.0 - kept)


def _rebased(frequencies: Tensor, factor: float) -> Tensor:
    """Frequencies of the base times factor^(dims/(dims-2)): base^(-i/half) with i from 0 to half - 1."""
    half = frequencies.numel()
    channel = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
    return frequencies * factor ** (-channel / max(half - 1, 1))


def _at_least(scaling: RotaryScaling, **bounds: float) -> None:
    """Raises ConfigError naming every field that lies below its bound."""
    problems = [
        f"{name} is {getattr(scaling, name)}, expected at least {least:g}"
        for name, least in bounds.items()
        if not getattr(scaling, name) >= least
    ]
    if problems:
        raise ConfigError(f"{type(scaling).__name__}: " + "; ".join(problems))


@dataclass(frozen=True)
class Rotary(Modifier):
    """Rotates pairs of channels by an angle that grows with the position.

    The product of a rotated query and a rotated key depends on their distance alone (Su et al. 2021, eq. 15). As a
    modifier of a score it turns all queries and keys of a call, at bottom-right positions; a model with a cache calls
    `rotate` itself, so that keys are turned once, before they are cached.

    base: the wavelengths run from 2 pi to 2 pi * base positions.
    dims: only the first so many channels are turned (partial rotary); all unless given.
    interleaved: whether channel 2i pairs with 2i + 1 (the paper's layout, GPT-J's); otherwise channel i pairs with
        i + dims/2 (GPT-NeoX's, Llama's in transformers).
    scaling: stretches the wavelengths.
    """

    of_vectors = True
    base: float = 10_000.0
    dims: int | None = None
    interleaved: bool = False
    scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.base, Real) and 1.0 < self.base < math.inf):
            raise ConfigError(f"Rotary: base is {self.base!r}, expected a finite number above 1")

    def frequencies(self, dims: int, length: int = 0, device: torch.device | str | None = None) -> Tensor:
        """[dims/2], float64: radians a position, scaling included; length: how many positions the sequence has."""
        half = dims // 2
        frequencies = self.base ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        return frequencies if self.scaling is None else self.scaling.scaled(frequencies, self.base, length)

    def rotate(self, vectors: Tensor, positions: Tensor, length: int | None = None) -> Tensor:
        """vectors: [batch, heads, length, head_dim]; positions: [length] or [batch, length], counted from 0.

        length: how many positions the whole sequence has, for a scaling that asks; one more than the greatest position
            unless given.
        Numerics: angles in float64, because float32 loses a far position's last digits; products in float32 at least.
        Raises: ShapeError when the channels to turn are odd or more than there are.
        """
        problems = self.check(vectors.shape[-1], vectors.shape[-1], heads=vectors.shape[1])
        if problems:
            raise ShapeError("; ".join(problems))
        if length is None:
            asks = self.scaling is not None and self.scaling.needs_length and positions.numel() > 0
            length = int(positions.max()) + 1 if asks else 0
        dims = self.dims or vectors.shape[-1]
        angle = positions.to(torch.float64)[..., None] * self.frequencies(dims, length, vectors.device)
        angle = angle[:, None] if angle.ndim == 3 else angle
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        magnitude = 1.0 if self.scaling is None else self.scaling.magnitude
        cosine, sine = (angle.cos() * magnitude).to(dtype), (angle.sin() * magnitude).to(dtype)
        turning, kept = vectors[..., :dims], vectors[..., dims:]
        first, second = (turning[..., ::2], turning[..., 1::2]) if self.interleaved else turning.chunk(2, -1)
        parts = (first * cosine - second * sine, second * cosine + first * sine)
        turned = torch.stack(parts, -1).flatten(-2) if self.interleaved else torch.cat(parts, -1)
        turned = turned.to(vectors.dtype)
        return torch.cat([turned, kept], -1) if kept.shape[-1] else turned

    def turn(self, query: Tensor, key: Tensor, query_index: Tensor, key_index: Tensor) -> tuple[Tensor, Tensor]:
        length = key.shape[2]
        return self.rotate(query, query_index, length), self.rotate(key, key_index, length)

    def check(self, query_dim: int, key_dim: int, *, heads: int) -> list[str]:
        if self.dims is None:
            widths = sorted({query_dim, key_dim})
            return [f"Rotary: head_dim is {width}, expected an even number" for width in widths if width % 2]
        if self.dims % 2 or not 0 < self.dims <= min(query_dim, key_dim):
            return [f"Rotary.dims is {self.dims}, expected an even number from 2 to {min(query_dim, key_dim)}"]
        return []
