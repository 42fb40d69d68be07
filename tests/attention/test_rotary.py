from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.attention.rotary import (
    DynamicNTK,
    Llama3,
    NTKAware,
    PositionInterpolation,
    Rotary,
    RotaryScaling,
    YaRN,
)
from regard.errors import ConfigError, ShapeError

TRAINED_LEN = 64


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


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


def test_the_interleaved_layout_pairs_neighbours() -> None:
    vectors, positions = normal(2, 3, 5, 14), torch.arange(5)
    apart = torch.cat([vectors[..., ::2], vectors[..., 1::2]], -1)
    turned = Rotary().rotate(apart, positions)
    wanted = torch.stack(turned.chunk(2, -1), -1).flatten(-2)
    torch.testing.assert_close(Rotary(interleaved=True).rotate(vectors, positions), wanted)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_partial_rotation_leaves_the_other_channels_alone(interleaved: bool) -> None:
    vectors, positions = normal(2, 3, 5, 13), torch.arange(5) + 11
    turned = Rotary(dims=6, interleaved=interleaved).rotate(vectors, positions)
    whole = Rotary(interleaved=interleaved).rotate(vectors[..., :6], positions)
    assert torch.equal(turned, torch.cat([whole, vectors[..., 6:]], -1))


@settings(deadline=None, max_examples=50)
@given(query=st.integers(0, 5000), key=st.integers(0, 5000), shift=st.integers(0, 5000), interleaved=st.booleans())
def test_rotary_products_know_only_the_distance(query: int, key: int, shift: int, interleaved: bool) -> None:
    rotary = Rotary(interleaved=interleaved, scaling=Llama3(8.0, 512))
    left, right = normal(1, 1, 1, 10), normal(1, 1, 1, 10) + 1

    def product(begin: int) -> torch.Tensor:
        turned = rotary.rotate(left, torch.tensor([query + begin]))
        return (turned * rotary.rotate(right, torch.tensor([key + begin]))).sum()

    torch.testing.assert_close(product(shift), product(0), rtol=0, atol=1e-9)


# -- scalings ----------------------------------------------------------------------------------------------------------

FREQUENCIES = Rotary().frequencies(16)


def test_scalings_by_hand() -> None:
    torch.testing.assert_close(Rotary(scaling=PositionInterpolation(4.0)).frequencies(16), FREQUENCIES / 4)
    widened = Rotary(scaling=NTKAware(4.0)).frequencies(16)
    torch.testing.assert_close(widened[0], FREQUENCIES[0], rtol=0, atol=0)
    torch.testing.assert_close(widened[-1], FREQUENCIES[-1] / 4)
    torch.testing.assert_close(widened, Rotary(base=10_000 * 4.0 ** (16 / 14)).frequencies(16))
    dynamic = Rotary(scaling=DynamicNTK(2.0, TRAINED_LEN))
    assert torch.equal(dynamic.frequencies(16, length=TRAINED_LEN), FREQUENCIES)
    torch.testing.assert_close(
        dynamic.frequencies(16, length=3 * TRAINED_LEN), Rotary(scaling=NTKAware(5.0)).frequencies(16)
    )
    llama = Rotary(scaling=Llama3(8.0, 8192)).frequencies(16)
    wavelengths = 2 * math.pi / FREQUENCIES
    assert torch.equal(llama[wavelengths < 2048], FREQUENCIES[wavelengths < 2048])
    torch.testing.assert_close(llama[wavelengths > 8192], FREQUENCIES[wavelengths > 8192] / 8)
    yarn = Rotary(scaling=YaRN(4.0, 10_000)).frequencies(16)
    assert yarn[0] == FREQUENCIES[0]
    torch.testing.assert_close(yarn[-1], FREQUENCIES[-1] / 4)
    assert YaRN(4.0, 100).magnitude == pytest.approx(0.1 * math.log(4) + 1)
    assert YaRN(4.0, 100, attention_factor=1.5).magnitude == 1.5


SCALINGS: dict[str, tuple[RotaryScaling, dict[str, Any]]] = {
    "linear": (PositionInterpolation(4.0), {"factor": 4.0}),
    "dynamic": (DynamicNTK(2.0, TRAINED_LEN), {"factor": 2.0}),
    "yarn": (YaRN(4.0, TRAINED_LEN), {"factor": 4.0, "original_max_position_embeddings": TRAINED_LEN}),
    "yarn, another": (
        YaRN(8.0, TRAINED_LEN, fast=5.0, slow=0.5, attention_factor=1.25, truncate=False),
        {
            "factor": 8.0,
            "original_max_position_embeddings": TRAINED_LEN,
            "beta_fast": 5.0,
            "beta_slow": 0.5,
            "attention_factor": 1.25,
            "truncate": False,
        },
    ),
    "yarn, short": (YaRN(4.0, 6), {"factor": 4.0, "original_max_position_embeddings": 6}),
    "llama3": (
        Llama3(8.0, TRAINED_LEN, low=1.0, high=4.0),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": TRAINED_LEN,
        },
    ),
}


