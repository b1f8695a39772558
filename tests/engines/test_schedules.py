"""Learning rates and clipped gradients, step by step."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Events
from torch import Tensor, nn

from medpair.engines.diffusion import DiffusionTrainer
from medpair.engines.segmentation import SegmentationTrainer


def steep(network: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Any:
    """Return a loss whose gradient has the norm 10 in the network's one weight."""
    return {"loss": 10.0 * sum(weight.sum() for weight in network.parameters())}


def one_weight() -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def test_diffusion_networks_warm_up_and_clip_their_gradients() -> None:
    network = one_weight()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    batches = [{"label": torch.zeros(1, 1)}] * 12
    trainer = DiffusionTrainer(
        "cpu", 1, batches, network, optimizer, steep, clip_gradient=2.0, warmup=10
    )
    rates, steps, before = [], [], [0.0]

    def note(engine: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        steps.append(before[0] - network.weight.item())
        before[0] = network.weight.item()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    expected = [0.5 * min(1.0, n / 10) for n in range(1, 13)]
    torch.testing.assert_close(rates, expected)
    # each step is its rate times the clipped norm
    torch.testing.assert_close(steps, [2.0 * rate for rate in expected], rtol=1e-4, atol=1e-5)


def test_the_segmenters_rate_falls_from_epoch_to_epoch() -> None:
    network = nn.Conv3d(1, 2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=4, power=0.9)
    batches = [{"image": torch.rand(1, 1, 4, 4, 4), "label": torch.ones(1, 4, 4, 4).long()}] * 2
    trainer = SegmentationTrainer(
        "cpu", 4, batches, network, optimizer, nn.CrossEntropyLoss(), lr_scheduler=scheduler
    )
    rates: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.run()
    expected = [0.5 * (1 - epoch / 4) ** 0.9 for epoch in range(4) for _ in range(2)]
    torch.testing.assert_close(rates, expected)
