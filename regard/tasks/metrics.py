"""One score of a test set, with the interval in which it would fall on other test sets like this one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One metric of a whole test set; its task says on which scale."""

    name: str
    value: float
    interval: tuple[float, float] | None  # 95 % by bootstrap; None where no samples were asked for
    signature: str  # says exactly what was computed

    def line(self, digits: int = 2) -> str:
        """What to print of it."""
        between = "" if self.interval is None else f" [{self.interval[0]:.{digits}f}, {self.interval[1]:.{digits}f}]"
        return f"{self.name} {self.value:.{digits}f}{between}  {self.signature}"


def metrics_json(metrics: Iterable[Metric]) -> dict[str, Any]:
    """Plain values, under the metrics' names."""
    return {
        metric.name: {
            "value": metric.value,
            "interval": None if metric.interval is None else list(metric.interval),
            "signature": metric.signature,
        }
        for metric in metrics
    }


def check_samples(bootstrap_samples: int) -> None:
    """Raises: ConfigError for a number of samples that gives no interval and does not say so."""
    if bootstrap_samples < 0 or bootstrap_samples == 1:
        raise ConfigError(
            f"bootstrap_samples: received {bootstrap_samples}, expected 0 for no interval or at least 2; 1000 is usual"
        )


def draws_of(count: int, samples: int, seed: int) -> np.ndarray:
    """int64 [samples, count]: records of a test set, drawn anew with replacement (Efron 1979)."""
    return np.random.default_rng(seed).choice(count, size=(samples, count), replace=True)


def interval(values_of_draws: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of a metric over draws, as sacreBLEU takes it (Koehn 2004); None of no draws."""
    if not len(values_of_draws):
        return None
    values = np.sort(np.asarray(values_of_draws, dtype=np.float64))
    cut = len(values) // 40  # 2.5 % at either end
    return float(values[cut]), float(values[len(values) - cut - 1])
