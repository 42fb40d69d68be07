"""Scores of captions: BLEU as sacreBLEU has it, intervals, and what is refused."""

from __future__ import annotations

import sys

import pytest

from regard.errors import ConfigError, DataError
from regard.tasks.caption.scoring import METRICS, score, words_of

CAPTIONS = ["A red circle, left of a blue square.", "many planes are parked", "a ship on a river", "Trees!"]
REFERENCES = [
    ["a red circle left of a blue square", "there is a circle and a square"],
    ["many planes are parked at the airport", "some planes"],
    ["a boat on the river", "boats"],
    ["trees"],
]


def test_case_and_punctuation_count_for_nothing() -> None:
    assert words_of("It's a T-shirt, RED!") == ["it's", "a", "t-shirt", "red"]
    plain = score(
        ["A red circle, LEFT of a blue square."], [["a red circle left of a blue square"]], bootstrap_samples=0
    )
    assert plain["bleu-4"] == pytest.approx(100.0) and plain["rouge-l"] == pytest.approx(100.0)


def test_marks_belong_to_their_letters() -> None:
    assert words_of("क्या यह") == ["क्या", "यह"]
    assert words_of("Cafe\u0301 noir") == words_of("CAFÉ noir") == ["café", "noir"]


def test_bleu_worked_by_hand() -> None:
    """Of 4 words 3 are in a reference, of 3 pairs 2; the closest reference has 4 words: no penalty."""
    found = score(["the red dog runs"], [["the red dog sits", "the red dog sits there now"]], bootstrap_samples=0)
    assert found["bleu-1"] == pytest.approx(75.0)
    assert found["bleu-2"] == pytest.approx(100 * (3 / 4 * 2 / 3) ** 0.5)
    assert found["bleu-3"] == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3))
    assert found["bleu-4"] == 0.0


def test_intervals_hold_the_value_and_come_from_the_seed() -> None:
    one, again, other = (score(CAPTIONS, REFERENCES, bootstrap_samples=200, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert [metric.name for metric in one.metrics] == list(METRICS)
    for metric in one.metrics:
        assert metric.interval is not None
        assert metric.interval[0] <= metric.value <= metric.interval[1] or metric.name == "bleu-4", metric
    assert (
        one.metrics[0].interval != one.metrics[5].interval and one.metrics[0].interval[0] < one.metrics[0].interval[1]
    )


def test_distinct_captions_are_counted_after_cutting_into_words() -> None:
    found = score(["A boat.", "a boat", "boats"], [["a boat"]] * 3, bootstrap_samples=0)
    assert found.num_distinct == 2
    assert found.lines()[-1] == "3 pictures, 2 distinct captions"
    assert found.to_json()["num_distinct"] == 2 and set(found.to_json()["metrics"]) == set(METRICS)


def test_signatures_say_what_was_done() -> None:
    found = score(CAPTIONS, REFERENCES, bootstrap_samples=0)
    assert found.metrics[3].signature.startswith("sacrebleu:") and "nrefs:var" in found.metrics[3].signature
    assert "nrefs:1" in score(["a"], [["a"]], bootstrap_samples=0).metrics[0].signature


def test_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="2 captions against references of 1 pictures"):
        score(["a", "b"], [["a"]])
    with pytest.raises(DataError, match="no captions"):
        score([], [])
    with pytest.raises(DataError, match="1 pictures have no reference, the first is number 1"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="expected a list of captions"):
        score(["a"], ["a"])
    with pytest.raises(ConfigError, match="bootstrap_samples: received 1"):
        score(["a"], [["a"]], bootstrap_samples=1)


def test_without_sacrebleu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match="pip install sacrebleu"):
        score(["a"], [["a"]])
