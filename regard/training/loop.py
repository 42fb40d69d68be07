"""The training loop: exact after any kill, because everything random is a pure function of (seed, position).

Batch order comes from the stream, dropout from (seed, step, part of the step); a checkpoint holds the rest. What is
validated, kept and averaged is the moving average of the weights where the recipe asks for one.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, Position
from regard.errors import ConfigError, Interrupted, TrainingError
from regard.training.attention_monitor import AttentionMonitor, Look, RealQueries
from regard.training.averaging import MovingAverage, load_weights, mean_of, swapped_in, weights_of
from regard.training.checkpoint import Checkpoints
from regard.training.config import TrainingConfig
from regard.training.monitor import Metrics, Silent, Watcher
from regard.training.objective import Loss
from regard.training.precision import changes, numerics, resolved_precision
from regard.training.schedule import learning_rate

STATE_VERSION = 2

Objective = Callable[[nn.Module, Batch, torch.dtype], Loss]  # the summed loss of a batch, products in the given dtype
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
    """One run of one model.

    objective: the summed loss of a batch. validate: scores of a model, a pure function of its weights; the score called
    `metric` decides, higher is better.
    keep_best: called with the model holding the weights of a new best validation. seed: of dropout.
    real_queries: which positions of a batch are no padding, for the looks at attention; see `attention_monitor`.
    folder: holds metrics, events and checkpoints; a run that finds its own checkpoint there goes on from it.
    """

    def __init__(
        self,
        model: nn.Module,
        stream: BatchStream,
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
        device: torch.device | str = "cpu",
    ) -> None:
        persistent = set(model.state_dict()) & {name for name, _ in model.named_buffers()}
        assert not persistent, f"checkpoints and averages hold parameters, not the trained buffers {sorted(persistent)}"
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.stream = stream
        self.config = config
        self.objective = objective
        self.validate = validate
        self.metric = metric
        self.seed = seed
        self.keep_best = keep_best
        self.watcher = Silent() if watcher is None else watcher
        self.metrics = Metrics(folder)
        self.attention = AttentionMonitor(config.attention_every, said=self.watcher.said, real_queries=real_queries)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints, self.watcher.said)
        self.dtype = resolved_precision(config.precision, self.device)
        self.optimizer = _adamw(model, config)
        self.average = None if config.ema_decay is None else MovingAverage(model, config.ema_decay)
        self.step = 0
        self.position = Position()
        self.best_step, self.best_score = 0, -math.inf
        self.num_tokens = 0  # target tokens trained on
        self.failures = 0  # validations since the best one
        self.closed = True  # the validation and the checkpoint that are due after the last update are done
        self.stopping = False  # a signal asked for an end
        self._breakable = False  # a signal may break in at once

    def run(self) -> Summary:
        """Trains to the end and leaves the chosen weights in the model.

        Raises: Interrupted after Ctrl-C or a termination signal; TrainingError for a non-finite loss or a full disk.
        """
        try:
            self._open()
            with self._signals():
                if not self.closed:
                    self._close_step()
                while self.step < self.config.max_steps and not self._out_of_patience():
                    self._train_step()
                    self._close_step()
                    if self.stopping:
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

    def _train_step(self) -> None:
        """An update and its line of metrics."""
        config = self.config
        began = time.perf_counter()
        self.step += 1
        self.closed = False
        look = self.attention.look(self.step)
        nll, norm, num_tokens, padding = self._update(look)
        self.num_tokens += num_tokens
        log = self.step % config.log_every == 0 or self.step == config.max_steps
        loss = nll / num_tokens if log else None
        seconds = time.perf_counter() - began
        if loss is not None:
            rate = learning_rate(self.step, config.max_steps, config.schedule)
            values = {"loss": loss, "learning_rate": rate, "gradient_norm": norm, "padding_share": padding}
            self.metrics.write(self.step, {**values, "epoch": self.position.epoch, "tokens": self.num_tokens})
            self.metrics.event(self.step, "tokens_per_second", num_tokens / seconds)
        if look is not None:
            self.attention.tell(self.step, look, self.metrics)
        self.watcher.stepped(self.step, loss, num_tokens, seconds)

    def _close_step(self) -> None:
        """The validation and the checkpoint that are due after the update."""
        last = self.step == self.config.max_steps
        if self.step % self.config.validate_every == 0 or last:
            try:
                self._validate()
            except _StopValidation:
                raise self._stopped() from None
        self.closed = True
        if self.step % self.config.checkpoint_every == 0 or last or self._out_of_patience():
            self._checkpoint()

    def _update(self, look: Look | None) -> tuple[float, float, int, float]:
        """One optimiser update -> (summed nll, gradient norm, target tokens, padding share)."""
        parts = []
        for _ in range(self.config.accumulate):
            parts.append(self.stream.at(self.position))
            self.position = self.stream.after(self.position)
        num_tokens = sum(part.num_target_tokens for part in parts)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        for index, part in enumerate(parts):
            part = part.to(self.device)
            loss = self.attention.through(look, self.model, part, partial(self._loss, index, part))
            (loss.objective / num_tokens).backward()
            total += loss.nll
        parameters = list(self.model.parameters())
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or math.inf))
        nll = float(total)
        if not math.isfinite(norm + nll):
            usable = self.checkpoints.newest_path()
            remedy = "start another run with a lower training.schedule.peak or with training.precision float32"
            saved = f"the last usable checkpoint is {usable}" if usable else "no checkpoint was written yet"
            raise TrainingError(f"step {self.step}: the loss or its gradient is not finite; {saved}; {remedy}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config.max_steps, self.config.schedule)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, self.step)
        return nll, norm, num_tokens, sum(part.padding_share for part in parts) / len(parts)

    def _loss(self, index: int, part: Batch) -> Loss:
        """The summed loss of the step's part number `index`; nothing but the weights decides it."""
        seed_dropout(self.seed, self.step, index)
        return self.objective(self.model, part, self.dtype)

    def _validate(self) -> None:
        began = time.perf_counter()
        with swapped_in(self.model, self._kept_weights()), torch.no_grad():
            scores = self._scores()
            score = scores[self.metric]
            better = score > self.best_score  # never, where the score is not a number
            if better:
                self.best_step, self.best_score, self.failures = self.step, score, 0
                self.checkpoints.save_best({"step": self.step, "score": score, "weights": weights_of(self.model)})
                self.keep_best(self.model)
            else:
                self.failures += 1
        self.metrics.write(self.step, {f"validation_{name}": value for name, value in scores.items()})
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        seconds = time.perf_counter() - began
        self.watcher.said(f"step {self.step}: {told}{' (best)' if better else ''} [{seconds:.0f} s]")

    def _scores(self) -> dict[str, float]:
        """What validation says of the model as it stands. Raises: _StopValidation when a signal asks for an end."""
        try:
            self._breakable = True
            if self.stopping:  # asked for during the step: a validation may take minutes
                raise _StopValidation
            scores = self.validate(self.model)
        finally:
            self._breakable = False
        if self.metric not in scores:
            given = ", ".join(scores)
            raise ConfigError(f"validation gives {given}, not `{self.metric}`; set validation.metric to one of these")
        return scores

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.failures >= self.config.patience

    # -- keeping and resuming ------------------------------------------------------------------------------------------

    def _kept_weights(self) -> dict[str, Tensor] | None:
        """What is validated and averaged; None stands for the model's own weights."""
        return None if self.average is None else self.average.weights

    def _checkpoint(self, *, stopped: bool = False) -> None:
        size = self.metrics.flush()
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "step": self.step,
            "closed": self.closed,
            "position": [self.position.epoch, self.position.index],
            "num_tokens": self.num_tokens,
            "weights": weights_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "average": self._kept_weights(),
            "best": [self.best_step, self.best_score],
            "failures": self.failures,
            "metrics_size": size,
            "attention": self.attention.state(),
            "numerics": numerics(self.dtype, self.device),
        }
        self.checkpoints.save(self.step, state, stopped=stopped)

    def _stopped(self) -> Interrupted:
        """Keeps the run as it stands, unless the last checkpoint has just done so; what to raise."""
        if not (self.closed and self.checkpoints.steps()[-1:] == [self.step]):
            self._checkpoint(stopped=True)
        return Interrupted(f"stopped after step {self.step}; {self._way_on()}")

    def _way_on(self) -> str:
        path = self.checkpoints.newest_path()
        return "run the same command to " + (f"go on from {path}" if path else "begin anew: there is no checkpoint yet")

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the size of the metrics file that belongs to it."""
        state = self.checkpoints.load_newest()
        if state is None:
            return 0
        if state.get("version") != STATE_VERSION:
            found = f"checkpoints of format {state.get('version')}, this regard goes on from {STATE_VERSION}"
            raise TrainingError(f"{self.checkpoints.folder}: {found}; take the regard that wrote them, or another run")
        if (state["average"] is None) != (self.average is None):
            change = "training.ema_decay was switched on or off since this run began"
            raise TrainingError(f"{self.checkpoints.folder}: {change}; set it back, or start another run")
        load_weights(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.weights = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.step = state["step"]
        self.closed = state["closed"]
        self.position = Position(*state["position"])
        self.num_tokens = state["num_tokens"]
        self.best_step, self.best_score = state["best"]
        self.failures = state["failures"]
        self.attention.load_state(state.get("attention", {}))  # checkpoints of before there was a monitor have none
        self._keep_numerics(state["numerics"])
        size: int = state["metrics_size"]
        return size

    def _keep_numerics(self, before: dict[str, str]) -> None:
        """Goes on in the precision that the run began in; says what else has changed."""
        kept: torch.dtype = getattr(torch, before["precision"])
        if kept != self.dtype:
            self.watcher.said(f"this run began in {before['precision']} and stays in it, whatever suits this machine")
            self.dtype = kept
        if told := changes(before, numerics(self.dtype, self.device)):
            self.watcher.said(f"this run began with {told}: it goes on, but not bit for bit as it would have")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _finish(self) -> Summary:
        """Validates each way of finishing and leaves the best in the model."""
        wanted = ((name, self._candidate(name)) for name in self.config.final)
        found: dict[str, dict[str, Tensor]] = {name: weights for name, weights in wanted if weights is not None}
        found = found or {"last": self._own_weights()}
        candidates: dict[str, float] = {}
        for name, weights in found.items():
            try:
                with swapped_in(self.model, weights), torch.no_grad():
                    candidates[name] = self._scores()[self.metric]
            except _StopValidation:
                raise self._stopped() from None
            self.watcher.said(f"{name}: {self.metric} {candidates[name]:.4g} on the validation data")
            if self.stopping:
                raise self._stopped()
        chosen = max(candidates, key=lambda name: -math.inf if math.isnan(candidates[name]) else candidates[name])
        load_weights(self.model, found[chosen])
        self.model.eval()
        early = self.step < self.config.max_steps
        return Summary(self.step, self.best_step, self.best_score, candidates, chosen, early)

    def _candidate(self, name: str) -> dict[str, Tensor] | None:
        """The weights of one way of finishing; None, and a word to the watcher, where their files are gone."""
        weights: dict[str, Tensor] | None = None
        if name == "last":
            weights = self._own_weights()
        elif name == "best":
            best = self.checkpoints.load_best()
            weights = None if best is None else best["weights"]
        elif many := [state["average"] or state["weights"] for state in self.checkpoints.kept()]:
            weights = mean_of(many)
        if weights is None:
            self.watcher.said(f"{name}: nothing to read in {self.checkpoints.folder}; left out")
        return weights

    def _own_weights(self) -> dict[str, Tensor]:
        """What the last step came to, under the moving average where there is one."""
        return dict(self._kept_weights() or weights_of(self.model))

    # -- signals -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within the context Ctrl-C and a termination signal end the run, after a checkpoint.

        A step is finished first; a validation is broken off and done again when the run goes on. A second Ctrl-C ends
        the run at once. Only the main thread hears signals; in another one nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = True
            with suppress(RuntimeError):  # a watcher that was printing just now cannot print within it
                self.watcher.said("stopping: a checkpoint is written first; Ctrl-C (again) stops at once, without one")
            if self._breakable:
                self._breakable = False
                raise _StopValidation

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _StopValidation(BaseException):
    """A signal broke a validation off. No `Exception`, so that no validation takes it for a failure of its own."""


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Makes every random number of a part of a step a pure function of its place in the run."""
    mixed = np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def _adamw(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over two groups: matrices decay, vectors do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.optimizer.beta1, config.optimizer.beta2)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.schedule.peak,
        betas=betas,
        eps=config.optimizer.eps,
        fused=True,
    )
