"""What a denoiser is asked for, how its answer becomes x_0, and the loss on it.

Objectives, for ``x_t = alpha x_0 + sigma eps``::

    epsilon    eps                      Ho et al. 2020; with any T-step schedule
    v          alpha eps - sigma x_0    Salimans & Ho 2022
    x0         x_0                      for label codes, as Chen et al. 2023 (analog bits)
    classes    logits of label classes  for label codes: see ``MaskSequenceTask``
    flow       eps - x_0                flow matching on the straight path (alpha = 1 - t)

With ``learn_variance`` the network gives a second half of channels, from which the variance of a
reverse step is interpolated in the log domain (Nichol & Dhariwal 2021, eq. 15), trained by the
variational bound added to the squared error (their L_hybrid; the bound's mean is detached).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medpair.diffusion.schedule import Schedule

Objective = Literal["epsilon", "v", "x0", "classes", "flow"]
OBJECTIVES = ("epsilon", "v", "x0", "classes", "flow")
# Width of the bins of the discrete likelihood at the last step: 256 levels in -1..1
BIN = 2.0 / 255.0


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about one noisy input.

    Attributes:
        x0: the clean data, of the input's shape.
        fraction: where the log-variance of the reverse step lies between its lower (0) and upper
            (1) bound, of the input's shape; None if the variance is not learned.
    """

    x0: Tensor
    fraction: Tensor | None = None


