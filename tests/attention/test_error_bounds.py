"""The error bounds that docs/observation.md states, against the definition in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regard.attention.attend import attend
from regard.attention.masks import Causal
from regard.attention.observation import Observe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "observation.md"
DTYPES = ("float64", "float32", "bfloat16", "float16")
# Column of the table -> the statistics that it bounds.
COLUMNS = (("rows", "columns", "top_weights", "sink_mass"), ("logsumexp", "max_logit"), ("entropy",), ("received",))


def bounds(dtype: str) -> list[float]:
    [line] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {dtype} |")]
    return [float(cell) for cell in line.strip("| ").split("|")[1:]]


@pytest.mark.parametrize("length", [251, 1021])
@pytest.mark.parametrize("name", DTYPES)
def test_errors_stay_below_what_the_page_says(name: str, length: int) -> None:
    torch.manual_seed(3)
    dtype = getattr(torch, name)
    query, key, value = (torch.randn(2, heads, length, 40, dtype=torch.float64).to(dtype) for heads in (6, 2, 2))
    wanted = Observe(
        logsumexp=True,
        entropy=True,
        max_logit=True,
        received=True,
        sink_mass=3,
        top_k=5,
        rows=(0, 100, -1),
        columns=(0, 77, -1),
    )
    found = attend(query, key, value, mask=Causal(), observe=wanted).observation
    wide = (side.double() for side in (query, key, value))
    truth = attend(*wide, mask=Causal(), observe=wanted, backend="reference").observation
    for bound, statistics in zip(bounds(name), COLUMNS, strict=True):
        for statistic in statistics:
            mine, expected = getattr(found, statistic).double(), getattr(truth, statistic).double()
            error = (mine - expected).abs() / (expected if statistic == "received" else 1.0)
            assert float(error.max()) <= bound, statistic
            assert mine.isfinite().all(), statistic
