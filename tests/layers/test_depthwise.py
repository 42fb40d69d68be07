from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from regard.errors import ConfigError
from regard.layers.depthwise import DepthwiseConvolution


@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_it_is_torchs_grouped_convolution(kernel: int, length: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConvolution(5, kernel).double()
    torch.nn.init.normal_(layer.bias)
    vectors = torch.randn(3, length, 5, dtype=torch.float64, requires_grad=True)
    found = layer(vectors)
    weight = layer.weight.T[:, None]
    wanted = F.conv1d(vectors.mT, weight, layer.bias, padding=kernel // 2, groups=5).mT
    torch.testing.assert_close(found, wanted)
    goal = torch.randn_like(wanted)
    over = [vectors, layer.weight, layer.bias]
    mine, theirs = (torch.autograd.grad((output * goal).sum(), over) for output in (found, wanted))
    torch.testing.assert_close(mine, theirs)


def test_sums_are_in_the_weights_dtype() -> None:
    layer = DepthwiseConvolution(5, 3)
    vectors = torch.randn(2, 7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(vectors.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(vectors.bfloat16().float()))


@pytest.mark.parametrize("kernel", [0, 4])
def test_an_even_kernel_is_refused(kernel: int) -> None:
    with pytest.raises(ConfigError, match=f"kernel is {kernel}, expected an odd number of positions"):
        DepthwiseConvolution(5, kernel)
