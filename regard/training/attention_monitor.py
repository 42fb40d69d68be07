"""The health of every attention head while a model learns: entropy, largest score and sink mass, every so many steps.

The step's own forward pass runs under `regard.observe`, so that the numbers are those of the very step, and the step is
what it would have been: no random number is drawn, no kernel exchanged. They go to `metrics.jsonl` and TensorBoard, and
two rules turn them into warnings:

    entropy collapse    a head's mean entropy falls below 5 % of the most that its keys allow, log(number of allowed
                        keys), and stays there for 3 looks in a row, after it was at 10 % or more. Low entropy goes
                        with unstable training (Zhai et al. 2023).
    exploding scores    a head's largest score exceeds 100, the bound at which QK-clip steps in (Kimi Team 2025,
                        sec. 2.1); told again only after it was at 50 or less.

Both limits lie in a gap: of 48 heads trained by recipes/translate/multi30k-en-de.yaml 8 had collapsed, to 0.2 to 2.5 %
with scores of 350 to 950; the sharpest of the others was at 28 %, and the largest of their scores 48.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from regard.attention.hosts.observe import observe
from regard.attention.observation import Observation
from regard.attention.pair_scores import PairScores
from regard.data.batches import Batch
from regard.errors import ObservationError
from regard.training.monitor import Metrics
from regard.training.processes import World

SINK_KEYS = 1  # the first so many keys, whose share of the mass is told
BLOCK_PAIRS = 2**22  # pairs of a materialised mask that are counted at once, a byte each

Result = TypeVar("Result")
# Which queries of a batch are real, by the beginning of the layers' names: {"encoder": bool [batch, source_len], ...}.
RealQueries = Callable[[Batch], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Rule:
    """When a head is reported: at the `looks`-th look in a row beyond `limit`, once for each time that it was well.

    name: of the number that decides. limit: beyond it a head is ill. well: on the other side of it, equal included, a
    head is well; one in between keeps its state. falls: ill is below the limit, not above it. from_the_start: a head is
    taken for well before its first look.
    """

    name: str
    limit: float
    well: float
    looks: int
    falls: bool
    from_the_start: bool

    def is_ill(self, value: float) -> bool:
        return value < self.limit if self.falls else value > self.limit

    def is_well(self, value: float) -> bool:
        return value >= self.well if self.falls else value <= self.well


COLLAPSE = Rule("entropy_share", limit=0.05, well=0.10, looks=3, falls=True, from_the_start=False)
EXPLOSION = Rule("max_logit", limit=100.0, well=50.0, looks=1, falls=False, from_the_start=True)
RULES = (COLLAPSE, EXPLOSION)


class LayerHealth(NamedTuple):
    """Of one layer over one step, a number a head.

    entropy: nats, mean over real queries. entropy_share: the same sum as a share of the sum of log(number of allowed
    keys), 0 to 1; NaN where nobody had a choice, or where the number of allowed keys is not known. max_logit: the
    largest. sink_mass: the mass on the first key, mean over real queries.
    """

    entropy: list[float]
    entropy_share: list[float]
    max_logit: list[float]
    sink_mass: list[float]


class Look:
    """One step under observation: sums over the real queries of all its parts."""

    def __init__(self, real_queries: RealQueries) -> None:
        self._real_queries = real_queries
        self._sums: dict[str, Tensor] = {}  # layer -> float64 [4, heads]: entropy, log allowed keys, sink mass, queries
        self._largest: dict[str, Tensor] = {}  # layer -> [heads]

    @contextmanager
    def at(self, model: nn.Module, batch: Batch, *, trace: bool) -> Iterator[None]:
        """Within the context, what `model` attends to on `batch` is taken in.

        trace: whether to ask for that by which the allowed keys are counted; without it entropy has no share.
        Raises: ObservationError when it cannot be observed exactly, from entering, from within, or from leaving.
        """
        ran = False
        try:
            with observe(model, entropy=True, max_logit=True, sink_mass=SINK_KEYS, trace=trace) as seen:
                yield
                ran = True
        except ObservationError:
            if ran and not seen.layers:
                return  # it is over, and there was no attention in it to look at
            raise
        real = self._real_queries(batch)
        for layer, calls in _calls_by_layer(seen.layers).items():
            self._take_in(layer, calls, _of_layer(layer, real))

    def health(self) -> dict[str, LayerHealth]:
        """What the step came to, by layer; one transfer from the device whatever the number of layers."""
        if not self._sums:
            return {}
        heads = [sums.shape[1] for sums in self._sums.values()]
        rows = [torch.cat([sums, self._largest[layer][None]]) for layer, sums in self._sums.items()]
        found = {}
        for layer, numbers in zip(self._sums, torch.cat(rows, dim=1).cpu().split(heads, dim=1), strict=True):
            entropy, ceiling, sink_mass, queries, largest = numbers
            share = torch.where(ceiling > 0, entropy / ceiling, math.nan)
            found[layer] = LayerHealth(
                (entropy / queries).tolist(), share.tolist(), largest.tolist(), (sink_mass / queries).tolist()
            )
        return found

    def numbers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What was taken in so far, by layer, on the CPU: sums and largest, for `add`."""
        return {layer: (sums.cpu(), self._largest[layer].cpu()) for layer, sums in self._sums.items()}

    def add(self, numbers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Takes in the `numbers` of another look at the same step."""
        for layer, (sums, largest) in numbers.items():
            self._add(layer, sums, largest)

    def _take_in(self, layer: str, calls: list[Observation], real: Tensor | None) -> None:
        """Adds a layer's calls, whose queries follow each other; real: bool [batch, query_len] of them together."""
        largest = torch.cat([_given(call.max_logit) for call in calls], dim=2)
        if real is not None and real.shape != (largest.shape[0], largest.shape[2]):
            given, expected = tuple(real.shape), (largest.shape[0], largest.shape[2])
            raise ObservationError(
                f"layer `{layer}` has queries of shape {expected}, but the real ones are told as {given}; let"
                " `real_queries` name only layers that it describes"
            )
        # A query that may attend to nothing has no largest score: it is no query at all.
        counted = largest > float("-inf")
        if real is not None:
            counted &= real.to(largest.device)[:, None]
        entropy = torch.cat([_given(call.entropy) for call in calls], dim=2)
        sink_mass = torch.cat([_given(call.sink_mass) for call in calls], dim=2)
        ceiling = torch.cat([_ceiling(call).expand_as(_given(call.max_logit)) for call in calls], dim=2)
        sums = torch.stack(
            [
                torch.where(counted, values, 0.0).sum((0, 2), dtype=torch.float64)
                for values in (entropy, ceiling, sink_mass, torch.ones_like(entropy))
            ]
        )
        self._add(layer, sums, torch.where(counted, largest, float("-inf")).amax((0, 2)).double())

    def _add(self, layer: str, sums: Tensor, largest: Tensor) -> None:
        if layer in self._sums:
            sums = sums + self._sums[layer]
            largest = torch.maximum(largest, self._largest[layer])
        self._sums[layer], self._largest[layer] = sums, largest


class AttentionMonitor:
    """Looks at a model's attention at the first step and at every `every`-th; warns of heads that fall ill.

    every: None for never. said: told of every warning. real_queries: see `RealQueries`; a layer that it does not name
    counts every query that may attend to something.

    A model that cannot be observed exactly, or that has no attention, is trained as ever: the former is told once.
    """

    def __init__(
        self,
        every: int | None,
        *,
        said: Callable[[str], None],
        real_queries: RealQueries = lambda batch: {},
    ) -> None:
        self.every = every
        self._said = said
        self._real_queries = real_queries
        self._trace = True  # whether this model's attention leaves a trace, by which its allowed keys are counted
        # rule -> layer -> a head's [was well since it was last told, looks in a row at which it was ill]
        self._heads: dict[str, dict[str, list[list[int]]]] = {rule.name: {} for rule in RULES}

    def look(self, step: int) -> Look | None:
        """A look for `step` to be taken through, or None where none is due."""
        # The first step shows the attention that the model began with, which a collapse is measured against.
        due = self.every is not None and (step == 1 or step % self.every == 0)
        return Look(self._real_queries) if due else None

    def through(self, look: Look | None, model: nn.Module, batch: Batch, forward: Callable[[], Result]) -> Result:
        """What `forward` returns, which takes `model` over `batch`; what it attends to is taken into `look`, if any.

        forward: a pure function: where it cannot be observed it is done again without.
        """
        while look is not None and self.every is not None:
            try:
                with look.at(model, batch, trace=self._trace):
                    return forward()
            except ObservationError as error:
                if self._trace:
                    self._trace = False  # scores that are no products leave no trace; the rest may be there
                else:
                    self.every = None
                    self._said(f"attention is not monitored: {error}; training.attention_every null leaves this out")
        return forward()

    def join(self, look: Look, world: World) -> Look:
        """What all processes saw of a step; where one of them cannot be observed, none is from here on."""
        if world.size == 1:
            return look
        joined = Look(self._real_queries)
        for every, trace, numbers in world.gathered((self.every, self._trace, look.numbers())):
            self.every = None if every is None else self.every
            self._trace &= trace
            joined.add(numbers)
        return joined

    def tell(self, step: int, look: Look, metrics: Metrics) -> None:
        """Writes what a look found, a line and an event a number, and warns."""
        found = {} if self.every is None else look.health()
        if not found:
            return
        warnings = self._warnings(step, found)
        line: dict[str, Any] = {"attention": {layer: _rounded(health) for layer, health in found.items()}}
        metrics.write(step, {**line, "attention_warnings": warnings} if warnings else line)
        for layer, health in found.items():
            for name, values in health._asdict().items():
                for head, value in enumerate(values):
                    metrics.event(step, f"attention_{name}/{layer}/{head}", value)
        for warning in warnings:
            self._said(warning)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to warn as one that was never stopped; plain values."""
        return {
            rule: {layer: [list(head) for head in heads] for layer, heads in of_rule.items()}
            for rule, of_rule in self._heads.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        for rule in RULES:
            self._heads[rule.name] = {
                layer: [list(head) for head in heads] for layer, heads in state.get(rule.name, {}).items()
            }

    def _warnings(self, step: int, found: Mapping[str, LayerHealth]) -> list[str]:
        warnings = []
        for rule in RULES:
            for layer, health in found.items():
                values: list[float] = getattr(health, rule.name)
                heads = self._heads[rule.name].setdefault(layer, [[int(rule.from_the_start), 0] for _ in values])
                for head, value in enumerate(values):
                    if _falls_ill(rule, heads[head], value):
                        warnings.append(_warning(rule, step, layer, head, health))
        return warnings


def _falls_ill(rule: Rule, head: list[int], value: float) -> bool:
    """Whether this look is the one at which a head is to be told; head: its state, brought up to date."""
    if math.isnan(value):
        return False
    was_well, looks = head
    looks = looks + 1 if rule.is_ill(value) else 0
    told = bool(was_well) and looks == rule.looks
    head[:] = [int(rule.is_well(value) or (bool(was_well) and not told)), min(looks, rule.looks)]
    return told


def _warning(rule: Rule, step: int, layer: str, head: int, health: LayerHealth) -> str:
    where = f"step {step}: {layer}, head {head}"
    if rule is COLLAPSE:
        nats, share = health.entropy[head], health.entropy_share[head]
        return (
            f"{where}: attention has collapsed: entropy {nats:.2g} nats, {share:.1%} of what its keys allow, below"
            f" {rule.limit:.0%} for {rule.looks} looks; if learning stalls or jumps, start another run with a lower"
            " training.schedule.peak or a longer training.schedule.warmup_steps"
        )
    return (
        f"{where}: attention scores explode: the largest is {health.max_logit[head]:.4g}, above {rule.limit:.0f}; if"
        " learning stalls or jumps, start another run with a lower training.schedule.peak or a higher"
        " training.optimizer.weight_decay"
    )


# -- reading an observation --------------------------------------------------------------------------------------------


def _calls_by_layer(layers: Mapping[str, Observation]) -> dict[str, list[Observation]]:
    """The calls of each layer in the order that they were made; the second one stands under "name#1"."""
    found: dict[str, list[Observation]] = {}
    for name, observation in layers.items():
        found.setdefault(name.partition("#")[0], []).append(observation)
    return found


def _of_layer(layer: str, real: Mapping[str, Tensor]) -> Tensor | None:
    return next((mask for part, mask in real.items() if layer == part or layer.startswith(f"{part}.")), None)


def _given(statistic: Tensor | None) -> Tensor:
    assert statistic is not None, "it was asked for"
    return statistic


def _ceiling(observation: Observation) -> Tensor:
    """The most nats that each query's keys allow, [batch or 1, heads or 1, query_len]; NaN where it is not known."""
    if observation.trace is not None:
        return allowed_keys(observation.trace).clamp(min=1).double().log()
    return torch.full((1, 1, 1), math.nan, dtype=torch.float64, device=_given(observation.max_logit).device)


def allowed_keys(pairs: PairScores) -> Tensor:
    """How many keys each query may attend to, int64 [batch or 1, heads or 1, query_len].

    Read off the ranges where these say it all; a materialised mask is counted a block of queries at a time.
    """
    dense = [tensor for tensor in (pairs.allowed, pairs.bias) if tensor is not None]
    if not dense:
        if pairs.ranges is None:
            return torch.full((1, 1, pairs.query_len), pairs.key_len, device=pairs.query.device)
        return (pairs.ranges[..., 1] - pairs.ranges[..., 0]).sum(-1)[:, None]
    keys = torch.arange(pairs.key_len, device=pairs.query.device)
    block = max(1, BLOCK_PAIRS // max(1, pairs.batch * pairs.heads * pairs.key_len))
    counts = []
    for rows in torch.arange(pairs.query_len, device=pairs.query.device).split(block):
        allowed = pairs.allowed_pairs(rows, keys)
        if pairs.bias is not None:
            bias = pairs.bias if pairs.bias.shape[-2] == 1 else pairs.bias[..., rows, :]
            real = bias > torch.finfo(bias.dtype).min / 2
            allowed = real if allowed is None else allowed & real
        assert allowed is not None, "one of the two is there"
        counts.append(allowed.expand(*allowed.shape[:-2], len(rows), pairs.key_len).sum(-1))
    return torch.cat(counts, dim=-1)


def _rounded(health: LayerHealth) -> dict[str, list[float | None]]:
    """As JSON has it: six digits, null for what is not finite."""
    return {
        name: [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
        for name, values in health._asdict().items()
    }
