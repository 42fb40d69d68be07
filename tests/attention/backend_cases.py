"""Calls that every backend is held to: masks, scores and distributions in all their combinations, and small tiles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regard.attention.backends import fused, parts, plan
from regard.attention.distributions import Distribution, SinkSoftmax, Softmax
from regard.attention.masks import Causal, Dense, Global, Mask, Packed, Padding, Prefix, Window
from regard.attention.modifiers import ALiBi, RelativeBias
from regard.attention.scores import Bilinear, Cosine, Rotary, ScaledDot, Score

BATCH, HEADS, KV_HEADS, DIM = 3, 4, 2, 6


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def sides(query_len: int, key_len: int, dtype: torch.dtype = torch.float64, dim: int = DIM) -> list[Tensor]:
    """query, key, value, all learning."""
    shapes = ((BATCH, HEADS, query_len, dim), (BATCH, KV_HEADS, key_len, dim), (BATCH, KV_HEADS, key_len, dim))
    return [normal(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes)]


def lengths(key_len: int) -> Tensor:
    return torch.tensor([key_len * 2 // 3, key_len, 0])


def documents(key_len: int) -> Tensor:
    """Which document each key is of; the second sequence holds many short ones."""
    place = torch.arange(key_len)
    return torch.stack([place * 3 // max(key_len, 1), place // 2, (place > 3).long()])


def table(query_len: int, key_len: int, *, batch: int = BATCH, heads: int = 1) -> Tensor:
    return torch.rand(batch, heads, query_len, key_len, generator=torch.Generator().manual_seed(5)) < 0.4


# name -> the mask of a call of (query_len, key_len); all that is carried compactly
COMPACT: dict[str, Callable[[int, int], Mask | None]] = {
    "none": lambda query_len, key_len: None,
    "causal": lambda query_len, key_len: Causal(),
    "padding": lambda query_len, key_len: Padding(lengths(key_len)),
    "padding in front": lambda query_len, key_len: Padding(lengths(key_len), begins=key_len - lengths(key_len)),
    "causal and padding": lambda query_len, key_len: Causal() & Padding(lengths(key_len)),
    "causal, padding in front": lambda query_len, key_len: (
        Causal() & Padding(lengths(key_len), begins=key_len - lengths(key_len))
    ),
    "causal or padding": lambda query_len, key_len: Causal() | Padding(lengths(key_len)),
    "window": lambda query_len, key_len: Window(5, 3),
    "causal window": lambda query_len, key_len: Causal() & Window(11, 11),
    "window and global": lambda query_len, key_len: Window(4, 0) | Global(2),
    "everything": lambda query_len, key_len: (Window(6, 2) | Global(3)) & Padding(lengths(key_len)) & Causal(),
    "prefix": lambda query_len, key_len: Prefix(lengths(key_len)),
    "packed": lambda query_len, key_len: Packed(documents(key_len)),
    "causal packed": lambda query_len, key_len: Causal() & Packed(documents(key_len)),
}
DENSE: dict[str, Callable[[int, int], Mask | None]] = {
    "dense": lambda query_len, key_len: Dense(table(query_len, key_len, heads=HEADS)),
    "dense and causal": lambda query_len, key_len: Dense(table(query_len, key_len, batch=1)) & Causal(),
    "dense or window": lambda query_len, key_len: Dense(table(query_len, key_len)) | Window(2, 2),
    "dense keys": lambda query_len, key_len: Dense(table(1, key_len)) & Causal(),
}
MASKS = COMPACT | DENSE

SCORES: dict[str, Score] = {
    "scaled dot": ScaledDot(),
    "negative": ScaledDot(-0.3),
    "nought": ScaledDot(0.0),
    "alibi": ScaledDot().then(ALiBi()),
    "rotary, t5": ScaledDot().then(Rotary(), RelativeBias(normal(32, HEADS))),
    "cosine": Cosine(normal(HEADS).exp()),
    "bilinear": Bilinear(normal(HEADS, DIM, DIM)),
}


def distributions() -> dict[str, tuple[Distribution, list[Tensor]]]:
    """name -> (distribution, what it learns)."""
    logits = normal(HEADS).requires_grad_()
    return {"softmax": (Softmax(), []), "off by one": (SinkSoftmax(), []), "sinks": (SinkSoftmax(logits), [logits])}


# The last query may see the last key: as many queries as keys, a continued sequence, queries before the first key, one.
LENGTHS = {"square": (37, 37), "continued": (13, 41), "before the keys": (41, 13), "one query": (1, 29)}


def small_tiles(monkeypatch: pytest.MonkeyPatch, *, parts_only: bool = True) -> None:
    """Every threshold of planning so low that a few dozen tokens take many tiles of every kind."""
    for name, value in (
        ("BLOCK_ROWS", 7),
        ("BLOCK_ROWS_FAR", 11),
        ("FAR", 15),
        ("SHORTEST_RUN", 3),
        ("WIDEST_GAP", 3),
        ("SPLIT_FROM", 9),
        ("SPLIT_FROM_BIASED", 4),
    ):
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(fused, "PADDED_FROM", 0)
    if parts_only:
        monkeypatch.setattr(fused, "PARTS_FROM", 0)
        monkeypatch.setattr(parts, "FEW_PAIRS", 0)


def output_and_gradients(output: Tensor, *sides: Tensor) -> tuple[Tensor, ...]:
    goal = normal(*output.shape, seed=3)
    return (output, *torch.autograd.grad((output.double() * goal).sum(), sides))
