"""Averaged weights: what is sampled from is a running mean over training (Yazici et al. 2019)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn


class AveragedWeights:
    """Exponential moving average of a network's parameters.

    Args:
        network: the network in training.
        decay: share of the old mean kept at each update; early updates keep less
            (``(1 + n) / (10 + n)``), so that the start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the current parameters; buffers (BatchNorm statistics) are copied."""
        self.updates += 1
        # the first update copies: the network may have been given other weights meanwhile
        started = self.updates > 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if started else 0.0
        means: list[torch.Tensor] = list(self.network.parameters())
        news = [new.detach() for new in network.parameters()]
        if means and means[0].is_cuda:  # hundreds of small kernels, launched as a few
            torch._foreach_lerp_(means, news, 1 - decay)
        else:
            for mean, new in zip(means, news, strict=True):
                mean.lerp_(new.to(mean.dtype), 1 - decay)
        for own, current in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(current)

    def updates_of_start(self) -> int:
        """Return how many updates keep less than ``decay`` of the old mean."""
        return max(1, math.ceil((10 * self.decay - 1) / (1 - self.decay)))

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and the number of updates."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self.network.load_state_dict(state["network"])
        self.updates = int(state["updates"])


@torch.no_grad()
def recalibrate_batch_norm(network: nn.Module, batches: list[torch.Tensor]) -> None:
    """Replace BatchNorm's running statistics by their exact mean over ``batches``, in place.

    The statistics gathered during training belong to other weights than the averaged ones. Layers
    are visited in one sweep over all batches, each layer's input being normalised by the batch.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None: cumulative mean
    network.train()
    for batch in batches:
        network(batch)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
