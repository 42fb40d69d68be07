"""Run directories: whose they are, with which recipe, and what lies there damaged."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regard.errors import ConfigError, TrainingError
from regard.tasks import run_directory

RECIPE: dict[str, Any] = {
    "task": "translate",
    "training": {"max_steps": 9, "optimizer": {"eps": 1e-9}, "final": ["best", "last"]},
    "note": "größer: 1e-3",
}


def test_the_recipe_is_kept_and_the_same_one_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    for _ in range(2):
        with run_directory.opened(folder, RECIPE, "recipes/x.yaml") as opened:
            assert opened == folder
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "recipe.yaml"]


def test_a_changed_recipe_names_its_keys(tmp_path: Path) -> None:
    with run_directory.opened(tmp_path, RECIPE, "recipes/x.yaml"):
        pass
    changed = {**RECIPE, "training": {"max_steps": 99, "optimizer": {"eps": 1e-9, "beta1": 0.5}, "final": ["best"]}}
    with pytest.raises(ConfigError) as raised, run_directory.opened(tmp_path, changed, "recipes/x.yaml"):
        pass
    keys = "`training.max_steps`, `training.optimizer.beta1`, `training.final`"
    remedy = "use the same values to resume it, or another --run"
    message = str(raised.value)
    assert message.startswith(f"recipes/x.yaml: {tmp_path} holds a run whose recipe differs in ")
    assert message.endswith(f"; {remedy}")
    assert sorted(message.removesuffix(f"; {remedy}").split(" in ")[1].split(", ")) == sorted(keys.split(", "))
    with run_directory.opened(tmp_path, RECIPE, "recipes/x.yaml"):  # the lock is free again
        pass


def test_how_a_run_is_carried_out_may_change(tmp_path: Path) -> None:
    first = {"data": {"workers": 0, "max_tokens": 9}, "training": {"parallel": "replicate"}}
    with run_directory.opened(tmp_path, first, "x"):
        pass
    kept = (tmp_path / "recipe.yaml").read_bytes()
    with run_directory.opened(
        tmp_path, {"data": {"workers": 4, "max_tokens": 9}, "training": {"parallel": "shard"}}, "x"
    ):
        assert (tmp_path / "recipe.yaml").read_bytes() == kept, "a run's recipe is the one that it began with"
    other = {"data": {"workers": 4, "max_tokens": 8}, "training": {"parallel": "shard"}}
    with (
        pytest.raises(ConfigError, match=r"differs in `data\.max_tokens`; use"),
        run_directory.opened(tmp_path, other, "x"),
    ):
        pass


def test_the_lock_of_a_run_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        release = threading.Timer(0.3, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        release.start()
        with run_directory.opened(tmp_path / "run", RECIPE, "x"):
            pass
        release.join(60)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("aé1e-+.:#'\"{[&*! \n~", max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=9,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abcdé-_", min_size=1, max_size=4), values, max_size=4))
def test_every_recipe_equals_itself_after_the_disk(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "recipe.yaml").unlink(missing_ok=True)
    for _ in range(2):
        with run_directory.opened(tmp_path, recipe, "x"):
            pass


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from regard.tasks import run_directory\n"
        "with run_directory.opened(Path(sys.argv[1]), {'a': 1}, 'x'): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(TrainingError) as raised, run_directory.opened(tmp_path, {"a": 1}, "x"):
            pass
        wait = "another process is training here; wait for it, or give another --run"
        assert str(raised.value) == f"{tmp_path}: {wait}"
        holder.kill()  # however it ends, the directory is free then
        holder.wait(60)
    with run_directory.opened(tmp_path, {"a": 1}, "x"):
        pass


@pytest.mark.parametrize(
    ("was_there", "kept", "stays"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_a_run_that_wrote_nothing_leaves_no_folder_of_its_own(
    tmp_path: Path, was_there: bool, kept: bool, stays: bool
) -> None:
    folder = tmp_path / "run"
    if was_there:
        folder.mkdir()

    def fail() -> None:
        with run_directory.opened(folder, {"a": 1}, "x"):
            (folder / run_directory.RECIPE).unlink()
            if kept:
                (folder / "metrics.jsonl").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert folder.exists() == stays
    assert (folder / "metrics.jsonl").exists() == kept


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*values: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(TrainingError, match=r"this disk has no locks .*; give a --run on a local disk"):
        run_directory.opened(tmp_path, {}, "x").__enter__()


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_place_that_is_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError) as raised, run_directory.opened(tmp_path / place, {}, "x"):
        pass
    reason = "File exists" if place == "file" else "Not a directory"
    what = f"cannot be used as a run directory ({reason}); give another with --run"
    assert str(raised.value) == f"{tmp_path / place}: {what}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TrainingError, match=r"cannot be used as a run directory .Permission denied."):
        run_directory.opened(tmp_path / "run", {}, "x").__enter__()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"a: [1", "cannot be read"), (b"\xff\xfe\xfa", "cannot be read"), (b"- 1\n- 2\n", "damaged"), (b"", "damaged")],
)
def test_a_damaged_recipe_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as raised, run_directory.opened(tmp_path, RECIPE, "x"):
        pass
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/recipe.yaml: {reason}")
    assert message.endswith("; restore it, or give another --run to start anew")
    assert "\n" not in message
    assert (tmp_path / "recipe.yaml").read_bytes() == content


def test_the_result_is_there_when_the_run_has_finished(tmp_path: Path) -> None:
    assert run_directory.read_result(tmp_path) is None
    run_directory.write_result(tmp_path, {"bleu": 41.5, "note": "ß"})
    assert run_directory.read_result(tmp_path) == {"bleu": 41.5, "note": "ß"}


@pytest.mark.parametrize("content", [b'{"bleu": 4', b"\xff", b"", b"[1]"])
def test_a_damaged_result_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(TrainingError) as raised:
        run_directory.read_result(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/result.json: ")
    assert str(raised.value).endswith("; delete it and run the same command to score the model again")
    assert "\n" not in str(raised.value)


def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_directory.write_text(tmp_path / "a.txt", "before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError) as raised:
        run_directory.write_text(tmp_path / "a.txt", "after")
    end = "make room and run the same command again"
    assert str(raised.value) == f"{tmp_path}/a.txt: not written, the disk is full; {end}"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
