"""The recipes of captions and of classified pictures: right as they stand, and as the line that enlarges them says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regard.data.picture_records import read_pictures
from regard.tasks.caption.recipe import CaptionRecipe
from regard.tasks.classify.picture_recipe import PictureClassifyRecipe
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES: dict[str, Any] = {
    "caption/ucm-show-attend-tell": CaptionRecipe,
    "caption/ucm-transformer": CaptionRecipe,
    "classify/ucm-classes": PictureClassifyRecipe,
    "classify/mnist-patches": PictureClassifyRecipe,
}
FULL = "# full: "


def recipe_of(name: str, *overrides: str) -> Any:
    return validated(RECIPES[name], with_overrides(read_yaml(FOLDER / f"{name}.yaml"), overrides), f"{name}.yaml")


def full_size(name: str) -> list[str]:
    """The overrides of the one line that says what the full size is."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith(FULL)]
    return line.removeprefix(FULL).split()


@pytest.mark.parametrize("name", RECIPES)
def test_the_full_size_is_a_line_of_overrides(name: str) -> None:
    overrides = full_size(name)
    cpu, full = recipe_of(name), recipe_of(name, *overrides)
    assert sorted(differences(plain(cpu), plain(full))) == sorted(override.partition("=")[0] for override in overrides)
    assert full.training.max_steps > cpu.training.max_steps


@pytest.mark.parametrize("name", ["caption/ucm-show-attend-tell", "caption/ucm-transformer"])
def test_the_encoder_of_captions_is_that_of_the_classes(name: str) -> None:
    """What init_from needs, in either size: the same source of the same width."""
    for ours, theirs in (
        (recipe_of(name), recipe_of("classify/ucm-classes")),
        (recipe_of(name, *full_size(name)), recipe_of("classify/ucm-classes", *full_size("classify/ucm-classes"))),
    ):
        one, other = ours.model.encoder.embedding, theirs.model.encoder.embedding
        for part in ("channels", "blocks", "block", "stem_kernel", "stem_stride", "normalisation", "positions"):
            assert getattr(one, part) == getattr(other, part), part
        assert ours.data.picture == theirs.data.picture


@pytest.mark.parametrize("name", ["caption/ucm-show-attend-tell", "classify/ucm-classes"])
def test_the_corpus_is_as_the_recipes_say(name: str, shared_data: Path) -> None:
    data = recipe_of(name).data
    sizes = []
    for spec in (data.train, data.validation, data.test):
        records = read_pictures(spec.resolved(shared_data / "ucm-captions"))
        sizes.append(len(records))
        lines = {record.fields["target"].count("\n") + 1 for record in records}
        assert lines == ({5} if name.startswith("caption") else {1})
    assert sizes == [1680, 210, 210]
