"""Objectives, the reverse step and the variational bound, in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from medpair.diffusion.process import (
    BIN,
    Diffusion,
    ReverseStep,
    discretized_log_likelihood,
    gaussian_divergence,
)
from medpair.diffusion.schedule import Schedule

KINDS: list[tuple[Any, Any]] = [
    ("epsilon", "linear"),
    ("epsilon", "cosine"),
    ("v", "linear"),
    ("v", "cosine"),
    ("x0", "linear"),
    ("x0", "cosine"),
    ("flow", "flow"),
]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def truth(diffusion: Diffusion, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Any:
    """What a perfect network would answer, after the definitions in the papers."""
    alpha, sigma = diffusion.levels(t, x0)
    return {"epsilon": noise, "v": alpha * noise - sigma * x0, "x0": x0, "flow": noise - x0}[
        diffusion.objective
    ]


@pytest.mark.parametrize(("objective", "schedule"), KINDS)
def test_objective_is_inverted_and_costs_nothing_when_it_is_met(
    objective: Any, schedule: Any
) -> None:
    diffusion = Diffusion(objective, schedule, 1000)
    t = torch.tensor([0.001, 0.02, 0.5, 0.9, 0.999], dtype=torch.float64)
    x0, noise = draw(5, 3, 4, 4), draw(5, 3, 4, 4, seed=1)
    x = diffusion.noised(x0, t, noise)
    alpha, sigma = (torch.from_numpy(level) for level in Schedule(schedule, 1000).level(t.numpy()))
    torch.testing.assert_close(x[2], alpha[2] * x0[2] + sigma[2] * noise[2])
    answer = truth(diffusion, x0, noise, t)
    prediction = diffusion.predicted(answer, x, t)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-9)
    assert prediction.fraction is None
    weight = torch.ones(5, 1, 1, 1, dtype=torch.float64)
    assert diffusion.loss(answer, x0, noise, t, weight)["loss"].item() == 0
    # an error of 0.1 in everything costs 0.01
    off = diffusion.loss(answer + 0.1, x0, noise, t, weight)["loss"].item()
    assert off == pytest.approx(0.01, rel=1e-9)


def test_training_times_cover_what_the_schedule_has() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = Diffusion("epsilon", "linear", 10).draw_times(5000, generator) * 10
    assert sorted({round(float(s), 4) for s in steps}) == list(range(1, 11))
    counts = np.bincount(steps.round().long().numpy())[1:]
    assert counts.min() > 400
    flow = Diffusion("flow", "flow").draw_times(5000, generator)
    assert flow.min() > 0
    assert flow.max() <= 1
    assert flow.mean().item() == pytest.approx(0.5, abs=0.02)
    assert flow.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


@pytest.mark.parametrize(("objective", "schedule"), [("epsilon", "linear"), ("flow", "flow")])
def test_times_of_a_power_have_its_moments(objective: Any, schedule: Any) -> None:
    diffusion = Diffusion(objective, schedule, timesteps=1000)
    for power in (0.5, 2.0):
        drawn = diffusion.draw_times(20_000, torch.Generator().manual_seed(3), power)
        assert drawn.min() > 0
        assert drawn.max() <= 1
        # E[u^p] = 1 / (1 + p), E[u^2p] = 1 / (1 + 2p)
        assert drawn.mean().item() == pytest.approx(1 / (1 + power), abs=0.01)
        assert drawn.square().mean().item() == pytest.approx(1 / (1 + 2 * power), abs=0.01)


@pytest.mark.parametrize("learn", [False, True])
def test_loss_ignores_elements_of_weight_zero(learn: bool) -> None:
    diffusion = Diffusion("epsilon", "linear", 100, learn_variance=learn)
    x0, noise = draw(3, 2, 4, 5, 5).clamp(-1, 1), draw(3, 2, 4, 5, 5, seed=1)
    t = torch.tensor([0.01, 0.3, 0.8], dtype=torch.float64)
    weight = torch.ones(3, 1, 4, 1, 1, dtype=torch.float64)
    weight[:, :, 1:3] = 0
    output = draw(3, 2 * diffusion.output_factor, 4, 5, 5, seed=2).requires_grad_(True)
    losses = diffusion.loss(output, x0, noise, t, weight)
    (gradient,) = torch.autograd.grad(losses["loss"], output)
    assert gradient[:, :, 1:3].abs().max() == 0
    assert (gradient[:, :2, [0, 3]].abs() > 0).all()
    # the mean is over what is kept: that of the kept part alone
    part = [0, 3]
    kept = diffusion.loss(
        output[:, :, part], x0[:, :, part], noise[:, :, part], t, weight[:, :, part]
    )
    for name, value in losses.items():
        assert value.item() == pytest.approx(kept[name].item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_adjacent_step_is_ho_et_als_posterior(kind: Any) -> None:
    steps = 1000
    diffusion = Diffusion("epsilon", kind, steps)
    if kind == "linear":
        betas = np.linspace(1e-4, 0.02, steps)
    else:
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    signal = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], signal[:-1]])
    number = np.array([2, 3, 10, 500, 999, 1000])
    t = torch.from_numpy(number / steps)
    x, x0 = draw(len(number), 7), draw(len(number), 7, seed=1)
    step = ReverseStep(diffusion, t, t - 1 / steps, x)
    beta, abar, abar_before = (v[number - 1][:, None] for v in (betas, signal, before))
    mean = (
        np.sqrt(abar_before) * beta / (1 - abar) * x0.numpy()
        + np.sqrt(1 - beta) * (1 - abar_before) / (1 - abar) * x.numpy()
    )
    np.testing.assert_allclose(step.mean(x, x0).numpy(), mean, rtol=1e-6, atol=1e-8)
    variance = (1 - abar_before) / (1 - abar) * beta
    found = step.log_variance(None).exp().numpy()
    np.testing.assert_allclose(found, variance, rtol=1e-6)
    # eq. 15 of Nichol & Dhariwal: between the posterior's and beta
    half = step.log_variance(torch.full_like(x, 0.5)).exp().numpy()
    np.testing.assert_allclose(half, np.sqrt(variance * beta) * np.ones((1, 7)), rtol=1e-6)
    upper = step.log_variance(torch.ones_like(x)).exp().numpy()
    np.testing.assert_allclose(upper, beta * np.ones((1, 7)), rtol=1e-6)


def test_last_step_gives_x0_and_borrows_its_variance() -> None:
    diffusion = Diffusion("epsilon", "linear", 1000)
    t = torch.tensor([0.001], dtype=torch.float64)
    x, x0 = draw(1, 5), draw(1, 5, seed=1)
    step = ReverseStep(diffusion, t, torch.zeros_like(t), x)
    torch.testing.assert_close(step.mean(x, x0), x0)
    second = ReverseStep(diffusion, 2 * t, t, x)
    torch.testing.assert_close(step.log_variance(None), second.log_variance(None))


def test_two_short_steps_are_one_long_one() -> None:
    """Given x_0, a step of any length is that of Gaussian conditioning."""
    diffusion = Diffusion("epsilon", "cosine", 1000)
    t, s = (torch.tensor([v], dtype=torch.float64) for v in (0.7, 0.2))
    like = draw(1, 1)
    step = ReverseStep(diffusion, t, s, like)
    (a_t, s_t), (a_s, s_s) = (
        [float(v) for v in diffusion.schedule.level(x.item())] for x in (t, s)
    )
    # x_t = r x_s + noise of variance s_t^2 - r^2 s_s^2: condition x_s on x_t
    r = a_t / a_s
    gain = r * s_s**2 / s_t**2
    x, x0 = 0.4, -0.3
    mean = a_s * x0 + gain * (x - a_t * x0)
    variance = s_s**2 - gain**2 * s_t**2
    found = step.mean(torch.full_like(like, x), torch.full_like(like, x0)).item()
    assert found == pytest.approx(mean, rel=1e-9)
    assert step.log_variance(None).exp().item() == pytest.approx(variance, rel=1e-9)


def test_gaussian_divergence_is_the_integral() -> None:
    torch.testing.assert_close(
        gaussian_divergence(*(torch.tensor(v) for v in (0.3, -1.0, 0.3, -1.0))), torch.tensor(0.0)
    )
    grid = torch.linspace(-20, 20, 200001, dtype=torch.float64)
    for m1, l1, m2, l2 in [(0.0, 0.0, 1.0, 0.0), (0.3, -1.0, -0.7, 0.8), (2.0, 1.0, 0.0, -0.5)]:
        p = torch.distributions.Normal(m1, math.exp(l1 / 2)).log_prob(grid)
        q = torch.distributions.Normal(m2, math.exp(l2 / 2)).log_prob(grid)
        integral = torch.trapezoid(p.exp() * (p - q), grid).item()
        found = gaussian_divergence(*(torch.tensor(v) for v in (m1, l1, m2, l2))).item()
        assert found == pytest.approx(integral, rel=1e-5)


@pytest.mark.parametrize("mean", [-1.3, -0.98, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("scale", [0.003, 0.05, 0.7])
def test_likelihoods_of_all_bins_sum_to_one(mean: float, scale: float) -> None:
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    logs = discretized_log_likelihood(levels, torch.tensor(mean), torch.tensor(math.log(scale)))
    assert logs.exp().sum().item() == pytest.approx(1.0, abs=1e-6)
    assert levels[1] - levels[0] == pytest.approx(BIN)


def test_likelihood_is_symmetric_and_exact_in_the_tails() -> None:
    """In single precision too: a difference of values near 1 would lose everything."""
    x0 = torch.tensor([1.0, 0.5, -0.25, -1.0])
    mean = torch.tensor([0.94, 0.44, -0.30, -1.07])
    scale = torch.tensor(-4.6)
    found = discretized_log_likelihood(x0, mean, scale)
    exact = discretized_log_likelihood(x0.double(), mean.double(), scale.double())
    torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, discretized_log_likelihood(-x0, -mean, scale))
    assert found[0].item() < -15


def test_bound_is_zero_where_prediction_is_truth_and_closed_form_elsewhere() -> None:
    diffusion = Diffusion("epsilon", "linear", 1000, learn_variance=True)
    t = torch.tensor([0.002, 0.3, 1.0], dtype=torch.float64)
    x0, noise = draw(3, 2, 4).clamp(-1, 1), draw(3, 2, 4, seed=1)
    weight = torch.ones(3, 1, 1, dtype=torch.float64)
    lower = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    assert abs(diffusion.loss(lower, x0, noise, t, weight)["bound"].item()) < 1e-12
    # the upper variance instead: (log r + 1/r - 1) / 2 nats with r the ratio of the variances
    upper = torch.cat([noise, torch.full_like(noise, 1.0)], dim=1)
    step = ReverseStep(diffusion, t, t - 0.001, x0)
    r = (step.log_variance(torch.ones_like(x0)) - step.log_variance(None)).exp()
    expected = (0.5 * (r.log() + 1 / r - 1) / math.log(2)).mean().item()
    losses = diffusion.loss(upper, x0, noise, t, weight)
    assert losses["bound"].item() == pytest.approx(expected, rel=1e-9)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-9)
    assert losses["mse"].item() == 0


def test_bound_at_the_last_step_is_the_likelihood() -> None:
    diffusion = Diffusion("epsilon", "linear", 1000, learn_variance=True)
    t = torch.tensor([0.001], dtype=torch.float64)
    x0, noise = draw(1, 1, 6).clamp(-1, 1), draw(1, 1, 6, seed=1)
    output = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    bound = diffusion.loss(output, x0, noise, t, torch.ones(1, dtype=torch.float64))["bound"]
    log_variance = ReverseStep(diffusion, t, 0 * t, x0).log_variance(None)
    expected = -discretized_log_likelihood(x0, x0, 0.5 * log_variance).mean() / math.log(2)
    assert bound.item() == pytest.approx(expected.item(), rel=1e-9)


def test_bound_counts_as_many_terms_as_there_are_steps() -> None:
    """Nichol & Dhariwal 2021 weigh T terms by 0.001: 1 at T = 1000, a quarter at 250."""
    for steps, factor in ((1000, 1.0), (250, 0.25)):
        diffusion = Diffusion("epsilon", "linear", steps, learn_variance=True)
        t = torch.tensor([0.2, 0.6], dtype=torch.float64)
        x0, noise, output = draw(2, 3, 4).clamp(-1, 1), draw(2, 3, 4, seed=1), draw(2, 6, 4, seed=2)
        losses = diffusion.loss(output, x0, noise, t, torch.ones(1, dtype=torch.float64))
        assert losses["bound"] > 0.001
        torch.testing.assert_close(losses["loss"], losses["mse"] + factor * losses["bound"])


def test_bound_trains_the_variance_alone() -> None:
    diffusion = Diffusion("epsilon", "linear", 1000, learn_variance=True)
    t = torch.tensor([0.001, 0.5], dtype=torch.float64)
    x0, noise = draw(2, 3, 5).clamp(-1, 1), draw(2, 3, 5, seed=1)
    output = (draw(2, 6, 5, seed=2) * 0.3).requires_grad_(True)
    losses = diffusion.loss(output, x0, noise, t, torch.ones(1, dtype=torch.float64))
    (bound,) = torch.autograd.grad(losses["bound"], output, retain_graph=True)
    assert bound[:, :3].abs().max() == 0
    assert bound[1, 3:].abs().min() > 0
    (error,) = torch.autograd.grad(losses["mse"], output)
    assert error[:, 3:].abs().max() == 0


def test_what_does_not_fit_is_refused() -> None:
    for arguments, message in [
        (("x", "linear"), "objective: expected one of .*, found 'x'"),
        (("flow", "linear"), "expected flow with flow, found 'flow', 'linear'"),
        (("v", "flow"), "expected flow with flow, found 'v', 'flow'"),
        (("v", "cosine", 10, True), "learn_variance: expected objective epsilon, found 'v'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Diffusion(*arguments)  # type: ignore[arg-type]
