"""`regard transcribe` and `regard look`: files in; lines, subtitles and pictures out; one line for each bad file."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tone_language
from sound_files import broken_files, wav_bytes

from regard.cli.main import run
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.transcribe.recipe import TranscribeRecipe

pytest.importorskip("soundfile", reason="the extra `speech` is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was hardly trained: it says something, whatever that is."""
    folder = tmp_path_factory.mktemp("tones")
    for name, count in (("train", 12), ("validation", 3)):
        tone_language.write(folder, name, count, 1)
    recipe = tone_language.recipe(folder)
    del recipe["data"]["test"]
    recipe["training"] |= {"max_steps": 12, "validate_every": 12, "checkpoint_every": 12}
    train(validated(TranscribeRecipe, recipe, "tones"), folder / "run")
    return folder / "run" / "model"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    samples, _ = tone_language.said(["low", "mid", "high"], np.random.default_rng(4))
    path.write_bytes(wav_bytes(samples, tone_language.RATE))
    return path


def told(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


def test_a_line_a_file_in_their_order(model, sound, capsys):
    assert run(["transcribe", str(model), str(sound), str(sound)]) == 0
    lines, errors = told(capsys)
    assert len(lines) == 2 and lines[0] == lines[1] and not errors


def test_json_with_words_and_segments(model, sound, capsys):
    assert run(["transcribe", str(model), str(sound), "--json", "--timestamps", "word"]) == 0
    found = json.loads(told(capsys)[0][0])
    assert found["source"] == str(sound) and found["timestamps"] in ("ctc", "attention")
    assert [word["text"] for word in found["words"]] == found["text"].split()
    assert run(["transcribe", str(model), str(sound), "--format", "json", "--timestamps", "segment"]) == 0
    assert "segments" in json.loads(told(capsys)[0][0])


def test_times_as_text_and_subtitles(model, sound, capsys):
    assert run(["transcribe", str(model), str(sound), "--timestamps", "word"]) == 0
    for line in told(capsys)[0]:
        begin, end, _ = line.split("\t")
        assert 0 <= float(begin) <= float(end) <= 2
    assert run(["transcribe", str(model), str(sound), "--format", "vtt"]) == 0
    assert told(capsys)[0][0] == "WEBVTT"
    assert run(["transcribe", str(model), str(sound), "--format", "srt"]) == 0
    lines = told(capsys)[0]
    assert not [line for line in lines if line] or (lines[0] == "1" and "-->" in lines[1])


def test_standard_input_holds_one_file(model, sound, capsys, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(sound.read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert run(["transcribe", str(model), "-", str(sound)]) == 0
    lines, _ = told(capsys)
    assert lines[0] == lines[1]
    Stdin.buffer = io.BytesIO(b"no sound at all")
    assert run(["transcribe", str(model), "-"]) == 2
    assert "None" not in told(capsys)[1][0]
    assert run(["transcribe", str(model), "-", "-"]) == 2
    assert "standard input holds one file" in told(capsys)[1][0]


def test_bad_files_are_told_one_by_one_and_the_rest_is_done(model, sound, tmp_path, capsys):
    broken = [str(path) for path in broken_files(tmp_path).values()]
    names = [str(sound), *broken, str(tmp_path / "nowhere.wav"), str(sound)]
    assert run(["transcribe", str(model), *names]) == 2
    lines, errors = told(capsys)
    assert len(lines) == len(names) and lines[0] == lines[-1] and not any(lines[1:-1])
    assert len(errors) == len(names) - 2
    for name, error in zip(names[1:-1], errors, strict=True):
        assert error.startswith("regard: error: ") and name in error
    assert run(["transcribe", str(model), broken[0], str(sound), "--json"]) == 2
    first, second = (json.loads(line) for line in told(capsys)[0])
    assert first["source"] == broken[0] and "error" in first and "text" in second
    assert run(["transcribe", str(model), broken[0], str(sound), str(sound), "--format", "vtt"]) == 2
    lines, _ = told(capsys)
    assert lines[0] == "WEBVTT" and lines.count("WEBVTT") == 1


def test_a_search_obeys_what_it_is_told(model, sound, capsys):
    def text(*options: str) -> str:
        asked = ["--ctc-weight", "0", "--max-length", "12", "--json", *options]
        assert run(["transcribe", str(model), str(sound), *asked]) == 0
        return str(json.loads(told(capsys)[0][0])["text"])

    long = text("--min-length", "11")
    assert len(long) > len(text("--max-length", "2"))
    assert text("--min-length", "11", "--no-repeat-ngram", "1") != long
    assert text("--beam-size", "2", "--length-penalty", "1", "--coverage-penalty", "0.5") is not None


@pytest.mark.parametrize("ending", ["html", "png", "svg", "jsonl", "safetensors"])
def test_attention_is_written(model, sound, tmp_path, capsys, ending):
    out = tmp_path / f"why.{ending}"
    assert run(["transcribe", str(model), str(sound), "--attention", str(out)]) == 0
    assert out.stat().st_size > 500
    assert run(["look", str(model), str(sound), "--out", str(tmp_path / f"look.{ending}")]) == 0
    assert (tmp_path / f"look.{ending}").stat().st_size > 500


def test_looking_at_a_record_and_at_what_is_none(model, sound, tmp_path, capsys):
    record = tmp_path / "seen.safetensors"
    assert run(["look", str(model), str(sound), "--out", str(record)]) == 0
    assert run(["look", str(record), "--out", str(tmp_path / "again.svg")]) == 0
    assert (tmp_path / "again.svg").read_text().startswith("<?xml") or "<svg" in (tmp_path / "again.svg").read_text()
    assert run(["look", str(model), str(tmp_path / "none.wav"), str(sound), "--out", str(tmp_path / "x.html")]) == 2
    assert (tmp_path / "x.html").is_file() and "none.wav" in told(capsys)[1][-1]
    for arguments, message in (
        ([str(record), "a", "--out", "x.svg"], "is a record, which is drawn as it is"),
        ([str(model), "--out", str(tmp_path / "x.svg")], "nothing to look at"),
        ([str(model), str(sound), "--out", str(tmp_path / "x.doc")], "--out"),
        ([str(model), str(sound), str(sound), "--out", str(record)], "holds one record, there are 2"),
    ):
        assert run(["look", *arguments]) == 2
        assert message in told(capsys)[1][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "doc"], "--format doc: expected one of text, json, srt, vtt"),
        (["--timestamps", "letter"], "--timestamps letter: expected word or segment"),
        (["--json", "--format", "srt"], "contradict each other"),
        (["--ctc-weight", "3"], "ctc_weight is 3.0, expected a share"),
        (["--attention", "why.doc"], "--attention why.doc"),
        (["--ctc-weight", "1", "--no-repeat-ngram", "2"], "no_repeat_ngram would have no effect where CTC votes alone"),
        (["--min-length", "9", "--max-length", "3"], "leaves no room for EOS"),
    ],
)
def test_options_that_cannot_be(model, sound, capsys, options, message):
    assert run(["transcribe", str(model), str(sound), *options]) == 2
    assert message in told(capsys)[1][0]


