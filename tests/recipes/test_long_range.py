"""The test-bed's problems: what is asked can be told from what stands before it, and from nothing nearer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "long_range.py"


@pytest.fixture(scope="module")
def bed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("long_range", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["long_range"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("distance", [0, 7])
def test_recall_asks_for_what_stood_before_the_blanks(bed: Any, distance: int) -> None:
    tokens, wanted = bed.recall(5, distance, torch.Generator().manual_seed(1))
    width = 2 * bed.PAIRS
    assert tokens.shape == (5, 2 * width + distance)
    assert (tokens[:, width : width + distance] == bed.BLANK).all()
    for row, asked in zip(tokens.tolist(), wanted.tolist(), strict=True):
        known = dict(zip(row[:width:2], row[1:width:2], strict=True))
        assert len(known) == bed.PAIRS
        places = [place for place, value in enumerate(asked) if value >= 0]
        assert len(places) == bed.PAIRS
        assert all(asked[place] == known[row[place]] for place in places)
        assert min(places) == width + distance


@pytest.mark.parametrize("distance", [0, 7])
def test_copy_asks_for_the_symbols_in_order(bed: Any, distance: int) -> None:
    tokens, wanted = bed.copy(5, distance, torch.Generator().manual_seed(1))
    for row, asked in zip(tokens.tolist(), wanted.tolist(), strict=True):
        assert [value for value in asked if value >= 0] == row[: bed.SYMBOLS]
        assert row.index(bed.MARK) == bed.SYMBOLS + distance
        assert asked.index(row[0]) == row.index(bed.MARK)


@pytest.mark.parametrize("name", ["attention", "LSTM", "GRU"])
def test_no_model_reads_ahead(bed: Any, name: str) -> None:
    torch.manual_seed(0)
    model = bed.MODELS[name]().eval()
    tokens, _ = bed.copy(2, 5, torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 8:] = bed.BLANK
    torch.testing.assert_close(model(changed)[:, :8], model(tokens)[:, :8])


def test_a_table_and_a_picture_are_made(bed: Any, tmp_path: Path) -> None:
    model, loss = bed.trained("copy", "GRU", steps=2, longest=4, seed=1)
    found = {distance: bed.accuracy(model, "copy", distance, count=8) for distance in (0, 4)}
    curve = bed.Curve("copy", "GRU", 7, loss, 0.5, found)
    arguments = type("Arguments", (), {"steps": 2, "trained": 4, "seed": 1})()
    assert "| copy | GRU | 7 |" in bed.table([curve], [0, 4], arguments)
    bed.draw([curve], 4, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
