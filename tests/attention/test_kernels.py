"""Torch's fused kernels, called for what its public function hides: the same bits, and gradients part by part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backend_cases import COMPACT, normal, output_and_gradients
from torch import Tensor

from regard.attention.attend import attend, explain_backend
from regard.attention.backends.kernels import CPU, KERNELS, CudaEfficient, CudaFlash, CudnnAttention, Inputs, kernel_for
from regard.attention.distributions import SinkSoftmax
from regard.attention.masks import Causal, Global, Mask, Padding, Window
from regard.attention.observation import Observe
from regard.attention.scores import ScaledDot

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def inputs(dtype: torch.dtype, query_len: int = 131, key_len: int = 131) -> Inputs:
    shapes = ((2, 6, query_len, 17), (2, 3, key_len, 17), (2, 3, key_len, 17))
    query, key, value = (normal(*shape, seed=seed, dtype=dtype).requires_grad_() for seed, shape in enumerate(shapes))
    return Inputs(query, key, value, 0.3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cpu_s_is_what_torch_runs_to_the_last_bit(dtype: torch.dtype, causal: bool) -> None:
    given = inputs(dtype)._replace(causal=causal)
    assert kernel_for(given) is CPU
    assert CPU.usable(given)
    sides = given[:3]
    plain = F.scaled_dot_product_attention(*sides, is_causal=causal, scale=0.3, enable_gqa=True)
    output, logsumexp = CPU.forward(given)
    assert torch.equal(output, plain)
    goal = normal(*plain.shape, dtype=dtype)
    wanted = torch.autograd.grad(plain, sides, goal)
    assert all(map(torch.equal, torch.autograd.grad(output, sides, goal), wanted))
    with torch.no_grad():
        assert all(map(torch.equal, CPU.backward(given, goal, output, logsumexp), wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_attend_is_torch_to_the_last_bit(mask: str, dtype: torch.dtype) -> None:
    """What one call of the kernel serves is what a user of torch gets by the mask that she would write."""
    query, key, value = (side.detach() for side in inputs(dtype, 61, 61)[:3])
    lengths = torch.tensor([61, 17])
    chosen: dict[str, Mask | None] = {"none": None, "causal": Causal(), "padding": Padding(lengths)}
    allowed = (torch.arange(61) < lengths[:, None])[:, None, None] if mask == "padding" else None
    plain = F.scaled_dot_product_attention(query, key, value, allowed, is_causal=mask == "causal", enable_gqa=True)
    assert torch.equal(attend(query, key, value, mask=chosen[mask]).output, plain)


def test_a_causal_square_and_a_mask_of_keys_go_together() -> None:
    given = inputs(torch.float64, 37, 37)
    hidden = (torch.arange(37) >= torch.tensor([[30], [0]]))[:, None, None]
    mask = torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, float("-inf"))
    output, _ = CPU.forward(given._replace(causal=True, mask=mask))
    both = ~hidden & torch.ones(37, 37, dtype=torch.bool).tril()
    wanted = F.scaled_dot_product_attention(*given[:3], both[:1], scale=0.3, enable_gqa=True)
    torch.testing.assert_close(output[:1], wanted[:1])
    assert not output[1].any()
    gradients = torch.autograd.grad(output[1].sum(), given[:3])
    assert not any(gradient.any() for gradient in gradients)


def test_diagonals_of_a_vector_are_a_mask() -> None:
    """With queries reversed element (i, j) of an offset bias stands at i + j: a view that the kernel reads as it is."""
    given = inputs(torch.float64, 5, 9)
    vector = normal(6, 5 + 9 - 1)
    whole = torch.stack([vector[:, 4 - row : 4 - row + 9] for row in range(5)], 1)[None]
    view = vector.as_strided((1, 6, 5, 9), (0, 13, 1, 1))
    assert torch.equal(view.flip(2), whole)
    wanted, _ = CPU.forward(given._replace(mask=whole))
    found, _ = CPU.forward(given._replace(query=given.query.flip(2), mask=view))
    torch.testing.assert_close(found.flip(2), wanted)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", [CudnnAttention(), CudaFlash(), CudaEfficient()], ids=lambda kernel: kernel.name)
def test_the_gpu_s_are_called_as_torch_declares_them(kernel: CudnnAttention, masked: bool) -> None:
    """Without a device: shapes and arguments alone, through torch's own shape functions."""
    if kernel.name == "flash" and masked:
        assert not kernel.usable(inputs(torch.bfloat16)._replace(mask=torch.zeros(1, 1, 1, 131)))
        return
    given = Inputs(*(side.detach().to("meta") for side in inputs(torch.bfloat16, 45, 37)[:3]), 0.3)
    if masked:
        given = given._replace(mask=torch.zeros(1, 1, 45, 37, device="meta", dtype=torch.bfloat16))
    output, logsumexp = kernel.forward(given)
    assert output.shape == (2, 6, 45, 17)
    assert logsumexp.shape == (2, 6, 45)
    gradients = kernel.backward(given, output, output, logsumexp)
    assert [gradient.shape for gradient in gradients] == [side.shape for side in given[:3]]


