"""Recurrent steps for loops written in Python: few operations a step, and weights that learn once a sequence.

Whatever does not depend on the recurrence is one product outside the loop, which is for its writer to see to. What
stays inside is made cheap here: `LoopProduct` puts off the gradient of a weight until all steps' gradients are known,
and `gru_update`, `lstm_update` do the gates of a step in a handful of operations with a gradient written by hand.

Numerics: products in autocast's dtype, gates and states in the states' own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LoopProduct:
    """x W^T + b, asked for at every step of a loop; W and b learn by one product after the last step's gradient.

    weight: [outputs, inputs], or [parts, outputs, inputs] for as many products at once; bias: [outputs] or [parts,
    outputs]. A plain product would add a gradient of W's size at every step, under autocast rounded to bfloat16 each
    time. Make one for each loop: it belongs to one graph.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        dtype = _product_dtype(weight)
        self._learns = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
        if self._learns:
            self._ledger = _Ledger()
            self._weight, self._bias = _Opened.apply(self._ledger, dtype, weight, bias)
        else:
            self._weight, self._bias = weight.to(dtype), None if bias is None else bias.to(dtype)

    def __call__(self, vectors: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs], or [parts, rows, inputs] -> [parts, rows, outputs]."""
        vectors = vectors.to(self._weight.dtype)
        if self._learns:
            product: Tensor = _Product.apply(self._ledger, vectors, self._weight, self._bias)
            return product
        return _product(vectors, self._weight, self._bias)


def gru_update(inputs: Tensor, of_hidden: Tensor, hidden: Tensor, more_inputs: Tensor | None = None) -> Tensor:
    """The next state of a gated recurrent unit (Cho et al. 2014), [..., dim].

    inputs: [..., 3 * dim], W x + b in torch's order: reset, update, new; more_inputs is added to it. of_hidden:
    [..., 3 * dim], U h + b of hidden [..., dim]. The reset gate acts after the product with the state, as torch's does.
    """
    updated: Tensor = _GRUUpdate.apply(inputs, of_hidden, hidden, more_inputs)
    return updated


def lstm_update(gates: Tensor, cell: Tensor, more_gates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(the next state, the next cell) of an LSTM (Hochreiter and Schmidhuber 1997), each [..., dim].

    gates: [..., 4 * dim], W x + U h + b in torch's order: input, forget, new, output; more_gates is added to it. cell:
    [..., dim].
    """
    hidden, cell = _LSTMUpdate.apply(gates, cell, more_gates)
    return hidden, cell


