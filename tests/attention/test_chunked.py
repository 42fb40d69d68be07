"""The second pass in plain torch against the materialised oracle, and the helper that compares them."""

from __future__ import annotations

import types
from dataclasses import replace

import pytest
import torch
from second_pass_cases import CASES, SIZES, compare, inputs, wanted_everything

from regard.attention import chunked
from regard.attention.pair_scores import PairScores
from regard.attention.statistics import Statistics, Wanted


@pytest.mark.parametrize("given", [True, False], ids=["logsumexp given", "found"])
@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 12 * 67 * 5)  # blocks of five queries
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        pairs = CASES[case](inputs(dtype=dtype))
        compare(chunked, pairs, wanted_everything(pairs, weighted=given), given=given, tolerance=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str) -> None:
    pairs = inputs(**SIZES[size], dtype=torch.float64)
    compare(chunked, pairs, wanted_everything(pairs), given=False, tolerance=1e-12)


def test_the_comparison_can_fail() -> None:
    pairs = inputs(dtype=torch.float64)

    def broken(name: str) -> types.ModuleType:
        def statistics(pairs: PairScores, logsumexp: torch.Tensor | None, wanted: Wanted) -> Statistics:
            found = chunked.statistics(pairs, logsumexp, wanted)
            wrong = getattr(found, name).clone()
            wrong.view(-1)[3] += 1
            return found._replace(**{name: wrong})

        module = types.ModuleType("broken")
        module.statistics = statistics  # type: ignore[attr-defined]
        return module

    for name in Statistics._fields:
        with pytest.raises(AssertionError):
            compare(broken(name), pairs, wanted_everything(pairs), given=False, tolerance=1e-6)
    compare(chunked, replace(pairs), wanted_everything(pairs), given=False, tolerance=1e-6)
