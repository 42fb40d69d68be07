"""The training loop: exact after any kill, because everything random is a pure function of (seed, position).

Batch order comes from the stream, dropout from (seed, step, part of the step); a checkpoint holds the rest. What is
validated, kept and averaged is the moving average of the weights where the recipe asks for one. Several processes run
the same loop in step: `update` shares out the batches, `parallel` the model, and the first process validates, writes
and speaks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regard.data.batches import Batch, Position
from regard.data.loading import Stream, batches_from
from regard.errors import ConfigError, Interrupted, TrainingError
from regard.training.attention_monitor import AttentionMonitor, RealQueries
from regard.training.averaging import MovingAverage, mean_of
from regard.training.checkpoint import Checkpoints, Saved
from regard.training.config import TrainingConfig
from regard.training.memory import keep_few_kernels
from regard.training.monitor import Metrics, NoMetrics, Silent, Watcher
from regard.training.optimizer import state_tensors
from regard.training.parallel import Objective, spread
from regard.training.precision import changes, name_of, numerics, resolved_precision
from regard.training.processes import World, check_parts
from regard.training.schedule import learning_rate
from regard.training.stopping import BrokenOff, StopRequest
from regard.training.update import Part, Updates

STATE_VERSION = 3

Validate = Callable[[nn.Module], dict[str, float]]  # the model is in evaluation mode; higher is better


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    step: the last update. best_step, best_score: of the best validation. candidates: what each way of finishing scored
    on the validation set; chosen: the one that the model now holds. stopped_early: patience ran out.
    """

    step: int
    best_step: int
    best_score: float
    candidates: dict[str, float]
    chosen: str
    stopped_early: bool


