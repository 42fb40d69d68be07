"""`regard demo transcribe`, with a few phrases and a few steps: everything but the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard.cli.main import run
from regard.tasks.transcribe import demo as module
from regard.tasks.transcribe.demo import demo, recipe

for package in ("espeakng_loader", "soundfile", "soxr", "jiwer"):
    pytest.importorskip(package, reason="the extras `speech` and `voices` are not installed")

FEW = {"train": 24, "validation": 4, "test": 6}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, module.Demo]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo(folder / "out", num_steps=3, num_phrases=FEW)


def test_it_leaves_a_model_a_page_and_a_picture(shown):
    folder, result = shown
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(module.LAYOUT.content)
    assert (folder / "out" / "run" / "model" / "config.json").is_file()
    assert "<article" in result.page.read_text() and result.picture.stat().st_size > 1000
    assert result.scores.num_utterances == 6 and len(result.examples) == 4
    assert result.boundaries.num == sum(len(text.split()) for text in held_out(folder))
    lines = result.lines()
    assert any(line.startswith("words right: ") for line in lines) and lines[-1].startswith("try: regard transcribe")
    assert json.dumps(result.to_json()) and 0.0 <= result.boundaries.within <= 1.0


def held_out(folder: Path) -> list[str]:
    manifest = folder / "out" / "speech" / "test.jsonl"
    return [json.loads(line)["text"] for line in manifest.read_text().splitlines()]


def test_the_command_knows_it(capsys):
    assert run(["demo", "transcripe"]) == 2
    assert "did you mean `transcribe`" in capsys.readouterr().err


def test_its_recipe_fits_three_minutes_of_two_cores():
    made = recipe(Path("speech"), seed=1, num_steps=module.NUM_STEPS)
    # 4 million frames; 107 s of processor time were measured for them, on one thread.
    assert made.training.max_steps * made.data.batch.batch_tokens <= 4_000_000