# -- on a GPU ----------------------------------------------------------------------------------------------------------

GPU_MASKS = ("none", "causal", "padding", "causal and padding", "window and global", "causal packed")


def on_gpu(mask: str, length: int, dtype: torch.dtype, **asked: object) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of the fused backend, and of the reference on the same inputs in float64."""
    shapes = ((3, 6, length, 64), (3, 3, length, 64), (3, 3, length, 64))
    sides = [normal(*shape, seed=seed, dtype=dtype).cuda().requires_grad_() for seed, shape in enumerate(shapes)]
    exact = [side.detach().double().requires_grad_() for side in sides]
    chosen = COMPACT[mask](length, length)
    found = attend(*sides, mask=chosen, backend="fused", **asked).output  # type: ignore[arg-type]
    wanted = attend(*exact, mask=chosen, backend="reference", **asked).output  # type: ignore[arg-type]
    goal = normal(*wanted.shape).cuda()
    return (
        [found, *torch.autograd.grad(found, sides, goal.to(dtype))],
        [wanted, *torch.autograd.grad(wanted, exact, goal)],
    )


@pytest.mark.gpu
@pytest.mark.parametrize("length", [67, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("mask", GPU_MASKS)
def test_gpu_outputs_and_gradients(mask: str, dtype: torch.dtype, length: int) -> None:
    for distribution in (None, SinkSoftmax(normal(6).cuda())):
        found, wanted = on_gpu(mask, length, dtype, distribution=distribution)
        bound = {torch.float32: 2e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        for mine, right in zip(found, wanted, strict=True):
            assert mine.dtype == dtype
            assert (mine - right).abs().max() <= bound * right.abs().max().clamp(min=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("mask", GPU_MASKS)
def test_gpu_observation_changes_no_bit(mask: str) -> None:
    sides = [normal(2, 4, 1024, 64, seed=seed, dtype=torch.bfloat16).cuda().requires_grad_() for seed in range(3)]
    chosen = COMPACT[mask](1024, 1024) if "pack" not in mask and "pad" not in mask else Padding([1024, 700])
    asked = Observe(logsumexp=True, entropy=True, received=True)
    plain, seen = (attend(*sides, mask=chosen, observe=observe) for observe in (None, asked))
    ours, theirs = (output_and_gradients(result.output, *sides) for result in (seen, plain))
    assert all(map(torch.equal, ours, theirs))
    exact = attend(*(side.detach().double() for side in sides), mask=chosen, observe=asked, backend="reference")
    for name, tensor in exact.observation.tensors().items():
        error = (seen.observation.tensors()[name] - tensor).abs()[tensor.isfinite()].max()
        assert error <= 2e-2 * tensor[tensor.isfinite()].abs().max(), name


@pytest.mark.gpu
def test_gpu_kernels_are_chosen_by_what_they_serve() -> None:
    half = [normal(1, 4, 256, 64, dtype=torch.bfloat16).cuda() for _ in range(3)]
    given = Inputs(*half, 0.125)
    usable = [kernel.name for kernel in KERNELS if kernel is not CPU and kernel.usable(given)]
    assert usable
    assert kernel_for(given).name == usable[0]  # type: ignore[union-attr]
    assert explain_backend(*half, mask=Window(100, 0) | Global(4)).chosen == "fused"
    assert "float64" in explain_backend(*(side.double() for side in half)).refused["fused"]
    assert explain_backend(*half, score=ScaledDot()).chosen == "fused"
