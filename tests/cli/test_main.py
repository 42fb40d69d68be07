"""The front door: help, version, statuses, and how fast it opens."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import Command, run_process

from regard.cli import main
from regard.errors import Interrupted

COMMANDS = ("demo", "train", "translate", "evaluate")
HEAVY = ("torch", "numpy", "yaml", "tokenizers", "matplotlib", "babel")


def test_help_names_every_command(command: Command) -> None:
    done = command("--help")
    assert (done.status, done.err) == (0, "")
    for name in COMMANDS:
        assert f" {name} " in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert (done.status, done.err) == (0, "")
    assert "--json" in done.out
    assert f"regard {name}" in done.out


def test_no_command_shows_the_help(command: Command) -> None:
    done = command()
    assert (done.status, done.errors) == (2, [])
    assert "translate" in done.out + done.err


def test_version(command: Command) -> None:
    assert command("--version").out == f"regard {version('regard')}\n"


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        f"import sys; from regard.cli.main import run; status = run({arguments}); "
        f"loaded = sorted({set(HEAVY)} & {{*sys.modules}}); sys.exit(f'loads {{loaded}}' if loaded else status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_loads_nothing_either() -> None:
    done = run_process("trian")
    assert done.refused("trian", "train", "regard --help")


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "regard: interrupted\n"),
        (Interrupted("stopped after step 7"), 130, "regard: stopped after step 7\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            2,
            "regard: error: no space left on device; make room and run the same command again\n",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "secret.txt"),
            2,
            "regard: error: secret.txt: permission denied; check the path and its rights\n",
        ),
    ],
)
def test_what_becomes_of_an_interruption(
    command: Command, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int, told: str
) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(main, "app", failing)
    done = command("train", "x.yaml")
    assert (done.status, done.out, done.err) == (status, "", told)


@pytest.mark.parametrize("defect", [ZeroDivisionError("ours"), OSError("no number")])
def test_a_defect_of_ours_keeps_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, defect: Exception
) -> None:
    def failing(*arguments: object, **options: object) -> None:
        raise defect

    monkeypatch.setattr(main, "app", failing)
    with pytest.raises(type(defect)):
        command("train", "x.yaml")


def test_all_errors_of_one_mistake_stand_on_lines_of_their_own(command: Command, tmp_path: Path) -> None:
    done = command("demo", "--out", tmp_path, "--steps", "-3")
    assert done.errors == ["--steps is -3, expected 1 or more"]


PROGRAM = """
import atexit, sys
import torch.distributed
from regard.cli import main

def run(arguments):
    if "connected" in arguments:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    if "defect" in arguments:
        raise ZeroDivisionError
    print("told")
    return 2

main.run = run
atexit.register(print, "an ordinary end")
main.main(sys.argv[1:])
"""


@pytest.mark.parametrize("defect", [False, True])
@pytest.mark.parametrize("connected", [False, True])
def test_a_process_that_leaves_others_behind_ends_at_once(defect: bool, connected: bool) -> None:
    """Torch's own end would wait for them, or abort."""
    words = ["connected"] * connected + ["defect"] * defect
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == (1 if defect else 2), done.stderr
    assert done.stdout == "told\n" * (not defect) + "an ordinary end\n" * (not connected)
    assert ("ZeroDivisionError" in done.stderr) == defect
