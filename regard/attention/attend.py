"""Steps 3 to 5 in one function: score, normalise, sum.

`attend` picks the fastest backend that computes exactly what was asked; `explain_backend` says which one and why not
the others. Backends are in `regard.attention.backends`, each a class that says what it refuses, what it leaves to a
slower one, and runs; the reference serves everything and stands last.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from regard.attention.backends.blocked import Blocked
from regard.attention.backends.call import Attended as Attended
from regard.attention.backends.call import Backend, Call
from regard.attention.backends.fused import Fused
from regard.attention.backends.native import Native
from regard.attention.backends.reference import Reference
from regard.attention.distributions import Distribution, Softmax
from regard.attention.masks import Mask
from regard.attention.observation import Observe, problems_of
from regard.attention.scores import ScaledDot, Score
from regard.errors import ConfigError, ObservationError, ShapeError

BackendName = Literal["fused", "blocked", "reference", "native"]

# In the order in which they are tried; what stands behind the reference is taken by name alone.
BACKENDS: dict[BackendName, Backend] = {
    "fused": Fused(),
    "blocked": Blocked(),
    "reference": Reference(),
    "native": Native(),
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    distribution: Distribution | None = None,
    mask: Mask | None = None,
    dropout: float = 0.0,
    observe: Observe | None = None,
    backend: BackendName | None = None,
) -> Attended:
    """The sum of values, averaged under a distribution over scored keys.

    query: [batch, heads, query_len, head_dim]
    key: [batch, kv_heads, key_len, head_dim]; kv_heads divides heads, each key head serves heads/kv_heads query heads
    value: [batch, kv_heads, key_len, value_dim]
    score: how queries and keys are compared; scaled dot product unless given.
    distribution: how scores are normalised; softmax unless given.
    mask: where attending is allowed; everywhere unless given. Causal masks are aligned bottom-right.
    dropout: probability of dropping a weight. The caller passes 0 outside training.
    observe: statistics wanted of this call; they change no bit of the output.
    backend: forces one by name instead of taking the fastest that can. "native" is regard's own forward in C, faster on
        a CPU and never taken unasked, because it rounds otherwise than torch's.

    Edge cases: a query that may attend to nothing yields output 0, logsumexp -inf and entropy 0; so does every query
    where there are no keys, and every query that a causal mask puts before the first key.
    Numerics: softmax in float32 at least, under autocast too; the output has value's dtype.
    Memory grows linearly with the length, but where scores are few (`BLOCKED_FROM`) or their weights have dropout.
    Raises: ShapeError naming every mismatch; ObservationError naming every statistic that these weights do not have;
    ConfigError when a forced backend cannot serve the call.
    Source: Vaswani et al. 2017, eq. 1.
    """
    if has_torch_function_variadic(query, key, value):  # a TorchFunctionMode sees attention as one call
        return handle_torch_function(
            attend,
            (query, key, value),
            query,
            key,
            value,
            score=score,
            distribution=distribution,
            mask=mask,
            dropout=dropout,
            observe=observe,
            backend=backend,
        )
    call = _checked(query, key, value, score, distribution, mask, dropout, observe)
    if backend is not None:
        reason = _named(backend).refuses(call)
        if reason is not None:
            raise ConfigError(f"attend: backend `{backend}` cannot serve this call: {reason}; leave `backend` out")
        return BACKENDS[backend].run(call)
    for candidate in BACKENDS.values():
        if candidate.refuses(call) is None and candidate.declines(call) is None:
            return candidate.run(call)
    raise AssertionError("the reference serves every call")


class BackendChoice(NamedTuple):
    """chosen: the backend that `attend` takes; refused: why each faster one is not it."""

    chosen: str
    refused: dict[str, str]


def explain_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score | None = None,
    distribution: Distribution | None = None,
    mask: Mask | None = None,
    dropout: float = 0.0,
    observe: Observe | None = None,
) -> BackendChoice:
    """Which backend `attend` would take for these arguments, and why not the faster ones."""
    call = _checked(query, key, value, score, distribution, mask, dropout, observe)
    refused: dict[str, str] = {}
    for name, candidate in BACKENDS.items():
        reason = candidate.refuses(call) or candidate.declines(call)
        if reason is None:
            return BackendChoice(name, refused)
        refused[name] = reason
    raise AssertionError("the reference serves every call")


def _named(backend: str) -> Backend:
    for name, candidate in BACKENDS.items():
        if name == backend:
            return candidate
    raise ConfigError(f"attend: backend `{backend}` is not known; known: {', '.join(BACKENDS)}")


def _checked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score: Score | None,
    distribution: Distribution | None,
    mask: Mask | None,
    dropout: float,
    observe: Observe | None,
) -> Call:
    _check_kinds(query, key, value, score, distribution, mask, observe)
    problems = [
        f"{name} has {tensor.ndim} axes, expected 4: [batch, heads, length, width]"
        for name, tensor in (("query", query), ("key", key), ("value", value))
        if tensor.ndim != 4
    ]
    score = ScaledDot() if score is None else score
    distribution = Softmax() if distribution is None else distribution
    observe = observe if observe else None
    if not problems:
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            problems.append(f"batch: query {query.shape[0]}, key {key.shape[0]}, value {value.shape[0]}")
        if key.shape[1] != value.shape[1]:
            problems.append(f"kv_heads: key {key.shape[1]}, value {value.shape[1]}")
        if key.shape[1] == 0 or query.shape[1] % max(key.shape[1], 1):
            problems.append(f"heads: {query.shape[1]} query heads are no multiple of {key.shape[1]} key heads")
        if query.shape[3] == 0:
            problems.append("head_dim is 0, expected at least 1")
        if key.shape[2] != value.shape[2]:
            problems.append(f"key_len: key {key.shape[2]}, value {value.shape[2]}")
        batch, heads, query_len, key_len = query.shape[0], query.shape[1], query.shape[2], key.shape[2]
        problems += score.check(
            query.shape[3], key.shape[3], heads=heads, batch=batch, query_len=query_len, key_len=key_len
        )
        problems += distribution.check(heads=heads)
        if mask is not None:
            problems += mask.check(batch, key_len, heads=heads, query_len=query_len)
    if not query.dtype == key.dtype == value.dtype:
        problems.append(f"dtypes: query {query.dtype}, key {key.dtype}, value {value.dtype}")
    elif not query.dtype.is_floating_point:
        problems.append(f"dtypes: {query.dtype}, expected a floating point one")
    if not query.device == key.device == value.device:
        problems.append(f"devices: query {query.device}, key {key.device}, value {value.device}")
    if not (isinstance(dropout, int | float) and 0.0 <= dropout < 1.0):
        problems.append(f"dropout is {dropout!r}, expected at least 0 and below 1")
    call = Call(query, key, value, score, distribution, mask, dropout, observe)
    unobservable = []
    if observe is not None and query.ndim == key.ndim == 4:
        unobservable = problems_of(observe, query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        unobservable += [] if problems else _not_had(call, observe)
    if problems:
        raise ShapeError("attend: " + "; ".join(problems + unobservable))
    if unobservable:
        raise ObservationError("attend: " + "; ".join(unobservable))
    return call


def _not_had(call: Call, observe: Observe) -> list[str]:
    """The statistics asked for that these scores and weights do not have."""
    name = type(call.distribution).__name__
    problems = []
    if observe.logsumexp and not call.distribution.has_logsumexp:
        problems.append(f"observe.logsumexp: {name} weights have none; ask for rows instead")
    if observe.trace and not call.distribution.has_logsumexp:
        problems.append(f"observe.trace: {name} weights are not recomputed from a logsumexp; ask for rows instead")
    elif observe.trace and call.pairs is None:
        problems.append(f"observe.trace: {call.score_name} makes no products that could be kept; ask for rows instead")
    return problems


def _check_kinds(query: object, key: object, value: object, *others: object) -> None:
    """Refuses arguments of the wrong kind, all at once; others: score, distribution, mask, observe."""
    tensors = {"query": query, "key": key, "value": value}
    problems = [
        f"{name} is {type(given).__name__}, expected a tensor"
        for name, given in tensors.items()
        if not isinstance(given, Tensor)
    ]
    expected = (
        ("score", Score, "an object such as ScaledDot()"),
        ("distribution", Distribution, "an object such as Softmax()"),
        ("mask", Mask, "an object such as Causal() or Padding(lengths), joined by & and |"),
        ("observe", Observe, "a request such as Observe(entropy=True)"),
    )
    problems += [
        f"{name} is {type(given).__name__}, expected {wanted}"
        for (name, kind, wanted), given in zip(expected, others, strict=True)
        if given is not None and not isinstance(given, kind)
    ]
    if problems:
        raise ShapeError("attend: " + "; ".join(problems))
