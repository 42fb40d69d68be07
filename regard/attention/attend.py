"""Steps 3 to 5 in one function: score, normalise, sum.

`attend` picks the fastest backend that computes exactly what was asked; `explain_backend` says which one and why not the
others. A backend is a pair of functions, `refuses` (the reason why it cannot serve a call, or None) and `run`; the
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
    """Materialises the scores; any dtype up to float64, every score, distribution, mask and statistic."""

    def refuses(self, call: Call) -> str | None:
        return None

    def run(self, call: Call) -> Attended:
        key = call.key.repeat_interleave(call.group, dim=1) if call.group > 1 else call.key
        value = call.value.repeat_interleave(call.group, dim=1) if call.group > 1 else call.value
        scores = call.score.similarity(call.query, key)
        allowed = None if call.mask is None else call.mask.dense(call.query_len, call.key_len, call.query.device)
        weights, logsumexp = call.distribution.weights(scores, allowed)
        observation = Observation()
        if call.observe:
            observation = observe_materialised(call.observe, scores, weights, logsumexp, allowed)
        dropped = F.dropout(weights, call.dropout) if call.dropout > 0 else weights
        return Attended(dropped.to(value.dtype) @ value, observation)


class Fused:
    """Torch's fused kernels: never holds the scores of all pairs. Softmax of a dot-like score."""

    def refuses(self, call: Call) -> str | None:
        if call.observe:
            return "statistics were asked for, which it does not return"
        if not isinstance(call.distribution, Softmax):
            return f"it normalises by softmax, not by {type(call.distribution).__name__}"
        if call.score.as_dot(call.query) is None:
            return f"it compares by products, not by {type(call.score).__name__}"
        if call.dropout > 0:
            return "dropout on the weights is served materialised"
        if call.query.dtype == torch.float64:
            return "float64 is served by the reference"
        return None

    def run(self, call: Call) -> Attended:
        product = call.score.as_dot(call.query)
        assert product is not None
        query, scale = product
        mask = call.mask
        # A single query at the end may attend to everything before it: the causal mask says nothing then.
        if isinstance(mask, Causal) and call.query_len == 1:
            mask = None
        causal = isinstance(mask, Causal) and call.query_len == call.key_len
        allowed = None
        if mask is not None and not causal:
            # A batch of equal lengths needs no mask: asking first keeps torch on its fastest path.
            begin = call.key_len - call.query_len
            if mask.kind((begin, call.key_len), (0, call.key_len)) != "full":
                allowed = mask.dense(call.query_len, call.key_len, query.device)
        # Torch's CPU backward in bfloat16 is 4 to 5 times slower than in float32 on short rows: widen when training.
        narrow = query.device.type == "cpu" and query.requires_grad and query.dtype == torch.bfloat16
        dtype = torch.float32 if narrow else query.dtype
        with torch.autocast(query.device.type, enabled=False):
            output = F.scaled_dot_product_attention(
                query.to(dtype),
                call.key.to(dtype),
                call.value.to(dtype),
                allowed,
                is_causal=causal,
                scale=scale,
                enable_gqa=call.group > 1,
            ).to(call.value.dtype)
        if allowed is not None:
            # Torch's kernels differ in what an empty row yields; regard's is 0.
            output = output * allowed.any(dim=-1, keepdim=True).to(output.dtype)
        return Attended(output, Observation())


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
    key: [batch, kv_heads, key_len, head_dim]; kv_heads divides heads, and each key head serves heads/kv_heads query heads
    value: [batch, kv_heads, key_len, value_dim]
    score: how queries and keys are compared; scaled dot product unless given.
    distribution: how scores are normalised; softmax unless given.
    mask: where attending is allowed; everywhere unless given. Causal masks are aligned bottom-right.
    dropout: probability of dropping a weight. The caller passes 0 outside training.
    observe: statistics wanted of this call.
    backend: forces one by name instead of taking the fastest that can.

    Edge cases: a query that may attend to nothing yields output 0, logsumexp -inf and entropy 0.
    Numerics: softmax in float32 at least; the output has value's dtype.
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
        problems += score.check(query.shape[3], key.shape[3])
        if mask is not None:
            problems += mask.check(query.shape[0], key.shape[2])
    if not query.dtype == key.dtype == value.dtype:
        problems.append(f"dtypes: query {query.dtype}, key {key.dtype}, value {value.dtype}")
    if not 0.0 <= dropout < 1.0:
        problems.append(f"dropout is {dropout}, expected at least 0 and below 1")
    if problems:
        raise ShapeError("attend: " + "; ".join(problems))
    return Call(query, key, value, score, distribution or Softmax(), mask, dropout, observe or Observe())
