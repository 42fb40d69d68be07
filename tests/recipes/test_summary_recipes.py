"""The recipes of summaries: right as they stand, right as the line that enlarges them says; what needs no model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from regard.inputs.words import WordTokenizer
from regard.models.encoder_decoder import EncoderDecoder
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.summarize.recipe import SummarizeRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "summarize"
NAMES = ("aeslc-pointer-generator", "aeslc-transformer")
FULL = "# full: "


def recipe_of(name: str, *overrides: str) -> SummarizeRecipe:
    return validated(SummarizeRecipe, with_overrides(read_yaml(FOLDER / f"{name}.yaml"), overrides), f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_the_full_size_is_a_line_of_overrides(name: str) -> None:
    [line] = [line for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if FULL in line]
    overrides = line.removeprefix(FULL).split()
    cpu, full = recipe_of(name), recipe_of(name, *overrides)
    assert sorted(differences(plain(cpu), plain(full))) == sorted(override.partition("=")[0] for override in overrides)
    assert full.training.max_steps > cpu.training.max_steps
    sizes = [EncoderDecoder(1000, 1000, recipe.model).num_parameters() for recipe in (cpu, full)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_how_large_the_model_is(name: str, shared_data: Path) -> None:
    recipe = recipe_of(name)
    vocab = recipe.tokenizer.vocab_size
    count = EncoderDecoder(vocab, vocab, recipe.model).num_parameters()
    assert f"{count:,}" in (FOLDER / "README.md").read_text(encoding="utf-8")
    for spec in (recipe.data.train, recipe.data.validation):
        assert (shared_data / "aeslc" / str(spec.path)).is_file()


def test_baselines_say_what_needs_no_model() -> None:
    report = runpy.run_path(str(FOLDER / "baselines.py"))["report"]
    pairs = [("The plan is new. See it!", "The Plan"), ("One two three", "Four five"), ("Planet", "plan")]
    lines = report(pairs, [("anything", "four  five")])
    assert lines[0] == "3 records"
    assert lines[1].startswith("first 8 words: ROUGE-1 ")
    assert lines[2] == "summaries that stand verbatim in their document: 33.3%"
    assert lines[3].startswith("writing those alone: ROUGE-1 33.33")
    assert lines[4] == "summaries that stand verbatim in training: 33.3%"
    assert not any("plan" in line.lower() for line in lines), "no row is printed"


def test_words_are_what_the_recipes_read() -> None:
    for name in NAMES:
        config = recipe_of(name).tokenizer
        assert isinstance(WordTokenizer.train(["a word"] * 5, config), WordTokenizer)  # type: ignore[arg-type]
