"""Checkpoints: which stay, which is read, and what a full disk or a damaged file does."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import unequal

from regard.errors import TrainingError
from regard.training.checkpoint import Checkpoints, read, write
from regard.training.disk import write_atomically


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"a": torch.arange(11 * 13).view(11, 13) * float(step)}, "scores": [step, -0.5]}


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.steps() == []
    assert checkpoints.newest_path() is None
    assert checkpoints.load_newest() is None
    assert checkpoints.load_best() is None
    for step in (3, 5, 7, 1_234_567_890):
        assert checkpoints.save(step, state(step)) == checkpoints.path(step)
    checkpoints.save_best({"step": 5})
    assert names(checkpoints) == ["best.pt", "step-000000007.pt", "step-1234567890.pt"]
    assert checkpoints.steps() == [7, 1_234_567_890]
    newest = checkpoints.load_newest()
    assert newest is not None
    assert unequal(newest, state(1_234_567_890)) == []
    assert checkpoints.load_best() == {"step": 5}
    assert [kept["step"] for kept in checkpoints.kept()] == [7, 1_234_567_890]


def test_a_stopped_one_is_read_and_never_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, state(3))
    checkpoints.save(6, state(6))
    checkpoints.save(7, state(7), stopped=True)
    assert checkpoints.steps() == [3, 6]
    assert [kept["step"] for kept in checkpoints.kept()] == [3, 6]
    assert checkpoints.newest_path() == tmp_path / "stopped-000000007.pt"
    newest = checkpoints.load_newest()
    assert newest is not None
    assert newest["step"] == 7
    checkpoints.save(8, state(8), stopped=True)
    assert names(checkpoints) == ["step-000000003.pt", "step-000000006.pt", "stopped-000000008.pt"]
    checkpoints.save(8, state(8))
    assert names(checkpoints) == ["step-000000006.pt", "step-000000008.pt"]


def test_of_one_step_the_regular_one_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(9, {"kind": "regular"})
    with checkpoints.path(9, stopped=True).open("w+b") as file:
        write({"kind": "stopped"}, file)
    assert checkpoints.load_newest() == {"kind": "regular"}


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 1).save(5, state(5))
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 16
        path.write_bytes(changed)
        assert read(path) is None, place
    for end in (0, 1, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert read(path) is None
    path.write_bytes(content + b"x")
    assert read(path) is None
    path.write_bytes(content)
    found = read(path)
    assert found is not None
    assert unequal(found, state(5)) == []


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 1).save(1, {"step": 1, "code": os.system})
    assert read(path) is None


def test_damaged_ones_are_passed_over_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, 9, told.append)
    for step in (2, 4, 6):
        checkpoints.save(step, state(step))
    checkpoints.path(6).write_bytes(checkpoints.path(6).read_bytes()[:-7])
    newest = checkpoints.load_newest()
    assert newest is not None
    assert newest["step"] == 4
    assert [kept["step"] for kept in checkpoints.kept()] == [2, 4]
    damaged = checkpoints.path(6)
    assert told == [f"{damaged}: damaged, passed over for the checkpoint before it", f"{damaged}: damaged, left out"]
    (tmp_path / "best.pt").write_bytes(b"")
    assert checkpoints.load_best() is None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state(3))

    def full(content: object, file: Any) -> None:
        file.write(b"the first half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError) as raised:
        checkpoints.save(6, state(6))
    usable = f"the last usable checkpoint is {tmp_path}/step-000000003.pt"
    end = "make room and run the same command again"
    assert str(raised.value) == f"{tmp_path}/step-000000006.pt: not written, the disk is full; {usable}; {end}"
    assert names(checkpoints) == ["step-000000003.pt"]
    with pytest.raises(TrainingError, match=r"best\.pt: not written, the disk is full"):
        checkpoints.save_best(state(3))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: a device that is always full")
def test_what_torch_makes_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    """torch's writer hides the disk's error behind one of its own."""

    def write(file: Any) -> None:
        with open("/dev/full", "wb") as device:
            torch.save(state(2), device)

    with pytest.raises(TrainingError, match="not written, the disk is full; make room and run the same command again"):
        write_atomically(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError) as raised:
        Checkpoints(tmp_path / "file" / "checkpoints", 1).save(1, state(1))
    path = tmp_path / "file" / "checkpoints" / "step-000000001.pt"
    assert str(raised.value).startswith(
        f"{path}: not written, not a directory; there is no earlier checkpoint; make it"
    )


def test_other_failures_keep_their_kind(tmp_path: Path) -> None:
    def unpicklable(file: Any) -> None:
        torch.save({"a": lambda: None}, file)

    with pytest.raises(Exception, match=r"pickle|lambda") as raised:
        write_atomically(tmp_path / "file", unpicklable)
    assert not isinstance(raised.value, TrainingError)
    assert list(tmp_path.iterdir()) == []
