"""Every choice of a training run, one field each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from regard.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps: a linear warm-up to the peak, then a descent."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    # "inverse-sqrt": peak * sqrt(warmup / step), Vaswani et al. 2017, sec. 5.3. "cosine": half a cosine from the peak
    # to `floor` at the last step, Loshchilov and Hutter 2017, eq. 5. "constant": the peak.
    kind: Literal["inverse-sqrt", "cosine", "constant"] = "inverse-sqrt"
    peak: float = 1e-3  # the highest learning rate
    warmup_steps: int = 1000  # 0 is as 1: the first step is at the peak
    floor: float = 0.0  # share of the peak at which a cosine ends


@dataclass(frozen=True)
class AdamWConfig:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    beta1: float = 0.9
    beta2: float = 0.98  # Vaswani et al. 2017, sec. 5.3
    eps: float = 1e-9
    weight_decay: float = 0.0  # on matrices; vectors (norms, biases) never decay


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    max_steps: int  # optimiser updates
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    label_smoothing: float = 0.1
    clip_norm: float | None = 1.0  # largest norm of the gradient; null: never clipped
    # Batches an update, as if they were one. Several processes share them, or each of them: a multiple of their number,
    # or a divisor.
    accumulate: int = 1
    # How several processes hold the model: "replicate", each all of it; "shard", each a part of every parameter and of
    # what is kept with it, for models too large for one device. A run may go on with the other.
    parallel: Literal["replicate", "shard"] = "replicate"
    # "auto": bfloat16 products where the processor has them, else float32. A run keeps to the end what it began with,
    # also on another machine.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # The weights that are validated and kept are an exponential moving average with this decay (Polyak and Juditsky
    # 1992); null: the trained weights themselves.
    ema_decay: float | None = None
    validate_every: int = 1000  # steps
    checkpoint_every: int = 500  # steps
    # How many checkpoints are kept, and averaged at the end when `final` asks for it (Vaswani et al. 2017, sec. 6.1).
    keep_checkpoints: int = 5
    # What becomes of the run: each candidate is validated once more and the best is kept. "best": of all validations.
    # "last": the last step. "average": the mean of the kept checkpoints.
    final: tuple[Literal["best", "last", "average"], ...] = ("best", "average")
    patience: int | None = None  # stop after this many validations in a row without a better one; null: never
    log_every: int = 50  # steps
    # Steps between looks at every attention head: entropy, largest score and sink mass into the metrics, and a warning
    # where a head collapses (`attention_monitor`). It changes nothing of the training, and such a step takes 1.0 to 1.2
    # times as long (benchmarks/results/monitored_step.md); null: never.
    attention_every: int | None = 100

    def __post_init__(self) -> None:
        problems = []
        for name in ("max_steps", "accumulate", "validate_every", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, expected 1 or more")
        if not 0.0 <= self.label_smoothing < 1.0:
            problems.append(f"label_smoothing is {self.label_smoothing}, expected 0 to below 1")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            problems.append(f"ema_decay is {self.ema_decay}, expected between 0 and 1, or null")
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            problems.append(f"clip_norm is {self.clip_norm}, expected above 0, or null")
        for name in ("patience", "attention_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, expected 1 or more, or null")
        if not self.final or len(set(self.final)) < len(self.final):
            problems.append(f"final is {list(self.final)}, expected some of best, last, average, each once")
        # Written as `not a < b`, so that a NaN is refused too.
        if not 0.0 < self.schedule.peak < math.inf:
            problems.append(f"schedule.peak is {self.schedule.peak}, expected above 0")
        if self.schedule.warmup_steps < 0:
            problems.append(f"schedule.warmup_steps is {self.schedule.warmup_steps}, expected 0 or more")
        if not 0.0 <= self.schedule.floor <= 1.0:
            problems.append(f"schedule.floor is {self.schedule.floor}, expected 0 to 1")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self.optimizer, name) < 1.0:
                problems.append(f"optimizer.{name} is {getattr(self.optimizer, name)}, expected 0 to below 1")
        if not 0.0 < self.optimizer.eps < math.inf:
            problems.append(f"optimizer.eps is {self.optimizer.eps}, expected above 0")
        if not 0.0 <= self.optimizer.weight_decay < math.inf:
            problems.append(f"optimizer.weight_decay is {self.optimizer.weight_decay}, expected 0 or more")
        if problems:
            raise ConfigError("training: " + "; ".join(problems))
