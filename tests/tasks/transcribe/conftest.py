"""A tiny model of the language of tones, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tone_language

from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.transcribe.recipe import TranscribeRecipe


class Trained(NamedTuple):
    folder: Path  # with train.jsonl, validation.jsonl, test.jsonl and run/
    result: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / "run" / "model"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pytest.importorskip("soundfile", reason="the extra `speech` is not installed")
    pytest.importorskip("jiwer", reason="the extra `speech` is not installed")
    folder = tmp_path_factory.mktemp("tones")
    for name, count, seed in (("train", 120, 1), ("validation", 15, 2), ("test", 20, 3)):
        tone_language.write(folder, name, count, seed)
    recipe = validated(TranscribeRecipe, tone_language.recipe(folder), "tones")
    return Trained(folder, train(recipe, folder / "run"))
