"""The recipes of translation that come in two sizes: right as they stand, right as the line that enlarges them says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.translate.recipe import TranslateRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "translate"
SIZED = ("multi30k-en-de", "multi30k-en-de-bahdanau", "multi30k-en-de-luong", "multi30k-en-fr")
FULL = "# full: "


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


def recipe_of(name: str, *overrides: str) -> TranslateRecipe:
    return validated(TranslateRecipe, with_overrides(read_yaml(path_of(name)), overrides), f"{name}.yaml")


def full_size(text: str) -> list[str]:
    """The overrides of the one line that says what the full size is."""
    [line] = [line for line in text.splitlines() if line.startswith(FULL)]
    return line.removeprefix(FULL).split()


@pytest.mark.parametrize("name", SIZED)
def test_the_full_size_is_a_line_of_overrides(name: str) -> None:
    overrides = full_size(path_of(name).read_text(encoding="utf-8"))
    cpu, full = recipe_of(name), recipe_of(name, *overrides)
    assert sorted(differences(plain(cpu), plain(full))) == sorted(override.partition("=")[0] for override in overrides)
    assert full.training.max_steps > cpu.training.max_steps


def test_a_recipe_without_a_full_size_is_found() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        full_size("# A recipe\ntask: translate\n")


@pytest.mark.parametrize("name", SIZED)
def test_checksums_are_those_of_the_corpus(name: str, shared_data: Path) -> None:
    data = recipe_of(name).data
    paths = [path for split in (data.train, data.validation, data.test) for path in split.path.values()]  # type: ignore[union-attr]
    assert sorted(data.downloads) == sorted(paths)
    assert {Path(path).suffix for path in paths} == {".en", f".{data.target_language}"}
    for path, download in data.downloads.items():
        assert hashlib.sha256((shared_data / "multi30k" / path).read_bytes()).hexdigest() == download.sha256
        assert download.url.endswith(f"/data/task1/raw/{path}.gz")


@pytest.mark.parametrize("score", ["dot", "bilinear", "concat"])
def test_every_score_of_luongs_fits(score: str) -> None:
    recipe = recipe_of("multi30k-en-de-luong", f"model.decoder.score={score}")
    decoder: Any = EncoderDecoder(31, 31, recipe.model).decoder
    assert type(decoder.attention.score()).__name__ == {"dot": "Dot", "bilinear": "Dot", "concat": "Additive"}[score]
    assert (decoder.attention.key is None) == (score == "dot")
