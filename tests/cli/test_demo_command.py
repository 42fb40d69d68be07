"""`regard demo`: the figures it prints, the page and the picture; shortened, and once whole."""

from __future__ import annotations

import functools
import json
import re
import signal
import time
from pathlib import Path

import pytest
from command_line import Command, files_in, run_process, start

from regard.tasks.translate import demo as translate_demo

# In this order, and no others.
KEYS = ["task", "exact_match", "num_held_out", "alignment_accuracy", "alignment_chance", "train_seconds"]
KEYS += ["processor_seconds", "page", "picture"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few held-out phrases and a small corpus: the figures then mean nothing."""
    monkeypatch.setattr(translate_demo, "demo", functools.partial(translate_demo.demo, num_held_out=53))
    make = translate_demo.make_corpus
    monkeypatch.setattr(translate_demo, "make_corpus", functools.partial(make, num_train=1_009, num_validation=11))


def check_drawings(found: dict[str, str]) -> None:
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "regard demo: English to German" in page
    assert "https://" not in page
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.usefixtures("quick")
def test_a_short_demo(command: Command, tmp_path: Path) -> None:
    done = command("demo", "--steps", "3", "--out", tmp_path / "demo", "--json")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    assert list(found) == KEYS
    assert (found["task"], found["num_held_out"]) == ("translate", 53)
    assert 0 <= found["exact_match"] <= 1
    assert 0 < found["alignment_chance"] < 0.5
    assert found["train_seconds"] > 0
    assert Path(found["page"]).parent == tmp_path / "demo"
    check_drawings(found)
    assert "held-out phrases" in done.err

    # Again: the earlier one is replaced, and tells in words what it told in figures.
    again = command("demo", "--steps", "3", "--out", tmp_path / "demo")
    assert again.status == 0, again.err
    assert f"exactly right: {found['exact_match']:.2%} of 53 held-out phrases" in again.out
    assert f"chance {found['alignment_chance']:.2%}" in again.out
    assert again.out.count("->") == 4
    assert found["page"] in again.out
    model = re.findall(r"regard translate (\S+)", again.out)[0]
    assert command("translate", model, "forty-two").status == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["thesis.tex", "run", "text"])
def test_a_folder_with_something_else_is_left_alone(command: Command, tmp_path: Path, name: str) -> None:
    if name == "thesis.tex":
        (tmp_path / name).write_text("precious", encoding="utf-8")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious.txt").write_text("mine", encoding="utf-8")
    before = files_in(tmp_path)
    command("demo", "--steps", "3", "--out", tmp_path).refused(str(tmp_path), name, "--out")
    assert files_in(tmp_path) == before


def test_out_is_a_file(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    command("demo", "--out", path).refused(str(path), "not a directory", "--out")
    assert path.read_text(encoding="utf-8") == "mine"


def test_ctrl_c_says_that_it_starts_anew(tmp_path: Path) -> None:
    with start("demo", "--out", tmp_path / "demo") as process:
        while not (tmp_path / "demo" / "run" / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "regard: the demo was stopped; the same command starts it anew"


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_whole_demo_reaches_its_figures(tmp_path: Path, seed: int) -> None:
    done = run_process("demo", "--json", "--seed", seed, "--out", tmp_path / "demo", limit_seconds=1800.0)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["num_held_out"] >= 1_000
    assert found["exact_match"] >= 0.98
    assert found["alignment_accuracy"] >= 0.90
    assert found["alignment_accuracy"] > 3 * found["alignment_chance"]
    check_drawings(found)
