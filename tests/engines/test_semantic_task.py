"""The refiner's training step, with a network that says what it was shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import randomized
from torch import Tensor

from medpair.data.sampling import torch_generator
from medpair.diffusion.process import Diffusion
from medpair.engines.diffusion import SemanticTask
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser

CLASSES = 3
NETWORK = {
    "num_classes": CLASSES,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, False],
    "hidden": 8,
}


def batch_of(count: int = 4, size: int = 8) -> dict[str, Tensor]:
    random = torch_generator(3)
    batch = {}
    for view in VIEWS:
        batch[f"image_{view}"] = torch.rand(count, 1, size, size, generator=random) * 2 - 1
        batch[f"label_{view}"] = torch.randint(0, CLASSES, (count, size, size), generator=random)
        inside = torch.ones(count, 1, size, size)
        inside[..., : size // 4, :] = 0
        batch[f"inside_{view}"] = inside
    return batch


class Recorder(SemanticDenoiser):
    """Answer each view by a number of its own, and remember what was asked."""

    def __init__(self, garbage: float = 0.0, **options: Any) -> None:
        super().__init__(**{**NETWORK, **options})
        self.garbage = garbage
        self.asked: dict[str, dict[str, Tensor]] = {view: {} for view in VIEWS}

    def forward(
        self, x: Tensor, time: Tensor, modulations: None, view: str, one_hot: Tensor
    ) -> Tensor:
        self.asked[view] |= {"x": x, "time": time, "one_hot": one_hot}
        output = torch.full((len(x), self.settings["output_factor"], *x.shape[2:]), 0.0)
        output[:, :1] = VIEWS.index(view) / 2
        output[..., : x.shape[2] // 4, :] += self.garbage
        return output


def diffusion_of(**options: Any) -> Diffusion:
    return Diffusion(**{"timesteps": 1000, **options})


def test_the_loss_is_the_mean_of_the_three_views() -> None:
    diffusion, batch, network = diffusion_of(), batch_of(), Recorder()
    losses = SemanticTask(diffusion)(network, batch, torch_generator(1))
    terms = []
    for view in VIEWS:
        x0, asked = batch[f"image_{view}"], network.asked[view]
        alpha, sigma = diffusion.levels(asked["time"] / 1000, x0)
        noise = (asked["x"] - alpha * x0) / sigma
        # noise of its own for each view and slice
        assert noise.std() == pytest.approx(1.0, abs=0.15)
        error = (noise - VIEWS.index(view) / 2).square()
        terms.append(error[batch[f"inside_{view}"] > 0].mean())
        one_hot = asked["one_hot"]
        assert torch.equal(one_hot.argmax(1), batch[f"label_{view}"])
        assert (one_hot.sum(1) == 1).all()
    torch.testing.assert_close(losses["loss"], torch.stack(terms).mean(), rtol=1e-3, atol=1e-3)
    assert terms[0] < terms[1] < terms[2]


def test_every_separate_network_learns() -> None:
    network = randomized(SemanticDenoiser(**NETWORK, views="separate"))
    SemanticTask(diffusion_of())(network, batch_of(), torch_generator(1))["loss"].backward()
    assert isinstance(network, SemanticDenoiser)
    for view in VIEWS:
        parts = network.network_of(view)
        assert all(p.grad is not None and bool(p.grad.any()) for p in parts.up.parameters())


@pytest.mark.parametrize("options", [{}, {"learn_variance": True}])
def test_padding_carries_no_loss(options: dict[str, Any]) -> None:
    diffusion, batch = diffusion_of(**options), batch_of()
    task = SemanticTask(diffusion)
    results = [
        task(Recorder(garbage, output_factor=diffusion.output_factor), batch, torch_generator(1))
        for garbage in (0.0, 50.0)
    ]
    assert results[0].keys() == results[1].keys() >= {"loss"}
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value)


def test_a_withheld_label_map_is_irrelevant() -> None:
    network, batch = randomized(SemanticDenoiser(**NETWORK)), batch_of()
    other = {k: (v + 1) % CLASSES if k.startswith("label") else v for k, v in batch.items()}

    def loss(batch: dict[str, Tensor], dropout: float) -> Tensor:
        task = SemanticTask(diffusion_of(), mask_dropout=dropout)
        return task(network, batch, torch_generator(1))["loss"].detach()

    assert torch.equal(loss(batch, 1.0), loss(other, 1.0))
    assert not torch.isclose(loss(batch, 0.0), loss(other, 0.0), rtol=1e-4)


def test_label_maps_are_withheld_whole_and_as_often_as_asked() -> None:
    network = Recorder()
    SemanticTask(diffusion_of(), mask_dropout=0.3)(network, batch_of(600, 4), torch_generator(1))
    kept = [network.asked[view]["one_hot"].sum(1).flatten(1) for view in VIEWS]
    assert all(((rows == 0).all(1) | (rows == 1).all(1)).all() for rows in kept)
    drawn = torch.stack([rows[:, 0] for rows in kept])
    assert drawn.mean() == pytest.approx(0.7, abs=0.04)
    # each view's slices for themselves
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.15


@pytest.mark.parametrize("low_noise", [0.0, 0.5, 1.0])
def test_times_of_refining_are_drawn_more_often(low_noise: float) -> None:
    network = Recorder()
    task = SemanticTask(diffusion_of(), low_noise=low_noise, low_noise_time=0.15)
    task(network, batch_of(800, 4), torch_generator(1))
    for view in VIEWS:
        time = network.asked[view]["time"]
        torch.testing.assert_close(time, time.round(), rtol=0, atol=1e-3)
        assert time.min() > 0.5
        assert (time <= 150.5).float().mean() == pytest.approx(
            low_noise + 0.15 * (1 - low_noise), abs=0.05
        )
        low = time[time <= 150.5]
        assert low.min() < 25
        assert low.max() > 125
        if low_noise < 1:
            assert time.max() > 950


def test_flow_matching_has_times_between_levels() -> None:
    network = Recorder()
    diffusion = diffusion_of(objective="flow", schedule="flow")
    task = SemanticTask(diffusion, low_noise=1.0, low_noise_time=0.1)
    task(network, batch_of(200, 4), torch_generator(1))
    time = network.asked["axial"]["time"]
    assert 0 < time.min() < 10
    assert 90 < time.max() <= 100
    assert (time != time.round()).any()


def test_randomness_comes_from_the_generator_alone() -> None:
    network = randomized(SemanticDenoiser(**NETWORK))
    task = SemanticTask(diffusion_of(), mask_dropout=0.5, low_noise=0.5)
    one, two, other = (
        task(network, batch_of(), torch_generator(seed))["loss"].detach() for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["mask_dropout", "low_noise"])
def test_shares_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a share of 0 to 1, found 1.5"):
        SemanticTask(diffusion_of(), **{name: 1.5})
