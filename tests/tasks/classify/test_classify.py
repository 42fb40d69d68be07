"""A classifier's run from recipe to labels: what is learnt, told, shown, scored, begun with and refused."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_labels import ENCODER, pairs, pretraining, recipe, rows, write

import regard
from regard.cli.main import run as command_line
from regard.data.batches import Sequences
from regard.errors import ConfigError, DataError
from regard.tasks.classify.job import behind
from regard.tasks.classify.labeller import Labeller
from regard.tasks.jobs import task_of
from regard.tasks.pretrain.filler import Filler
from regard.tasks.recipe import read_yaml, validated
from regard.tasks.run import train

Call = Callable[..., tuple[int, str, str]]


def checked(path: Path) -> Any:
    values = read_yaml(path)
    return validated(task_of(values["task"]).recipe, values, str(path))


def trained_by(path: Path, folder: Path) -> Path:
    train(checked(path), folder, origin=str(path))
    return folder / "model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    return trained_by(recipe(folder / "data"), folder / "run")


@pytest.fixture(scope="module")
def labeller(model: Path) -> Labeller:
    loaded = regard.load(model)
    assert isinstance(loaded, Labeller)
    return loaded


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    recipe(folder / "data")
    return trained_by(pretraining(folder / "data"), folder / "run")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def called(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        status = command_line([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return called


# -- telling -----------------------------------------------------------------------------------------------------------


def test_it_tells_what_it_has_learnt(labeller: Labeller) -> None:
    unseen = rows(30, seed=9)
    found = labeller.classify([text for text, _ in unseen])
    assert [one.label for one in found] == [label for _, label in unseen]
    for one in found:
        assert sum(one.probabilities.values()) == pytest.approx(1.0)
        assert list(one.probabilities.values()) == sorted(one.probabilities.values(), reverse=True)
        assert one.attention is None
    alone = [labeller.classify([text], batch_tokens=1)[0] for text, _ in unseen[:3]]
    for one, other in zip(alone, found, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_what_stands_behind_a_label_is_shown(labeller: Labeller, tmp_path: Path) -> None:
    texts = ["a film so dull but warm", "a long house so grey but very clever"]
    for text, found in zip(texts, labeller.classify(texts, attention=True), strict=True):
        record = found.attention
        assert record is not None
        assert record.key is not None
        assert record.key.text == text
        assert list(record.layers) == ["encoder.layers.0.self", "pooling"]
        for name, heads in (("encoder.layers.0.self", 4), ("pooling", 2)):
            weights = record[name].rows
            assert weights.shape == (1, heads, 1, len(record.key.tokens))
            torch.testing.assert_close(weights.sum(-1), torch.ones(1, heads, 1))
        record.save(tmp_path / "why.html")


@pytest.mark.parametrize("kind", ["mean", "first", "max"])
def test_every_pooling_shows_what_its_layers_looked_at(tmp_path: Path, kind: str) -> None:
    path = recipe(tmp_path, model={"encoder": ENCODER, "pooling": {"kind": kind}}, training__max_steps=2)
    [found] = regard.load(trained_by(path, tmp_path / "run")).classify(["a film so dull"], attention=True)
    weights = found.attention["encoder.layers.0.self"].rows
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 1))


def test_pairs_are_told_together(tmp_path: Path, call: Call) -> None:
    path = recipe(
        tmp_path,
        pairs,
        tokenizer={"kind": "bpe", "vocab_size": 280},
        training__max_steps=200,
        model={"encoder": ENCODER, "pooling": {"kind": "attention"}, "dropout": 0.0},
    )
    model = trained_by(path, tmp_path / "run")
    labeller = regard.load(model)
    unseen = pairs(24, seed=8)
    found = labeller.classify([(first, second) for first, second, _ in unseen], attention=True)
    right = sum(one.label == label for one, (_, _, label) in zip(found, unseen, strict=True))
    assert right >= 22
    assert found[0].attention.key.text == f"{unseen[0][0]}\n\n{unseen[0][1]}"
    status, out, _ = call("classify", model, "the film\tthat film", "--json")
    assert (status, json.loads(out)["label"]) == (0, "same")
    status, _, err = call("classify", model, "the film")
    assert (status, "give both texts with one tab between" in err) == (2, True)
    with pytest.raises(DataError, match="input 1 is str, expected a pair of strings"):
        labeller.classify(["the film"])


def test_what_counting_finds_is_added(tmp_path: Path) -> None:
    """An encoder that has not learnt anything leaves the label to pairs of words; and the run resumes with them."""
    path = recipe(
        tmp_path,
        model={"encoder": ENCODER, "pooling": {"kind": "mean"}, "ngrams": {"longest": 2, "buckets": 5000}},
        training__max_steps=1,
        tokenizer={"kind": "whole-words", "vocab_size": 300},
    )
    labeller = regard.load(trained_by(path, tmp_path / "run"))
    unseen = rows(60, seed=9)
    told = [one.label for one in labeller.classify([text for text, _ in unseen])]
    assert told == [label for _, label in unseen]
    assert labeller.model.ngrams.weights.count_nonzero() > 100


def test_texts_of_pairs_stand_behind_each_other() -> None:
    first, second = Sequences.padded([[5, 6, 7], [8]]), Sequences.padded([[11], [12, 13]])
    values, lengths = behind(first, second)
    assert values.tolist() == [[5, 6, 7, 2, 11, 2], [8, 2, 12, 13, 2, 0]]
    assert lengths.tolist() == [6, 5]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ([""], "input 1 is empty, expected text"),
        (["a", " \n"], "input 2 is empty"),
        ([3], "input 1 is int, expected a"),
    ],
)
def test_what_is_no_text_is_refused(labeller: Labeller, given: list[Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        labeller.classify(given)
    assert labeller.classify([]) == []


def test_a_text_longer_than_any_in_training_is_refused(labeller: Labeller, model: Path, call: Call) -> None:
    long = "a film so dull " * 250_000  # a million words
    with pytest.raises(
        DataError, match=r"input 2 has [\d,]+ tokens, but the model was trained on at most 64; shorten it"
    ):
        labeller.classify(["a film", long])
    status, out, err = call("classify", model, "-", stdin=f"{long}\na film so dull but warm\n".encode())
    assert status == 2
    assert [line.split("\t")[0] for line in out.splitlines()] == ["", "good"]
    assert "text 1: has" in err


def test_a_long_record_of_a_test_set_is_named_before_training(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    write(tmp_path / "test.tsv", [("a film so dull", "bad"), ("a film so dull " * 60, "bad")])
    with pytest.raises(
        DataError, match=r"test.tsv:2: source has \d+ tokens, more than data.max_tokens, 64; a score must"
    ):
        trained_by(path, tmp_path / "run")


# -- the commands ------------------------------------------------------------------------------------------------------


def test_the_command_prints_labels_with_probabilities(model: Path, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(b"a song so fine but cold\ncaf\xe9\n\na day so cold but fine\n")
    status, out, err = call("classify", model, "--file", file)
    assert status == 2
    lines = out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["bad", "", "", "good"]
    assert lines[0].split("\t")[1].startswith("bad 0.")
    assert "lines.txt:2: not UTF-8" in err
    assert "text 3: is empty, expected text" in err
    picture = tmp_path / "why.svg"
    status, out, _ = call("classify", model, "a day so cold but fine", "--json", "--attention", picture)
    assert (status, json.loads(out)["label"]) == (0, "good")
    assert "fine" in picture.read_text()
    whole = tmp_path / "why.safetensors"
    assert call("classify", model, "a day so cold but fine", "--attention", whole)[0] == 0
    assert regard.AttentionRecord.load(whole).key.text == "a day so cold but fine"
    assert call("classify", model)[0] == 2


def test_evaluate_prints_scores_beside_naive_bayes(model: Path, call: Call, tmp_path: Path) -> None:
    status, out, _ = call("evaluate", model)
    assert status == 0
    assert "accuracy 1.0000 [1.0000, 1.0000]  records:60" in out
    assert "bigram naive Bayes, for comparison: accuracy" in out
    written = tmp_path / "labels.txt"
    status, out, _ = call("evaluate", model, "--json", "--output", written)
    assert json.loads(out)["confusion"][0][1] == 0
    assert set(written.read_text().split()) == {"good", "bad"}


def test_a_label_that_the_model_does_not_know_is_named(model: Path, call: Call, tmp_path: Path) -> None:
    write(tmp_path / "other.tsv", [("a fine day", "good"), ("a day", "so-so")])
    data = f"{{path: {tmp_path / 'other.tsv'}, header: false, columns: {{source: 0, target: 1}}}}"
    status, out, err = call("evaluate", model, "--data", data)
    assert (status, out) == (2, "")
    assert "other.tsv:2: unknown label 'so-so', the model knows bad, good" in err


# -- data that cannot teach --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data__labels": ["bad", "good", "middling"]}, "no example of `middling` among 400 training records"),
        ({"data__train__columns": {"source": 1, "target": 0}}, "unknown label"),
    ],
)
def test_labels_without_examples_are_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    path = recipe(tmp_path, **changes)
    with pytest.raises(DataError, match=complaint):
        trained_by(path, tmp_path / "run")


def test_a_single_label_is_nothing_to_learn(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    write(tmp_path / "train.tsv", [("a fine day", "good"), ("a day", "good")])
    with pytest.raises(DataError, match="all records have the label `good`; expected at least 2"):
        trained_by(path, tmp_path / "run")


def test_records_of_other_labels_are_bad_ones(tmp_path: Path) -> None:
    path = recipe(tmp_path, data__labels=["bad", "good"], training__max_steps=2)
    write(tmp_path / "train.tsv", [*rows(50, 1), ("a day", "so-so")])
    trained_by(path, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    [(reason, kept)] = result["data"]["bad_records"]["train"].items()
    assert reason == "unknown label 'so-so' in target"
    assert kept["first"][0].endswith("train.tsv:51")


@pytest.mark.parametrize("content", [b"\x00\x01\x02\n", b"caf\xe9\tgood\n"])
def test_binary_data_is_named_with_its_line(tmp_path: Path, content: bytes) -> None:
    path = recipe(tmp_path, data__on_bad="stop")
    (tmp_path / "test.tsv").write_bytes(b"a day\tgood\n" + content)
    with pytest.raises(DataError, match=r"test.tsv:2: "):
        trained_by(path, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"init_from": "somewhere"}, "expected one of the two, as a pre-trained encoder brings its own tokenizer"),
        ({"tokenizer": None}, "expected one of the two"),
        ({"data__labels": ["good", "good"]}, "names one label twice"),
        ({"data__labels": ["good"]}, "data.labels"),
        ({"model__pooling": {"kind": "mean", "penalty": 1.0}}, "pooling by mean has no hops"),
        ({"word_dropout": 1.0}, "word_dropout"),
        ({"model__ngrams": {"longest": 0}}, "longest is 0, expected 1 or more"),
        ({"validation": {"metric": "bleu"}}, "expected accuracy, macro_f1 or log_likelihood"),
    ],
)
def test_recipes_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    path = recipe(tmp_path, **changes)
    with pytest.raises(ConfigError, match=complaint):
        checked(path)


# -- pre-training ------------------------------------------------------------------------------------------------------


def test_a_pretrained_encoder_fills_in(pretrained: Path, call: Call) -> None:
    filler = regard.load(pretrained)
    assert isinstance(filler, Filler)
    [found] = filler.fill(["a film so ___ but warm"], num_best=8)
    tokens = [token for token, _ in found.tokens[0]]
    assert {"▁dull", "▁cold", "▁fine", "▁warm"} & set(tokens)
    with pytest.raises(DataError, match="input 1 has no blank; write ___ where a word is missing"):
        filler.fill(["a film"])
    status, out, _ = call("evaluate", pretrained)
    assert status == 0
    assert out.startswith("nats per hidden token")


def test_a_classifier_begins_with_it(pretrained: Path, tmp_path: Path) -> None:
    path = recipe(
        tmp_path, tokenizer=None, init_from=str(pretrained), training__max_steps=30, training__validate_every=30
    )
    model = trained_by(path, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["validation"]["candidates"]["best"] > 0.6
    assert regard.load(model).tokenizer == regard.load(pretrained).tokenizer


def test_an_encoder_that_does_not_fit_is_named(pretrained: Path, model: Path, tmp_path: Path) -> None:
    wider = {"encoder": {**ENCODER, "feed_forward": {"width": 64}}, "pooling": {"kind": "mean"}}
    path = recipe(tmp_path, tokenizer=None, init_from=str(pretrained), model=wider)
    with pytest.raises(ConfigError, match=r"feed_forward.inner.bias is .64., but .48. in the encoder of init_from"):
        trained_by(path, tmp_path / "run")
    path = recipe(tmp_path, tokenizer=None, init_from=str(model))
    with pytest.raises(ConfigError, match="is a model of the task classify, expected one of the task pretrain"):
        trained_by(path, tmp_path / "run")
