"""Every statistic from materialised scores, by its definition, in float64; and what is held against it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from regard.attention.observation import Observation

NOTHING = float("-inf")
ASKED: dict[str, Any] = {
    "logsumexp": True,
    "entropy": True,
    "max_logit": True,
    "received": True,
    "sink_mass": 2,
    "top_k": 3,
    "rows": (0, -1),
    "columns": (1, -2),
    "pooled": (3, 2),
    "trace": True,
}


def observed(scores: Tensor, sink: Tensor | None = None, real: Tensor | None = None) -> dict[str, Tensor]:
    """What `ASKED` is to give. scores: [batch, heads, query_len, key_len], the lowest value and -inf disallow.

    real: bool [batch, query_len]; the entries of the others are those of a query that may attend to nothing.
    """
    scores = scores.double().masked_fill(scores <= torch.finfo(scores.dtype).min / 2, NOTHING)
    if real is not None:
        scores = scores.masked_fill(~real[:, None, :, None], NOTHING)
    beside = torch.full_like(scores[..., :1], NOTHING)
    if sink is not None:
        beside = sink.double()[None, :, None, None].expand_as(beside)
    logsumexp = torch.cat([scores, beside], -1).logsumexp(-1)
    weights = torch.where(scores == NOTHING, 0.0, (scores - logsumexp[..., None]).exp())
    query_len, key_len = scores.shape[-2:]
    row = torch.arange(query_len) * 3 // query_len
    column = torch.arange(key_len) * 2 // key_len
    pooled = weights.new_zeros(*scores.shape[:2], 3, 2)
    for i in range(query_len):
        for j in range(key_len):
            pooled[:, :, row[i], column[j]] += weights[:, :, i, j]
    return {
        "logsumexp": logsumexp,
        "entropy": torch.special.entr(weights).sum(-1),
        "max_logit": scores.amax(-1),
        "received": weights.sum(-2),
        "sink_mass": weights[..., :2].sum(-1),
        "top_weights": weights.topk(min(3, key_len), -1).values,
        "rows": weights[:, :, [0, -1]],
        "columns": weights[..., [min(1, key_len - 1), max(-2, -key_len)]],
        "pooled": pooled,
        "weights": weights,
    }


def compare(found: Observation, expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Holds an observation of `ASKED` to what is expected. Raises: AssertionError that names the statistic."""
    for name, truth in expected.items():
        mine = _of_trace(found) if name == "weights" else getattr(found, name)
        torch.testing.assert_close(
            mine.double(), truth, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def _of_trace(found: Observation) -> Tensor:
    assert found.trace is not None and found.logsumexp is not None
    scores = found.trace.of_queries(torch.arange(found.trace.query_len))
    weights = (scores - found.logsumexp[..., None]).exp()
    return torch.where(scores == NOTHING, 0.0, weights)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Raises: AssertionError where a hook, a mode or a replaced function is left after the block."""

    def state() -> list[Any]:
        modelling = sys.modules.get("transformers.modeling_utils")
        interface = modelling.AttentionInterface if modelling else None
        return [
            dict(nn.modules.module._global_forward_hooks),
            dict(nn.modules.module._global_forward_pre_hooks),
            dict(nn.modules.module._global_forward_hooks_always_called),
            _get_current_function_mode_stack(),
            _get_current_dispatch_mode_stack(),
            vars(interface).get("get_interface") if interface else None,
            dict(interface._global_mapping) if interface else None,
            torch.nn.functional.scaled_dot_product_attention,
            torch.nn.functional.multi_head_attention_forward,
        ]

    before = state()
    try:
        yield
    finally:
        assert state() == before, "something was left behind"


class Large(TorchDispatchMode):
    """Counts the memory that operations take anew, of so many elements or more."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self._elements = elements
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = {tensor.untyped_storage()._cdata for tensor in _tensors([*args, *kwargs.values()])}
        result = func(*args, **kwargs)
        for tensor in _tensors([result]):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage.nbytes() // tensor.itemsize >= self._elements:
                self.found.append(func.name())
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def large(elements: int, run: Callable[[], Any]) -> list[str]:
    """The operations of a run that took memory for so many elements or more, in their order."""
    with Large(elements) as mode, torch.no_grad():
        run()
    return mode.found
