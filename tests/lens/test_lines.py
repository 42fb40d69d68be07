from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import regard.attention.records.tensor_file
from regard.attention.observation import Observation
from regard.attention.records.record import WRITERS, AttentionRecord
from regard.errors import ConfigError, ObservationError
from regard.lens import write_lines
from regard.lens.maps import maps_of

ENDINGS = [".html", ".jsonl", ".png", ".svg"]


def test_one_line_a_record_with_rounded_weights(
    dogs: AttentionRecord, foreign: AttentionRecord, tmp_path: Path
) -> None:
    write_lines([dogs, foreign], tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_bytes().decode("ascii").split("\n")
    assert lines[2:] == [""]
    for line, record in zip(lines, (dogs, foreign), strict=False):
        read = json.loads(line)
        assert list(read) == [
            "source", "target", "source_tokens", "source_spans", "target_tokens", "target_spans", "layers",
        ]  # fmt: skip
        assert read["source"] == record.key.text
        assert read["target"] == record.query.text
        assert tuple(map(tuple, read["target_spans"])) == record.query.spans
        assert tuple(read["source_tokens"]) == record.key.tokens
        assert list(read["layers"]) == list(record.layers)
        for name, weights in maps_of(record).layers.items():
            torch.testing.assert_close(torch.tensor(read["layers"][name]), weights, rtol=0, atol=5.1e-5)
            assert all(len(repr(weight)) <= 6 for head in read["layers"][name] for row in head for weight in row)


def test_save_knows_the_endings(dogs: AttentionRecord, tmp_path: Path) -> None:
    assert sorted(WRITERS) == ENDINGS
    for ending in ENDINGS:
        assert dogs.save(tmp_path / f"a{ending}") == tmp_path / f"a{ending}"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ENDINGS
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    assert json.loads((tmp_path / "a.jsonl").read_text())["source"] == dogs.key.text


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_records_are_equal_bytes(dogs: AttentionRecord, tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        dogs.save(tmp_path / (name + ending))
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_destroys_nothing(
    dogs: AttentionRecord, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"before")
    with pytest.raises(ObservationError):
        AttentionRecord({"a": Observation(entropy=torch.ones(1, 1, 2))}).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(regard.attention.records.tensor_file.os, "replace", full)
    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        dogs.save(path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_folder_that_cannot_be_written_to_is_one_line(dogs: AttentionRecord, tmp_path: Path, ending: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*: no such folder `[^\n]*no`; create it or write elsewhere$"):
        dogs.save(tmp_path / "no" / f"a{ending}")
    (tmp_path / f"folder{ending}").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        dogs.save(tmp_path / f"folder{ending}")
    assert [path.name for path in tmp_path.iterdir()] == [f"folder{ending}"]


def test_a_link_stays_a_link_and_permissions_follow_the_umask(dogs: AttentionRecord, tmp_path: Path) -> None:
    (tmp_path / "link.svg").symlink_to(tmp_path / "real.svg")
    before = os.umask(0o027)
    try:
        dogs.save(tmp_path / "link.svg")
    finally:
        os.umask(before)
    assert (tmp_path / "link.svg").is_symlink()
    assert stat.S_IMODE((tmp_path / "real.svg").stat().st_mode) == 0o640


def test_records_without_axes_can_be_written(make_record: Callable[..., AttentionRecord], tmp_path: Path) -> None:
    bare = AttentionRecord({"a": Observation(rows=torch.full((2, 3, 5, 7), 1 / 7))})
    for ending in ENDINGS:
        bare.save(tmp_path / f"a{ending}")
    read = json.loads((tmp_path / "a.jsonl").read_text())
    assert read["target_tokens"] == ["0", "1", "2", "3", "4"]
    assert read["layers"]["a"][2][4] == [0.1429] * 7
