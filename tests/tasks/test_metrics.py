"""One score with its interval, whatever the task."""

from __future__ import annotations

import numpy as np
import pytest

from regard.errors import ConfigError
from regard.tasks.metrics import Metric, check_samples, draws_of, interval, metrics_json


def test_the_interval_is_the_middle_of_the_draws() -> None:
    values = np.random.default_rng(1).permutation(1000).astype(float)
    assert interval(values) == (25.0, 974.0)
    assert interval([3.0, 1.0]) == (1.0, 3.0)
    assert interval([]) is None


def test_draws_come_from_the_seed_and_may_repeat() -> None:
    drawn = draws_of(5, 40, 3)
    assert drawn.shape == (40, 5) and set(drawn.ravel()) == set(range(5))
    assert (drawn == draws_of(5, 40, 3)).all() and (drawn != draws_of(5, 40, 4)).any()
    assert draws_of(5, 0, 3).shape == (0, 5)


def test_what_is_printed_and_kept() -> None:
    metric, bare = Metric("BLEU", 33.333, (30.0, 36.6666), "nrefs:1"), Metric("chrF", 0.5, None, "nc:6")
    assert metric.line() == "BLEU 33.33 [30.00, 36.67]  nrefs:1"
    assert bare.line(4) == "chrF 0.5000  nc:6"
    assert metrics_json([metric, bare]) == {
        "BLEU": {"value": 33.333, "interval": [30.0, 36.6666], "signature": "nrefs:1"},
        "chrF": {"value": 0.5, "interval": None, "signature": "nc:6"},
    }


@pytest.mark.parametrize("samples", [1, -3])
def test_samples_that_give_no_interval(samples: int) -> None:
    with pytest.raises(ConfigError, match=f"bootstrap_samples: received {samples}, expected 0 for no interval"):
        check_samples(samples)
    check_samples(0)
    check_samples(2)
