"""Looks at attention heads that see what a test says, whatever the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from regard.attention.observation import Observation
from regard.attention.pair_scores import PairScores
from regard.attention.records.record import AttentionRecord
from regard.training import attention_monitor
from regard.training.attention_monitor import Look


def observation(entropy: Tensor, *, largest: Tensor | None = None, keys: int | None = 8) -> Observation:
    """What a call of `entropy` [batch, heads, query_len] shows, with queries that may each attend to `keys` keys."""
    batch, heads, query_len = entropy.shape
    trace = None
    if keys is not None:
        trace = PairScores(torch.zeros(batch, heads, query_len, 3), torch.zeros(batch, heads, keys, 3), 1.0)
    return Observation(
        entropy=entropy,
        max_logit=torch.ones_like(entropy) if largest is None else largest,
        sink_mass=torch.full_like(entropy, 0.25),
        trace=trace,
    )


def looked(*parts: Mapping[str, Observation], real: Mapping[str, Tensor] | None = None) -> Look:
    """A look that found these layers in the parts of its step."""
    look = Look(lambda batch: real or {})
    for layers in parts:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(attention_monitor, "observe", showing(layers))
            with look.at(nn.Identity(), None, trace=True):  # type: ignore[arg-type]  # nobody reads the batch
                pass
    return look


def showing(layers: Mapping[str, Observation]) -> Callable[..., Any]:
    """In place of `observe`: whatever the model does, these layers are seen."""

    @contextmanager
    def observe(model: nn.Module, **request: Any) -> Iterator[AttentionRecord]:
        yield AttentionRecord(layers)

    return observe
