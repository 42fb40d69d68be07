"""`regard translate`: what goes in, what comes out, and every option."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from command_line import Command, Done, Trained, run_process, start
from tiny_language import TEST, VALIDATION

from regard.attention.records.record import AttentionRecord
from regard.cli import translate as translate_command
from regard.errors import RegardError

SOURCES = [source for source, _ in TEST]
TARGETS = [target for _, target in TEST]


def lines(command: Command, *arguments: object, stdin: bytes = b"") -> list[str]:
    """What a translation prints; it must succeed and say nothing else."""
    done = command("translate", *arguments, stdin=stdin)
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


# -- where text comes from ---------------------------------------------------------------------------------------------


def test_texts_files_and_standard_input_keep_their_order(command: Command, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{SOURCES[0]}\n{SOURCES[1]}", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(f"\ufeff{SOURCES[2]}\r\n\r\n{SOURCES[3]}\r\n".encode())
    stdin = f"{SOURCES[4]}\n{SOURCES[5]}\n".encode()
    files = ("--file", tmp_path / "a.txt", "--file", tmp_path / "b.txt")
    found = lines(command, trained.model, SOURCES[6], "-", SOURCES[7], *files, stdin=stdin)
    expected = [TARGETS[index] for index in (6, 4, 5, 7, 0, 1, 2)] + ["", TARGETS[3]]
    assert found == expected


def test_many_lines_are_translated_in_parts(
    command: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translate_command, "LINES_AT_ONCE", 7)
    stdin = "".join(f"{source}\n" for source in SOURCES).encode()
    assert lines(command, trained.model, "-", stdin=stdin) == TARGETS


def test_a_text_that_begins_with_a_dash(command: Command, trained: Trained) -> None:
    assert lines(command, trained.model, "--", f"-{SOURCES[0]}", SOURCES[1])[1] == TARGETS[1]
    assert command("translate", trained.model, f"-{SOURCES[0]}").status == 2


def test_an_empty_text(command: Command, trained: Trained) -> None:
    assert lines(command, trained.model, "", SOURCES[0], " \t ") == ["", TARGETS[0], ""]
    [first, _] = lines(command, trained.model, "", SOURCES[0], "--json")
    assert json.loads(first) == {"source": "", "text": "", "score": 0.0, "tokens": [], "finished": True}


def test_long_text_is_cut_into_sentences_and_joined(command: Command, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    [found] = lines(command, trained.model, " ".join(SOURCES), "--attention", path)
    assert found == " ".join(TARGETS)
    [record] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert record["source"] == " ".join(SOURCES)
    assert record["target"] == found
    third = TARGETS[0] + " " + TARGETS[1] + " "
    begin = next(place for place, span in enumerate(record["target_spans"]) if span[0] == len(third))
    weights = torch.tensor(record["layers"]["decoder.layers.0.cross"]).mean(0)
    keys = [span for span, weight in zip(record["source_spans"], weights[begin], strict=True) if weight > 0]
    first = len(SOURCES[0]) + len(SOURCES[1]) + 2
    assert all(first <= a <= b <= first + len(SOURCES[2]) for a, b in keys)
    assert any(a < b for a, b in keys)


def test_a_text_without_an_end(command: Command, trained: Trained) -> None:
    [found] = lines(command, trained.model, "dog" * 500, "--beam-size", "1")
    assert isinstance(found, str)


def test_the_output_is_utf8_whatever_the_locale(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    index = next(index for index, target in enumerate(TARGETS) if "ö" in target or "ß" in target)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run_process("translate", trained.model, SOURCES[index])
    assert (done.status, done.out) == (0, TARGETS[index] + "\n")


def test_a_reader_that_leaves_early_is_no_error(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"{source}\n" for source in SOURCES * 25), encoding="utf-8")
    with start("translate", trained.model, "--file", tmp_path / "many.txt", "--beam-size", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        head = subprocess.run(["head", "-n", "1"], stdin=process.stdout, capture_output=True, timeout=120, check=True)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 0
    assert head.stdout.decode() == TARGETS[0] + "\n"


# -- searching ---------------------------------------------------------------------------------------------------------


def test_json_holds_one_object_a_text(command: Command, trained: Trained) -> None:
    found = [json.loads(line) for line in lines(command, trained.model, *SOURCES[:3], "--json", "--num-best", "3")]
    assert [one["source"] for one in found] == SOURCES[:3]
    assert [one["text"] for one in found] == TARGETS[:3]
    for one in found:
        assert sorted(one) == ["alternatives", "finished", "score", "source", "text", "tokens"]
        assert one["tokens"][-1] == "</s>"
        scores = [one["score"], *(other["score"] for other in one["alternatives"])]
        assert scores == sorted(scores, reverse=True)
        assert len({one["text"], *(other["text"] for other in one["alternatives"])}) == 3


def test_n_best_lists_say_whose_they_are(command: Command, trained: Trained) -> None:
    rows = [line.split("\t") for line in lines(command, trained.model, *SOURCES[:2], "--num-best", "7")]
    assert [row[0] for row in rows] == ["1"] * 7 + ["2"] * 7
    assert [row[2] for row in rows[::7]] == TARGETS[:2]
    scores = [float(row[1]) for row in rows[:7]]
    assert scores == sorted(scores, reverse=True)


def test_samples_follow_the_seed(command: Command, trained: Trained) -> None:
    def sampled(*more: object) -> list[str]:
        return lines(command, trained.model, *SOURCES[:11], "--sample", "--temperature", "3", *more)

    assert sampled("--seed", "5") == sampled("--seed", "5")
    assert sampled("--seed", "5") != sampled("--seed", "6")
    greedy = lines(command, trained.model, *SOURCES[:11], "--beam-size", "1")
    assert sampled("--top-k", "1") == greedy
    assert sampled("--top-p", "0.000001") == greedy
    assert sampled("--seed", "5") != greedy


def test_a_sample_does_not_depend_on_what_is_read_at_once(
    command: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (trained.model, *[SOURCES[0]] * 6, "--sample", "--temperature", "3", "--seed", "5")
    together = lines(command, *asked)
    assert len(set(together)) > 1
    monkeypatch.setattr(translate_command, "LINES_AT_ONCE", 2)
    assert lines(command, *asked) == together


def test_a_bad_line_changes_no_sample_of_another(
    command: Command, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("translate", trained.model, "-", "--sample", "--temperature", "3", "--seed", "5", "--json")

    def found(done: Done) -> list[str | None]:
        return [json.loads(line).get("text") for line in done.out.removesuffix("\n").split("\n")]

    line = SOURCES[0].encode() + b"\n"
    good = found(command(*asked, stdin=line * 6))
    assert len(set(good)) > 1
    good[1] = good[3] = None
    for at_once in (1, 2, 1000):  # one at a time is how a terminal is read
        monkeypatch.setattr(translate_command, "LINES_AT_ONCE", at_once)
        done = command(*asked, stdin=line + b"\xff\n" + line + b"\xff\n" + line * 2)
        assert (done.status, found(done)) == (2, good), at_once


def test_lengths_and_repetition(command: Command, trained: Trained) -> None:
    [cut] = [json.loads(line) for line in lines(command, trained.model, SOURCES[0], "--max-length", "3", "--json")]
    assert (len(cut["tokens"]), cut["finished"]) == (3, False)
    source = "The dog sees the dog."
    [free] = [json.loads(line) for line in lines(command, trained.model, source, "--json")]
    [bound] = [json.loads(line) for line in lines(command, trained.model, source, "--no-repeat-ngram", "1", "--json")]
    assert len(set(free["tokens"])) < len(free["tokens"])
    assert len(set(bound["tokens"])) == len(bound["tokens"])
    [total] = [json.loads(line) for line in lines(command, trained.model, source, "--length-penalty", "0", "--json")]
    assert total["score"] == pytest.approx(free["score"] * len(free["tokens"]), abs=1e-4)
    longer = (trained.model, source, "--min-length", str(len(free["tokens"]) + 3), "--json")
    [late] = [json.loads(line) for line in lines(command, *longer)]
    assert len(late["tokens"]) > len(free["tokens"]) + 3
    [paid] = [json.loads(line) for line in lines(command, *longer, "--coverage-penalty", "0.5")]
    assert paid["score"] < late["score"]


# -- attention ---------------------------------------------------------------------------------------------------------


def test_a_whole_record_is_written_of_one_text(command: Command, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "why.safetensors"
    assert lines(command, trained.model, SOURCES[0], "--attention", path) == TARGETS[:1]
    record = AttentionRecord.load(path)
    assert record.key is not None and record.key.text == SOURCES[0]
    torch.testing.assert_close(record.rows().sum(-1), torch.ones(record.rows().shape[0]))
    command("translate", trained.model, *SOURCES[:2], "--attention", path).refused("holds one record, received 2")
    done = command("translate", trained.model, "-", "--attention", path, stdin="\n".join(SOURCES[:2]).encode())
    assert (done.status, done.out.splitlines()) == (2, TARGETS[:2])
    assert done.errors == [f"--attention {path}: holds one record, there are 2; give one input, or .html"]


@pytest.mark.parametrize("ending", [".html", ".svg", ".png", ".jsonl"])
def test_attention_is_written(command: Command, trained: Trained, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"attention{ending}"
    found = lines(command, trained.model, *SOURCES[:2], "--attention", path)
    assert found == TARGETS[:2]
    content = path.read_bytes()
    assert [other.name for other in tmp_path.iterdir()] == [path.name]
    if ending == ".png":
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert content.endswith(b"IEND\xaeB`\x82")
        return
    text = content.decode()
    if ending == ".jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        assert [one["target"] for one in records] == found
        for one in records:
            for weights in one["layers"].values():
                assert torch.tensor(weights).sum(-1).sub(1).abs().max() < 2e-3
        return
    for word in SOURCES[0].rstrip(".").split():
        assert f"{word}" in text
    assert "<svg" in text if ending == ".svg" else "<html" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_a_failed_write_leaves_what_was_there(
    command: Command, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regard.attention.records.record import WRITERS

    path = tmp_path / "a.html"
    path.write_text("before", encoding="utf-8")

    def failing(records: object, path: Path) -> None:
        raise RegardError(f"{path}: cannot be written (No space left on device); choose a folder that can")

    monkeypatch.setitem(WRITERS, ".html", failing)
    done = command("translate", trained.model, VALIDATION[0][0], "--attention", path)
    assert (done.status, len(done.errors), path.read_text(encoding="utf-8")) == (2, 1, "before")
