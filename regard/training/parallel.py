"""How the processes of a run share one model: each has all of it (DDP), or a shard of every parameter (FSDP2).

The three kinds have one face: the loss of a batch, gradients that meet, and the whole model with given weights, for
validating and saving. The optimiser, averages and checkpoints work on `trained`'s parameters, which are ordinary
tensors or shards (DTensors) of them, under the same names.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.layers.attention import MultiHeadAttention
from regard.training.averaging import Weights, load_weights, swapped_in
from regard.training.objective import Loss
from regard.training.processes import World

Objective = Callable[[nn.Module, Batch, torch.dtype], Loss]  # the summed loss of a batch, products in the given dtype


class _WithObjective(nn.Module):
    """A model and its objective in one forward pass.

    What wraps it sees every use of a weight, also the head's in the loss, which happens outside the model's forward.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch, dtype: torch.dtype) -> Loss:
        return self.objective(self.model, batch, dtype)


class Alone:
    """One process with all of the model.

    model: the one that was given. trained: the one whose parameters are trained, here the same. exchanges_in_forward:
    whether a forward pass needs the other processes.
    """

    exchanges_in_forward = False

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device) -> None:
        self.model = model.to(device)
        self.trained = self.model
        self.with_objective: Any = _WithObjective(self.model, objective)

    def loss(self, batch: Batch, dtype: torch.dtype) -> Loss:
        """The summed loss of a batch."""
        loss: Loss = self.with_objective(batch, dtype)
        return loss

    def apart(self) -> AbstractContextManager[Any]:
        """Within the context gradients of a forward and backward pass stay in this process, to be added to."""
        return nullcontext()

    def clipped_norm(self, most: float | None) -> float:
        """Scales the gradient down to norm `most`; returns the norm that it had."""
        norm: Any = nn.utils.clip_grad_norm_(list(self.trained.parameters()), most or math.inf)
        return float(_whole(norm))

    @contextmanager
    def whole(self, weights: Weights | None) -> Iterator[nn.Module]:
        """Within the context the given model, in evaluation mode, has `weights`, or those that are being trained.

        All processes enter it together; in the first one the model may be used.
        """
        with swapped_in(self.model, weights), torch.no_grad():
            yield self.model

    def hold(self, weights: Weights) -> None:
        """Puts `weights` into the given model for good, which ends the training."""
        load_weights(self.model, weights)
        self.model.eval()


class Replicated(Alone):
    """Each process has all of the model, and its gradient is the mean of all processes' (Li et al. 2020)."""

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device) -> None:
        super().__init__(model, objective, device)
        self.with_objective = nn.parallel.DistributedDataParallel(self.with_objective, gradient_as_bucket_view=True)
        # A model's buffers are constants here; their broadcast in the forward pass would wait for a process that has
        # run out of memory in it.
        self.with_objective.broadcast_buffers = False

    def apart(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.with_objective.no_sync()
        return context


class Sharded(Alone):
    """Each process has a shard of every parameter, gradient and moment; a unit's are whole while it computes.

    Zhao et al. 2023; torch's `fully_shard`. The given model is empty while a sharded copy of it is trained: validation
    and saving gather its weights in the first process, where they must find room.
    """

    exchanges_in_forward = True

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device) -> None:
        from torch.distributed.fsdp import fully_shard

        # What it warns of, a change in place of what a unit returns, is done nowhere.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # A unit at a time goes to the device and is sharded there: nowhere on it is the whole model.
        self.trained = copy.deepcopy(model)
        self.with_objective = _WithObjective(self.trained, objective)
        for unit in [*units_of(self.trained), self.with_objective]:
            fully_shard(unit)
        self.model = model
        self._device = device
        self._empty()
        self.model.to(device)

    @contextmanager
    def whole(self, weights: Weights | None) -> Iterator[nn.Module]:
        self._fill(dict(self.trained.named_parameters()) if weights is None else weights)
        self.model.eval()
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self._empty()

    def hold(self, weights: Weights) -> None:
        self._fill(weights)
        self.model.eval()

    @torch.no_grad()
    def _fill(self, weights: Weights) -> None:
        first = torch.distributed.get_rank() == 0
        for name, parameter in self.model.named_parameters():
            gathered = _whole(weights[name].detach())  # all processes take part, the first one keeps it
            if first:
                parameter.data = gathered.to(self._device)

    def _empty(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)


def units_of(model: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gathered together, inner ones before outer ones: every layer of a stack.

    A decoder projects its memory once, before its layers run: those projections are units of their own. Recurrent cells
    are none: whoever loops over them reads their weights without calling them, as the rest of the model they are
    gathered for the whole step.
    """
    outside = [
        module.key_value for module in model.modules() if isinstance(module, MultiHeadAttention) and not module.is_self
    ]
    layers = [layer for stack in model.modules() if isinstance(stack, nn.ModuleList) for layer in stack]
    called = [layer for layer in layers if not isinstance(layer, nn.RNNBase | nn.RNNCellBase)]
    return [*outside, *reversed(called)]


def spread(
    model: nn.Module,
    objective: Objective,
    parallel: Literal["replicate", "shard"],
    world: World,
    device: torch.device,
) -> Alone:
    """The model as `world` trains it on `device`."""
    if world.size == 1:
        return Alone(model, objective, device)
    return (Replicated if parallel == "replicate" else Sharded)(model, objective, device)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor whose shards lie in several processes, which all must call this; of an ordinary one, itself."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
