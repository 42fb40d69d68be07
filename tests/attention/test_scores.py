from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.scores import Additive, Bilinear, Dot, Rotary, ScaledDot, Score
from regard.errors import ShapeError

BATCH, HEADS, QUERY_LEN, KEY_LEN, DIM, OTHER = 2, 3, 5, 7, 11, 13


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_scores_are_their_formulas() -> None:
    query, key, wide = normal(BATCH, HEADS, QUERY_LEN, DIM), normal(BATCH, HEADS, KEY_LEN, DIM), normal(2, 3, 7, OTHER)
    matrix, shared = normal(HEADS, DIM, OTHER), normal(1, DIM, OTHER)
    vector, one = normal(HEADS, DIM), normal(1, DIM)
    product = torch.einsum("bhqd,bhkd->bhqk", query, key)
    summed = torch.tanh(query[:, :, :, None] + key[:, :, None])
    cases: list[tuple[Score, torch.Tensor, torch.Tensor]] = [
        (Dot(), key, product),
        (ScaledDot(), key, product / math.sqrt(DIM)),
        (ScaledDot(0.3), key, product * 0.3),
        (Bilinear(matrix), wide, torch.einsum("bhqd,hde,bhke->bhqk", query, matrix, wide)),
        (Bilinear(shared), wide, torch.einsum("bhqd,de,bhke->bhqk", query, shared[0], wide)),
        (Additive(vector), key, torch.einsum("bhqkd,hd->bhqk", summed, vector)),
        (Additive(one), key, torch.einsum("bhqkd,d->bhqk", summed, one[0])),
    ]
    for score, keys, wanted in cases:
        torch.testing.assert_close(score.similarity(query, keys), wanted)
        assert score.check(DIM, keys.shape[-1], heads=HEADS) == []
        if score.is_dot:
            turned, scale = score.as_dot(query)
            torch.testing.assert_close(scale * turned @ keys.transpose(-2, -1), wanted)
        else:
            with pytest.raises(TypeError, match="Additive is no product"):
                score.as_dot(query)


def test_a_score_says_what_does_not_fit() -> None:
    assert Dot().check(5, 7, heads=3) == ["query width 5 and key width 7 differ"]
    assert Bilinear(normal(2, 5, 7)).check(5, 7, heads=3) == [
        "Bilinear.weight has shape (2, 5, 7), expected (3 or 1, 5, 7)"
    ]
    assert Bilinear(normal(5, 7)).check(5, 7, heads=3) == ["Bilinear.weight has shape (5, 7), expected (3 or 1, 5, 7)"]
    assert Additive(normal(2, 7)).check(5, 7, heads=3) == [
        "query width 5 and key width 7 differ",
        "Additive.vector has shape (2, 7), expected (3 or 1, 7)",
    ]


def complex_rotation(vectors: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Su et al. 2021, eq. 13: each pair of channels is a complex number turned by position * theta_i."""
    half = vectors.shape[-1] // 2
    theta = torch.tensor([base ** (-2 * i / vectors.shape[-1]) for i in range(half)], dtype=torch.float64)
    turn = torch.polar(torch.ones((), dtype=torch.float64), positions.double()[..., None] * theta)
    turned = torch.complex(vectors[..., :half], vectors[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], -1)


def test_rotary_is_a_rotation_of_complex_numbers() -> None:
    vectors, positions = normal(2, 3, 5, 14), torch.tensor([0, 1, 7, 100, 100_003])
    rotary = Rotary(base=500.0)
    torch.testing.assert_close(rotary.rotate(vectors, positions), complex_rotation(vectors, positions, 500.0))
    of_rows = torch.stack([positions, positions + 11])
    wanted = torch.stack([complex_rotation(vectors[row], of_rows[row], 500.0) for row in (0, 1)])
    torch.testing.assert_close(rotary.rotate(vectors, of_rows), wanted)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)):
        rotated = rotary.rotate(vectors.to(dtype), positions)
        assert rotated.dtype == dtype
        exact = complex_rotation(vectors.to(dtype).double(), positions, 500.0)
        assert ((rotated - exact).abs() <= bound * exact.abs().clamp_min(1)).all()


@settings(deadline=None, max_examples=50)
@given(query=st.integers(0, 5000), key=st.integers(0, 5000), shift=st.integers(0, 5000))
def test_rotary_products_know_only_the_distance(query: int, key: int, shift: int) -> None:
    rotary, left, right = Rotary(), normal(1, 1, 1, 10), normal(1, 1, 1, 10) + 1

    def product(begin: int) -> torch.Tensor:
        turned = rotary.rotate(left, torch.tensor([query + begin]))
        return (turned * rotary.rotate(right, torch.tensor([key + begin]))).sum()

    torch.testing.assert_close(product(shift), product(0), rtol=0, atol=1e-9)


def test_rotary_wants_an_even_width() -> None:
    with pytest.raises(ShapeError, match="Rotary: head_dim is 7, expected an even number"):
        Rotary().rotate(normal(1, 1, 2, 7), torch.arange(2))
