"""Scores of labels, worked by hand and against plain counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.errors import DataError
from regard.tasks.classify.naive_bayes import NaiveBayes
from regard.tasks.classify.scoring import calibration_error, macro_f1, score


def test_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    wanted = np.array([0, 1, 1, 0])
    found = score(probabilities, wanted, ("no", "yes"), baselines={"a coin": 0.5})
    accuracy, f1, calibration = found.metrics
    assert accuracy.value == 0.5
    assert f1.value == 0.5  # precision and recall are 1/2 for both labels
    # Bins of a fifteenth: 0.9 and 0.6 and 0.8 and 0.7 lie apart, so each record is a bin of its own.
    assert calibration.value == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)
    assert found.confusion == ((1, 1), (1, 1))
    assert accuracy.interval[0] <= accuracy.value <= accuracy.interval[1]
    assert any("a coin, for comparison: accuracy 0.5000" in line for line in found.lines())
    assert found.to_json()["metrics"]["accuracy"]["value"] == 0.5


def test_a_label_never_told_has_an_f1_of_0_and_one_that_is_not_there_counts_for_nothing() -> None:
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 0, 0]), 3) == pytest.approx((0.8 + 0.0) / 2)


def test_no_records_have_no_score() -> None:
    with pytest.raises(DataError, match="score: no records, expected at least one with its label"):
        score(np.zeros((0, 2)), np.zeros(0, dtype=np.int64), ["a", "b"])


def test_perfect_confidence_has_no_calibration_error() -> None:
    assert calibration_error(np.ones(5), np.ones(5, dtype=bool)) == 0.0
    assert calibration_error(np.ones(4), np.zeros(4, dtype=bool)) == 1.0
    assert calibration_error(np.full(4, 0.75), np.array([True, True, True, False])) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(deadline=None)
def test_macro_f1_is_that_of_plain_counting(pairs: list[tuple[int, int]]) -> None:
    wanted, told = (np.array(values) for values in zip(*pairs, strict=True))
    found = []
    for label in range(4):
        right = sum(a == b == label for a, b in pairs)
        occurs, said = sum(a == label for a, _ in pairs), sum(b == label for _, b in pairs)
        if occurs + said:
            precision, recall = right / said if said else 0.0, right / occurs if occurs else 0.0
            found.append(2 * precision * recall / (precision + recall) if right else 0.0)
    assert macro_f1(wanted, told, 4) == pytest.approx(sum(found) / len(found))


def test_naive_bayes_by_hand() -> None:
    model = NaiveBayes(["good film", "good", "bad film"], ["+", "+", "-"])
    # Features: good, film, good film; good | bad, film, bad film. Of + 4, of - 3, of both 5 different.
    assert model._log["+"]["good"] == pytest.approx(np.log((2 + 1) / (4 + 5)))
    assert model._log["-"]["bad film"] == pytest.approx(np.log((1 + 1) / (3 + 5)))
    assert [model.label(text) for text in ("bad", "GOOD", "unheard")] == ["-", "+", "+"]
    assert model.accuracy(["bad", "good"], ["-", "-"]) == 0.5
