"""The k largest entries, against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.decoding.leading import leading


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 5),
    entries=st.sampled_from([1, 2, 13, 601, 997, 1024, 2003]),
    k=st.integers(1, 13),
    levels=st.sampled_from([1, 2, 3, 50, 10**9]),
    forbidden=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_it_is_a_stable_sort_cut_short(
    seed: int, rows: int, entries: int, k: int, levels: int, forbidden: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (rows, entries), generator=generator).double()
    scores[torch.rand(rows, entries, generator=generator) < forbidden] = float("-inf")
    k = min(k, entries)
    values, index = leading(scores, k)
    expected, expected_index = scores.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, expected[:, :k])
    usable = values > float("-inf")
    assert torch.equal(index[usable], expected_index[:, :k][usable])
    assert torch.equal(scores.gather(-1, index), values)


def test_topk_alone_would_break_ties_otherwise() -> None:
    """The comparison above can fail: torch.topk does not promise the lowest index."""
    scores = torch.zeros(3, 997)
    if torch.equal(scores.topk(11, dim=-1).indices, torch.arange(11).expand(3, -1)):
        pytest.skip("this build of torch happens to break these ties by index")
    assert torch.equal(leading(scores, 11)[1], torch.arange(11).expand(3, -1))
