"""Checkpoints: which stay, which is read, and what a full disk or a damaged file does."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compared_runs import read_checkpoint, unequal
from torch import Tensor

from regard.errors import TrainingError
from regard.training import checkpoint_folder
from regard.training.checkpoint import Checkpoints, Saved
from regard.training.checkpoint_folder import whole_state
from regard.training.disk import write_atomically
from regard.training.processes import World


def tensors(step: int) -> dict[str, Tensor]:
    return {"a": torch.arange(11 * 13).view(11, 13) * float(step), "b/c": torch.tensor(step, dtype=torch.float64)}


def save(checkpoints: Checkpoints, step: int, **choices: Any) -> Path:
    return checkpoints.save(step, tensors(step), {"step": step, "scores": [step, -0.5, float("-inf")]}, **choices)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def newest_step(checkpoints: Checkpoints) -> int:
    newest = checkpoints.newest()
    assert newest is not None
    step: int = newest.state["step"]
    return step


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.steps() == []
    assert checkpoints.newest_path() is None
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    for step in (3, 5, 7, 1_234_567_890):
        assert save(checkpoints, step) == checkpoints.path(step)
    checkpoints.save_best({"a": torch.ones(2)}, {"step": 5})
    assert names(checkpoints) == ["best", "step-000000007", "step-1234567890"]
    assert checkpoints.steps() == [7, 1_234_567_890]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.state == {"step": 1_234_567_890, "scores": [1_234_567_890, -0.5, float("-inf")]}
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors(1).items()}
    newest.load(found)
    assert unequal(found, tensors(1_234_567_890)) == []
    assert checkpoints.best() == Saved(tmp_path / "checkpoints" / "best", {"step": 5})
    assert [kept.state["step"] for kept in checkpoints.kept()] == [7, 1_234_567_890]


def test_a_better_one_replaces_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 5):
        checkpoints.save_best({"a": torch.full((2,), float(step))}, {"step": step})
    best = checkpoints.best()
    assert best is not None
    found = {"a": torch.zeros(2)}
    best.load(found)
    assert (best.state["step"], found["a"].tolist(), names(checkpoints)) == (5, [5.0, 5.0], ["best"])


def test_a_stopped_one_is_read_and_never_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    save(checkpoints, 3)
    save(checkpoints, 6)
    save(checkpoints, 7, stopped=True)
    assert checkpoints.steps() == [3, 6]
    assert [kept.state["step"] for kept in checkpoints.kept()] == [3, 6]
    assert checkpoints.newest_path() == tmp_path / "stopped-000000007"
    assert newest_step(checkpoints) == 7
    save(checkpoints, 7, stopped=True)  # stopped again before anything was done
    save(checkpoints, 8, stopped=True)
    assert names(checkpoints) == ["step-000000003", "step-000000006", "stopped-000000008"]
    save(checkpoints, 8)
    assert names(checkpoints) == ["step-000000006", "step-000000008"]


def test_of_one_step_the_regular_one_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(9, {}, {"kind": "regular"})
    checkpoint_folder.write(checkpoints.path(9, stopped=True), {}, {"kind": "stopped"}, World(), usable="")
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.state == {"kind": "regular"}
    assert names(checkpoints) == ["step-000000009"], "what a kill left undone is done"


def test_what_a_kill_left_undone_is_done(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (2, 4, 6, 8):
        save(checkpoints, step)
    os.rename(checkpoints.path(8), tmp_path / "step-000000008.replaced")
    os.rename(checkpoints.path(2), tmp_path / "step-000000002.deleted")
    shutil.copytree(checkpoints.path(4), tmp_path / "step-000000010.unfinished")
    shutil.copytree(checkpoints.path(4), tmp_path / "step-000000006.replaced")
    (tmp_path / "file.unfinished").touch()
    fewer = Checkpoints(tmp_path, keep=2)
    assert newest_step(fewer) == 8
    assert names(fewer) == ["step-000000006", "step-000000008"]


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, 1).save(5, {"a": torch.arange(5.0)}, {"step": 5})
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == [".metadata", "__0_0.distcp", "checksums.txt", "state.json"]
    for path in files:
        content = path.read_bytes()
        for place in range(0, len(content), 1 if len(content) < 500 else 7):
            changed = bytearray(content)
            changed[place] ^= 16
            path.write_bytes(changed)
            assert whole_state(folder, World()) is None, (path.name, place)
        for end in (0, 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:end])
            assert whole_state(folder, World()) is None
        path.write_bytes(content + b"x")
        assert whole_state(folder, World()) is None
        path.unlink()
        assert whole_state(folder, World()) is None
        path.write_bytes(content)
        assert whole_state(folder, World()) == {"step": 5}
    (folder / ".nfs0123").touch()  # what a network disk may leave there
    assert whole_state(folder, World()) == {"step": 5}
    (folder / "__1_0.distcp").touch()
    assert whole_state(folder, World()) is None


def test_a_line_of_hashes_cannot_be_missing(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, 1).save(5, {"a": torch.arange(5.0)}, {"step": 5})
    lines = (folder / "checksums.txt").read_text().splitlines(keepends=True)
    for missing in range(len(lines)):
        (folder / "checksums.txt").write_text("".join(lines[:missing] + lines[missing + 1 :]))
        assert whole_state(folder, World()) is None


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, 1).save(1, tensors(1), {"step": 1})

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    (folder / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(TrainingError, match=r"does not fit this model .*a layout of tensors knows no posix\.mkdir"):
        Saved(folder, {}).load(tensors(1))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"z": torch.zeros(2)}, "Missing key .*z"),
        ({"a": torch.zeros(2)}, "[Ss]ize"),
        ({"a": torch.zeros(13, 11)}, "Size"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, wanted: dict[str, Tensor], reason: str) -> None:
    folder = Checkpoints(tmp_path, 1).save(1, tensors(1), {"step": 1})
    with pytest.raises(TrainingError, match=rf"step-000000001: does not fit this model \(.*{reason}.*\); take the reg"):
        Saved(folder, {}).load(wanted)


def test_damaged_ones_are_passed_over_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    checkpoints = Checkpoints(tmp_path, 9, told.append)
    for step in (2, 4, 6):
        save(checkpoints, step)
    damaged = checkpoints.path(6)
    (damaged / "__0_0.distcp").write_bytes((damaged / "__0_0.distcp").read_bytes()[:-7])
    assert newest_step(checkpoints) == 4
    assert [kept.state["step"] for kept in checkpoints.kept()] == [2, 4]
    assert told == [f"{damaged}: damaged, passed over for the checkpoint before it", f"{damaged}: damaged, left out"]
    (tmp_path / "best").mkdir()
    assert checkpoints.best() is None
    for step in (2, 4):
        (checkpoints.path(step) / "state.json").unlink()
    with pytest.raises(TrainingError) as raised:
        checkpoints.newest()
    assert str(raised.value) == f"{tmp_path}: no checkpoint can be read; delete this folder to start the run again"


def test_files_of_the_former_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "step-000000005.pt").touch()
    with pytest.raises(TrainingError) as raised:
        Checkpoints(tmp_path, 1).newest()
    what = "checkpoints of format 2, this regard goes on from 3"
    assert str(raised.value) == f"{tmp_path}: {what}; take the regard that wrote them, or another run"


@pytest.mark.parametrize("place", ["tensors", "hashes"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 3)

    def full(*values: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "tensors":
        monkeypatch.setattr(torch, "save", full)
    else:
        monkeypatch.setattr(checkpoint_folder, "_write_text", full)
    with pytest.raises(TrainingError) as raised:
        save(checkpoints, 6)
    usable = f"the last usable checkpoint is {tmp_path}/step-000000003"
    end = "make room and run the same command again"
    assert str(raised.value) == f"{tmp_path}/step-000000006: not written, the disk is full; {usable}; {end}"
    assert names(checkpoints) == ["step-000000003"]
    with pytest.raises(TrainingError, match=r"best: not written, the disk is full"):
        checkpoints.save_best(tensors(3), {})
    monkeypatch.undo()
    assert newest_step(checkpoints) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: a device that is always full")
def test_what_torch_makes_of_a_full_disk_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writers hide the disk's error behind others of their own."""

    def write(file: Any) -> None:
        with open("/dev/full", "wb") as device:
            torch.save(tensors(2), device)

    with pytest.raises(TrainingError, match="not written, the disk is full; make room and run the same command again"):
        write_atomically(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []

    def begin(folder: Path) -> None:
        folder.mkdir()
        (folder / "__0_0.distcp").symlink_to("/dev/full")

    monkeypatch.setattr(checkpoint_folder, "_make_empty", begin)
    with pytest.raises(TrainingError, match="not written, the disk is full; there is no earlier checkpoint; make room"):
        save(Checkpoints(tmp_path, 1), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_in_a_write_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch wraps whatever ends a write into an exception of its own."""

    def interrupted(*values: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(Checkpoints(tmp_path, 1), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError) as raised:
        save(Checkpoints(tmp_path / "file" / "checkpoints", 1), 1)
    path = tmp_path / "file" / "checkpoints" / "step-000000001"
    assert str(raised.value).startswith(
        f"{path}: not written, not a directory; there is no earlier checkpoint; make it"
    )


def test_other_failures_keep_their_kind(tmp_path: Path) -> None:
    def unpicklable(file: Any) -> None:
        torch.save({"a": lambda: None}, file)

    with pytest.raises(Exception, match=r"pickle|lambda") as raised:
        write_atomically(tmp_path / "file", unpicklable)
    assert not isinstance(raised.value, TrainingError)
    with pytest.raises(TypeError, match="JSON"):
        Checkpoints(tmp_path, 1).save(1, {}, {"step": object()})
    assert list(tmp_path.iterdir()) == []


def test_the_helper_of_tests_finds_damage(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, 1).save(5, tensors(5), {"step": 5})
    assert unequal(read_checkpoint(folder), {**tensors(5), "state": {"step": 5}}) == []
    (folder / "state.json").write_text('{"step": 6}')
    with pytest.raises(AssertionError, match="is damaged"):
        read_checkpoint(folder)
