"""Convolution and patches as sources of vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.errors import ConfigError, ShapeError
from regard.inputs.augmentation import AugmentationConfig
from regard.inputs.convolution import Convolution, ConvolutionConfig
from regard.inputs.patches import Patches, PatchesConfig
from regard.inputs.pixels import GridPositionsConfig, NormalisationConfig

NOWHERE = GridPositionsConfig("none")


def pixels(batch: int = 3, height: int = 24, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8), torch.full((batch,), height)


def convolution(**changes: object) -> Convolution:
    torch.manual_seed(1)
    return Convolution(3, 20, ConvolutionConfig("convolution", (8, 16), **changes))  # type: ignore[arg-type]


def patches(**changes: object) -> Patches:
    torch.manual_seed(1)
    return Patches(3, 20, PatchesConfig("patches", 8, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "stride", "grid"), [(convolution(), 4, (6, 8)), (patches(), 8, (3, 4))])
def test_a_vector_for_each_place_of_the_grid(source: Convolution | Patches, stride: int, grid: tuple[int, int]) -> None:
    found = source.eval().represent(*pixels())
    assert (found.stride, found.grid) == (stride, grid)
    assert found.vectors.shape == (3, grid[0] * grid[1], 20)
    assert found.lengths.tolist() == [grid[0] * grid[1]] * 3


@pytest.mark.parametrize("source", [convolution(), patches()])
def test_a_picture_does_not_depend_on_its_company(source: Convolution | Patches) -> None:
    values, lengths = pixels()
    source = source.double().eval()
    together = source.represent(values, lengths).vectors
    for row in range(len(values)):
        alone = source.represent(values[row : row + 1], lengths[:1]).vectors
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", [convolution(), patches()])
def test_no_buffer_is_part_of_the_state(source: nn.Module) -> None:
    assert set(source.state_dict()) == {name for name, _ in source.named_parameters()}


def test_a_patch_is_a_linear_map_of_its_own_pixels() -> None:
    source = patches(positions=NOWHERE, normalisation=NormalisationConfig((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))).double()
    values, lengths = pixels()
    vectors = source.eval().represent(values, lengths).vectors.unflatten(1, (3, 4))
    square = values[1, 8:16, 24:32].double() / 255
    square = (square - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(vectors[1, 1, 3], source.projection(square.flatten()), rtol=1e-6, atol=1e-6)


def test_a_plain_convolution_sees_only_near_its_place() -> None:
    source = convolution(block="plain", positions=NOWHERE).eval()
    source.stem[1], source.blocks[0].only[1], source.blocks[1].only[1] = nn.Identity(), nn.Identity(), nn.Identity()
    values, lengths = pixels(1, 32, 32)
    before = source.represent(values, lengths).vectors.unflatten(1, (8, 8))
    values[0, 0, 0] = 255 - values[0, 0, 0]
    changed = (source.represent(values, lengths).vectors.unflatten(1, (8, 8)) != before).any(-1)[0]
    assert changed[0, 0] and not changed[3:].any() and not changed[:, 3:].any()


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_tell_rows_from_columns(kind: str) -> None:
    positions = GridPositionsConfig(kind)  # type: ignore[arg-type]
    source = patches(positions=positions).eval()
    values = torch.full((1, 24, 32, 3), 7, dtype=torch.uint8)
    vectors = source.represent(values, torch.tensor([24])).vectors[0]
    assert torch.pdist(vectors).min() > 1e-3
    same = patches(positions=NOWHERE).eval().represent(values, torch.tensor([24])).vectors[0]
    assert torch.pdist(same).max() < 1e-5


def test_augmentation_happens_in_training_alone_and_by_the_seed() -> None:
    source = patches(augmentation=AugmentationConfig(flip=True, brightness=0.5))
    values, lengths = pixels()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(source.train().represent(values, lengths).vectors)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(source.eval().represent(values, lengths).vectors, source.represent(values, lengths).vectors)


@pytest.mark.parametrize("source", [convolution(), patches()])
def test_it_learns(source: Convolution | Patches) -> None:
    values, lengths = pixels()
    source.train().represent(values, lengths).vectors.pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in source.parameters())


def test_what_does_not_fit_is_refused() -> None:
    values, lengths = pixels()
    for source in (convolution(), patches()):
        with pytest.raises(ShapeError, match=r"heights \[20, 24\] in one batch"):
            source.represent(values, torch.tensor([24, 20, 24]))
        with pytest.raises(ShapeError, match="pictures of 1 channels, expected 3"):
            source.represent(values[..., :1], lengths)
        with pytest.raises(ShapeError, match=r"expected torch.uint8 \(batch, height, width, channels\)"):
            source.represent(values.float(), lengths)
        with pytest.raises(ShapeError, match="or more a side"):
            source.represent(values[:, :2, :2], torch.tensor([2, 2, 2]))
    with pytest.raises(ShapeError, match="a grid of 3 x 4, but 2 a side are learnt"):
        patches(positions=GridPositionsConfig(most=2)).represent(values, lengths)
    with pytest.raises(ConfigError, match="std has 2 values for 3 channels"):
        patches(normalisation=NormalisationConfig((0.5,), (0.1, 0.2)))
    with pytest.raises(ConfigError, match=r"channels is \[8, 12\], expected multiples of 8"):
        ConvolutionConfig("convolution", (8, 12))
    with pytest.raises(ConfigError, match="patch is 0"):
        PatchesConfig("patches", 0)
    with pytest.raises(ConfigError, match="multiple of 4, not 6"):
        Patches(3, 6, PatchesConfig("patches", 4, positions=GridPositionsConfig("sinusoidal")))
