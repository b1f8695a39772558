"""Both sides of a WGAN's training step: the paper's loop, and our trainer made to draw the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from monai.inferers import SimpleInferer
from paper_wgan import (
    CRITIC_LR,
    GENERATOR_LR,
    PENALTY_WEIGHT,
    PaperCritic,
    PaperGenerator,
    PaperLoop,
    copy_weights,
    paper_adam,
    settle_spectral_norm,
)
from torch import Tensor, nn

from medpair.data.labels import LabelChannels
from medpair.data.sampling import torch_generator
from medpair.engines.wgan import LATENT, PENALTY, WGANTrainer
from medpair.networks.wgan import Critic, Generator

LATENT_SIZE = 128
SEED = 0
Patch = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """A training: its sizes, where, and the arithmetic of our side."""

    filters: int
    batch_size: int
    patch_size: Patch = (128, 128, 64)
    device: str = "cpu"
    bfloat16: bool = False

    def __str__(self) -> str:
        size = "x".join(map(str, self.patch_size))
        return f"{self.filters} filters, batch {self.batch_size}, {size}"

    def batch(self) -> dict[str, Tensor]:
        """Return a batch of noise in the form of the data loader's, on the device."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (self.batch_size, 1, *self.patch_size)
        image = torch.rand(shape, generator=generator) * 2 - 1
        label = (torch.rand(shape, generator=generator) > 0.9).to(torch.uint8)
        # boxes are for the host
        box = torch.tensor([[[0, 0, 0], list(self.patch_size)]] * self.batch_size)
        return {"image": image.to(self.device), "label": label.to(self.device), "box": box}


class OneBatch(list[dict[str, Tensor]]):
    """A data loader of one batch; the trainer asks for its size."""

    @property
    def batch_size(self) -> int:
        return len(self[0]["image"])


class Ours:
    """Our trainer, one iteration at a time, with the paper's penalty so that losses compare."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(SEED)
        generator = Generator(task.patch_size, 1, LATENT_SIZE, task.filters)
        critic = Critic(task.patch_size, 1, task.filters)
        settle_spectral_norm(critic)
        self.batch = task.batch()
        generator, critic = generator.to(task.device), critic.to(task.device)
        self.trainer = WGANTrainer(
            device=task.device,
            max_epochs=1,
            train_data_loader=OneBatch([self.batch]),
            generator=generator,
            critic=critic,
            generator_optimizer=paper_adam(generator, GENERATOR_LR),
            critic_optimizer=paper_adam(critic, CRITIC_LR),
            inferer=SimpleInferer(),
            label_channels=LabelChannels(1, off=0.0, on=1.0, threshold=0.4),
            penalty_weight=PENALTY_WEIGHT,
            penalty_mode="batch",
            amp=task.bfloat16,
            amp_dtype="bfloat16",
            seed=SEED,
        )

    def step(self, batch: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Take one iteration, on the batch of noise if on no other; returns its losses."""
        self.trainer.state.iteration += 1
        return self.trainer._iteration(self.trainer, self.batch if batch is None else batch)


class Papers:
    """The paper's loop on the same batch, latents and epsilons as ``Ours``."""

    def __init__(self, task: Task) -> None:
        generator = PaperGenerator(task.patch_size, 1, LATENT_SIZE, task.filters).to(task.device)
        critic = PaperCritic(task.patch_size, 1, task.filters).to(task.device)
        self.loop = PaperLoop(
            generator,
            critic,
            paper_adam(generator, GENERATOR_LR),
            paper_adam(critic, CRITIC_LR),
        )
        batch = task.batch()
        self.real = torch.cat([batch["image"], batch["label"].float()], dim=1)
        self.mixed = torch.autocast(task.device, torch.bfloat16, enabled=task.bfloat16)
        self.iteration = 0

    def step(self) -> dict[str, float]:
        """Take one iteration; returns its losses."""
        self.iteration += 1
        size = len(self.real)
        rng = torch_generator(SEED, self.iteration, LATENT, 0)
        latent = torch.randn(size, LATENT_SIZE, generator=rng).to(self.real.device)
        rng = torch_generator(SEED, self.iteration, PENALTY, 0)
        epsilon = torch.rand(size, generator=rng)[0].item()
        # ours takes one set of fakes for both steps; the same latents give the paper's loop,
        # which draws twice, the same fakes twice
        with self.mixed:
            return self.loop.step(self.real, latent, latent, epsilon)


def same_weights(ours: Ours, papers: Papers) -> None:
    """Give the paper's networks the weights of ours."""
    copy_weights(ours.trainer.generator, papers.loop.generator)
    copy_weights(ours.trainer.critic, papers.loop.critic)


def compare_losses(ours: Ours, papers: Papers, tolerance: float) -> str:
    """Take one step of both from the same weights and say how far their losses are apart.

    With plain SGD, Adam's first step being the gradient's sign, which makes whole learning rates
    of rounding errors; the singular vectors of spectral normalisation are exact at the start, so
    that the number of the critic's passes does not matter; without TF32. Afterwards both have a
    fresh Adam, as before.

    Raises:
        AssertionError: if a loss differs by more than ``tolerance`` (relative if it exceeds 1).
    """
    same_weights(ours, papers)
    sides = (ours.trainer, papers.loop)
    optimizers(sides, lambda network, lr: torch.optim.SGD(network.parameters(), lr=lr))
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found, expected = ours.step(), papers.step()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    optimizers(sides, paper_adam)
    away = {
        name: abs(found[name] - value) / max(1.0, abs(value)) for name, value in expected.items()
    }
    assert all(map(math.isfinite, away.values())), f"losses are not finite: {found}, {expected}"
    worst = max(away, key=lambda name: away[name])
    told = f"losses differ by {away[worst]:.1e} at most"
    assert away[worst] <= tolerance, f"{told} ({worst}), more than {tolerance:g}"
    return f"{told} (limit {tolerance:g})"


def optimizers(
    sides: tuple[WGANTrainer, PaperLoop],
    make: Callable[[nn.Module, float], torch.optim.Optimizer],
) -> None:
    """Give both sides new optimizers."""
    for side in sides:
        side.generator_optimizer = make(side.generator, GENERATOR_LR)
        side.critic_optimizer = make(side.critic, CRITIC_LR)