def test_nothing_to_do_and_another_model(model, sound, tmp_path, capsys):
    assert run(["transcribe", str(model)]) == 2
    assert "give a sound file" in told(capsys)[1][0]
    assert run(["translate", str(model), "a text"]) == 2
    assert "not a translation model" in told(capsys)[1][0]
    assert run(["transcribe", str(tmp_path), str(sound)]) == 2
    assert "config.json" in told(capsys)[1][0]


def test_any_model_that_says_what_it_attended_to_is_looked_at(sound, tmp_path, capsys, monkeypatch):
    from types import SimpleNamespace

    import torch

    from regard.attention.observation import Observation
    from regard.attention.records.axis import Axis
    from regard.attention.records.record import AttentionRecord
    from regard.errors import DataError

    def translate(texts: list[str]) -> list[SimpleNamespace]:
        if texts == ["bad"]:
            raise DataError("bad: no text")
        axis = Axis("a b", ("a", "b"), ((0, 1), (2, 3)))
        layers = {"cross": Observation(rows=torch.eye(2)[None, None], row_index=torch.arange(2))}
        return [SimpleNamespace(attention=AttentionRecord(layers, axis, axis))]

    monkeypatch.setattr("regard.tasks.load.load", lambda *a, **k: SimpleNamespace(translate=translate))
    assert run(["look", "model", "a b", "bad", "--out", str(tmp_path / "a.svg")]) == 2
    assert (tmp_path / "a.svg").is_file() and told(capsys)[1] == ["regard: error: bad: no text"]
    monkeypatch.setattr("regard.tasks.load.load", lambda *a, **k: SimpleNamespace())
    assert run(["look", "model", "a", "--out", str(tmp_path / "b.svg")]) == 2
    assert "shows no attention yet" in told(capsys)[1][0]


def test_another_search_is_scored(model, capsys):
    data = str(model.parents[1] / "validation.jsonl")
    assert run(["evaluate", str(model), "--data", data, "--ctc-weight", "1.0", "--beam-size", "2", "--json"]) == 0
    assert "wer" in told(capsys)[0][0].lower()
    assert run(["evaluate", str(model), "--ctc-weight", "2"]) == 2
    assert "ctc_weight is 2.0, expected a share from 0 to 1" in told(capsys)[1][-1]
    assert run(["evaluate", str(model), "--data", data, "--language-model", "nowhere"]) == 2
    assert "nowhere" in told(capsys)[1][-1]
