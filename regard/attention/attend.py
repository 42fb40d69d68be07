"""Steps 3 to 5 in one function: score, normalise, sum.

`attend` picks the fastest backend that computes exactly what was asked; `explain_backend` says which one and why not
the others. A backend is a pair of functions, `refuses` (the reason why it cannot serve a call, or None) and `run`; the
reference serves everything and stands last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.attention.distributions import Distribution, Softmax
from regard.attention.masks import Causal, Mask
from regard.attention.observation import Observation, Observe, observe_materialised
from regard.attention.scores import ScaledDot, Score
from regard.errors import ConfigError, ShapeError

BackendName = Literal["fused", "reference"]


class Attended(NamedTuple):
    """output: [batch, heads, query_len, value_dim], in value's dtype; observation: empty unless asked for."""

    output: Tensor
    observation: Observation


@dataclass(frozen=True)
class Call:
    """One checked call of `attend`; what a backend receives."""

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    distribution: Distribution
    mask: Mask | None
    dropout: float
    observe: Observe

    @property
    def query_len(self) -> int:
        return self.query.shape[-2]

    @property
    def key_len(self) -> int:
        return self.key.shape[-2]

    @property
    def group(self) -> int:
        """How many query heads share one key head."""
        return self.query.shape[1] // self.key.shape[1]


class Backend(Protocol):
    def refuses(self, call: Call) -> str | None:
        """Why this backend cannot compute exactly what is asked, or None."""

    def run(self, call: Call) -> Attended:
        """Computes it."""


