"""Recurrent steps against torch's own cells, and products whose weight learns once a loop against plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.layers.recurrence import LoopProduct, gru_update, initialise_recurrence, lstm_update, tanh_

ROWS, INPUTS, DIM, STEPS = 5, 7, 11, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def cell_of(kind: type[nn.GRUCell] | type[nn.LSTMCell]) -> nn.GRUCell | nn.LSTMCell:
    torch.manual_seed(1)
    cell = kind(INPUTS, DIM, dtype=torch.float64)
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def assert_same(found: Tensor, wanted: Tensor, over: list[Tensor]) -> None:
    """Outputs and the gradients of a sum that weighs each output."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = drawn(*wanted.shape, seed=9).detach()
    sums = [(output * weights).sum() for output in (found, wanted)]
    mine, theirs = (torch.autograd.grad(total, over, retain_graph=True) for total in sums)
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 2], ids=["one input", "input in two parts"])
def test_a_gru_step_is_torchs(parts: int) -> None:
    cell = cell_of(nn.GRUCell)
    vectors, hidden = drawn(ROWS, INPUTS), drawn(ROWS, DIM, seed=1)
    inputs, of_hidden = F.linear(vectors, cell.weight_ih, cell.bias_ih), F.linear(hidden, cell.weight_hh, cell.bias_hh)
    given = (inputs, None) if parts == 1 else (0.25 * inputs, 0.75 * inputs)
    found = gru_update(given[0], of_hidden, hidden, given[1])
    assert_same(found, cell(vectors, hidden), [vectors, hidden, *cell.parameters()])


@pytest.mark.parametrize("parts", [1, 2], ids=["one input", "input in two parts"])
def test_an_lstm_step_is_torchs(parts: int) -> None:
    cell = cell_of(nn.LSTMCell)
    vectors, hidden, kept = drawn(ROWS, INPUTS), drawn(ROWS, DIM, seed=1), drawn(ROWS, DIM, seed=2)
    inputs, of_hidden = F.linear(vectors, cell.weight_ih, cell.bias_ih), F.linear(hidden, cell.weight_hh, cell.bias_hh)
    found = lstm_update(inputs + of_hidden, kept) if parts == 1 else lstm_update(inputs, kept, of_hidden)
    wanted = cell(vectors, (hidden, kept))
    # Both outputs at once, so that both of their gradients arrive.
    over = [vectors, hidden, kept, *cell.parameters()]
    assert_same(torch.stack(found), torch.stack(wanted), over)
    for mine, theirs in zip(found, wanted, strict=True):  # and each alone
        assert_same(mine, theirs, over)


def test_steps_change_nothing_they_are_given() -> None:
    gates, more, state = (drawn(ROWS, width, seed=width).detach() for width in (4 * DIM, 4 * DIM, DIM))
    before = [tensor.clone() for tensor in (gates, more, state)]
    lstm_update(gates, state)
    lstm_update(gates, state, more)
    gru_update(gates[:, : 3 * DIM], more[:, : 3 * DIM], state, gates[:, : 3 * DIM])
    assert all(torch.equal(one, other) for one, other in zip(before, (gates, more, state), strict=True))


def test_tanh_by_a_sigmoid() -> None:
    values = torch.linspace(-30, 30, 1001)
    assert (tanh_(values.clone()) - torch.tanh(values)).abs().max() < 2.5e-7
    assert tanh_(values := torch.ones(3)) is values


def looped(weight: Tensor, bias: Tensor | None, inputs: Tensor, *, plain: bool) -> Tensor:
    """A recurrence through one matrix, some of whose steps nobody looks at."""
    product = LoopProduct(weight, bias)
    hidden, found = inputs[0], []
    for step in inputs:
        added = hidden + step
        if plain:
            made = F.linear(added, weight, bias) if weight.ndim == 2 else added @ weight.mT + bias[:, None]
        else:
            made = product(added)
        if len(found) != 1:
            hidden = torch.tanh(made)  # the second step's product leads nowhere
        found.append(hidden)
    return torch.stack(found)


@pytest.mark.parametrize("parts", [None, 2], ids=["one matrix", "two at once"])
@pytest.mark.parametrize("biased", [True, False])
def test_a_loop_product_is_a_plain_one(parts: int | None, biased: bool) -> None:
    lead = () if parts is None else (parts,)
    weight, bias = drawn(*lead, DIM, DIM), drawn(*lead, DIM, seed=3)
    if not biased:
        bias = torch.zeros_like(bias)
    inputs = drawn(STEPS, *lead, ROWS, DIM, seed=5)
    over = [weight, inputs, *([bias] if biased else [])]
    found = looped(weight, bias if biased or parts else None, inputs, plain=False)
    assert_same(found, looped(weight, bias, inputs, plain=True), over)


def test_a_graph_kept_is_gone_through_twice() -> None:
    weight, inputs = drawn(DIM, DIM), drawn(STEPS, ROWS, DIM, seed=5)
    total = looped(weight, None, inputs, plain=False).square().sum()
    first = torch.autograd.grad(total, [weight, inputs], retain_graph=True)
    second = torch.autograd.grad(total, [weight, inputs])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    product = LoopProduct(weight)
    one, other = (product(step) for step in inputs[:2])
    torch.autograd.grad((one + other).sum(), weight, retain_graph=True)
    [alone] = torch.autograd.grad(one.sum(), weight)
    torch.testing.assert_close(alone, inputs[0].detach().sum(0).expand(DIM, DIM))


def test_what_learns_nothing_gets_no_gradient() -> None:
    weight, inputs = drawn(DIM, DIM), drawn(ROWS, DIM, seed=5)
    frozen = LoopProduct(weight.detach())(inputs)
    assert_same(frozen, F.linear(inputs, weight.detach()), [inputs])
    with torch.no_grad():
        assert not LoopProduct(weight)(inputs).requires_grad
    unused = LoopProduct(weight)
    unused(inputs)
    other = LoopProduct(weight)(inputs).sum()
    other.backward()
    torch.testing.assert_close(weight.grad, inputs.detach().sum(0).expand(DIM, DIM))


def test_under_autocast_a_weight_learns_better_than_step_by_step() -> None:
    """A plain product's gradients are added up in bfloat16, one step's after the other's."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(DIM, DIM) / DIM)
    inputs = torch.randn(53, ROWS, DIM)

    def gradient(*, plain: bool) -> Tensor:
        weight.grad = None
        product = LoopProduct(weight)
        total = torch.zeros(())
        for step in inputs:
            made = F.linear(step, weight) if plain else product(step)
            assert made.dtype == (torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
            total = total + made.float().square().sum()
        total.backward()
        assert weight.grad is not None
        return weight.grad

    exact = gradient(plain=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = gradient(plain=False), gradient(plain=True)
    assert ours.dtype == torch.float32
    ours, plain = ((found - exact).norm() / exact.norm() for found in (ours, plain))
    assert ours < 0.006
    assert ours < 0.7 * plain


def test_initialisation() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(64, 48)
    initialise_recurrence(layer)
    for gate in layer.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(48), rtol=0, atol=1e-5)
    assert 0.0095 < layer.weight_ih_l0.std() < 0.0105
    assert not layer.bias_ih_l0.any()
