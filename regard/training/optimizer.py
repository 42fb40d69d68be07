"""AdamW (Loshchilov and Hutter 2019) as every run uses it, and its state by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.training.config import AdamWConfig


def adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW over two groups, matrices, which decay, and vectors, which do not.

    Its state is there from the start, as zeros, which is what its first step begins with: a checkpoint always has a
    place to be loaded into, whether the parameters are whole or shards.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,  # the schedule's, set before every step
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
    return optimizer


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's own tensors, "exp_avg/encoder.norm.weight" and so on; what is loaded into them is its state."""
    return {
        f"{kind}/{name}": tensor
        for name, parameter in model.named_parameters()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }
