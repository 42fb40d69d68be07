"""The recipes of AN4: right as they stand, and validated on speakers that they do not learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.data.clips import Clip
from regard.data.speech_records import SpeechSpec, read_speech
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.transcribe.recipe import TranscribeRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "transcribe"
NAMES = ("an4-conformer", "an4-las")
FULL = "# full: "


def recipe_of(name: str, *overrides: str) -> TranscribeRecipe:
    return validated(TranscribeRecipe, with_overrides(read_yaml(FOLDER / f"{name}.yaml"), overrides), f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_a_line_of_overrides(name: str) -> None:
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(FULL)]
    overrides = line.removeprefix(FULL).split()
    cpu, full = recipe_of(name), recipe_of(name, *overrides)
    assert sorted(differences(plain(cpu), plain(full))) == sorted(override.partition("=")[0] for override in overrides)
    assert full.training.max_steps > cpu.training.max_steps


def test_both_learn_from_the_same_in_the_same_way() -> None:
    conformer, las = (recipe_of(name) for name in NAMES)
    assert (conformer.data, conformer.front_end, conformer.tokenizer) == (las.data, las.front_end, las.tokenizer)
    assert conformer.model.encoder.embedding.augment == las.model.encoder.embedding.augment  # type: ignore[union-attr]


def rows_of(spec: SpeechSpec, folder: Path) -> set[int]:
    """First row of every utterance; they are all of one array."""
    clips = [Clip.of_field(record.fields["source"]) for record in read_speech(spec.resolved(folder))]
    return {int(clip.first_row or 0) for clip in clips}


def test_train_validation_and_test_share_nothing(shared_data: Path) -> None:
    data = recipe_of("an4-las").data
    assert data.test is not None
    folder = shared_data / "an4-mfcc"
    train, validation, test = (rows_of(spec, folder) for spec in (data.train, data.validation, data.test))
    assert (len(train), len(validation), len(test)) == (843, 105, 130)
    assert not (train & validation) | (train & test) | (validation & test)
    assert data.train.where_not["speaker"] == data.validation.where["speaker"]
    assert len({*data.validation.where["speaker"]}) == 8
