"""Averages of weights: a moving one while training, a plain one over checkpoints at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every trained parameter, shared ones once, by the first of their names."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Puts `weights` into the model, in place, so that an optimiser's references stay valid."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


class MovingAverage:
    """Exponential moving average of a model's parameters (Polyak and Juditsky 1992).

    The decay at update t is min(decay, (1 + t) / (10 + t)), so that the first steps are forgotten soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = weights_of(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the model's weights after update `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        parameters = [parameter for _, parameter in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in parameters], 1.0 - decay)


@contextmanager
def swapped_in(model: nn.Module, weights: Weights | None) -> Iterator[None]:
    """Within the context the model, in evaluation mode, has `weights` (its own where None); afterwards all is back."""
    own = None if weights is None else weights_of(model)
    was_training = model.training
    if weights is not None:
        load_weights(model, weights)
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        if own is not None:
            load_weights(model, own)


def mean_of(many: Iterable[Weights]) -> dict[str, Tensor]:
    """The mean of several sets of weights, summed in float64 (Vaswani et al. 2017, sec. 6.1)."""
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    count = 0
    for weights in many:
        count += 1
        for name, tensor in weights.items():
            dtypes[name] = tensor.dtype
            total[name] = tensor.double() if count == 1 else total[name] + tensor.double()
    assert count, "an average needs something to average"
    return {name: (tensor / count).to(dtypes[name]) for name, tensor in total.items()}
