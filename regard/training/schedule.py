"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from regard.training.config import ScheduleConfig


def learning_rate(step: int, max_steps: int, config: ScheduleConfig) -> float:
    """The rate of update `step`, counted from 1.

    During warm-up it rises linearly from peak / warmup_steps; at `warmup_steps` every kind stands at the peak.
    """
    warmup = max(config.warmup_steps, 1)
    if step < warmup:
        return config.peak * step / warmup
    match config.kind:
        case "constant":
            return config.peak
        case "inverse-sqrt":
            return config.peak * math.sqrt(warmup / step)
        case "cosine":
            progress = min((step - warmup) / max(max_steps - warmup, 1), 1.0)
            return config.peak * (config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))
