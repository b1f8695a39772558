"""The networks and the training step of Subramaniam et al. 2022, as their code computes them.

Written anew from a description of that code, in plain layers that share nothing with ``medpair``:
what the tests compare our step with, and what the benchmark measures it against. On purpose it
keeps what ours does otherwise: upsampling and convolution are two operations, the critic sees
real, fake, interpolated and the generator's fakes in four passes, the penalty takes one epsilon
and one gradient norm for the whole batch and is back-propagated through the generator, whose
gradients are then thrown away, and the generator step draws new fakes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

BETAS = (0.0, 0.9)
GENERATOR_LR = 2e-4
CRITIC_LR = 4e-4
PENALTY_WEIGHT = 10.0


class PaperGenerator(nn.Module):
    """Latent vectors (B, latent_size) to pairs (B, 1 + num_labels, H, W, D).

    The paper's has three upsamplings; another number gives the same layers as ours with it.
    """

    def __init__(
        self,
        patch_size: Sequence[int] = (128, 128, 64),
        num_labels: int = 1,
        latent_size: int = 128,
        filters: int = 512,
        num_upsamples: int = 3,
    ) -> None:
        super().__init__()
        self.grid = (filters, *(size // 2**num_upsamples for size in patch_size))
        self.linear = nn.Linear(latent_size, math.prod(self.grid))
        layers: list[nn.Module] = [nn.BatchNorm3d(filters), nn.ReLU(inplace=True)]
        for width in (filters // 2**level for level in range(num_upsamples)):
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv3d(width, width // 2, kernel_size=3, padding=1),
                nn.BatchNorm3d(width // 2),
                nn.ReLU(inplace=True),
            ]
        last = filters // 2**num_upsamples
        layers += [nn.Conv3d(last, 1 + num_labels, kernel_size=3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(self.linear(latent).view(-1, *self.grid))


class PaperCritic(nn.Module):
    """Pairs (B, 1 + num_labels, H, W, D) to scores (B, 1); ``norm`` as in ``medpair``'s critic.

    The spectral norm is that of ``torch.nn.utils.parametrizations``: one power iteration in each
    pass, as in the paper's code, which used the function that this one replaces.
    """

    def __init__(
        self,
        patch_size: Sequence[int] = (128, 128, 64),
        num_labels: int = 1,
        filters: int = 512,
        norm: str = "spectral",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1 + num_labels
        for width in (filters // 8, filters // 4, filters // 2, filters):
            conv = nn.Conv3d(channels, width, kernel_size=3, stride=2, padding=1)
            layers.append(spectral_norm(conv) if norm == "spectral" else conv)
            if norm == "instance":
                layers.append(nn.InstanceNorm3d(width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels = width
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(filters * math.prod(-(-size // 16) for size in patch_size), 1)

    def forward(self, pair: Tensor) -> Tensor:
        return self.linear(self.layers(pair).flatten(1))


def paper_adam(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam with the paper's betas."""
    return torch.optim.Adam(network.parameters(), lr=lr, betas=BETAS)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters and buffers between networks that hold the same ones in the same order."""
    values = source.state_dict().values()
    target.load_state_dict(dict(zip(target.state_dict(), values, strict=True)))


@torch.no_grad()
def settle_spectral_norm(critic: nn.Module) -> None:
    """Put the singular vectors that spectral normalisation tracks where they belong.

    Each pass moves them by one power iteration, so a loop of four passes and one of two would
    normalise by slightly different numbers. Exact singular vectors are where the iteration rests:
    the weights are then those of any number of passes.
    """
    for module in critic.modules():
        if hasattr(module, "parametrizations"):
            matrix = module.parametrizations.weight.original.flatten(1).double()
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            tracker = module.parametrizations.weight[0]
            tracker._u.copy_(left[:, 0])
            tracker._v.copy_(right[0])


@dataclass
class PaperLoop:
    """One iteration of the paper's training: a critic step, then a generator step."""

    generator: nn.Module
    critic: nn.Module
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer

    def critic_step(self, real: Tensor, latent: Tensor, epsilon: float) -> dict[str, float]:
        """Update the critic; ``epsilon`` is the position of all interpolates, 1 at ``real``."""
        self.critic.zero_grad()
        self.generator.zero_grad()
        loss_real = -self.critic(real).mean()
        fake = self.generator(latent)
        loss_fake = self.critic(fake.detach()).mean()
        # the graph of the fakes stays attached here
        between = epsilon * real + (1 - epsilon) * fake
        score = self.critic(between)
        (gradient,) = torch.autograd.grad(
            score, between, torch.ones_like(score), create_graph=True, retain_graph=True
        )
        penalty = (gradient.norm(2) - 1) ** 2 * PENALTY_WEIGHT
        loss_real.backward(retain_graph=True)
        loss_fake.backward(retain_graph=True)
        penalty.backward()
        self.critic_optimizer.step()
        return {
            "critic_loss": loss_fake.item() + loss_real.item() + penalty.item(),
            "gradient_penalty": penalty.item() / PENALTY_WEIGHT,
            "wasserstein": -loss_fake.item() - loss_real.item(),
        }

    def generator_step(self, latent: Tensor) -> dict[str, float]:
        """Update the generator on new fakes."""
        self.generator.zero_grad()
        loss = -self.critic(self.generator(latent)).mean()
        loss.backward()
        self.generator_optimizer.step()
        return {"generator_loss": loss.item()}

    def step(
        self, real: Tensor, critic_latent: Tensor, generator_latent: Tensor, epsilon: float
    ) -> dict[str, float]:
        """Take both steps; returns the losses under the names that our trainer gives them."""
        losses = self.critic_step(real, critic_latent, epsilon)
        return losses | self.generator_step(generator_latent)
