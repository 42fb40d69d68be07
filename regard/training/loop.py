"""The training loop: exact after any kill, because everything random is a pure function of (seed, position).

Batch order comes from the stream, dropout from (seed, step, part of the step); a checkpoint holds the rest. What is validated, kept
and averaged is the moving average of the weights where the recipe asks for one.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard.data.batches import Batch, BatchStream, Position
from regard.errors import Interrupted, TrainingError
from regard.training.averaging import MovingAverage, load_weights, mean_of, swapped_in, weights_of
from regard.training.checkpoint import Checkpoints, read
from regard.training.config import TrainingConfig
from regard.training.monitor import Metrics, Silent, Watcher
from regard.training.objective import Loss
from regard.training.schedule import learning_rate

STATE_VERSION = 1

Objective = Callable[[nn.Module, Batch, torch.dtype], Loss]  # the summed loss of a batch, products in the given dtype
Validate = Callable[[nn.Module], dict[str, float]]  # the model is in evaluation mode; higher is better


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    step: the last update. best_step, best_score: of the best validation. candidates: what each way of finishing scored on
    the validation set; chosen: the one that the model now holds. stopped_early: patience ran out.
    """

    step: int
    best_step: int
    best_score: float
    candidates: dict[str, float]
    chosen: str
    stopped_early: bool


