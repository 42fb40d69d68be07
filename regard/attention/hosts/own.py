"""Calls of `regard.attend`, whatever their score and distribution."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from regard.attention.attend import Attended, attend, explain_backend
from regard.attention.hosts.padding import real_queries
from regard.attention.hosts.undisturbed import checkpointed, undisturbed
from regard.attention.masks import Mask
from regard.attention.observation import Observation, Observe
from regard.attention.pair_scores import PairScores

if TYPE_CHECKING:
    from regard.attention.hosts.observe import Observer

SIGNATURE = inspect.signature(attend)


def look_at_attend(observer: Observer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
    """Runs the call with the observer's request joined to the caller's own; each gets what it asked for."""
    caller = observer.names.caller()
    if observer.expected is not None:
        observer.expected.seen = True
    request = None if caller is None else observer.wanted(caller.name)
    if request is None or caller is None:
        return attend(*args, **kwargs)
    call = SIGNATURE.bind(*args, **kwargs).arguments
    query, key, mask = call["query"], call["key"], call.get("mask")
    is_self = getattr(caller.module, "is_self", False) is True or caller.one_sequence
    if is_self and mask is not None and request.queries is None:
        request = replace(request, queries=_real_queries(mask, query, key))
    theirs = call.pop("observe", None) or Observe()
    joined = None if checkpointed() else join(request, theirs)
    with observer.explained(caller.name):
        if joined is not None:
            attended = attend(**call, observe=joined)
            mine = part_of(attended.observation, request)
        else:
            # Two requests that no single answer serves, or a checkpoint that counts operations: asked for apart.
            attended = attend(**call, observe=theirs)
            with undisturbed(request):
                mine = attend(**(call | {"dropout": 0.0}), observe=request).observation
    forced = call.pop("backend", None)
    chosen = explain_backend(**call, observe=request).chosen if forced is None else forced
    observer.keep(caller.name, mine, f"regard {chosen}")
    return Attended(attended.output, part_of(attended.observation, theirs))


def _real_queries(mask: Mask, query: Tensor, key: Tensor) -> Tensor | None:
    ranges, allowed = mask.lowered(query.shape[0], query.shape[-2], key.shape[-2], query.device)
    return real_queries(PairScores(query.detach(), key.detach(), 1.0, ranges=ranges, allowed=allowed))


def join(mine: Observe, theirs: Observe) -> Observe | None:
    """A request that answers both; None where one answer cannot serve both."""
    if not theirs:
        return mine
    joined: dict[str, Any] = {}
    for field in fields(Observe):
        first, second = getattr(mine, field.name), getattr(theirs, field.name)
        if _same(first, second):
            joined[field.name] = first
        elif field.name in ("heads", "queries"):
            return None
        elif _same(first, field.default) or _same(second, field.default):
            joined[field.name] = second if _same(first, field.default) else first
        else:
            return None
    return Observe(**joined)


def _same(first: object, second: object) -> bool:
    return first is second or (not isinstance(first, Tensor) and not isinstance(second, Tensor) and first == second)


def part_of(observation: Observation, request: Observe) -> Observation:
    """What `request` asked for of an answer to more."""
    answers = {
        "logsumexp": ("logsumexp",),
        "entropy": ("entropy",),
        "max_logit": ("max_logit",),
        "received": ("received",),
        "sink_mass": ("sink_mass",),
        "top_k": ("top_weights", "top_index"),
        "rows": ("rows", "row_index"),
        "columns": ("columns", "column_index"),
        "pooled": ("pooled",),
        "trace": ("trace", "logsumexp"),
        "heads": ("head_index",),
    }
    default = Observe()
    kept = {
        name
        for asked, names in answers.items()
        if not _same(getattr(request, asked), getattr(default, asked))
        for name in names
    }
    return Observation(**{name: getattr(observation, name) for name in kept})
