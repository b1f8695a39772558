"""The WGAN's rows: those of a GPU run, too, and their checks find what is wrong."""

from __future__ import annotations

import pytest
import torch
from harness import Flops, Row, Setting
from rows_data import ROWS as DATA_ROWS
from rows_wgan import ROWS as WGAN_ROWS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from wgan_sides import Ours, Papers, Task, compare_losses

SMALL = Task(16, 2, (32, 32, 16))
ONLY_GPU = [row for row in WGAN_ROWS + DATA_ROWS if "cpu" not in row.goals]


@pytest.mark.parametrize("row", ONLY_GPU, ids=lambda row: row.name)
def test_rows_of_a_gpu_agree_on_a_cpu_as_well(row: Row) -> None:
    sides = row.build(Setting("cpu", small=True))
    assert sides.check()
    sides.baseline()
    sides.ours()


def test_a_step_that_computes_something_else_is_found() -> None:
    ours, papers = Ours(SMALL), Papers(SMALL)
    assert "limit 1e-05" in compare_losses(ours, papers, 1e-5)
    ours.trainer.judging.penalty_weight = 10.1
    with pytest.raises(AssertionError, match="critic_loss"):
        compare_losses(ours, papers, 1e-5)


def test_arithmetic_is_counted_as_pytorch_counts_it() -> None:
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    volume = torch.randn(2, 2, 8, 8, 8)
    network(volume)
    with FlopCounterMode(display=False) as expected:
        network(volume).sum().backward()
    with Flops() as found:
        network(volume).sum().backward()
    assert found.total == expected.get_total_flops() > 0
    with FlopCounterMode(display=False) as expected, torch.inference_mode():
        network(volume)
    with Flops() as found_forward, torch.inference_mode():
        network(volume)
    assert found_forward.total == expected.get_total_flops() > 0
    with Flops() as twice:  # a gradient of a gradient
        score = network(volume.requires_grad_())
        (gradient,) = torch.autograd.grad(score.sum(), volume, create_graph=True)
        gradient.square().sum().backward()
    assert twice.total > found.total
