"""The native code is compiled once, kept, checked, and done without where it cannot be had."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from second_pass_cases import inputs

from regard.attention import chunked, native
from regard.attention.native import build
from regard.attention.observation import Observe
from regard.attention.second_pass import kernels, second_pass
from regard.attention.statistics import Wanted


@pytest.fixture(autouse=True)
def native_code(request: pytest.FixtureRequest) -> None:
    if "without_a_compiler" not in request.node.name and (reason := native.unavailable()):
        pytest.skip(f"no native code here: {reason}")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources that compile at once, an empty cache, and a `native` that has not loaded yet."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "answer.c").write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("REGARD_NATIVE", raising=False)
    monkeypatch.setattr(native, "_loaded", [])
    return tmp_path


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes `cc` a script of ours, and the only compiler."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "cc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))


def kept(workshop: Path) -> list[Path]:
    return sorted((workshop / "cache").glob("*"))


def test_an_object_is_compiled_once(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.load("answer.c").answer() == 42
    [made] = kept(workshop)
    assert made.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(build, "_compile", None)  # not called again
    assert build.load("answer.c").answer() == 42
    assert kept(workshop) == [made]


def test_a_changed_source_flag_or_compiler_is_compiled_anew(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load("answer.c")
    (build.SOURCES / "answer.h").write_text("")
    build.load("answer.c")
    build.load("answer.c", extra_flags=("-DX",))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    build.load("answer.c")
    assert len(kept(workshop)) == 4


def test_a_damaged_object_is_made_anew(workshop: Path) -> None:
    build.load("answer.c")
    [made] = kept(workshop)
    content = made.read_bytes()
    for damage in (content[: len(content) // 2], b"", content[:-1] + b"x"):
        made.unlink()
        made.write_bytes(damage)
        assert build.load("answer.c").answer() == 42
        assert made.read_bytes() == content


def test_two_processes_may_build_at_once(workshop: Path) -> None:
    script = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('build', sys.argv[1])\n"
        "build = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(build)\n"
        "build.SOURCES = pathlib.Path(sys.argv[2])\n"
        "assert build.load('answer.c').answer() == 42\n"
    )
    command = [sys.executable, "-c", script, str(Path(build.__file__)), str(build.SOURCES)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert len(kept(workshop)) == 1


def test_a_cache_that_cannot_be_written_is_done_without(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workshop / "file").write_text("")
    monkeypatch.setenv("REGARD_CACHE", str(workshop / "file" / "cache"))
    assert build.load("answer.c").answer() == 42
    monkeypatch.setenv("REGARD_CACHE", str(workshop / "cache"))
    build.cache_folder().mkdir()
    replaced = build.os.replace
    monkeypatch.setattr(build.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(30, "Read-only")))
    assert build.load("answer.c").answer() == 42
    monkeypatch.setattr(build.os, "replace", replaced)
    assert kept(workshop) == []


def test_a_cache_that_anybody_can_write_is_not_trusted(workshop: Path) -> None:
    build.cache_folder().mkdir()
    build.cache_folder().chmod(0o777)
    assert build.load("answer.c").answer() == 42
    assert kept(workshop) == []


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGARD_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    assert build.cache_folder() == Path("/one")
    monkeypatch.delenv("REGARD_CACHE")
    assert build.cache_folder() == Path("/two/regard")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path("/three/.cache/regard")


def test_the_compiler_of_the_environment_comes_first(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workshop / "mine").write_text(f'#!/bin/sh\necho "$@" >> {workshop}/calls\nexec cc "$@"\n')
    (workshop / "mine").chmod(0o755)
    monkeypatch.setenv("CC", f"{workshop}/mine -DMINE=1")
    assert build.load("answer.c").answer() == 42
    assert "-DMINE=1 -std=gnu11" in (workshop / "calls").read_text()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "no C compiler was found"),
        ("echo 'x.c:1: error: no luck' >&2; exit 1", "cc failed (x.c:1: error: no luck)"),
        ("exit 0", "cc failed (exit status 0)"),
        ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "the compiled object does not load"),
    ],
    ids=["none", "fails", "makes nothing", "makes nonsense"],
)
def test_without_a_compiler_one_line_says_so(
    script: str | None,
    reason: str,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PATH", str(workshop / "bin"))
    if script is not None:
        compiler(workshop, monkeypatch, script)
    pairs = inputs()
    with caplog.at_level(logging.WARNING):
        found = second_pass(pairs, Observe(entropy=True, received=True))
        again = second_pass(pairs, Observe(entropy=True, received=True))
    right = chunked.statistics(pairs, None, Wanted(entropy=True, received=True))
    assert torch.equal(found.entropy, right.entropy) and torch.equal(again.received, right.received)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        "regard: statistics of attention run without native code and take about five times as long: "
    )
    assert reason in line and "\n" not in line
    assert line.endswith("; install a C compiler (gcc or clang), or silence this with REGARD_NATIVE=0")
    assert native.refuses(pairs, Wanted()) is not None


def test_code_that_computes_wrongly_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for source in build.SOURCES.glob("*.[ch]"):
        text = source.read_text()
        (tmp_path / source.name).write_text(
            text.replace("surprise += weight * log_weight", "surprise += weight * score[col]")
        )
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_loaded", [])
    monkeypatch.setattr(build, "FLAGS", tuple(flag.replace("-O3", "-O1") for flag in build.FLAGS))
    with caplog.at_level(logging.WARNING):
        assert native.unavailable() == "the compiled code gives wrong results"
    assert len(caplog.records) == 1


def test_it_can_be_turned_off_without_a_word(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("REGARD_NATIVE", "0")
    with caplog.at_level(logging.WARNING):
        assert native.refuses(inputs(), Wanted()) == "REGARD_NATIVE=0 turns native code off"
    assert not caplog.records


def test_nothing_is_compiled_on_import(workshop: Path) -> None:
    assert native._loaded == []
    assert kernels(torch.device("cpu"))[0] is native
    assert native._loaded == [] and kept(workshop) == []
