"""How one path picks its next token: the likeliest one, or a draw that depends on nothing but its own sentence."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from regard.decoding.frontier import precise
from regard.decoding.leading import leading

NUCLEUS = 256  # outputs that are sorted before all of them are, to find the nucleus


class Pick(Protocol):
    """Chooses a token a row."""

    def __call__(self, scores: Tensor, paths: Tensor, step: int) -> Tensor:
        """scores: [rows, num_outputs]; paths: int64 [rows], which path each row belongs to. Returns ids [rows]."""
        ...


def likeliest(scores: Tensor, paths: Tensor, step: int) -> Tensor:
    """Greedy: the highest score, among equals the lowest id."""
    return scores.argmax(-1)


class Draw:
    """Sampling by inverse transform: one uniform number a row and step, made from (seed, key of the path, step).

    No generator is carried along, so that a sentence's samples are the same alone, in any batch and on any device
    (up to the rounding of the model itself).

    keys: int64 [paths, 2], a sentence's number and its sample's number.
    """

    def __init__(self, keys: Tensor, *, seed: int, temperature: float, top_k: int | None, top_p: float) -> None:
        self.keys = scramble(scramble(scramble(torch.full_like(keys[:, 0], seed)) + keys[:, 0]) + keys[:, 1])
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, scores: Tensor, paths: Tensor, step: int) -> Tensor:
        probabilities, ids = truncated(scores, self.temperature, self.top_k, self.top_p)
        mass = probabilities.cumsum(-1)
        target = uniforms(self.keys[paths], step).to(mass.dtype)[:, None] * mass[:, -1:]
        # right=True finds the first entry whose cumulated mass exceeds the target: never one without mass of its own.
        place = torch.searchsorted(mass, target, right=True).clamp_(max=mass.shape[-1] - 1)
        return (place if ids is None else ids.gather(-1, place))[:, 0]


def truncated(
    scores: Tensor, temperature: float, top_k: int | None = None, top_p: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """The distribution that is drawn from, unnormalised: probabilities [rows, kept] and their ids (None: all, by id).

    Temperature first, then the k likeliest, then the smallest set that holds top_p of what is left (Holtzman et al.
    2020, eq. 2 and 3). Among equals the lowest ids stay.
    """
    outputs = scores.shape[-1]
    # A row in which everything is forbidden has no distribution: nan_to_num makes it zeros, its draw is discarded.
    if top_k is not None and top_k < outputs:
        values, ids = leading(scores, top_k)
        probabilities = (precise(values) / temperature).softmax(-1).nan_to_num_(0.0)
        return (probabilities if top_p == 1 else _nucleus(probabilities, top_p)[0]), ids
    everything = (precise(scores) / temperature).softmax(-1).nan_to_num_(0.0)
    if top_p == 1:
        return everything, None
    # A nucleus is nearly always small: sorting all outputs of every row waits until one is not.
    for k in sorted({min(NUCLEUS, outputs), outputs}):
        _, ids = leading(scores, k)
        probabilities, reached = _nucleus(everything.gather(-1, ids), top_p)
        if reached:
            break
    return probabilities, ids


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, bool]:
    """Keeps what stands before top_p of the mass is reached, and whether every row reaches it; largest first."""
    mass = probabilities.cumsum(-1)
    return probabilities.masked_fill(mass - probabilities >= top_p, 0.0), bool((mass[:, -1] >= top_p).all())


def uniforms(keys: Tensor, step: int) -> Tensor:
    """Numbers in [0, 1), one a key, fresh at every step: 52 bits of a hash of both."""
    bits = scramble(keys + scramble(torch.full_like(keys, step)))
    return precise(_shift_right(bits, 12)) * 2.0**-52


def scramble(values: Tensor) -> Tensor:
    """An int64 hash in which every bit of the input moves every bit of the output.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014, figure 11 with Stafford's variant 13 of the
    constants; arithmetic is modulo 2**64. Using a hash of a counter as a generator: Salmon et al. 2011.
    """
    values = values + _signed(0x9E3779B97F4A7C15)
    values = (values ^ _shift_right(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shift_right(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift without sign: torch's own on int64 copies the sign bit."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit number."""
    return value - (1 << 64) if value >= 1 << 63 else value
