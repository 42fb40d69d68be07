"""data.batch.batch_tokens: auto, where pictures have more rows, and captions together more tokens, than max_tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_pictures import write_pictures, write_recipe

from regard.cli.main import run
from regard.training import batch_budget


def test_the_smallest_budget_holds_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch_budget, "SECONDS", 0.01)
    recipe = write_recipe(
        tmp_path / "tiny.yaml",
        write_pictures(tmp_path / "data"),
        data__max_tokens=12,
        data__picture={"height": 80, "width": 16},
        data__batch={"batch_tokens": "auto"},
        training__max_steps=2,
        training__validate_every=2,
        training__checkpoint_every=2,
    )
    assert run(["train", str(recipe), "--run", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "data" / "batch_tokens.json").read_text())
    assert found["trials"][0]["batch_tokens"] == 128  # the power of two that holds 80 rows
