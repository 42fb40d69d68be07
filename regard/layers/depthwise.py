"""A convolution over time, each channel by itself, on vectors as they lie in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regard.errors import ConfigError


class DepthwiseConvolution(nn.Module):
    """[batch, length, channels] -> the same shape; position i sees `kernel` positions around it, zeros beyond the ends.

    kernel: odd. Numerics: in the weight's dtype, so that sums under autocast are not bfloat16's.
    Raises: ConfigError when the kernel is even.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"convolution: kernel is {kernel}, expected an odd number of positions")
        bound = kernel**-0.5
        self.weight = nn.Parameter(torch.empty(kernel, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, vectors: Tensor) -> Tensor:
        result: Tensor = _Depthwise.apply(vectors.to(self.weight.dtype), self.weight, self.bias)
        return result


class _Depthwise(torch.autograd.Function):
    """A multiplication and addition for each place of the kernel, over channels that lie side by side.

    Torch's conv1d wants channels first, which are two copies, and its gradient on a CPU goes by general products.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernel, length = weight.shape[0], vectors.shape[1]
        padded = F.pad(vectors, (0, 0, kernel // 2, kernel // 2))
        ctx.save_for_backward(padded, weight)
        output = bias.expand_as(vectors).contiguous()
        for place in range(kernel):
            output.addcmul_(padded[:, place : place + length], weight[place])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        padded, weight = ctx.saved_tensors
        kernel, length = weight.shape[0], gradient.shape[1]
        of_padded = torch.zeros_like(padded)
        of_weight = torch.empty_like(weight)
        products = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        ones = gradient.new_ones(
            products[..., 0].numel()
        )  # sums by a product, in a sixth of the time of `sum` over two axes
        for place in range(kernel):
            part = slice(place, place + length)
            of_padded[:, part].addcmul_(gradient, weight[place])
            torch.mul(padded[:, part], gradient, out=products)
            of_weight[place] = ones @ products.view(len(ones), -1)
        reach = kernel // 2
        return of_padded[:, reach : reach + length], of_weight, gradient.sum((0, 1))
