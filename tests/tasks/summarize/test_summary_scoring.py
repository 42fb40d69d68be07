from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from regard.errors import ConfigError, DataError, RegardError
from regard.tasks.summarize.evaluation import evaluate, evaluate_directory, first_words
from regard.tasks.summarize.scoring import rouge, score
from regard.tasks.summarize.summarizer import Summarizer


def test_rouge_by_hand() -> None:
    """ "the cats sat" and "the cat sat down": 3 of 3 and 4 words, 2 of 2 and 3 pairs, stems counted as equal."""
    [one] = rouge(["the cats sat"], ["the cat sat down"])
    assert one.tolist() == pytest.approx([600 / 7, 80.0, 600 / 7])
    [swapped] = rouge(["sat the cat"], ["the cat sat"])
    assert swapped.tolist() == pytest.approx([100.0, 50.0, 200 / 3])
    assert rouge([""], ["words"]).tolist() == [[0.0, 0.0, 0.0]]


def test_scores_are_means_with_intervals() -> None:
    summaries, references = ["a b", "c d", "e f"] * 20, ["a b", "c x", "y z"] * 20
    documents = ["a b q", "c q d", "q"] * 20
    found = score(summaries, references, documents, copy_rates=[0.5, None, 1.0] * 20)
    one, two, long = found.metrics
    assert [one.name, two.name, long.name] == ["ROUGE-1", "ROUGE-2", "ROUGE-L"]
    assert one.value == pytest.approx(50.0)
    assert two.value == pytest.approx(100 / 3)
    assert one.interval is not None and one.interval[0] < one.value < one.interval[1]
    assert found.exact == pytest.approx(1 / 3)
    assert found.novelty == pytest.approx((2 / 6, 2 / 3))
    assert found.copy_rate == pytest.approx(0.75)
    assert (found.length, found.reference_length) == (2.0, 2.0)
    assert one.signature.startswith("rouge-score:0.1")
    assert any("33.3% of the words, 66.7% of the pairs, copied 75.0%" in line for line in found.lines())
    again = score(summaries, references, documents, seed=1)
    assert again.metrics[0].interval != one.interval
    assert score(summaries, references, documents, bootstrap_samples=0).metrics[0].interval is None


def test_what_cannot_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="2 summaries, 1 references and 1 documents"):
        score(["a", "b"], ["a"], ["a"])
    with pytest.raises(DataError, match="no summaries"):
        score([], [], [])
    with pytest.raises(ConfigError, match="bootstrap_samples: received 1"):
        score(["a"], ["a"], ["a"], bootstrap_samples=1)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(RegardError, match=r"pip install 'regard\[summarize\]'"):
        rouge(["a"], ["a"])


def test_the_first_words_of_a_document() -> None:
    assert first_words("Dear all, (the) end - of it. More", 5) == "Dear all, (the) end - of"
    assert first_words("short") == "short"
    assert first_words(" ?! ") == ""


def test_evaluation_refuses_what_it_has_no_use_for(summarizer: Summarizer) -> None:
    with pytest.raises(ConfigError, match="--scoring has no effect on the task summarize"):
        evaluate_directory(summarizer, None, {"scoring": "sacrebleu"}, print)
    with pytest.raises(DataError, match="received no pairs"):
        evaluate(summarizer, [])


def test_evaluation_scores_the_recipes_test_set(summarizer: Summarizer) -> None:
    found, outputs = evaluate_directory(summarizer, None, {"beam_size": 1}, lambda said: None)
    assert len(outputs) == 30
    assert found.scores.exact == 1.0
    assert found.lines()[-1].startswith("the document's first 8 words, for comparison: ROUGE-1 ")


def test_a_recipes_n_best_does_not_forbid_a_smaller_beam(
    summarizer: Summarizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = replace(summarizer.config.decoding, beam_size=3, num_best=3)
    monkeypatch.setattr(summarizer, "config", replace(summarizer.config, decoding=listed))
    assert len(evaluate_directory(summarizer, None, {"beam_size": 1}, lambda said: None)[1]) == 30
