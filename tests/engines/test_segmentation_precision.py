"""Mixed precision of the segmenter's training on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medpair.engines.numerics import precision
from medpair.engines.segmentation import SegmentationTrainer


def trained(amp: bool) -> tuple[SegmentationTrainer, dict[str, Any]]:
    """Train one step; return the trainer, and the formats that were seen, with the loss."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 1))
    seen: dict[str, Any] = {}
    network[0].register_forward_hook(
        lambda module, given, output: seen.update(convolution=output.dtype)
    )
    criterion = nn.CrossEntropyLoss()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        seen["loss"] = output.dtype
        return criterion(output, target)

    batches = [{"image": torch.rand(2, 1, 6, 6, 6), "label": torch.ones(2, 6, 6, 6).long()}]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SegmentationTrainer("cpu", 1, batches, network, optimizer, loss, amp=amp)
    trainer.run()
    seen["value"] = trainer.state.output["loss"].item()
    seen["weights"] = network[0].weight.detach().clone()
    return trainer, seen


def test_a_segmenter_computes_in_bfloat16_on_a_cpu_where_that_is_asked_for() -> None:
    trainer, mixed = trained(amp=True)
    assert mixed["convolution"] is torch.bfloat16
    assert mixed["loss"] is torch.float32
    assert precision(trainer) == "bfloat16"
    other, full = trained(amp=False)
    assert full["convolution"] is torch.float32
    assert precision(other) == "float32"
    assert mixed["value"] != full["value"]
    assert mixed["value"] == pytest.approx(full["value"], rel=0.02)
    # the weights themselves, and their steps, stay in fp32
    assert mixed["weights"].dtype is torch.float32
    torch.testing.assert_close(mixed["weights"], full["weights"], rtol=0, atol=1e-3)
