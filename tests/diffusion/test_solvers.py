"""Samplers with exact denoisers, of distributions whose every marginal is known.

Of a centred Gaussian, the exact denoiser is linear, and so is a whole run: what comes out is a
weighted sum of the noise that went in. Fed with a unit vector for each draw of noise, a run gives
these weights, and their norm is the exact standard deviation of the samples: no random numbers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medpair.diffusion.process import Diffusion, Prediction
from medpair.diffusion.schedule import Schedule
from medpair.diffusion.solvers import SOLVERS, Solver, sample, times

SD = 0.3


def answer(diffusion: Diffusion, x: Tensor, x0: Tensor, t: float) -> Prediction:
    """Go the way of a network: x_0 as the objective's prediction, and back."""
    alpha, sigma = (float(level) for level in diffusion.schedule.level(t))
    output = {
        "epsilon": (x - alpha * x0) / sigma,
        "v": (alpha * x - x0) / sigma,
        "x0": x0,
        "flow": (x - x0) / sigma,
    }[diffusion.objective]
    if diffusion.learn_variance:
        output = torch.cat([output, torch.full_like(output, -1.0)], dim=1)
    return diffusion.predicted(output, x, torch.tensor([t], dtype=torch.float64))


def gaussian(diffusion: Diffusion, mean: float = 0.0) -> Any:
    """Return the exact denoiser of N(mean, SD^2)."""

    def denoise(x: Tensor, t: float) -> Prediction:
        alpha, sigma = (float(level) for level in diffusion.schedule.level(t))
        gain = alpha * SD**2 / (alpha**2 * SD**2 + sigma**2)
        return answer(diffusion, x, mean + gain * (x - alpha * mean), t)

    return denoise


def two_points(diffusion: Diffusion, share: float) -> Any:
    """Return the exact denoiser of 1 with probability ``share`` and -1 otherwise."""

    def denoise(x: Tensor, t: float) -> Prediction:
        alpha, sigma = (float(level) for level in diffusion.schedule.level(t))
        odds = 0.5 * math.log(share / (1 - share))
        return answer(diffusion, x, torch.tanh(alpha * x / sigma**2 + odds), t)

    return denoise


def deviation(diffusion: Diffusion, solver: Solver, steps: int) -> float:
    """Return the exact standard deviation of what is sampled."""
    draws = iter(torch.eye(steps + 1, dtype=torch.float64)[:, None])
    x = sample(
        diffusion,
        gaussian(diffusion),
        next(draws),
        times(diffusion.schedule, solver, steps),
        solver,
        lambda: next(draws),
        clip=None,
    )
    return float(x.norm())


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("objective", "schedule", "solver", "steps"),
    [
        ("epsilon", "linear", "dpm_solver_pp", 20),
        ("v", "cosine", "dpm_solver_pp", 20),
        ("x0", "cosine", "dpm_solver_pp", 20),
        ("flow", "flow", "dpm_solver_pp", 20),
        ("flow", "flow", "flow", 20),
        ("epsilon", "linear", "ancestral", 1000),
        ("v", "cosine", "ancestral", 1000),
        ("epsilon", "linear", "ddim", 1000),
        ("v", "cosine", "ddim", 1000),
        ("flow", "flow", "ddim", 1000),
    ],
)
def test_standard_deviation_of_a_gaussian(
    objective: Any, schedule: Any, solver: Solver, steps: int
) -> None:
    assert deviation(Diffusion(objective, schedule), solver, steps) == pytest.approx(SD, rel=0.02)


@pytest.mark.parametrize(
    ("objective", "schedule", "solver", "steps"),
    [
        ("epsilon", "linear", "dpm_solver_pp", 20),
        ("flow", "flow", "flow", 20),
        ("v", "cosine", "ddim", 200),
    ],
)
def test_mean_of_a_gaussian(objective: Any, schedule: Any, solver: Solver, steps: int) -> None:
    diffusion = Diffusion(objective, schedule)
    grid = times(diffusion.schedule, solver, steps)
    start = torch.zeros(1, 1, dtype=torch.float64)
    x = sample(diffusion, gaussian(diffusion, 0.5), start, grid, solver, clip=None)
    assert x.item() == pytest.approx(0.5, abs=0.02 * SD)


@pytest.mark.parametrize(
    ("objective", "schedule", "solver", "steps"),
    [
        ("epsilon", "linear", "dpm_solver_pp", 20),
        ("v", "cosine", "dpm_solver_pp", 20),
        ("flow", "flow", "flow", 20),
        ("epsilon", "linear", "ddim", 200),
        ("epsilon", "linear", "ancestral", 1000),
    ],
)
def test_two_points_are_met_in_their_shares(
    objective: Any, schedule: Any, solver: Solver, steps: int
) -> None:
    share, count = 0.7, 4000
    diffusion = Diffusion(objective, schedule)
    generator = torch.Generator().manual_seed(0)
    # evenly spaced quantiles: the shares carry no random error but that of ancestral's own noise
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    x = sample(
        diffusion,
        two_points(diffusion, share),
        torch.special.ndtri(quantiles)[:, None],
        times(diffusion.schedule, solver, steps),
        solver,
        lambda: torch.randn(count, 1, generator=generator, dtype=torch.float64),
    )
    assert ((x.abs() - 1).abs() < 1e-3).double().mean() > 0.99
    tolerance = 0.025 if solver == "ancestral" else 0.01
    assert (x > 0).double().mean().item() == pytest.approx(share, abs=tolerance)


