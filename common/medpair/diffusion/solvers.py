"""From noise to data: a sampler is a function of a denoiser, a start and a list of times.

``ancestral`` draws each reverse step (Ho et al. 2020); the others follow the probability-flow
equation with one update, which is exact where the denoiser's x_0 does not change over the step::

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x_0

and differ in their times and in ``order``: ``ddim`` (Song et al. 2021) has even times and order 1;
``dpm_solver_pp`` is DPM-Solver++(2M) (Lu et al. 2022), even in log-SNR and order 2; ``flow`` has
even times on the straight path and order 2. MONAI 1.6.1's strided schedulers are not used: they
evaluate at other times than they step to, and end in noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from medpair.diffusion.process import Diffusion, Prediction, ReverseStep
from medpair.diffusion.schedule import Schedule

Solver = Literal["ancestral", "ddim", "dpm_solver_pp", "flow"]
SOLVERS = ("ancestral", "ddim", "dpm_solver_pp", "flow")
# Pure noise has a log-SNR of -5 (linear), -10 (cosine) or minus infinity (flow). Steps down there
# change nothing: they are better spent where the data appear.
LOWEST_LOG_SNR = -4.0
# A denoiser: noisy x (B, ...) and its time, one for the batch -> what it says of x_0
Denoiser = Callable[[Tensor, float], Prediction]
# Fresh standard normal noise of x's shape; the caller decides whose stream it comes from
Noise = Callable[[], Tensor]


def times(
    schedule: Schedule,
    solver: Solver,
    steps: int,
    start: float = 1.0,
    span: tuple[float, float] | None = None,
) -> list[float]:
    """Return ``steps + 1`` falling times from ``start`` to 0.

    Args:
        schedule: of the noise.
        solver: decides the spacing.
        steps: evaluations of the network.
        start: where sampling begins; 1 is pure noise.
        span: for ``dpm_solver_pp``, the log-SNRs that the steps are spread over; default: from
            ``LOWEST_LOG_SNR`` to that of one step of the schedule. What begins later or ends
            sooner (``start``, the schedule) is kept to.

    Raises:
        ValueError: on an unknown solver, no step, or a span that does not rise.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver: expected one of {list(SOLVERS)}, found {solver!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, found {steps}")
    even = [start * (1 - i / steps) for i in range(steps + 1)]
    if solver != "dpm_solver_pp" or steps == 1:
        return even
    lowest, highest = span or (LOWEST_LOG_SNR, math.inf)
    last = min(1.0 / schedule.timesteps, 0.5 * start)
    low = max(schedule.log_snr(start), lowest)
    high = min(schedule.log_snr(last), highest)
    if not low < high:
        raise ValueError(f"log_snr: expected a number above {low:g} to end at, found {high:g}")
    grid = [schedule.time_of(low + (high - low) * i / (steps - 1)) for i in range(steps)]
    return [start, *grid[1:], 0.0]


def check_solver(diffusion: Diffusion, solver: Solver) -> None:
    """Refuse a solver that does not fit a model's objective.

    Raises:
        ValueError: names both.
    """
    flow = diffusion.objective == "flow"
    fitting = [name for name in SOLVERS if name != ("ancestral" if flow else "flow")]
    if solver not in fitting:
        raise ValueError(
            f"solver: expected one of {fitting} for the objective {diffusion.objective!r}, "
            f"found {solver!r}"
        )


def sample(
    diffusion: Diffusion,
    denoise: Denoiser,
    x: Tensor,
    grid: Sequence[float],
    solver: Solver,
    noise: Noise | None = None,
    clip: float | None = 1.0,
) -> Tensor:
    """Return x_0 drawn from ``x`` at time ``grid[0]``.

    Args:
        diffusion: schedule and objective.
        denoise: the network with everything it is conditioned on.
        x: (B, ...) noisy data.
        grid: falling times (see ``times``).
        solver: how a step is taken.
        noise: for ``ancestral``.
        clip: bound of the data; predictions are clipped to it. None: no bound.

    Raises:
        ValueError: if ``ancestral`` is given no noise, or the solver does not fit the objective.
    """
    check_solver(diffusion, solver)
    if solver == "ancestral":
        if noise is None:
            raise ValueError("noise: expected a source of it for ancestral, found none")
        return _ancestral(diffusion, denoise, x, grid, noise, clip)
    return _multistep(diffusion.schedule, denoise, x, grid, 1 if solver == "ddim" else 2, clip)


def _clipped(prediction: Prediction, clip: float | None) -> Tensor:
    return prediction.x0 if clip is None else prediction.x0.clamp(-clip, clip)


def _ancestral(
    diffusion: Diffusion,
    denoise: Denoiser,
    x: Tensor,
    grid: Sequence[float],
    noise: Noise,
    clip: float | None,
) -> Tensor:
    """Draw x_s from the reverse step's Gaussian, at the distances of ``grid``."""
    for t, s in pairwise(grid):
        prediction = denoise(x, t)
        step = ReverseStep(diffusion, torch.tensor([t]), torch.tensor([s]), x)
        x = step.mean(x, _clipped(prediction, clip))
        if s > 0:
            x = x + (0.5 * step.log_variance(prediction.fraction)).exp() * noise()
    return x


def _multistep(
    schedule: Schedule,
    denoise: Denoiser,
    x: Tensor,
    grid: Sequence[float],
    order: int,
    clip: float | None,
) -> Tensor:
    """Take steps that extrapolate x_0 linearly in log-SNR from the last two (``order`` 2)."""
    previous: Tensor | None = None
    width_before = math.inf
    for t, s in pairwise(grid):
        x0 = _clipped(denoise(x, t), clip)
        alpha_t, sigma_t = (float(value) for value in schedule.level(t))
        alpha_s, sigma_s = (float(value) for value in schedule.level(s))
        width = schedule.log_snr(s) - schedule.log_snr(t)
        estimate = x0
        # the last step, to no noise at all, has no finite width: it takes x_0 as it is
        if order == 2 and previous is not None and math.isfinite(width):
            estimate = x0 + 0.5 * width / width_before * (x0 - previous)
        ratio = sigma_s / sigma_t
        x = ratio * x + (alpha_s - alpha_t * ratio) * estimate
        previous, width_before = x0, width
    return x