class Trainer:
    """One run of one model.

    objective: the summed loss of a batch. validate: scores of a model; the one called `metric` decides, higher is better.
    keep_best: called with the model holding the weights of a new best validation. seed: of dropout.
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
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.stream = stream
        self.config = config
        self.objective = objective
        self.validate = validate
        self.metric = metric
        self.seed = seed
        self.keep_best = keep_best
        self.watcher = watcher or Silent()
        self.metrics = Metrics(folder)
        self.checkpoints = Checkpoints(folder / "checkpoints", config.keep_checkpoints)
        self.dtype = resolved_precision(config.precision, self.device)
        self.optimizer = _adamw(model, config)
        self.average = None if config.ema_decay is None else MovingAverage(model, config.ema_decay)
        self.step = 0
        self.position = Position()
        self.best_step, self.best_score = 0, -math.inf
        self.failures = 0  # validations since the best one
        self.stopping = False  # a signal asked for an end

    def run(self) -> Summary:
        """Trains to the end and leaves the chosen weights in the model.

        Raises: Interrupted after Ctrl-C or a termination signal; TrainingError for a non-finite loss or a full disk.
        """
        size = self._resume()
        self.metrics.open(size, self.step)
        self.watcher.started(self.step, self.config.max_steps)
        try:
            with self._signals():
                while self.step < self.config.max_steps and not self._out_of_patience():
                    self._train_step()
                    if self.stopping:
                        self._checkpoint()
                        path = self.checkpoints.path(self.step)
                        raise Interrupted(f"stopped after step {self.step}; run the same command to go on from {path}")
            return self._finish()
        finally:
            self.metrics.close()

    # -- one step ------------------------------------------------------------------------------------------------------

    def _train_step(self) -> None:
        config = self.config
        began = time.perf_counter()
        self.step += 1
        last = self.step == config.max_steps
        nll, norm, num_tokens, padding = self._update()
        log = self.step % config.log_every == 0 or last
        loss = float(nll) / num_tokens if log else None
        seconds = time.perf_counter() - began
        if loss is not None:
            rate = learning_rate(self.step, config.max_steps, config.schedule)
            values = {"loss": loss, "learning_rate": rate, "gradient_norm": norm, "padding_share": padding}
            self.metrics.write(self.step, {**values, "epoch": self.position.epoch})
            self.metrics.event(self.step, "tokens_per_second", num_tokens / seconds)
        self.watcher.stepped(self.step, loss, num_tokens, seconds)
        if self.step % config.validate_every == 0 or last:
            self._validate()
        if self.step % config.checkpoint_every == 0 or last or self._out_of_patience():
            self._checkpoint()

    def _update(self) -> tuple[Tensor, float, int, float]:
        """One optimiser update -> (summed nll, gradient norm, target tokens, padding share)."""
        parts = []
        for _ in range(self.config.accumulate):
            parts.append(self.stream.at(self.position))
            self.position = self.stream.after(self.position)
        num_tokens = sum(part.num_target_tokens for part in parts)
        nll = torch.zeros((), dtype=torch.float64, device=self.device)
        self.model.train()
        for index, part in enumerate(parts):
            seed_dropout(self.seed, self.step, index)
            loss = self.objective(self.model, part.to(self.device), self.dtype)
            (loss.objective / num_tokens).backward()
            nll += loss.nll
        parameters = list(self.model.parameters())
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or math.inf))
        if not math.isfinite(norm):
            usable = self.checkpoints.newest_path()
            remedy = "lower training.schedule.peak or set training.precision to float32"
            saved = f"the last usable checkpoint is {usable}" if usable else "no checkpoint was written yet"
            raise TrainingError(f"step {self.step}: the loss or its gradient is not finite; {saved}; {remedy}")
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config.max_steps, self.config.schedule)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, self.step)
        return nll, norm, num_tokens, sum(part.padding_share for part in parts) / len(parts)

    def _validate(self) -> None:
        began = time.perf_counter()
        with swapped_in(self.model, self._kept_weights()), torch.no_grad():
            scores = self.validate(self.model)
            score = scores[self.metric]
            better = score > self.best_score
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

    def _out_of_patience(self) -> bool:
        return self.config.patience is not None and self.failures >= self.config.patience

    # -- keeping and resuming ------------------------------------------------------------------------------------------

    def _kept_weights(self) -> dict[str, Tensor] | None:
        """What is validated and averaged; None stands for the model's own weights."""
        return None if self.average is None else self.average.weights

    def _checkpoint(self) -> None:
        size = self.metrics.flush()
        state: dict[str, Any] = {
            "version": STATE_VERSION,
            "step": self.step,
            "position": [self.position.epoch, self.position.index],
            "weights": weights_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "average": self._kept_weights(),
            "best": [self.best_step, self.best_score],
            "failures": self.failures,
            "metrics_size": size,
        }
        self.checkpoints.save(self.step, state)

    def _resume(self) -> int:
        """Takes up the newest checkpoint; returns the size of the metrics file that belongs to it."""
        state = self.checkpoints.load_newest()
        if state is None:
            return 0
        if state["version"] > STATE_VERSION:
            raise TrainingError(f"{self.checkpoints.folder}: written by a newer regard; upgrade to go on with this run")
        load_weights(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.weights = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.step = state["step"]
        self.position = Position(*state["position"])
        self.best_step, self.best_score = state["best"]
        self.failures = state["failures"]
        size: int = state["metrics_size"]
        return size

    def _finish(self) -> Summary:
        """Validates each way of finishing and leaves the best in the model."""
        candidates: dict[str, float] = {}
        found: dict[str, dict[str, Tensor]] = {}
        for name in self.config.final:
            weights = self._candidate(name)
            if weights is None:
                continue
            with swapped_in(self.model, weights), torch.no_grad():
                candidates[name] = self.validate(self.model)[self.metric]
            found[name] = weights
            self.watcher.said(f"{name}: {self.metric} {candidates[name]:.4g} on the validation data")
        chosen = max(candidates, key=candidates.__getitem__)
        load_weights(self.model, found[chosen])
        self.model.eval()
        early = self.step < self.config.max_steps
        return Summary(self.step, self.best_step, self.best_score, candidates, chosen, early)

    def _candidate(self, name: str) -> dict[str, Tensor] | None:
        if name == "best":
            best = self.checkpoints.load_best()
            return None if best is None else best["weights"]
        if name == "last":
            return self._kept_weights() or weights_of(self.model)
        states = [state for step in self.checkpoints.steps() if (state := read(self.checkpoints.path(step)))]
        return mean_of(state["average"] or state["weights"] for state in states)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Within the context Ctrl-C and a termination signal end the run after the step; a second Ctrl-C ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: object) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = True
            self.watcher.said("stopping after this step; a checkpoint is written first")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def seed_dropout(seed: int, step: int, part: int) -> None:
    """Makes every random number of a part of a step a pure function of its place in the run."""
    mixed = np.random.SeedSequence([seed, step, part]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def resolved_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of large products: what was asked for, or for "auto" bfloat16 where the hardware multiplies it."""
    if precision == "auto":
        capable = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bfloat16()
        return torch.bfloat16 if capable else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False  # not Linux: float32 is right everywhere
    return "avx512_bf16" in flags.split() or "amx_bf16" in flags.split()


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
