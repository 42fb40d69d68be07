"""How well labels are told: accuracy, macro-F1, calibration error, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regard.errors import DataError
from regard.tasks.metrics import Metric, draws_of, interval, metrics_json

BINS = 15  # of confidence, equally wide: Guo et al. 2017, sec. 2
SAMPLES, SEED = 1000, 12345  # of the bootstrap


@dataclass(frozen=True)
class Scores:
    """metrics: accuracy, macro_f1 and calibration_error, each 0 to 1. confusion: [label][told], counts. baselines: name
    to accuracy, of what else was scored on the same records."""

    labels: tuple[str, ...]
    metrics: tuple[Metric, ...]
    confusion: tuple[tuple[int, ...], ...]
    baselines: dict[str, float]

    def lines(self) -> list[str]:
        """What to print."""
        lines = [metric.line(4) for metric in self.metrics]
        total = sum(map(sum, self.confusion))
        lines += [f"{name}, for comparison: accuracy {value:.4f}" for name, value in self.baselines.items()]
        told = ", ".join(
            f"{label} {row[place]} of {sum(row)}"
            for place, (label, row) in enumerate(zip(self.labels, self.confusion, strict=True))
        )
        return [*lines, f"{total:,} records; told rightly: {told}"]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "scoring": "labels",
            "metrics": metrics_json(self.metrics),
            "labels": list(self.labels),
            "confusion": [list(row) for row in self.confusion],
            "baselines": self.baselines,
        }


def score(
    probabilities: np.ndarray,
    wanted: np.ndarray,
    labels: Sequence[str],
    *,
    samples: int = SAMPLES,
    baselines: dict[str, float] | None = None,
) -> Scores:
    """probabilities: [records, labels]; wanted: int [records], the true label's place. samples: 0 gives no interval.

    Raises: DataError without any record.
    """
    if not len(wanted):
        raise DataError("score: no records, expected at least one with its label; check the data")
    told, confidence = probabilities.argmax(1), probabilities.max(1)
    count = len(labels)
    draws = draws_of(len(wanted), samples, SEED)

    def metric(name: str, of: Callable[[Any], float], signature: str) -> Metric:
        return Metric(name, float(of(slice(None))), interval([of(rows) for rows in draws]), signature)

    right = told == wanted
    metrics = (
        metric("accuracy", lambda rows: right[rows].mean(), f"records:{len(wanted)}"),
        metric("macro_f1", lambda rows: macro_f1(wanted[rows], told[rows], count), f"labels:{count}"),
        metric("calibration_error", lambda rows: calibration_error(confidence[rows], right[rows]), f"bins:{BINS}"),
    )
    confusion = tuple(tuple(row) for row in _confusion(wanted, told, count).tolist())
    return Scores(tuple(labels), metrics, confusion, baselines or {})


def macro_f1(wanted: np.ndarray, told: np.ndarray, num_labels: int) -> float:
    """The mean over labels of the harmonic mean of precision and recall; 0 for a label that was never told rightly.

    A label that neither occurs nor was told counts for nothing.
    """
    confusion = _confusion(wanted, told, num_labels)
    right, occurs, was_told = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    counted = occurs + was_told > 0
    return float((2.0 * right[counted] / (occurs + was_told)[counted]).mean())


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The mean distance between confidence and accuracy over bins of confidence, weighed by their records.

    Source: Naeini et al. 2015; Guo et al. 2017, eq. 3 (expected calibration error).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = np.bincount(bins, confidence - right, minlength=BINS)
    return float(np.abs(sums).sum() / len(confidence))


def _confusion(wanted: np.ndarray, told: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 [label, told]."""
    return np.bincount(wanted * num_labels + told, minlength=num_labels**2).reshape(num_labels, num_labels)