class Reference:
    """Materialises the scores; any dtype up to float64, every score, distribution, mask and statistic.

    It is the oracle of the others: everything between the inputs and the output is float32 at least, autocast or not.
    """

    def refuses(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> Attended:
        dtype = torch.promote_types(call.query.dtype, torch.float32)
        with torch.autocast(call.query.device.type, enabled=False):
            query, key, value = call.query.to(dtype), call.key.to(dtype), call.value.to(dtype)
            if call.group > 1:
                key, value = (kept.repeat_interleave(call.group, dim=1) for kept in (key, value))
            scores = call.score.similarity(query, key)
            allowed = None if call.mask is None else call.mask.dense(call.query_len, call.key_len, query.device)
            weights, logsumexp = call.distribution.weights(scores, allowed)
            observation = Observation()
            if call.observe:
                observation = observe_materialised(call.observe, scores, weights, logsumexp, allowed)
            dropped = F.dropout(weights, call.dropout) if call.dropout > 0 else weights
            return Attended((dropped @ value).to(call.value.dtype), observation)


class Fused:
    """Torch's fused kernels: never holds the scores of all pairs. Softmax of a dot-like score."""

    def refuses(self, call: Call) -> str | None:
        if call.observe:
            return "statistics were asked for, which it does not return"
        if not isinstance(call.distribution, Softmax):
            return f"it normalises by softmax, not by {type(call.distribution).__name__}"
        if not call.score.is_dot:
            return f"it compares by products, not by {type(call.score).__name__}"
        if call.dropout > 0:
            return "dropout on the weights is served materialised"
        device = call.query.device.type
        key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
        if device == "cpu" and key_dim != value_dim:
            return f"on a CPU it wants equal widths, not keys of {key_dim} and values of {value_dim}"
        if device != "cpu" and call.query.dtype == torch.float64:
            return "float64 is fused on a CPU only"
        return None

    def run(self, call: Call) -> Attended:
        mask = call.mask
        causal = isinstance(mask, Causal) and call.query_len == call.key_len
        allowed = empty = None
        # A batch of equal lengths and a single last query need no mask: asking first keeps torch on its fastest path.
        begin = call.key_len - call.query_len
        if mask is not None and not causal and mask.kind((begin, call.key_len), (0, call.key_len)) != "full":
            allowed = mask.dense(call.query_len, call.key_len, call.query.device)
            # Torch's kernels differ in what an empty row yields, NaN included. Here it attends to everything and its
            # output is set to 0, which makes its gradient exactly 0 too.
            empty = ~allowed.any(dim=-1, keepdim=True)
            allowed = allowed | empty
        with torch.autocast(call.query.device.type, enabled=False):
            query, scale = call.score.as_dot(call.query)
            key, value = call.key, call.value
            # Torch's CPU backward in bfloat16 is 4 to 5 times slower than in float32 on short rows: widen in training.
            learns = torch.is_grad_enabled() and any(side.requires_grad for side in (query, key, value))
            dtype = torch.float32 if learns and _is_cpu_bfloat16(query) else query.dtype
            output = F.scaled_dot_product_attention(
                _rows_adjacent(query.to(dtype)),
                _rows_adjacent(key.to(dtype)),
                _rows_adjacent(value.to(dtype)),
                attn_mask=allowed,
                is_causal=causal,
                scale=scale,
                enable_gqa=call.group > 1,
            ).to(call.value.dtype)
        if empty is not None:
            output = output.masked_fill(empty, 0.0)
        return Attended(output, Observation())


def _is_cpu_bfloat16(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def _rows_adjacent(tensor: Tensor) -> Tensor:
    """With the last axis contiguous: torch materialises the scores of anything else."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


BACKENDS: dict[BackendName, Backend] = {"fused": Fused(), "reference": Reference()}


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
    observe: statistics wanted of this call.
    backend: forces one by name instead of taking the fastest that can.

    Edge cases: a query that may attend to nothing yields output 0, logsumexp -inf and entropy 0; so does every query
    where there are no keys, and every query that a causal mask puts before the first key.
    Numerics: softmax in float32 at least, under autocast too; the output has value's dtype.
    Raises: ShapeError naming every mismatch; ConfigError when a forced backend cannot serve the call.
    Source: Vaswani et al. 2017, eq. 1.
    """
    call = _checked(query, key, value, score, distribution, mask, dropout, observe)
    if backend is not None:
        reason = _named(backend).refuses(call)
        if reason is not None:
            raise ConfigError(f"attend: backend `{backend}` cannot serve this call: {reason}; leave `backend` out")
        return BACKENDS[backend].run(call)
    for candidate in BACKENDS.values():
        if candidate.refuses(call) is None:
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
        reason = candidate.refuses(call)
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
    if not problems:
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            problems.append(f"batch: query {query.shape[0]}, key {key.shape[0]}, value {value.shape[0]}")
        if key.shape[1] != value.shape[1]:
            problems.append(f"kv_heads: key {key.shape[1]}, value {value.shape[1]}")
        if key.shape[1] == 0 or query.shape[1] % max(key.shape[1], 1):
            problems.append(f"heads: {query.shape[1]} query heads are no multiple of {key.shape[1]} key heads")
        if key.shape[2] != value.shape[2]:
            problems.append(f"key_len: key {key.shape[2]}, value {value.shape[2]}")
        problems += score.check(query.shape[3], key.shape[3], heads=query.shape[1])
        if mask is not None:
            problems += mask.check(query.shape[0], key.shape[2])
    if not query.dtype == key.dtype == value.dtype:
        problems.append(f"dtypes: query {query.dtype}, key {key.dtype}, value {value.dtype}")
    elif not query.dtype.is_floating_point:
        problems.append(f"dtypes: {query.dtype}, expected a floating point one")
    if not query.device == key.device == value.device:
        problems.append(f"devices: query {query.device}, key {key.device}, value {value.device}")
    if not 0.0 <= dropout < 1.0:
        problems.append(f"dropout is {dropout}, expected at least 0 and below 1")
    if problems:
        raise ShapeError("attend: " + "; ".join(problems))
    return Call(query, key, value, score, distribution or Softmax(), mask, dropout, observe or Observe())


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
