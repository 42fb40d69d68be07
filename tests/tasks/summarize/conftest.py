from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tiny_reports import recipe, write_reports

import regard
from regard.tasks.recipe import validated
from regard.tasks.run import train
from regard.tasks.summarize.recipe import SummarizeRecipe
from regard.tasks.summarize.summarizer import Summarizer


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="session")
def run_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learnt the tiny reports."""
    folder = tmp_path_factory.mktemp("run") / "run"
    result = train(validated(SummarizeRecipe, recipe(data), "recipe"), folder)
    assert result["test"][0]["exact_match"] == 1.0, "tests count on a model that has learnt its reports"
    return folder


@pytest.fixture(scope="session")
def summarizer(run_folder: Path) -> Summarizer:
    found = regard.load(run_folder / "model")
    assert isinstance(found, Summarizer)
    return found