class Trainer:
    """One run of one model, or one process's part of it.

    objective: the summed loss of a batch. validate: scores of a model, a pure function of its weights; the score called
    `metric` decides, higher is better. keep_best: called with the model holding the weights of a new best validation.
    Both are called in the first process alone. seed: of dropout. real_queries: which positions of a batch are no
    padding, for the looks at attention; see `attention_monitor`. workers: processes that load batches ahead.
    folder: holds metrics, events and checkpoints; a run that finds its own checkpoint there goes on from it, whatever
    the number of processes that wrote it. world: the processes of the run.

    Raises: ConfigError when the batches of an update cannot be shared out evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: Stream,
        config: TrainingConfig,
        folder: Path,
        *,
        objective: Objective,
        validate: Validate,
        metric: str,
        seed: int,
        keep_best: Callable[[nn.Module], None] = lambda model: None,
        watcher: Watcher | None = None,
        real_queries: RealQueries = lambda batch: {},
        workers: int = 0,
        world: World = World(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
    ) -> None:
        persistent = set(model.state_dict()) & {name for name, _ in model.named_buffers()}
        assert not persistent, f"checkpoints and averages hold parameters, not the trained buffers {sorted(persistent)}"
        check_parts(config.accumulate, world)
        keep_few_kernels()
        self.world = world
        self.device = torch.device(device)
        self.model = model
        self.stream = stream
        self.config = config
        self.validate = validate
        self.metric = metric
        self.keep_best = keep_best
        self.workers = workers
        self.watcher = watcher if watcher is not None and world.is_first else Silent()
        said = self.watcher.said
        self.metrics = Metrics(folder) if world.is_first else NoMetrics(folder)
        self.attention = AttentionMonitor(config.attention_every, said=said, real_queries=real_queries)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, said, world)
        # That of the first process: they may stand on unlike machines, and have one precision between them.
        self.dtype = getattr(torch, world.first(lambda: name_of(resolved_precision(config.precision, self.device))))
        self.spread = spread(model, objective, config.parallel, world, self.device)
        self.trained = self.spread.trained
        self.updates = Updates(
            self.spread,
            config,
            self.attention,
            seed=seed,
            wanted=folder / "pieces.json",
            world=world,
            device=self.device,
            said=said,
        )
        self.average = None if config.ema_decay is None else MovingAverage(self.trained, config.ema_decay)
        self.stop = StopRequest()
        self.step = 0
        self.position = Position()
        self.best_step, self.best_score = 0, -math.inf
        self.num_tokens = 0  # target tokens trained on
        self.failures = 0  # validations since the best one
        self.closed = True  # the validation and the checkpoint that are due after the last update are done

    def run(self) -> Summary:
        """Trains to the end and leaves the chosen weights in the model, in the first process at least.

        Raises: Interrupted after Ctrl-C or a termination signal; TrainingError for a non-finite loss or a full disk.
        """
        try:
            self._open()
            with self.stop.heard(self.watcher.said), closing(self._own_batches()) as batches:
                if not self.closed:
                    self._close_step()
                while self.step < self.config.max_steps and not self._out_of_patience():
                    self._train_step(batches)
                    self._close_step()
                    if self._must_stop():
                        raise self._stopped()
                return self._finish()
        except KeyboardInterrupt:  # a second Ctrl-C, or one outside the loop
            raise Interrupted(f"stopped at once at step {self.step}; {self._way_on()}") from None
        finally:
            self.metrics.close()

    def _open(self) -> None:
        size = self._resume()
        missing = self.metrics.open(size, self.step)
        if missing:
            self.watcher.said(f"{self.metrics.path}: {missing} bytes of the steps up to {self.step} are gone; going on")
        self.watcher.started(self.step, self.config.max_steps)

    # -- one step ------------------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[Batch]) -> None:
        """An update and its line of metrics."""
        config = self.config
        began = time.perf_counter()
        self.step += 1
        self.closed = False
        parts = [self._part(number, next(batches)) for number in self._own_numbers()]
        for _ in range(config.accumulate):
            self.position = self.stream.after(self.position)
        outcome = self.updates.take(self.step, parts, self.dtype)
        if not outcome.is_finite:
            raise self.world.told_once(self._not_finite())
        if self.average is not None:
            self.average.update(self.trained, self.step)
        self.num_tokens += outcome.num_tokens
        log = self.step % config.log_every == 0 or self.step == config.max_steps
        loss = outcome.nll / outcome.num_tokens if log else None
        seconds = time.perf_counter() - began
        if loss is not None:
            rate = learning_rate(self.step, config.max_steps, config.schedule)
            values = {"loss": loss, "learning_rate": rate, "gradient_norm": outcome.norm}
            shares = {"padding_share": outcome.padding_share, "epoch": self.position.epoch, "tokens": self.num_tokens}
            self.metrics.write(self.step, {**values, **shares})
            self.metrics.event(self.step, "tokens_per_second", outcome.num_tokens / seconds)
        if outcome.look is not None:
            self.attention.tell(self.step, outcome.look, self.metrics)
        self.watcher.stepped(self.step, loss, outcome.num_tokens, seconds)

    def _own_batches(self) -> Generator[Batch, None, None]:
        """This process's share of all batches from here on."""
        return batches_from(self.stream, self._own_positions(), self.workers, pinned=self.device.type == "cuda")

    def _own_positions(self) -> Iterator[Position]:
        position = self.position
        while True:
            for number in range(self.config.accumulate):
                if number in self._own_numbers():
                    yield position
                position = self.stream.after(position)

    def _own_numbers(self) -> range:
        """Which batches of an update this process takes, or a share of: with several to a batch, neighbours share."""
        rank, size, accumulate = self.world.rank, self.world.size, self.config.accumulate
        return range(rank, accumulate, size) if size <= accumulate else range(rank * accumulate // size, accumulate)[:1]

    def _part(self, number: int, batch: Batch) -> Part:
        """What this process takes of one of its batches."""
        num_shares = max(1, self.world.size // self.config.accumulate)
        share, shares = self.world.rank % num_shares, batch.split(num_shares)
        if share < len(shares):
            return Part(number, shares[share], share)
        return Part(number, shares[0], counts=False)

    def _close_step(self) -> None:
        """The validation and the checkpoint that are due after the update."""
        last = self.step == self.config.max_steps
        if self.step % self.config.validate_every == 0 or last:
            try:
                self._validate()
            except BrokenOff:
                raise self._stopped() from None
        self.closed = True
        if self.step % self.config.checkpoint_every == 0 or last or self._out_of_patience():
            self._checkpoint()

    def _validate(self) -> None:
        began = time.perf_counter()
        with self.spread.whole(self._kept_weights()) as model:
            scores = self._scores(model)
            score = scores[self.metric]
            better = score > self.best_score  # never, where the score is not a number
            if better:
                self.best_step, self.best_score, self.failures = self.step, score, 0
                self.checkpoints.save_best(_named("weights", self._weights()), {"step": self.step, "score": score})
                self.world.first(lambda: self.keep_best(model))
            else:
                self.failures += 1
        self.metrics.write(self.step, {f"validation_{name}": value for name, value in scores.items()})
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        seconds = time.perf_counter() - began
        self.watcher.said(f"step {self.step}: {told}{' (best)' if better else ''} [{seconds:.0f} s]")

    def _scores(self, model: nn.Module) -> dict[str, float]:
        """What validation says of the model as it stands. Raises: BrokenOff when a signal asks for an end."""

        def found() -> dict[str, float] | None:
            try:
                with self.stop.breakable():  # a validation may take minutes
                    return self.validate(model)
            except BrokenOff:
                return None

        scores = self.world.first(found)
        if scores is None:
            raise BrokenOff
        if self.metric not in scores:
            given = ", ".join(scores)
            what = f"validation gives {given}, not `{self.metric}`; set validation.metric to one of these"
            raise self.world.told_once(ConfigError(what))
        return scores

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.failures >= self.config.patience

    def _not_finite(self) -> TrainingError:
        usable = self.checkpoints.newest_path()
        remedy = "start another run with a lower training.schedule.peak or with training.precision float32"
        saved = f"the last usable checkpoint is {usable}" if usable else "no checkpoint was written yet"
        return TrainingError(f"step {self.step}: the loss or its gradient is not finite; {saved}; {remedy}")

    # -- keeping and resuming ------------------------------------------------------------------------------------------

    def _kept_weights(self) -> dict[str, Tensor] | None:
        """What is validated and averaged; None stands for the model's own weights."""
        return None if self.average is None else self.average.weights

    def _weights(self) -> dict[str, Tensor]:
        """What is validated and averaged, the tensors themselves."""
        return self._kept_weights() or self._own_weights()

    def _own_weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.trained.named_parameters()}

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds in tensors; what is loaded into them is in force."""
        average = _named("average", self._kept_weights() or {})
        return {
            **_named("weights", self._own_weights()),
            **_named("optimizer", state_tensors(self.updates.optimizer, self.trained)),
            **average,
        }

    def _checkpoint(self, *, stopped: bool = False) -> None:
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "step": self.step,
            "closed": self.closed,
            "position": [self.position.epoch, self.position.index],
            "num_tokens": self.num_tokens,
            "average": self.average is not None,
            "best": [self.best_step, self.best_score],
            "failures": self.failures,
            "metrics_size": self.metrics.flush(),
            "attention": self.attention.state(),
            "pieces": self.updates.settled,
            "numerics": numerics(self.dtype, self.device, self.world.size),
        }
        self.checkpoints.save(self.step, self._tensors(), state, stopped=stopped)

    def _must_stop(self) -> bool:
        """Whether a signal has asked any of the processes to stop."""
        return bool(self.world.exchanged(self.stop.asked).any())

    def _stopped(self) -> Interrupted:
        """Keeps the run as it stands, unless the last checkpoint has just done so; what to raise."""
        if not (self.closed and self.world.first(self.checkpoints.steps)[-1:] == [self.step]):
            self._checkpoint(stopped=True)
        return Interrupted(f"stopped after step {self.step}; {self._way_on()}")

    def _way_on(self) -> str:
        path = self.checkpoints.newest_path()
        return "run the same command to " + (f"go on from {path}" if path else "begin anew: there is no checkpoint yet")

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the size of the metrics file that belongs to it."""
        saved = self.checkpoints.newest()
        if saved is None:
            self.updates.go_on_with(1)
            return 0
        state = saved.state
        if state.get("version") != STATE_VERSION:
            found = f"checkpoints of format {state.get('version')}, this regard goes on from {STATE_VERSION}"
            other = f"{self.checkpoints.folder}: {found}; take the regard that wrote them, or another run"
            raise self.world.told_once(TrainingError(other))
        if state["average"] != (self.average is not None):
            change = "training.ema_decay was switched on or off since this run began"
            back = f"{self.checkpoints.folder}: {change}; set it back, or start another run"
            raise self.world.told_once(TrainingError(back))
        saved.load(self._tensors())
        self.step = state["step"]
        self.closed = state["closed"]
        self.position = Position(*state["position"])
        self.num_tokens = state["num_tokens"]
        self.best_step, self.best_score = state["best"]
        self.failures = state["failures"]
        self.attention.load_state(state["attention"])
        self.updates.go_on_with(state["pieces"])
        self._keep_numerics(state["numerics"])
        size: int = state["metrics_size"]
        return size

    def _keep_numerics(self, before: dict[str, str]) -> None:
        """Goes on in the precision that the run began in; says what else has changed."""
        kept: torch.dtype = getattr(torch, before["precision"])
        if kept != self.dtype:
            self.watcher.said(f"this run began in {before['precision']} and stays in it, whatever suits this machine")
            self.dtype = kept
        if told := changes(before, numerics(self.dtype, self.device, self.world.size)):
            self.watcher.said(f"this run began with {told}: it goes on, but not bit for bit as it would have")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self) -> Summary:
        """Validates each way of finishing and leaves the best in the model."""
        wanted = ((name, self._candidate(name)) for name in self.config.final)
        found: dict[str, dict[str, Tensor]] = {name: weights for name, weights in wanted if weights is not None}
        found = found or {"last": self._weights()}
        candidates: dict[str, float] = {}
        for name, weights in found.items():
            try:
                with self.spread.whole(weights) as model:
                    candidates[name] = self._scores(model)[self.metric]
            except BrokenOff:
                raise self._stopped() from None
            self.watcher.said(f"{name}: {self.metric} {candidates[name]:.4g} on the validation data")
            if self._must_stop():
                raise self._stopped()
        chosen = max(candidates, key=lambda name: -math.inf if math.isnan(candidates[name]) else candidates[name])
        self.spread.hold(found[chosen])
        early = self.step < self.config.max_steps
        return Summary(self.step, self.best_step, self.best_score, candidates, chosen, early)

    def _candidate(self, name: str) -> dict[str, Tensor] | None:
        """The weights of one way of finishing; None, and a word to the watcher, where their files are gone."""
        weights: dict[str, Tensor] | None = None
        if name == "last":
            weights = self._weights()
        elif name == "best":
            best = self.checkpoints.best()
            weights = None if best is None else self._loaded(best, "weights")
        elif kept := list(self.checkpoints.kept()):
            weights = mean_of(self._loaded(saved, "weights" if self.average is None else "average") for saved in kept)
        if weights is None:
            self.watcher.said(f"{name}: nothing to read in {self.checkpoints.folder}; left out")
        return weights

    def _loaded(self, saved: Saved, kind: str) -> dict[str, Tensor]:
        """The weights of a checkpoint, as whole or as sharded as those in training."""
        weights = {name: torch.empty_like(tensor) for name, tensor in self._own_weights().items()}
        saved.load(_named(kind, weights))
        return weights


def _named(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that they have in a checkpoint."""
    return {f"{kind}/{name}": tensor for name, tensor in tensors.items()}
