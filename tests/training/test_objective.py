from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regard.errors import ConfigError, ShapeError
from regard.layers.head import HeadConfig, OutputHead
from regard.training.objective import CHUNK_TOKENS, Loss, cross_entropy, mixed, of_outputs

TOKENS, VOCAB, DIM = 2 * CHUNK_TOKENS + 37, 101, 17


def case(
    dtype: torch.dtype, bias: bool, tokens: int = TOKENS, vocab: int = VOCAB, spread: float = 1.0
) -> tuple[Tensor, OutputHead, Tensor]:
    torch.manual_seed(tokens + vocab)
    head = OutputHead(nn.Parameter(torch.randn(vocab, DIM, dtype=dtype) * spread), HeadConfig(bias))
    if head.bias is not None:
        head.bias = nn.Parameter(torch.randn(vocab, dtype=dtype))
    hidden = torch.randn(tokens, DIM, dtype=dtype, requires_grad=True)
    return hidden, head, torch.randint(0, vocab, (tokens,))


def gradients(loss: Tensor, hidden: Tensor, head: OutputHead) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [part for part in (hidden, head.weight, head.bias) if part is not None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [1, CHUNK_TOKENS, TOKENS])
def test_loss_and_gradients_are_torchs(dtype: torch.dtype, bias: bool, smoothing: float, tokens: int) -> None:
    hidden, head, targets = case(dtype, bias, tokens)
    loss = cross_entropy(hidden, head, targets, smoothing=smoothing)
    wanted = F.cross_entropy(head(hidden), targets, label_smoothing=smoothing, reduction="sum")
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(loss.objective, wanted, rtol=rtol, atol=0)
    nll = F.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss.nll, nll.detach(), rtol=rtol, atol=0)
    assert not loss.nll.requires_grad
    found = gradients(loss.objective / 7, hidden, head)
    for mine, theirs in zip(found, gradients(wanted / 7, hidden, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=rtol * theirs.abs().max().item())


@pytest.mark.parametrize("bias", [True, False])
def test_no_tokens_no_loss(bias: bool) -> None:
    hidden, head, targets = case(torch.float32, bias, 0)
    loss = cross_entropy(hidden, head, targets, smoothing=0.1)
    assert loss == Loss(torch.tensor(0.0), torch.tensor(0.0))
    assert not any(part.any() for part in gradients(loss.objective, hidden, head))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_token_held_impossible_still_costs_what_it_costs(dtype: torch.dtype) -> None:
    """Its probability, e^-2000, is 0 in any dtype; its loss is 2000 all the same."""
    head = OutputHead(nn.Parameter(torch.tensor([[1000.0], [-1000.0], [0.0]], dtype=dtype)), HeadConfig())
    hidden = torch.ones(2, 1, dtype=dtype, requires_grad=True)
    targets = torch.tensor([1, 0])
    loss = cross_entropy(hidden, head, targets, smoothing=0.1)
    assert loss.nll.item() == 2000.0
    wanted = F.cross_entropy(head(hidden), targets, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(loss.objective, wanted)
    torch.testing.assert_close(gradients(loss.objective, hidden, head), gradients(wanted, hidden, head))


def test_bfloat16_is_within_its_stated_bounds() -> None:
    hidden, head, targets = case(torch.float32, True, 4 * CHUNK_TOKENS, spread=0.7)
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_head = OutputHead(nn.Parameter(head.weight.detach().double()), HeadConfig(True))
    exact_head.bias = nn.Parameter(head.bias.detach().double())
    logits = exact_head(exact_hidden)
    each = F.cross_entropy(logits, targets, reduction="none")
    objective = F.cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum")
    wanted = gradients(objective, exact_hidden, exact_head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain_logits = head(hidden)
    plain = F.cross_entropy(plain_logits.float(), targets, label_smoothing=0.1, reduction="sum")
    loss = cross_entropy(hidden, head, targets, smoothing=0.1, dtype=torch.bfloat16)
    assert loss.objective.dtype == loss.nll.dtype == torch.float32
    for mine, theirs, right in zip(
        gradients(loss.objective, hidden, head), gradients(plain, hidden, head), wanted, strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - right).abs().max() <= 2 * (theirs - right).abs().max()
    # Each token, against the bound in the docstring; inputs rounded beforehand leave the roundings that it speaks of.
    rounded = OutputHead(nn.Parameter(head.weight.detach().bfloat16().float()), HeadConfig())
    rows = hidden.detach().bfloat16().float()[:97]
    logits = rounded(rows)
    for token in range(97):
        one = cross_entropy(rows[[token]], rounded, targets[[token]], dtype=torch.bfloat16).nll
        error = (one - F.cross_entropy(logits[[token]], targets[[token]])).abs()
        assert error <= 0.004 + logits[token].abs().max() / 256
    # The mean is far closer than its tokens: no rounding leans to a side.
    assert (loss.nll - each.sum()).abs() / len(targets) < 0.002


class Allocations(TorchDispatchMode):
    """The largest tensor that any operation returned, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_the_logits_of_all_tokens_are_never_alive() -> None:
    hidden, head, targets = case(torch.float32, True, 5 * CHUNK_TOKENS, 211)
    with Allocations() as chunked:
        cross_entropy(hidden, head, targets, smoothing=0.1).objective.backward()
    assert chunked.largest == CHUNK_TOKENS * 211
    with Allocations() as plain:
        F.cross_entropy(head(hidden), targets).backward()
    assert plain.largest >= 5 * CHUNK_TOKENS * 211, "the measurement sees a plain loss"


def test_without_gradients_none_is_worked_out() -> None:
    hidden, head, targets = case(torch.float64, True)
    learning = cross_entropy(hidden, head, targets, smoothing=0.1)
    with torch.no_grad():
        found = cross_entropy(hidden, head, targets, smoothing=0.1)
    assert not found.objective.requires_grad
    assert (found.objective.item(), found.nll.item()) == (learning.objective.item(), learning.nll.item())


def test_autocast_changes_nothing() -> None:
    hidden, head, targets = case(torch.float32, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_entropy(hidden, head, targets)
    assert torch.equal(found.nll, cross_entropy(hidden, head, targets).nll)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head, targets = case(torch.float32, True)
    head.requires_grad_(False)
    cross_entropy(hidden, head, targets).objective.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


def test_uniform_predictions_cost_log_vocab() -> None:
    head = OutputHead(nn.Parameter(torch.zeros(VOCAB, DIM)), HeadConfig())
    loss = cross_entropy(torch.randn(5, DIM), head, torch.arange(5), smoothing=0.3)
    torch.testing.assert_close(loss.nll, torch.tensor(5 * math.log(VOCAB)))
    torch.testing.assert_close(loss.objective, torch.tensor(5 * math.log(VOCAB)))


def test_what_does_not_fit_is_told() -> None:
    hidden, head, targets = case(torch.float32, False, 5)
    with pytest.raises(ShapeError) as caught:
        cross_entropy(hidden[:, 1:], head, targets[1:].int())
    assert str(caught.value) == (
        "cross_entropy: hidden has shape (5, 16), expected (tokens, 17); targets has shape (4,), expected (5,); "
        "targets is torch.int32, expected torch.int64: ids below 101"
    )
    for smoothing in (-0.1, 1.0):
        with pytest.raises(
            ConfigError, match=f"cross_entropy: smoothing is {smoothing}, expected at least 0 and below"
        ):
            cross_entropy(hidden, head, targets, smoothing=smoothing)


def test_joint_losses_of_parts_add_up_to_that_of_the_whole() -> None:
    """Sums, so that an update's loss is the same however its rows are spread over batches and processes."""
    hidden, head, targets = case(torch.float64, True, 12)
    nll = torch.rand(4, dtype=torch.float64, requires_grad=True)
    whole = mixed(cross_entropy(hidden, head, targets), of_outputs(nll), 0.3)
    parts = [
        mixed(cross_entropy(hidden[3 * row : 3 * row + 3], head, targets[3 * row : 3 * row + 3]), of_outputs(some), 0.3)
        for row, some in enumerate(nll.split(1))
    ]
    torch.testing.assert_close(sum(part.objective for part in parts), whole.objective)
    attention = cross_entropy(hidden, head, targets)
    torch.testing.assert_close(whole.objective, 0.7 * attention.objective + 0.3 * nll.sum())
    assert torch.equal(whole.nll, attention.nll)
    assert torch.autograd.grad(whole.objective, nll)[0].tolist() == [0.3] * 4
    alone = of_outputs(nll)
    assert torch.equal(alone.objective, nll.sum())
    assert not alone.nll.requires_grad
    for weight in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=rf"mixed loss: weight is {weight}, expected a share"):
            mixed(attention, alone, weight)
