"""A summarization run: its corpus, its models, its result, and recipes that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_reports import TEST, TRAIN, recipe

import regard
from regard.data.corpus import Corpus
from regard.errors import ConfigError
from regard.inputs.text import Tokenizer
from regard.inputs.words import WordTokenizer
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.summarize.recipe import SummarizeRecipe
from regard.tasks.summarize.summarizer import Summarizer


def checked(data: Path, **changes: Any) -> SummarizeRecipe:
    return validated(SummarizeRecipe, recipe(data, **changes), "x.yaml")


SUBWORDS = {"kind": "bpe", "vocab_size": 290}
TRANSFORMER = {
    "tie": "all",
    "copy": {"attention": "own"},
    "encoder": {
        "type": "transformer",
        "model_dim": 16,
        "num_layers": 1,
        "attention": {"heads": 2, "window": 8, "num_global": 2},
        "feed_forward": {"width": 16},
    },
    "decoder": {
        "type": "transformer",
        "model_dim": 16,
        "num_layers": 1,
        "attention": {"heads": 2},
        "feed_forward": {"width": 16},
    },
}


def test_source_and_target_agree_on_unknown_words(run_folder: Path, summarizer: Summarizer) -> None:
    corpus = Corpus.open(run_folder / "data" / "train")
    tokenizer = summarizer.tokenizer
    assert isinstance(tokenizer, WordTokenizer)
    assert len(corpus) == len(TRAIN)
    for index in range(20):
        source, target = corpus["source", index], corpus["target", index]
        assert source[-1] == target[-1] == Tokenizer.EOS
        names = target[target >= len(tokenizer)]
        assert len(names) == 2
        assert np.isin(names, source).all()
        known = tokenizer.unknown_words(TRAIN[index][0])
        assert tokenizer.decode(target[:-1].tolist(), known) == TRAIN[index][1]


def test_the_result_says_what_was_found(run_folder: Path) -> None:
    result = json.loads((run_folder / "result.json").read_text(encoding="utf-8"))
    [test] = result["test"]
    assert test["metrics"]["ROUGE-L"]["value"] == 100.0
    assert test["copy_rate"] == pytest.approx(2 / 3)
    assert test["first_8_words"]["ROUGE-1"] < 60
    card = (run_folder / "model" / "README.md").read_text(encoding="utf-8")
    assert "which copies words of the document" in card
    assert "ROUGE-1 100.00" in card
    metrics = (run_folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert "entropy" in metrics, "attention was looked at in training"


def test_a_long_document_is_cut_and_a_long_summary_is_bad(data: Path, tmp_path: Path) -> None:
    changes = {"data__max_tokens": 9, "data__max_summary_tokens": 3, "training__max_steps": 1}
    with pytest.raises(regard.RegardError, match=r"no usable record .* too long target, over 3 tokens 600"):
        train(checked(data, **changes), tmp_path / "none")
    changes["data__max_summary_tokens"] = 4
    train(checked(data, **changes), tmp_path / "run")
    corpus = Corpus.open(tmp_path / "run" / "data" / "train")
    assert corpus.lengths("source").max() == corpus.lengths("source").min() == 9
    assert corpus["source", 0][-1] == Tokenizer.EOS
    [found] = regard.load(tmp_path / "run" / "model").summarize([TEST[0][0]])
    assert found.is_cut
    assert found.num_read < len(TEST[0][0])


@pytest.mark.parametrize("copy", [{"attention": "own"}, None], ids=["copying", "without copying"])
def test_subwords_and_a_transformer(copy: Any, data: Path, tmp_path: Path) -> None:
    changes = {"tokenizer": SUBWORDS, "model": TRANSFORMER | {"copy": copy}, "training__max_steps": 2}
    changes |= {"data__max_tokens": 100, "data__max_summary_tokens": 40, "training__precision": "bfloat16"}
    changes |= {"coverage_loss": 0.5 if copy else 0.0, "training__label_smoothing": 0.1}
    result = train(checked(data, **changes), tmp_path / "run")
    assert result["steps"] == 2
    model = regard.load(tmp_path / "run" / "model")
    [found] = model.summarize([TEST[0][0]], max_length=7)
    assert (found.copy_rate is None) == (copy is None) == (found.pointing is None)
    assert found.attention is not None
    layers = list(found.attention.layers)
    assert layers == ["decoder.layers.0.cross"] + (["decoder.copy"] if copy else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {**TRANSFORMER, "copy": None}}, "tokenizer.kind is words, whose unknown words can only be copied"),
        ({"tokenizer": SUBWORDS, "model__copy": None, "coverage_loss": 1.0}, "the model points at nothing"),
        ({"coverage_loss": -1.0}, "coverage_loss` is -1.0: expected greater than or equal to 0"),
        ({"data__batch": {"batch_tokens": 20}}, "data.batch.batch_tokens is 20, expected 40 or more"),
        ({"model__decoder__score": "dot"}, "model: "),
        ({"model__copy": {"attention": "theirs"}}, "key `model.copy.attention` is \"theirs\": expected own or decoder"),
        ({"tokenizer": {"kind": "words", "vocab_size": 2}}, "vocab_size is 2, expected more than the 4 special ids"),
        ({"validation": {"metric": "bleu"}}, "key `validation.metric`"),
        ({"task": "sumarize"}, "key `task`"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(changes: dict[str, Any], message: str, data: Path) -> None:
    if "model__decoder__score" in changes:
        changes = {**changes, "model__encoder__model_dim": 31}
    with pytest.raises(ConfigError) as refused:
        checked(data, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