def initialise_recurrence(layer: nn.Module) -> None:
    """Orthogonal recurrent matrices, a gate each; N(0, 0.01^2) input matrices; zero biases.

    Source: Bahdanau et al. 2015, appendix B.1.
    """
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            if "bias" in name:
                parameter.zero_()
            elif "weight_hh" in name:
                for gate in parameter.chunk(parameter.shape[0] // parameter.shape[1], dim=0):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.normal_(parameter, std=0.01)


# -- products ----------------------------------------------------------------------------------------------------------


class _Ledger:
    """What one weight was multiplied with, and the gradients of the products, by step."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: dict[int, Tensor] = {}


class _Opened(torch.autograd.Function):
    """The weight as the loop uses it. Autograd comes here after every step, when the ledger is complete."""

    @staticmethod
    def forward(
        ctx: Any, ledger: _Ledger, dtype: torch.dtype, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.ledger = ledger
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        # Always another tensor than the parameter: a Function may not hand its input on unchanged.
        return _other(weight, dtype), None if bias is None else _other(bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *nothing: Tensor | None) -> tuple[Tensor | None, ...]:
        ledger: _Ledger = ctx.ledger
        if not ledger.gradients:
            return None, None, None, None
        inputs = torch.cat([ledger.inputs[step] for step in ledger.gradients], dim=-2)
        gradients = torch.cat(list(ledger.gradients.values()), dim=-2)
        ledger.gradients = {}  # a graph that is kept may be gone through again, perhaps from fewer steps
        weight_dtype, bias_dtype = ctx.dtypes
        of_weight = (gradients.mT @ inputs).to(weight_dtype)
        return None, None, of_weight, None if bias_dtype is None else gradients.sum(-2, dtype=bias_dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ledger: _Ledger, vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.ledger, ctx.step = ledger, len(ledger.inputs)
        ledger.inputs.append(vectors.detach())
        return _product(vectors, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        ctx.ledger.gradients[ctx.step] = gradients[0]
        return None, gradients[0] @ weight, None, None


def _product(vectors: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.ndim == 2:
        return F.linear(vectors, weight, bias)
    return vectors @ weight.mT if bias is None else torch.baddbmm(bias[:, None], vectors, weight.mT)


def _other(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.view_as(tensor) if tensor.dtype == dtype else tensor.to(dtype)


def _product_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# -- gates -------------------------------------------------------------------------------------------------------------


class _GRUUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, of_hidden: Tensor, hidden: Tensor, more: Tensor | None) -> Tensor:
        dim = hidden.shape[-1]
        inputs = inputs.to(hidden.dtype)
        gates = inputs[..., : 2 * dim] + of_hidden[..., : 2 * dim]
        if more is not None:
            gates += more[..., : 2 * dim]
        reset, update = gates.sigmoid_().split(dim, dim=-1)
        of_hidden_new = of_hidden[..., 2 * dim :]
        new = (reset * of_hidden_new).add_(inputs[..., 2 * dim :])
        if more is not None:
            new += more[..., 2 * dim :]
        tanh_(new)
        ctx.save_for_backward(gates, new, of_hidden_new, hidden)
        ctx.has_more = more is not None
        return torch.lerp(new, hidden, update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gates, new, of_hidden_new, hidden = ctx.saved_tensors
        (gradient,) = gradients
        dim = hidden.shape[-1]
        reset, update = gates.split(dim, dim=-1)
        of_inputs = new.new_empty(*new.shape[:-1], 3 * dim)
        of_hidden = torch.empty_like(of_inputs)
        kept = gradient * update  # of the state, where it is carried over
        of_new = (gradient - kept).mul_(1.0 - new * new)
        of_inputs[..., 2 * dim :] = of_new
        torch.mul(of_new, reset, out=of_hidden[..., 2 * dim :])
        slope = gates * (1.0 - gates)
        torch.mul(of_new * of_hidden_new, slope[..., :dim], out=of_inputs[..., :dim])
        torch.mul((hidden - new).mul_(gradient), slope[..., dim:], out=of_inputs[..., dim : 2 * dim])
        of_hidden[..., : 2 * dim] = of_inputs[..., : 2 * dim]
        return of_inputs, of_hidden, kept, of_inputs if ctx.has_more else None


class _LSTMUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, cell: Tensor, more: Tensor | None) -> tuple[Tensor, Tensor]:
        dim = cell.shape[-1]
        ctx.has_more = more is not None
        gates = inputs.to(cell.dtype, copy=True) if more is None else inputs.to(cell.dtype) + more
        gates[..., : 2 * dim].sigmoid_()
        tanh_(gates[..., 2 * dim : 3 * dim])
        gates[..., 3 * dim :].sigmoid_()
        taken, kept, new, shown = gates.split(dim, dim=-1)
        after = torch.addcmul(kept * cell, taken, new)
        seen = tanh_(after.clone())
        ctx.save_for_backward(gates, cell, seen)
        return shown * seen, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gates, cell, seen = ctx.saved_tensors
        of_state, of_cell = gradients
        dim = cell.shape[-1]
        taken, kept, new, shown = gates.split(dim, dim=-1)
        of_after = torch.addcmul(of_cell, of_state * shown, 1.0 - seen * seen)
        of_gates = torch.empty_like(gates)
        torch.mul(of_after * new, taken * (1.0 - taken), out=of_gates[..., :dim])
        torch.mul(of_after * cell, kept * (1.0 - kept), out=of_gates[..., dim : 2 * dim])
        torch.mul(of_after * taken, 1.0 - new * new, out=of_gates[..., 2 * dim : 3 * dim])
        torch.mul(of_state * seen, shown * (1.0 - shown), out=of_gates[..., 3 * dim :])
        return of_gates, of_after.mul_(kept), of_gates if ctx.has_more else None


def tanh_(values: Tensor) -> Tensor:
    """In place, as 2 sigmoid(2 x) - 1, which on a CPU takes an eighth of torch's tanh. Right to a rounding of 1."""
    return values.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
