"""The second pass set apart from what surrounds the model's call: autocast, modes, checkpoints and autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils import checkpoint
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from regard.attention.observation import Observe

CACHING_MODES = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)


@contextlib.contextmanager
def undisturbed(request: Observe) -> Iterator[None]:
    """Nothing that surrounds the model's call reaches the pass, and nothing of the pass reaches the model.

    Function modes are off, and so is autograd but for rows, which carry gradient. What rows keep for their gradient is
    kept here, and not by a checkpoint around the layer, which would miss it when it recomputes; and the modes of a
    selective checkpoint, which count operations, see none of it.
    """
    learns = request.rows is not None and torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        if _counted():
            stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.set_grad_enabled(learns))
        if learns:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, _as_kept))
        yield


@contextlib.contextmanager
def as_it_is(device: torch.device) -> Iterator[None]:
    """Without autocast: the pass computes in the dtype of its scores."""
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def checkpointed() -> bool:
    """Whether a checkpoint counts what runs now, to run the same again."""
    return _counted() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def _counted() -> bool:
    return any(isinstance(mode, CACHING_MODES) for mode in _get_current_dispatch_mode_stack())


def _as_kept(tensor: Tensor) -> Tensor:
    return tensor