def errors(solver: Solver, steps: list[int], objective: Any, schedule: Any) -> list[float]:
    """Return the errors before the last step, against the exact solution of the equation."""
    diffusion = Diffusion(objective, schedule)
    start, end = 0.8, 0.05
    found = []
    for count in steps:
        span = (-4.0, diffusion.schedule.log_snr(end))
        grid = times(diffusion.schedule, solver, count + 1, start, span)[:-1]
        if solver != "dpm_solver_pp":
            grid = list(np.linspace(start, end, count + 1))
        assert (grid[0], grid[-1]) == pytest.approx((start, end))
        x = sample(
            diffusion,
            gaussian(diffusion),
            torch.ones(1, 1, dtype=torch.float64),
            grid,
            solver,
            clip=None,
        )
        # along the flow of a centred Gaussian, x keeps its ratio to the standard deviation
        widths = [math.hypot(SD * a, s) for a, s in (diffusion.schedule.level(t) for t in grid)]
        found.append(abs(x.item() - widths[-1] / widths[0]))
    return found


@pytest.mark.parametrize(
    ("solver", "objective", "schedule", "order"),
    [
        ("dpm_solver_pp", "epsilon", "linear", 2),
        ("dpm_solver_pp", "v", "cosine", 2),
        ("flow", "flow", "flow", 2),
        ("ddim", "epsilon", "linear", 1),
        ("ddim", "v", "cosine", 1),
    ],
)
def test_order_of_convergence(solver: Solver, objective: Any, schedule: Any, order: int) -> None:
    found = errors(solver, [40, 80, 160, 320], objective, schedule)
    measured = [math.log2(a / b) for a, b in pairwise(found)]
    assert measured[-1] == pytest.approx(order, abs=0.2)


def test_an_order_one_step_is_the_textbook_ddim_step() -> None:
    """Song et al. 2021, eq. 12 with sigma = 0."""
    diffusion = Diffusion("epsilon", "linear")
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = 0.6, 0.45
    (a_t, s_t), (a_s, s_s) = (diffusion.schedule.level(time) for time in (t, s))
    x0 = (x - float(s_t) * eps) / float(a_t)
    expected = float(a_s) * x0 + float(s_s) * eps
    for solver in ("ddim", "dpm_solver_pp"):  # the first step of a second-order solver is the same
        found = sample(diffusion, lambda x, t: Prediction(x0), x, [t, s], solver, clip=None)
        torch.testing.assert_close(found, expected)


def test_full_grid_of_ancestral_is_ho_et_als_algorithm() -> None:
    """Algorithm 2 of Ho et al. 2020 with the posterior's variance, written with betas."""
    steps = 50
    diffusion = Diffusion("epsilon", "linear", steps)
    denoise = gaussian(diffusion, 0.2)
    betas = np.linspace(1000 / steps * 1e-4, 1000 / steps * 0.02, steps)
    signal = np.cumprod(1 - betas)
    noises = list(torch.randn(steps + 1, 2, 3, generator=torch.Generator().manual_seed(0)).double())
    x = noises[0]
    for number in range(steps, 0, -1):
        beta, abar = betas[number - 1], signal[number - 1]
        before = signal[number - 2] if number > 1 else 1.0
        x0 = denoise(x, number / steps).x0
        eps = (x - math.sqrt(abar) * x0) / math.sqrt(1 - abar)
        x = (x - beta / math.sqrt(1 - abar) * eps) / math.sqrt(1 - beta)
        if number > 1:
            deviation = math.sqrt((1 - before) / (1 - abar) * beta)
            x = x + deviation * noises[steps - number + 1]
    rest = iter(noises[1:])
    grid = times(diffusion.schedule, "ancestral", steps)
    found = sample(diffusion, denoise, noises[0], grid, "ancestral", lambda: next(rest), clip=None)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(39)
@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm_solver_pp"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_fifty_steps_of_a_thousand_are_no_noise(schedule: Any, solver: Solver) -> None:
    """Strided schedulers that step to other times than they evaluate at end in noise here."""
    diffusion = Diffusion("epsilon", schedule, timesteps=1000)
    assert 0.75 * SD < deviation(diffusion, solver, 50) < 1.05 * SD


