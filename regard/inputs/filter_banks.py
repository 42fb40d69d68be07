"""Triangular filters on the mel scale, and the cosine transform that turns their logarithms into cepstra.

Two conventions that real corpora were made with. They differ in more than constants: Kaldi's triangles are straight
over mels and of height 1; Sphinx' are straight over Hertz, of area 1, and begin and end on bins of the transform.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from regard.errors import ConfigError

Convention = Literal["kaldi", "sphinx"]

_LIFTER = 22.0  # Kaldi's cepstral lifter; Sphinx leaves cepstra as they are


def mel_filters(
    convention: Convention, num_mels: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float
) -> Tensor:
    """[num_mels, fft_size / 2 + 1], float64: what each filter takes of the power in each bin.

    low_hz, high_hz: where the first triangle begins and the last one ends.
    Raises: ConfigError where a filter would catch no bin at all.
    Source: the mel scale of O'Shaughnessy 1987; Young et al. 2006 (HTK), sec. 5.4, for the triangles over mels.
    """
    bins_hz = torch.arange(fft_size // 2 + 1, dtype=torch.float64) * (sample_rate / fft_size)
    edges = torch.linspace(_mel(low_hz), _mel(high_hz), num_mels + 2, dtype=torch.float64)
    if convention == "kaldi":
        places = 1127.0 * torch.log1p(bins_hz / 700.0)
        height = torch.ones(num_mels, 1, dtype=torch.float64)
    else:
        bin_width = sample_rate / fft_size
        edges = 700.0 * torch.expm1(edges / 1127.0)
        edges = torch.floor(edges / bin_width + 0.5) * bin_width
        places = bins_hz
        height = (2.0 / (edges[2:] - edges[:-2]))[:, None]
    begin, middle, end = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (places - begin) / (middle - begin), (end - places) / (end - middle)
    filters = torch.minimum(rising, falling).clamp(min=0.0) * height
    if convention == "kaldi":
        filters[:, -1] = 0.0  # Kaldi leaves the bin at half the sampling rate out
    if not torch.isfinite(filters).all() or not (filters > 0).any(1).all():
        raise ConfigError(
            f"front_end: {num_mels} mel filters from {low_hz:g} to {high_hz:g} Hz are narrower than the "
            f"{sample_rate / fft_size:.1f} Hz of a bin; lower num_mels, or raise frame_milliseconds"
        )
    return filters


def cepstral_transform(convention: Convention, num_cepstra: int, num_mels: int) -> Tensor:
    """[num_cepstra, num_mels], float64: logarithms of filters into cepstra.

    Kaldi's is the orthonormal cosine transform of type II with a lifter of 22. Sphinx' is the transform of its early
    releases: a mean over filters in which the first one counts half.
    Source: Davis and Mermelstein 1980.
    """
    order = torch.arange(num_cepstra, dtype=torch.float64)[:, None]
    place = torch.arange(num_mels, dtype=torch.float64)[None] + 0.5
    cosines = torch.cos(math.pi / num_mels * order * place)
    if convention == "sphinx":
        cosines[:, 0] *= 0.5
        return cosines / num_mels
    cosines *= math.sqrt(2.0 / num_mels)
    cosines[0] *= math.sqrt(0.5)
    return cosines * (1.0 + 0.5 * _LIFTER * torch.sin(math.pi * order / _LIFTER))


def bands_of_cepstra(convention: Convention, num_cepstra: int, num_mels: int) -> Tensor:
    """[num_mels, num_cepstra], float64: the smoothest spectrum that has given cepstra, as logarithms of filters.

    What is at hand as cepstra alone gets back an axis of frequency, along which it can be masked, warped and drawn. The
    cepstra beyond `num_cepstra`, which nobody kept, are taken as 0.
    """
    bands: Tensor = torch.linalg.pinv(cepstral_transform(convention, num_cepstra, num_mels))
    return bands


def _mel(hz: float) -> float:
    return 1127.0 * math.log1p(hz / 700.0)
