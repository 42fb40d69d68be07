"""Error rates against jiwer called directly, and cases worked by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from regard.errors import ConfigError, DataError, RegardError
from regard.tasks.transcribe.scoring import score

jiwer = pytest.importorskip("jiwer", reason="the extra `speech` is not installed")

REFERENCES = ["one two three", "four", "five five six", "seven eight nine zero", "RUBOUT G M E F"]
HYPOTHESES = ["one two", "four", "five six six seven", "", "RUBOUT C M F"]


def test_rates_are_jiwers_and_edits_those_worked_by_hand():
    scores = score(HYPOTHESES, REFERENCES, bootstrap_samples=0)
    words, characters = scores.rates
    expected = jiwer.process_words(REFERENCES, HYPOTHESES)
    assert words.value == pytest.approx(100 * expected.wer)
    assert (words.substitutions, words.insertions, words.deletions) == (
        expected.substitutions,
        expected.insertions,
        expected.deletions,
    )
    # three | - | five->six inserted or substituted | four words | G->C, E lost
    assert words.errors == 1 + 0 + 2 + 4 + 2 and words.reference_length == 16
    assert characters.value == pytest.approx(100 * jiwer.cer(REFERENCES, HYPOTHESES))
    assert scores.num_exact == 1 and scores.wer == words.value
    assert words.interval is None and words.signature.startswith("compared:exact|jiwer:")


def test_the_interval_spans_what_drawing_again_gives():
    scores = score(HYPOTHESES, REFERENCES, bootstrap_samples=400, seed=3)
    errors, lengths = np.array([1, 0, 2, 4, 2]), np.array([3, 1, 3, 4, 5])
    draws = np.random.default_rng(3).choice(5, size=(400, 5), replace=True)
    values = np.sort(100 * errors[draws].sum(1) / lengths[draws].sum(1))
    assert scores.rates[0].interval == pytest.approx((values[10], values[389]))
    assert "bs:400|seed:3" in scores.rates[0].signature
    assert score(HYPOTHESES, REFERENCES, bootstrap_samples=400, seed=3) == scores


def test_plain_comparison_knows_no_case_and_no_marks():
    given = ["Don't stop — now!", "Well, ONE-two."], ["don't stop now", "well one two"]
    assert score(*given, compared="plain", bootstrap_samples=0).wer == 0
    assert score(*given, bootstrap_samples=0).wer > 0


def test_a_rate_may_exceed_a_hundred():
    assert score(["a b c d"], ["x"], bootstrap_samples=0).wer == 400


def test_lines_say_it_all():
    lines = score(HYPOTHESES, REFERENCES, bootstrap_samples=100).lines()
    assert lines[0].startswith("WER 56.25 [") and "9 of 16: " in lines[0]
    assert lines[-1] == "1 of 5 utterances without an error (20.0%)"
    plain = score(HYPOTHESES, REFERENCES, bootstrap_samples=100).to_json()
    assert plain["metrics"]["WER"]["value"] == 56.25 and set(plain["metrics"]) == {"WER", "CER"}


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ((["a"], []), {}, DataError, "received 1 transcripts and 0 references"),
        (([], []), {}, DataError, "one at least"),
        ((["a"], [" "]), {}, DataError, "reference 1 holds no word"),
        ((["a"], ["?!"]), {"compared": "plain"}, DataError, "reference 1 holds no word"),
        ((["a"], ["a"]), {"bootstrap_samples": 1}, ConfigError, "bootstrap_samples is 1"),
        ((["a"], ["a"]), {"compared": "loose"}, ConfigError, "expected exact or plain"),
    ],
)
def test_mistakes_are_told(given, options, error, message):
    with pytest.raises(error, match=message):
        score(*given, **options)


def test_without_jiwer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(RegardError, match=r"pip install 'regard\[speech\]'"):
        score(["a"], ["a"])
