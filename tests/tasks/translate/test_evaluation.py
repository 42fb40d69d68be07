"""Scoring on a test set, and the card that tells of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_translators import phrases, reversed_translation

from regard.errors import ConfigError, DataError
from regard.tasks.translate.card import model_card
from regard.tasks.translate.evaluation import evaluate, evaluate_directory
from regard.tasks.translate.translator import Translator


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    return [(text, reversed_translation(text)) for text in dict.fromkeys(phrases(60, seed=21))]


def test_scores_of_the_trained_model_beside_those_of_doing_nothing(
    trained: Translator, pairs: list[tuple[str, str]]
) -> None:
    sacrebleu, moses = evaluate(trained, pairs, ["sacrebleu", "moses-lowercase"], bootstrap_samples=20)
    assert sacrebleu.outputs == moses.outputs
    assert len(sacrebleu.outputs) == len(pairs)
    assert sum(output == target for output, (_, target) in zip(sacrebleu.outputs, pairs, strict=True)) > 0.9 * len(
        pairs
    )
    assert (sacrebleu.scores.scoring, moses.scores.scoring) == ("sacrebleu", "moses-lowercase")
    assert all(metric.interval is not None for metric in sacrebleu.scores.metrics)
    assert [metric.name for metric in sacrebleu.trivial.metrics] == ["BLEU", "chrF"]
    for metric, trivial in zip(sacrebleu.scores.metrics, sacrebleu.trivial.metrics, strict=True):
        assert metric.value > 80
        assert trivial.value < 20
        assert trivial.interval is None

    lines = sacrebleu.lines()
    assert lines[:-1] == sacrebleu.scores.lines()
    bleu, chrf = (metric.value for metric in sacrebleu.trivial.metrics)
    assert lines[-1] == f"the untranslated source, for comparison: BLEU {bleu:.2f}, chrF {chrf:.2f}"
    values = json.loads(json.dumps(sacrebleu.to_json()))
    assert values["untranslated_source"] == {"BLEU": bleu, "chrF": chrf}
    assert values["metrics"]["BLEU"]["value"] == sacrebleu.scores.metrics[0].value


def test_an_n_best_list_counts_for_nothing(trained: Translator, pairs: list[tuple[str, str]]) -> None:
    options = replace(trained.config.decoding, beam_size=3)
    one, listed = (
        evaluate(trained, pairs, ["sacrebleu"], options=replace(options, num_best=num_best), bootstrap_samples=0)
        for num_best in (1, 3)
    )
    assert one == listed


def test_a_recipes_n_best_does_not_forbid_a_smaller_beam(
    trained: Translator, pairs: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = replace(trained.config.decoding, beam_size=3, num_best=3)
    monkeypatch.setattr(trained, "config", replace(trained.config, decoding=listed))
    path = tmp_path / "test.tsv"
    path.write_text("source\ttarget\n" + "".join(f"{source}\t{target}\n" for source, target in pairs[:5]))
    assert len(evaluate_directory(trained, str(path), {"beam_size": 1}, lambda said: None)[1]) == 5


def test_without_options_the_model_s_own_are_used(trained: Translator, pairs: list[tuple[str, str]]) -> None:
    short = Translator(
        trained.model,
        trained.source_tokenizer,
        trained.target_tokenizer,
        replace(trained.config, decoding=replace(trained.config.decoding, max_length=1)),
    )
    [found] = evaluate(short, pairs, ["sacrebleu"], bootstrap_samples=0)
    assert all(len(output.split()) <= 1 for output in found.outputs)


def test_an_empty_test_set(trained: Translator) -> None:
    with pytest.raises(
        DataError,
        match=r"^evaluate: received no pairs, expected at least one source with its reference; check the test",
    ):
        evaluate(trained, [], ["sacrebleu"])


def test_a_scoring_that_is_not_known(trained: Translator) -> None:
    with pytest.raises(ConfigError, match=r"^scoring: received 'bleurt'"):
        evaluate(trained, [("one", "eins")], ["bleurt"])  # type: ignore[list-item]


def test_the_card(trained: Translator, pairs: list[tuple[str, str]]) -> None:
    found = evaluate(trained, pairs, ["sacrebleu", "moses-lowercase"], bootstrap_samples=0)
    card = model_card(trained.config, found)
    assert card.startswith("# Translation en to de\n")
    assert f"{trained.model.num_parameters():,} parameters, trained with regard on 13 sentence pairs" in card
    assert "sha256 `abc`" in card
    assert "A text longer than 5 tokens is translated sentence by sentence." in card
    for evaluation in found:
        for line in evaluation.lines():
            assert f"\n    {line}\n" in card
    assert "\n\n\n" not in card
    unfinished, untested = model_card(trained.config, None), model_card(trained.config, [])
    assert "Still in training: these are the weights of the best validation so far.\n\n## Limits" in unfinished
    assert "The recipe names no test set.\n\n## Limits" in untested
