"""A step of two processes, half a batch each, is the step of one with the whole batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medpair.data.label_codes import LabelCode
from medpair.data.sampling import torch_generator
from medpair.diffusion.process import Diffusion
from medpair.engines import distributed
from medpair.engines.vid2vid import CriticsLoss
from medpair.engines.wgan import CriticLoss
from medpair.networks.mcdpm import MaskSequenceDenoiser
from medpair.networks.segmenters import MULTIPLES, segmenter
from medpair.networks.vid2vid import MultiScaleCritic
from medpair.networks.wgan import Critic
from tests.bundles import processes
from tests.bundles.processes import in_processes
from tests.conftest import randomized


class CriticStep(nn.Module):
    """The critic's loss without mixed precision."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)  # the singular vectors of spectral norm
        critic = randomized(Critic((32, 16, 16), 1, 16, norm))  # type: ignore[arg-type]
        self.loss = CriticLoss(critic, 10.0, "per_sample")

    def forward(self, real: Tensor, fake: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
        return self.loss(real, fake, epsilon, torch.autocast("cpu", enabled=False))


class DiffusionStep(nn.Module):
    """The diffusion loss on given times and noise."""

    def __init__(self) -> None:
        super().__init__()
        self.diffusion = Diffusion("epsilon", timesteps=50)
        code = LabelCode(3, "bits")
        network = MaskSequenceDenoiser(4, code.channels, 1, [8, 16], 1, [False, True])
        self.network = randomized(network)
        self.code = code

    def forward(self, label: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        x0 = self.code.encode(label)
        x = self.diffusion.noised(x0, t, noise)
        nothing = torch.zeros(len(t), 4)
        output = self.network(x, 50 * t, nothing, torch.zeros(len(t)))
        return self.diffusion.loss(output, x0, noise, t, torch.ones_like(x0[:, :1]))


class TemporalStep(nn.Module):
    """The loss of both critics of image sequences; one of the processes has no whole past."""

    def __init__(self) -> None:
        super().__init__()
        critics = [MultiScaleCritic(2, 4, 1, 1), MultiScaleCritic(3, 4, 1, 1)]
        self.loss = CriticsLoss([randomized(critic) for critic in critics], nn.MSELoss())
        self.loss.adversarial = HalfSquares()

    def forward(self, single: Tensor, course: Tensor, whole: Tensor) -> dict[str, Tensor]:
        seen = course[whole]
        return {"loss": self.loss([(single, -single), (seen, -seen)])}


class HalfSquares(nn.Module):
    """A stand-in for the adversarial loss."""

    def forward(self, scores: list[Tensor], real: bool, critic: bool) -> Tensor:
        return torch.stack([(score - float(real)).square().mean() for score in scores]).mean()


class SegmenterStep(nn.Module):
    """A loss of a segmenter's scores."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        size = (64, 32, 32) if architecture == "swin_unetr" else (16, 16, 16)
        self.network = randomized(
            segmenter(architecture, 2, size, (4, 8), hidden_size=48, feature_size=12)
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"loss": self.network(image).square().mean()}


def batch(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {
        name: torch.randn(shape, generator=torch_generator(number))
        for number, (name, shape) in enumerate(shapes.items())
    }


def gradients_alone(
    module: nn.Module, given: dict[str, Tensor], loss: str = "loss"
) -> dict[str, np.ndarray]:
    """Return the gradients of a loss in this process."""
    module(**given)[loss].backward()
    learned = [pair for pair in module.named_parameters() if pair[1].requires_grad]
    return {name: parameter.grad.numpy() for name, parameter in learned}


def assert_mean_of_halves(
    build: partial[nn.Module], given: dict[str, Tensor], loss: str = "loss"
) -> None:
    """Two processes' averaged gradients equal the whole batch's in one process."""
    wanted = gradients_alone(build(), given, loss)
    # a bias that a norm takes away again has a gradient of rounding errors
    largest = max(np.abs(gradient).max() for gradient in wanted.values())
    for found in in_processes(2, processes.gradients, build, given, loss):
        for name, gradient in wanted.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("norm", ["instance", "spectral"])
def test_critic_with_gradient_penalty(norm: str) -> None:
    shape = (4, 2, 32, 16, 16)
    given = batch(real=shape, fake=shape) | {"epsilon": torch.tensor([0.1, 0.4, 0.6, 0.9])}
    assert_mean_of_halves(partial(CriticStep, norm), given, "critic_loss")


def test_diffusion() -> None:
    label = torch.randint(0, 3, (4, 4, 8, 8), generator=torch_generator(1))
    channels = LabelCode(3, "bits").channels
    given = batch(noise=(4, channels, 4, 8, 8)) | {"t": torch.tensor([0.1, 0.4, 0.6, 0.9])}
    assert_mean_of_halves(partial(DiffusionStep), given | {"label": label})


@pytest.mark.parametrize("architecture", MULTIPLES)
def test_segmenters(architecture: str) -> None:
    size = (64, 32, 32) if architecture == "swin_unetr" else (16, 16, 16)
    image = batch(image=(2, 1, *size))["image"]
    # half by half: MONAI's transformers round differently with every size of a batch
    halves = [
        gradients_alone(SegmenterStep(architecture), {"image": half}) for half in image.split(1)
    ]
    job = (partial(SegmenterStep, architecture), {"image": image}, "loss")
    for found in in_processes(2, processes.gradients, *job):
        assert found.keys() == halves[0].keys()
        for name, gradient in found.items():
            mean = (halves[0][name] + halves[1][name]) / 2
            np.testing.assert_allclose(gradient, mean, rtol=1e-4, atol=1e-6 * np.abs(mean).max())


def test_a_critic_with_nothing_to_judge_on_one_process() -> None:
    given = batch(single=(4, 2, 16, 16), course=(4, 3, 16, 16))
    given["whole"] = torch.tensor([False, False, True, True])
    job = (partial(TemporalStep), given, "loss", True)
    found, other = in_processes(2, processes.gradients, *job)
    half = {name: value[2:] for name, value in given.items()}
    module = TemporalStep()
    module(**half)["loss"].backward()
    for name, parameter in module.named_parameters():
        assert np.array_equal(found[name], other[name])
        if name.startswith("loss.critics.1"):  # a mean with a process that has no opinion
            np.testing.assert_allclose(found[name], parameter.grad / 2, rtol=1e-4, atol=1e-6)


def test_random_numbers_differ_by_rank_and_the_first_has_the_plain_ones() -> None:
    first, second = (torch.from_numpy(x) for x in in_processes(2, processes.draw, 3, 4))
    assert torch.equal(first, torch.rand(4, generator=torch_generator(3, 4)))
    assert torch.equal(first, torch.rand(4, generator=distributed.rank_generator(3, 4)))
    assert not torch.equal(first, second)