@pytest.mark.fault(39)
def test_respaced_ancestral_keeps_the_deviation_of_a_narrow_gaussian() -> None:
    """Few steps give too little spread, never too much, and approach it from below."""
    diffusion = Diffusion("epsilon", "cosine")
    found = [deviation(diffusion, "ancestral", steps) for steps in (25, 100, 400)]
    assert found == sorted(found)
    assert found[-1] < SD
    assert found[-1] == pytest.approx(SD, rel=0.03)


def test_learned_variance_is_used() -> None:
    """The upper bound adds more noise than the lower one: the variance of the forward step."""
    diffusion = Diffusion("epsilon", "linear", 100, learn_variance=True)
    spread = []
    for fraction in (0.0, 1.0):
        x = torch.zeros(1, 1, dtype=torch.float64)
        full = torch.full_like(x, fraction)
        spread.append(
            sample(
                diffusion,
                lambda x, t, full=full: Prediction(torch.zeros_like(x), full),
                x,
                [0.5, 0.2],
                "ancestral",
                lambda: torch.ones(1, 1, dtype=torch.float64),
            ).item()
        )
    (a_t, s_t), (a_s, s_s) = (diffusion.schedule.level(t) for t in (0.5, 0.2))
    forward = float(s_t**2 - (a_t / a_s * s_s) ** 2)
    assert spread[1] == pytest.approx(math.sqrt(forward), rel=1e-6)
    assert spread[0] == pytest.approx(math.sqrt(forward) * float(s_s / s_t), rel=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver_pp", "ancestral"])
def test_predictions_are_clipped(solver: Solver) -> None:
    diffusion = Diffusion("epsilon", "linear", 100)

    def denoise(x: Tensor, t: float) -> Prediction:
        return Prediction(torch.tensor([[3.0, -0.5, -7.0]]))

    grid = times(diffusion.schedule, solver, 10)
    x = sample(diffusion, denoise, torch.zeros(1, 3), grid, solver, lambda: torch.zeros(1, 3))
    torch.testing.assert_close(x, torch.tensor([[1.0, -0.5, -1.0]]))


@pytest.mark.parametrize("kind", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("start", [1.0, 0.3])
def test_times_fall_from_the_start_to_zero(
    kind: Any, solver: Solver, steps: int, start: float
) -> None:
    schedule = Schedule(kind, 1000)
    grid = times(schedule, solver, steps, start)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (start, 0.0)
    assert all(a > b for a, b in pairwise(grid))
    if solver == "dpm_solver_pp" and steps > 2:
        # even in log-SNR between the first step, from pure noise, and the last, to none
        assert grid[-2] == pytest.approx(0.001, rel=1e-6)
        widths = [schedule.log_snr(s) - schedule.log_snr(t) for t, s in pairwise(grid[1:-1])]
        assert max(widths) == pytest.approx(min(widths), rel=1e-6)
    elif solver != "dpm_solver_pp":
        np.testing.assert_allclose(np.diff(grid), -start / steps)


def test_steps_are_spread_over_the_span_that_is_asked_for() -> None:
    schedule = Schedule("cosine", 1000)
    grid = times(schedule, "dpm_solver_pp", 4, span=(-4.0, 0.5))
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert [schedule.log_snr(t) for t in grid[1:-1]] == pytest.approx([-2.5, -1.0, 0.5])
    # nothing is begun above the start or ended beyond the schedule
    everywhere = times(schedule, "dpm_solver_pp", 4, span=(-4.0, 100.0))
    assert everywhere == times(schedule, "dpm_solver_pp", 4)
    late = times(schedule, "dpm_solver_pp", 3, start=0.3, span=(-50.0, 4.0))
    steps = [schedule.log_snr(t) for t in late[:-1]]
    assert np.diff(steps)[0] == pytest.approx(np.diff(steps)[1])
    assert times(schedule, "ddim", 4, span=(-4.0, 0.5)) == times(schedule, "ddim", 4)


def test_what_makes_no_sense_is_refused() -> None:
    schedule = Schedule("linear", 10)
    with pytest.raises(ValueError, match="log_snr: expected a number above -4 to end at, found -5"):
        times(schedule, "dpm_solver_pp", 5, span=(-4.0, -5.0))
    with pytest.raises(ValueError, match=r"solver: expected one of .*, found 'euler'"):
        times(schedule, "euler", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps: expected at least 1, found 0"):
        times(schedule, "ddim", 0)
    x = torch.zeros(1, 1)

    def never(x: Tensor, t: float) -> Prediction:
        raise AssertionError("evaluated before the refusal")

    epsilon, flow = Diffusion("epsilon", "linear", 10), Diffusion("flow", "flow", 10)
    with pytest.raises(ValueError, match="for the objective 'epsilon', found 'flow'"):
        sample(epsilon, never, x, [1.0, 0.0], "flow")
    with pytest.raises(ValueError, match="noise: expected a source"):
        sample(epsilon, never, x, [1.0, 0.0], "ancestral")
    with pytest.raises(ValueError, match="for the objective 'flow', found 'ancestral'"):
        sample(flow, never, x, [1.0, 0.0], "ancestral", lambda: x)
