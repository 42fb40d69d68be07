"""JSON lines and events: what is written, cut back, and reported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regard.errors import TrainingError
from regard.training.monitor import Metrics, Silent, Watcher


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path, tag: str = "loss") -> list[tuple[int, float]]:
    shown = EventAccumulator(str(folder / "tensorboard"))
    shown.Reload()
    return [(event.step, event.value) for event in shown.Scalars(tag)]


def test_a_resumed_file_has_every_step_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    assert metrics.open(0, 0) == 0
    metrics.write(1, {"loss": 4.0})
    metrics.write(2, {"loss": 3.0})
    size = metrics.flush()
    assert size == (tmp_path / "metrics.jsonl").stat().st_size
    metrics.write(3, {"loss": 2.0})
    metrics.write(4, {"loss": 1.0})
    metrics.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    again = Metrics(tmp_path)
    assert again.open(size, 2) == 0
    assert steps(tmp_path) == [1, 2]
    again.write(3, {"loss": 2.5})
    again.close()
    assert steps(tmp_path) == [1, 2, 3]
    assert events(tmp_path) == [(1, 4.0), (2, 3.0), (3, 2.5)]


def test_many_resumes_in_one_second_stay_in_order(tmp_path: Path) -> None:
    for step in range(12):
        metrics = Metrics(tmp_path)
        metrics.open(0, step)
        metrics.event(step + 1, "loss", float(step))
        metrics.event(step + 2, "loss", -1.0)  # of a step that no checkpoint holds
        metrics.close()
    assert events(tmp_path) == [*((step + 1, float(step)) for step in range(12)), (13, -1.0)]


def test_lines_can_be_followed_while_they_come(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    metrics.write(5, {"b": 2, "a": 0.5, "note": "x"})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 0.5, "b": 2, "note": "x", "step": 5}\n'
    assert events(tmp_path, "a") == [(5, 0.5)]
    metrics.close()


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    metrics.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.5})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": null, "b": null, "c": 1.5, "step": 1}\n'


@pytest.mark.parametrize(("left", "kept"), [(b"", b""), (b'{"step": 1}\n{"st', b'{"step": 1}\n'), (b"half", b"")])
def test_a_file_that_is_too_short_is_cut_to_whole_lines(tmp_path: Path, left: bytes, kept: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(left)
    metrics = Metrics(tmp_path)
    assert metrics.open(101, 7) == 101 - len(kept)
    metrics.write(8, {})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept + b'{"step": 8}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a device that is always full")
def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    assert metrics._file is not None
    metrics._file.close()
    metrics._file = open("/dev/full", "wb")  # noqa: SIM115 (closed by close)
    end = "not written, the disk is full; make room and run the same command again"
    with pytest.raises(TrainingError) as raised:
        metrics.write(1, {"loss": 2.0})
    assert str(raised.value) == f"{tmp_path}/metrics.jsonl: {end}"
    with pytest.raises(TrainingError, match="the disk is full"):
        metrics.flush()
    metrics.close()  # says nothing more


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: a device that is always full")
def test_a_full_disk_under_the_events_is_reported(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    events = metrics._events
    assert events._file is not None
    events._file.close()
    events._file = open("/dev/full", "wb")  # noqa: SIM115 (closed by close)
    events._records._writer = events._file
    with pytest.raises(TrainingError, match=r"tfevents.*: not written, the disk is full"):
        metrics.event(1, "loss", 2.0)
    metrics.close()


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/metrics\.jsonl: not written, (not a directory|file exists)"):
        Metrics(tmp_path / "file").open(0, 0)


def test_without_tensorboard_the_lines_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    metrics = Metrics(tmp_path)
    metrics.open(0, 0)
    metrics.write(1, {"loss": 2.0})
    metrics.close()
    assert steps(tmp_path) == [1]
    assert not (tmp_path / "tensorboard").exists()


def test_a_silent_watcher_is_a_watcher() -> None:
    watcher: Watcher = Silent()
    watcher.started(0, 9)
    watcher.stepped(1, None, 5, 0.1)
    watcher.said("a line")
