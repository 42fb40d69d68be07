"""`regard summarize`: documents of every kind in, summaries and where they came from out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Command, run_process

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_reports import TEST, write_recipe, write_reports

from regard.attention.records.record import AttentionRecord

DOCUMENT, SUMMARY = TEST[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    recipe = write_recipe(folder / "reports.yaml", write_reports(folder / "data"))
    done = run_process("train", recipe, "--run", folder / "run")
    assert done.status == 0, done.err
    assert "ROUGE-1 100.00" in done.out
    return folder / "run" / "model"


def test_files_standard_input_and_text(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "article.txt").write_text(TEST[1][0].replace(". ", ".\n"), encoding="utf-8")
    stdin = f"{TEST[2][0]}\n".encode()
    done = command("summarize", model, DOCUMENT, "-", "--file", tmp_path / "article.txt", stdin=stdin)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [SUMMARY, TEST[2][1], TEST[1][1]]


def test_json_says_what_was_copied_and_from_where(command: Command, model: Path) -> None:
    done = command("summarize", model, DOCUMENT, "--json", "--num-best", "2")
    found = json.loads(done.out)
    assert found["text"] == SUMMARY
    assert len(found["alternatives"]) == 1
    copied = [word for word in found["words"] if word["source_span"]]
    assert [DOCUMENT[slice(*word["source_span"])] for word in copied] == [SUMMARY.split()[0], SUMMARY.split()[2]]


def test_options(command: Command, model: Path) -> None:
    lines = command("summarize", model, DOCUMENT, "--num-best", "3").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["1"] * 3
    assert lines[0].split("\t")[2] == SUMMARY
    assert len(command("summarize", model, DOCUMENT, "--max-length", "2").out.split()) == 2
    assert len(command("summarize", model, DOCUMENT, "--min-length", "6", "--beam-size", "2").out.split()) >= 6
    command("summarize", model, DOCUMENT, "--min-length", "9", "--max-length", "3").refused("leaves no room for EOS")
    command("summarize", model, DOCUMENT, "--coverage-penalty", "-1").refused("coverage_penalty is -1.0")
    done = command("summarize", model, DOCUMENT, "--coverage-penalty", "0.5", "--no-repeat-ngram", "2")
    assert done.out == f"{SUMMARY}\n"
    likeliest = command("summarize", model, DOCUMENT, "--sample", "--top-k", "1", "--seed", "3")
    assert likeliest.out == command("summarize", model, DOCUMENT, "--beam-size", "1").out


def test_attention_is_written(command: Command, model: Path, tmp_path: Path) -> None:
    for name in ("why.html", "why.png", "why.svg", "why.jsonl"):
        done = command("summarize", model, DOCUMENT, TEST[1][0], "--attention", tmp_path / name)
        assert (done.status, done.err) == (0, "")
        assert (tmp_path / name).stat().st_size
    whole = tmp_path / "why.safetensors"
    assert command("summarize", model, DOCUMENT, "--attention", whole).status == 0
    assert AttentionRecord.load(whole).key.text == DOCUMENT
    command("summarize", model, DOCUMENT, DOCUMENT, "--attention", whole).refused("holds one record, received 2")
    page = (tmp_path / "why.html").read_text(encoding="utf-8")
    assert f"{SUMMARY.split()[0]}: copied (100%) from characters" in page
    command("summarize", model, DOCUMENT, "--attention", tmp_path / "why.pdf").refused("known: .html")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text, expected a document"),
        (b" \n\t", "holds no text, expected a document"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "holds a NUL at byte 9, so it is no text"),
        (b"abc \xe9t\xe9", "not UTF-8 (byte 0xe9, number 5)"),
        ("Text".encode("utf-16"), "UTF-16, expected UTF-8"),
        ("\u200b\u200b".encode(), ""),
    ],
)
def test_bad_documents(content: bytes, message: str, command: Command, model: Path, tmp_path: Path) -> None:
    """The bad one is named, the good one is done."""
    (tmp_path / "bad").write_bytes(content)
    done = command("summarize", model, DOCUMENT, "--file", tmp_path / "bad")
    assert done.out.splitlines()[0] == SUMMARY
    if message:
        assert done.status == 2
        [line] = done.errors
        assert message in line
        json_lines = command("summarize", model, "-", "--json", stdin=content)
        assert "error" in json.loads(json_lines.out)


def test_what_is_not_there(command: Command, model: Path, tmp_path: Path) -> None:
    command("summarize", model, "--file", tmp_path / "none").refused("cannot be read (No such file or directory)")
    command("summarize", model, "--file", tmp_path).refused("cannot be read (Is a directory)")
    command("summarize", model).refused("nothing to do: give a text in quotes")
    command("summarize", tmp_path, DOCUMENT).refused("missing from the model directory")
    command("translate", model, DOCUMENT).refused("not a translation model")


def test_a_million_words(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(DOCUMENT + " and so on" * 333_000, encoding="utf-8")
    done = command("summarize", model, "--file", tmp_path / "long.txt")
    assert done.status == 0
    assert "document 1 is long: read up to character" in done.err
    assert done.out.strip()


def test_evaluate(command: Command, model: Path) -> None:
    done = command("evaluate", model, "--json")
    assert json.loads(done.out)["exact_match"] == 1.0
    command("evaluate", model, "--scoring", "sacrebleu").refused("--scoring has no effect on the task summarize")