class Diffusion:
    """A schedule and an objective.

    Args:
        objective: what the network predicts.
        schedule: ``flow`` belongs to the objective ``flow`` and to no other.
        timesteps: T.
        learn_variance: double output channels; for ``epsilon`` only.

    Raises:
        ValueError: if they do not fit each other.
    """

    def __init__(
        self,
        objective: Objective = "epsilon",
        schedule: Literal["linear", "cosine", "flow"] = "linear",
        timesteps: int = 1000,
        learn_variance: bool = False,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {list(OBJECTIVES)}, found {objective!r}")
        if (objective == "flow") != (schedule == "flow"):
            raise ValueError(
                f"objective, schedule: expected flow with flow, found {objective!r}, {schedule!r}"
            )
        if learn_variance and objective != "epsilon":
            raise ValueError(f"learn_variance: expected objective epsilon, found {objective!r}")
        self.objective: Objective = objective
        self.schedule = Schedule(schedule, timesteps)
        self.learn_variance = learn_variance
        self.settings = {
            "objective": objective,
            "schedule": schedule,
            "timesteps": timesteps,
            "learn_variance": learn_variance,
        }

    @property
    def output_factor(self) -> int:
        """Output channels of the network per channel of data."""
        return 2 if self.learn_variance else 1

    def draw_times(self, count: int, generator: torch.Generator, power: float = 1.0) -> Tensor:
        """Return (count,) times of training in (0, 1]: T discrete levels, or uniform for flow.

        Args:
            count: how many.
            generator: decides them.
            power: of uniform times; below 1 there are more late ones, where the noise is strong.
        """
        if self.objective == "flow":
            return (1.0 - torch.rand(count, generator=generator)) ** power
        if power != 1.0:
            late = (1.0 - torch.rand(count, generator=generator)) ** power
            return (late * self.schedule.timesteps).ceil() / self.schedule.timesteps
        steps = torch.randint(1, self.schedule.timesteps + 1, (count,), generator=generator)
        return steps / self.schedule.timesteps

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_t for times (B,)."""
        alpha, sigma = self.levels(t, x0)
        return alpha * x0 + sigma * noise

    def predicted(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """Turn the network's output (B, C or 2C, ...) at x_t and times (B,) into x_0."""
        fraction = None
        if self.learn_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = (raw + 1) / 2
        alpha, sigma = self.levels(t, x)
        if self.objective == "epsilon":
            return Prediction((x - sigma * output) / alpha, fraction)
        if self.objective == "v":
            return Prediction(alpha * x - sigma * output, fraction)
        if self.objective == "classes":
            raise ValueError("objective: expected codes, which 'classes' needs, found none")
        if self.objective == "x0":
            return Prediction(output, fraction)
        return Prediction(x - sigma * output, fraction)

    def loss(
        self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Return ``loss`` and its parts, each a mean over the elements that ``weight`` keeps.

        Args:
            output: (B, C or 2C, ...) of the network at x_t.
            x0: (B, C, ...) clean data.
            noise: of x0's shape.
            t: (B,) times.
            weight: broadcastable to x0; 0 where an element was given clean or is padding.
        """
        weight = weight.expand_as(x0)
        total = weight.sum().clamp_min(1.0)
        mean = output.chunk(2, dim=1)[0] if self.learn_variance else output
        alpha, sigma = self.levels(t, x0)
        target = {
            "epsilon": noise,
            "v": alpha * noise - sigma * x0,
            "x0": x0,
            "flow": noise - x0,
        }[self.objective]
        losses = {"mse": ((mean - target).square() * weight).sum() / total}
        if self.learn_variance:
            frozen = torch.cat([mean.detach(), output.chunk(2, dim=1)[1]], dim=1)
            losses["bound"] = (self._bound(frozen, x0, noise, t) * weight).sum() / total
            # the bound counts T terms, of which each draw is one (factor 1 at T = 1000)
            losses["loss"] = losses["mse"] + losses["bound"] * self.schedule.timesteps / 1000
        else:
            losses["loss"] = losses["mse"]
        return losses

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of times (B,), shaped to multiply ``like``.

        Times on the CPU do not make it wait for a GPU; others do.
        """
        shape = [-1] + [1] * (like.ndim - 1)
        return tuple(  # type: ignore[return-value]
            torch.from_numpy(np.asarray(value))
            .to(like.dtype)
            .to(like.device, non_blocking=True)
            .view(shape)
            for value in self.schedule.level(t.detach().cpu().double().numpy())
        )

    def _bound(self, output: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the variational bound's term of each element, in bits."""
        x = self.noised(x0, t, noise)
        predicted = self.predicted(output, x, t)
        before = (t - 1.0 / self.schedule.timesteps).clamp_min(0.0)
        step = ReverseStep(self, t, before, x)
        mean, log_variance = step.mean(x, predicted.x0), step.log_variance(predicted.fraction)
        true_mean, true_log_variance = step.mean(x, x0), step.log_variance(None)
        divergence = gaussian_divergence(true_mean, true_log_variance, mean, log_variance)
        last = (before <= 0).to(x.device, non_blocking=True).view([-1] + [1] * (x.ndim - 1))
        likelihood = -discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return torch.where(last, likelihood, divergence) / math.log(2.0)


class ReverseStep:
    """The Gaussian step from time t back to s < t, for any distance between them.

    Given x_0, ``q(x_s | x_t, x_0)`` has the mean and the variance below; with learned variance the
    log-variance lies between that (``fraction`` 0) and the variance of the forward step (1).
    """

    def __init__(self, diffusion: Diffusion, t: Tensor, s: Tensor, like: Tensor) -> None:
        alpha_t, sigma_t = diffusion.levels(t, like)
        alpha_s, sigma_s = diffusion.levels(s, like)
        ratio = alpha_t / alpha_s
        self.forward_variance = sigma_t.square() - (ratio * sigma_s).square()
        self.of_x = ratio * (sigma_s / sigma_t).square()
        self.of_x0 = alpha_s * self.forward_variance / sigma_t.square()
        posterior = self.forward_variance * (sigma_s / sigma_t).square()
        # the step to s = 0 has no variance: its logarithm is taken from the step before it
        step = 1.0 / diffusion.schedule.timesteps
        least_t, least_s = (diffusion.levels(torch.full_like(t, k * step), like) for k in (2, 1))
        floor = (least_t[1].square() - (least_t[0] / least_s[0] * least_s[1]).square()) * (
            least_s[1] / least_t[1]
        ).square()
        self.posterior_log_variance = torch.where(posterior > 0, posterior, floor).log()

    def mean(self, x: Tensor, x0: Tensor) -> Tensor:
        """Return the mean of x_s."""
        return self.of_x * x + self.of_x0 * x0

    def log_variance(self, fraction: Tensor | None) -> Tensor:
        """Return the log-variance of x_s."""
        if fraction is None:
            return self.posterior_log_variance
        upper = self.forward_variance.log()
        return fraction * upper + (1 - fraction) * self.posterior_log_variance


def gaussian_divergence(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """Return KL(N(mean, variance) || N(other...)) of each element, in nats."""
    return 0.5 * (
        other_log_variance
        - log_variance
        + (log_variance - other_log_variance).exp()
        + (mean - other_mean).square() * (-other_log_variance).exp()
        - 1.0
    )


def discretized_log_likelihood(x0: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log P of x0's bin among 256 in -1..1 (Ho et al. 2020, eq. 13), in nats."""
    scale = (-log_scale).exp()
    upper = torch.where(x0 > 0.999, math.inf, (x0 - mean + BIN / 2) * scale)
    lower = torch.where(x0 < -0.999, -math.inf, (x0 - mean - BIN / 2) * scale)
    # both tails by the lower one, and by erfc: near 1, floats are too coarse for a difference
    mirrored = x0 > mean
    upper, lower = torch.where(mirrored, -lower, upper), torch.where(mirrored, -upper, lower)
    likelihood = 0.5 * (torch.erfc(-upper / math.sqrt(2.0)) - torch.erfc(-lower / math.sqrt(2.0)))
    return likelihood.clamp_min(1e-12).log()
