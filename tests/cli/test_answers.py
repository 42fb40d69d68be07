"""What a command that answers input by input prints, keeps and ends with."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from regard.attention.observation import Observation
from regard.attention.records.axis import Axis
from regard.attention.records.record import AttentionRecord
from regard.cli.answers import Answers, bad_lines, ranked
from regard.cli.attention_file import ENDINGS, check_attention_path, write_attention
from regard.cli.inputs import BadInput, check_files, files_at_once, num_inputs
from regard.errors import ConfigError


@dataclass(frozen=True)
class Said:
    text: str
    score: float = -0.5
    alternatives: tuple[Said, ...] = ()
    attention: AttentionRecord | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text}


def a_record() -> AttentionRecord:
    axis = Axis("a b", ("a", "b"), ((0, 1), (2, 3)))
    return AttentionRecord({"cross": Observation(rows=torch.eye(2)[None, None], row_index=torch.arange(2))}, axis, axis)


TWO = Said("a\nb", alternatives=(Said("ä\r", -1.25),))


def test_lines_of_an_answer() -> None:
    assert ranked(TWO, 7, as_json=False, num_best=1) == ["a b"]
    assert ranked(TWO, 7, as_json=False, num_best=2) == ["7\t-0.5000\ta b", "7\t-1.2500\tä "]
    assert ranked(TWO, 7, as_json=False, num_best=2, before="so ")[1] == "7\t-1.2500\tso ä "
    assert ranked(TWO, 7, as_json=True, num_best=2) == ['{"text": "a\\nb"}']


def test_a_bad_line_keeps_its_place_and_a_bad_file_has_none() -> None:
    line, file = BadInput("ä: bad"), BadInput("f: bad", is_line=False)
    assert bad_lines(line, 3, as_json=False, num_best=1) == [""]
    assert bad_lines(line, 3, as_json=False, num_best=2) == ["3\t\t"]
    assert bad_lines(file, 3, as_json=False, num_best=2) == []
    assert bad_lines(line, 3, as_json=True, num_best=2) == ['{"error": "ä: bad"}']
    assert [json.loads(one) for one in bad_lines(file, 3, as_json=True, num_best=1)] == [{"error": "f: bad"}]


def test_bad_ones_are_reported_and_the_status_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    answers = Answers(attention=None)
    answers.add(Said("one"), 1)
    answers.finish("text")
    answers.add(BadInput("text 2: bad"), 2)
    answers.bad(BadInput("text 3: bad"), 3, lines=["instead"])
    answers.add(Said("four"), 4)
    with pytest.raises(typer.Exit) as ended:
        answers.finish("text")
    assert ended.value.exit_code == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["one", "", "instead", "four"]
    assert printed.err.splitlines() == ["regard: error: text 2: bad", "regard: error: text 3: bad"]


def test_attention_is_kept_to_the_end_and_written_though_one_was_bad(tmp_path: Path) -> None:
    answers, written = Answers(attention=tmp_path / "why.html"), []
    for number, record in enumerate((a_record(), None, a_record()), 1):
        answers.add(Said("one", attention=record), number)
    answers.add(BadInput("text 4: bad"), 4)
    with pytest.raises(typer.Exit):
        answers.finish("text", write=lambda records, path: written.append((len(records), path.name)))
    assert written == [(2, "why.html")]
    with pytest.raises(ConfigError, match=r"why\.html: not written, there was no text to read; give one"):
        Answers(attention=tmp_path / "why.html").finish("text to read")


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_is_written(tmp_path: Path, ending: str) -> None:
    import regard.lens  # noqa: F401  (teaches records to save themselves as pages and pictures)

    path = tmp_path / f"why{ending}"
    check_attention_path(path, num_inputs=1)
    write_attention([a_record()], path, "text")
    assert path.stat().st_size > 0
    if ending == ".safetensors":
        torch.testing.assert_close(AttentionRecord.load(path).layers["cross"].rows, a_record().layers["cross"].rows)
        with pytest.raises(ConfigError, match=r"holds one record, received 2 inputs; give one input, or \.html"):
            check_attention_path(path, num_inputs=2)
        with pytest.raises(ConfigError, match=r"--out .*: holds one record, there are 3; give one input, or \.html"):
            write_attention([a_record()] * 3, path, "text", "--out")
    else:
        check_attention_path(path, num_inputs=2)


def test_how_many_inputs_there_are_where_it_is_known() -> None:
    assert num_inputs(["a", "b"], []) == 2
    assert num_inputs(["a", "-"], []) is num_inputs([], [Path("a")]) is None


def test_files_come_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\x00")))
    assert list(files_at_once(["a", "-", "b"], 2)) == [[Path("a"), b"\xff\x00"], [Path("b")]]
    check_files(["-", "a"])
    with pytest.raises(ConfigError, match='"-" stands twice; standard input holds one file'):
        check_files(["-", "a", "-"])
