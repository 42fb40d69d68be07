"""The recipes of language models and classifiers: right as they stand, right as the line that enlarges them says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from regard.data.readers import read
from regard.inputs.text import Tokenizer
from regard.models.classifier import Classifier
from regard.models.language_model import LanguageModel
from regard.tasks.generate.recipe import ROLE
from regard.tasks.jobs import task_of
from regard.tasks.recipe import differences, plain, read_yaml, validated, with_overrides
from regard.tasks.sections import with_root

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
SHAKESPEARE = FOLDER / "generate" / "tiny-shakespeare.yaml"
SST2 = sorted((FOLDER / "classify").glob("sst2*.yaml"))
FULL = "# full: "


def recipe_of(path: Path, *overrides: str) -> Any:
    values = with_overrides(read_yaml(path), overrides)
    return validated(task_of(values["task"]).recipe, values, path.name)


def full_size(path: Path) -> list[str]:
    [line] = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(FULL)]
    return line.removeprefix(FULL).split()


def test_shakespeares_full_size_has_at_most_11_million_parameters() -> None:
    overrides = full_size(SHAKESPEARE)
    cpu, full = recipe_of(SHAKESPEARE), recipe_of(SHAKESPEARE, *overrides)
    changed = differences(plain(cpu), plain(full))
    assert set(changed) <= {override.partition("=")[0] for override in overrides}
    vocab = full.tokenizer.vocab_size
    assert 10_000_000 < LanguageModel(vocab, full.model).num_parameters() <= 11_000_000
    assert LanguageModel(vocab, cpu.model).num_parameters() < 2_000_000


def test_shakespeare_is_cut_in_order(shared_data: Path) -> None:
    path = shared_data / "text" / "tinyshakespeare.txt"
    recipe = recipe_of(SHAKESPEARE, f"data.root={path.parent}")
    data = with_root(recipe.data, SHAKESPEARE)
    parts = [next(read(spec, (ROLE,))).fields[ROLE] for spec in (data.train, data.validation, data.test)]
    text = path.read_text(encoding="utf-8")
    assert "".join(parts) == text
    assert [round(len(part) / len(text), 4) for part in parts] == [0.9, 0.05, 0.05]
    [download] = recipe.data.downloads.values()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == download.sha256
    tokenizer = Tokenizer.train([parts[0]], recipe.tokenizer)
    assert len(tokenizer) == recipe.tokenizer.vocab_size
    assert len(tokenizer.encode_ids([parts[2]])[0]) == len(parts[2])  # a token a character


@pytest.mark.parametrize("path", SST2, ids=lambda path: path.stem)
def test_sst2_reads_its_files(path: Path, shared_data: Path) -> None:
    recipe = recipe_of(path, f"data.root={shared_data / 'text' / 'sst2'}")
    data = with_root(recipe.data, path)
    roles = ("target",) if recipe.task == "pretrain" else recipe.data.roles
    counts = [sum(1 for _ in read(spec, roles)) for spec in (data.train, data.validation)]
    assert counts == [6920, 872]
    if recipe.task == "classify":
        assert sum(1 for _ in read(data.test, roles)) == 1821
        Classifier(50, 2, recipe.model)


def test_the_finetuned_encoder_has_the_shape_of_the_pretrained_one() -> None:
    encoders = [
        plain(recipe_of(FOLDER / "classify" / name).model.encoder) for name in ("sst2.yaml", "sst2-pretrain.yaml")
    ]
    assert {key.rpartition(".")[2] for key in differences(*encoders)} <= {"dropout"}