@pytest.mark.parametrize("length", [TRAINED_LEN // 2, 3 * TRAINED_LEN])
@pytest.mark.parametrize("partial", [1.0, 0.5])
@pytest.mark.parametrize("name", SCALINGS)
def test_scalings_are_those_of_transformers(name: str, partial: float, length: int) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is not installed")
    llama = pytest.importorskip("transformers.models.llama", reason="transformers is not installed")
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is not installed")
    scaling, parameters = SCALINGS[name]
    kind = name.split(",")[0]
    config = llama.LlamaConfig(
        hidden_size=96,
        num_attention_heads=3,
        head_dim=32,
        max_position_embeddings=TRAINED_LEN,
        rope_parameters={
            "rope_type": kind,
            "rope_theta": 500.0,
            "partial_rotary_factor": partial,
            **parameters,
        },
    )
    dims = int(32 * partial)
    theirs, magnitude = rope.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)
    rotary = Rotary(500.0, dims=dims, scaling=scaling)
    torch.testing.assert_close(rotary.frequencies(dims, length), theirs.double(), rtol=1e-6, atol=1e-9)
    assert scaling.magnitude == pytest.approx(magnitude)
    query, key, positions = normal(1, 3, length, 32), normal(1, 3, length, 32) + 1, torch.arange(length)
    angle = torch.cat([positions[:, None] * theirs.double()] * 2, -1)[None]
    wanted = modeling.apply_rotary_pos_emb(
        query[..., :dims], key[..., :dims], angle.cos() * magnitude, angle.sin() * magnitude
    )
    for side, turned in zip((query, key), wanted, strict=True):
        whole = torch.cat([turned, side[..., dims:]], -1)
        torch.testing.assert_close(rotary.rotate(side, positions), whole, rtol=1e-4, atol=1e-4)


def test_the_interleaved_layout_is_that_of_gpt_j() -> None:
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj", reason="transformers is not installed")
    vectors, positions = normal(2, 7, 3, 10).float(), torch.arange(7) + 3
    table = gptj.create_sinusoidal_positions(20, 10)[positions][None].expand(2, -1, -1)
    sine, cosine = table.chunk(2, -1)
    wanted = gptj.apply_rotary_pos_emb(vectors, sine, cosine).transpose(1, 2)
    found = Rotary(interleaved=True).rotate(vectors.transpose(1, 2), positions)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_dynamic_scaling_counts_the_positions_unless_told() -> None:
    rotary, vectors = Rotary(scaling=DynamicNTK(2.0, 5)), normal(1, 1, 11, 6)
    found = rotary.rotate(vectors, torch.arange(11))
    torch.testing.assert_close(found, rotary.rotate(vectors, torch.arange(11), length=11))
    assert (found - rotary.rotate(vectors, torch.arange(11), length=13)).abs().max() > 1e-3


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_rotary_wants_an_even_width() -> None:
    with pytest.raises(ShapeError, match="Rotary: head_dim is 7, expected an even number"):
        Rotary().rotate(normal(1, 1, 2, 7), torch.arange(2))
    for dims in (5, 12, 0, -2):
        with pytest.raises(ShapeError, match=f"Rotary.dims is {dims}, expected an even number from 2 to 11"):
            Rotary(dims=dims).rotate(normal(1, 1, 2, 11), torch.arange(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PositionInterpolation(0.5), "PositionInterpolation: factor is 0.5, expected at least 1"),
        (lambda: NTKAware(float("nan")), "NTKAware: factor is nan, expected at least 1"),
        (
            lambda: DynamicNTK(0.0, 0),
            "DynamicNTK: factor is 0.0, expected at least 1; trained_len is 0, expected at least 1",
        ),
        (lambda: YaRN(2.0, 10, fast=1.0, slow=2.0), "YaRN: fast is 1.0 and slow 2.0, expected fast above slow above 0"),
        (lambda: Llama3(2.0, 10, low=4.0), "Llama3: low is 4.0 and high 4.0, expected high above low above 0"),
    ],
)
def test_a_scaling_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_new_scaling_must_say_how() -> None:
    with pytest.raises(TypeError, match="RotaryScaling does not say how to scale"):
        RotaryScaling().scaled(FREQUENCIES, 1e4, 1)


@pytest.mark.parametrize("base", [0.0, 1.0, -10_000.0, math.nan, "ten"])
def test_a_base_that_turns_nothing_is_refused(base: Any) -> None:
    with pytest.raises(ConfigError, match=r"Rotary: base is .*, expected a finite number above 1"):
        Rotary(base)
