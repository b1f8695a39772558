"""DP-SGD on the critic against loops over samples, closed forms and numerical integrals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn

from medpair.data.files import DataError
from medpair.data.labels import LabelChannels
from medpair.data.poisson import SecretSeed
from medpair.engines import privacy
from medpair.engines.privacy import ORDERS, PrivacyBudget
from medpair.engines.wgan_dp import PrivateWGANTrainer, leave_out_infinite
from medpair.networks.wgan import Critic, Generator

pytest.importorskip("opacus", reason="Opacus is not installed (extra dp)")

PATCH = (32, 16, 16)
RECORDS, BATCH = 12, 3


def budget(**settings: Any) -> PrivacyBudget:
    given = {"records": RECORDS, "batch_size": BATCH, "steps": 10, "noise_multiplier": 1.5}
    return PrivacyBudget(**{**given, **settings})


def item(counts: list[int], seed: int = 0) -> dict[str, Tensor]:
    """An iteration's batch of ``PoissonBatches``."""
    rng = torch.Generator().manual_seed(seed)
    n = sum(counts)
    return {
        "image": torch.rand(n, 1, *PATCH, generator=rng) * 2 - 1,
        "label": (torch.rand(n, 1, *PATCH, generator=rng) > 0.7).to(torch.uint8),
        "box": torch.zeros(n, 2, 3, dtype=torch.int64),
        "counts": torch.tensor(counts),
    }


def make_trainer(
    batches: list[dict[str, Tensor]],
    norm: str = "none",
    noise: bool = False,
    secret: int = 9,
    weight_clip: float = 100.0,
    critic: nn.Module | None = None,
    clipping_norm: float = 1.0,
    **settings: Any,
) -> PrivateWGANTrainer:
    torch.manual_seed(1)
    generator = Generator(PATCH, latent_size=8, filters=16)
    critic = critic or Critic(PATCH, filters=16, norm=norm)
    trainer = PrivateWGANTrainer(
        budget=budget(clipping_norm=clipping_norm),
        private_seed=SecretSeed(secret),
        weight_clip=weight_clip,
        **{
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": batches,
            "generator": generator,
            "critic": critic,
            "generator_optimizer": torch.optim.SGD(generator.parameters(), lr=1e-3),
            "critic_optimizer": torch.optim.SGD(critic.parameters(), lr=1e-3),
            "inferer": SimpleInferer(),
            "label_channels": LabelChannels(1),
            "n_critic": len(batches[0]["counts"]),
            "match_padding": False,
            "seed": 5,
            **settings,
        },
    )
    if not noise:
        trainer.private_optimizer.noise_multiplier = 0.0
    return trainer


def pairs(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, *PATCH, generator=torch.Generator().manual_seed(seed))


def step_gradient(trainer: PrivateWGANTrainer, real: Tensor, fake: Tensor) -> Tensor:
    """What the optimizer gets for one critic step, as one vector."""
    found: list[Tensor] = []
    trainer.private_optimizer.attach_step_hook(
        lambda optimizer: found.append(
            torch.cat([p.grad.flatten() for p in trainer.critic.parameters()])
        )
    )
    trainer._private_step(real, fake, 0)
    return found[0]


def one_by_one(critic: nn.Module, real: Tensor, fake: Tensor) -> list[Tensor]:
    """The gradient of mean D(fake) - D(x) of every real x, by a loop."""
    rows = []
    for sample in real:
        loss = critic(fake).mean() - critic(sample[None]).squeeze()
        gradients = torch.autograd.grad(loss, list(critic.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return rows


@pytest.mark.parametrize("critic_norm", ["none", "instance"])
def test_clipped_gradient_equals_a_loop_over_samples(critic_norm: str) -> None:
    """With a clipping norm that cuts half of the volumes and leaves the others."""
    scales = torch.tensor([0.2, 0.6, 1.0, 3.0]).view(-1, 1, 1, 1, 1)
    real, fake = pairs(4) * scales + scales, pairs(2, seed=1)
    probe = make_trainer([item([1])], critic_norm)
    rows = one_by_one(probe.critic, real, fake)
    lengths = torch.stack(rows).norm(dim=1)
    limit = lengths.median().item() * 1.001
    assert 0 < int((lengths > limit).sum()) < 4
    trainer = make_trainer([item([1])], critic_norm, clipping_norm=limit)
    found = step_gradient(trainer, real, fake)
    expected = sum(row * min(1.0, limit / row.norm().item()) for row in rows) / BATCH
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * limit)
    assert not torch.allclose(found, sum(rows) / BATCH, rtol=1e-2)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_one_volume_moves_the_sum_by_the_clipping_norm_at_most(scale: float) -> None:
    limit, real, fake = 0.05, pairs(3), pairs(2, seed=1)
    real[1] *= scale
    whole = step_gradient(make_trainer([item([1])], clipping_norm=limit), real, fake)
    for left in range(3):
        rest = torch.cat([real[:left], real[left + 1 :]])
        without = step_gradient(make_trainer([item([1])], clipping_norm=limit), rest, fake)
        change = BATCH * (whole - without).norm().item()
        # every gradient here is longer than the limit, so that the bound is met
        assert change == pytest.approx(limit, rel=1e-3)
    nothing = step_gradient(make_trainer([item([1])], clipping_norm=limit), real[:0], fake)
    assert nothing.abs().max() == 0


def test_noise_has_the_budgets_deviation_and_no_repetition() -> None:
    """An empty draw leaves the noise alone: N(0, (sigma C)^2) over the expected batch size."""
    limit, fake = 0.7, pairs(2)

    def noise(secret: int, iteration: int = 1) -> Tensor:
        trainer = make_trainer([item([1])], noise=True, secret=secret, clipping_norm=limit)
        trainer.state.iteration = iteration
        return step_gradient(trainer, pairs(0), fake) * BATCH / (1.5 * limit)

    first = noise(1)
    count = first.numel()
    assert abs(first.mean().item()) < 5 / math.sqrt(count)
    assert first.var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / count))
    assert torch.equal(first, noise(1))
    for other in (noise(2), noise(1, iteration=2)):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 5 / math.sqrt(count)


def test_equal_distributions_leave_no_pull() -> None:
    """Fakes that are the real volumes: unclipped, the step is zero."""
    real = pairs(BATCH)
    found = step_gradient(make_trainer([item([1])], clipping_norm=1e6), real, real.clone())
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-3)
    apart = step_gradient(make_trainer([item([1])], clipping_norm=1e6), real, pairs(3, 7) + 1)
    assert apart.norm() > 10 * found.norm()


def test_an_iteration_accounts_for_every_step_and_keeps_weights_small() -> None:
    batch = item([2, 0, 3])
    trainer = make_trainer([batch, batch], noise=True, weight_clip=0.01)
    seen: list[int] = []
    trainer.generator.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trainer.run()
    assert trainer.accountant.history == [(1.5, BATCH / RECORDS, 6)]
    assert trainer.epsilon() == budget().epsilon([(1.5, BATCH / RECORDS, 6)])
    assert trainer.epsilon(iterations_ahead=1) == budget().epsilon([(1.5, BATCH / RECORDS, 9)])
    # the number of fakes does not tell who was drawn
    assert seen == [BATCH] * 6
    values = torch.cat([p.flatten() for p in trainer.critic.parameters()])
    assert values.abs().max().item() == pytest.approx(0.01)
    # what is logged is the fakes' score alone
    assert set(trainer.state.output) == {"loss", "generator_loss"}


def test_a_volume_whose_gradient_is_not_finite_leaves_no_trace() -> None:
    """Clipped and noised, NaN would stay NaN: who is in the batch would decide on the step."""
    one, two = (nn.Parameter(torch.zeros(shape)) for shape in ((2,), (3, 1)))
    one.grad_sample = torch.ones(4, 2)  # type: ignore[attr-defined]
    two.grad_sample = torch.ones(4, 3, 1)  # type: ignore[attr-defined]
    one.grad_sample[1, 0] = math.nan  # type: ignore[attr-defined]
    two.grad_sample[3, 2] = math.inf  # type: ignore[attr-defined]
    leave_out_infinite([one, two])
    for parameter in (one, two):
        sums = parameter.grad_sample.flatten(1).sum(dim=1)  # type: ignore[attr-defined]
        assert (sums != 0).tolist() == [True, False, True, False]


def test_the_step_goes_on_without_a_volume_whose_gradient_is_not_finite() -> None:
    trainer = make_trainer([item([1])])
    real, fake = (draw * 2 - 1 for draw in torch.rand(2, 3, 2, *PATCH))
    trainer._per_sample_gradients(real, fake)
    whole = [p.grad_sample.clone() for p in trainer.critic.parameters()]
    real[1, 0, 0, 0, 0] = math.nan
    trainer._per_sample_gradients(real, fake)
    for parameter, before in zip(trainer.critic.parameters(), whole, strict=True):
        found = parameter.grad_sample
        assert (found[1] == 0).all()
        torch.testing.assert_close(found[[0, 2]], before[[0, 2]], rtol=1e-4, atol=1e-6)


def test_generator_step_is_the_plain_one() -> None:
    """Behind the hooks the generator gets the gradient of -mean D(fake)."""
    trainer = make_trainer([item([1])])
    latent = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    trainer.generator.train()
    loss = -trainer.critic(trainer.generator(latent)).mean()
    expected = torch.autograd.grad(loss, list(trainer.generator.parameters()))
    before = [p.detach().clone() for p in trainer.generator.parameters()]
    trainer.state.iteration = 1
    trainer._generator_step(trainer.generator(latent))
    for old, new, gradient in zip(before, trainer.generator.parameters(), expected, strict=True):
        torch.testing.assert_close(new.grad, gradient, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(new.detach(), old - 1e-3 * gradient, rtol=0, atol=1e-7)
    assert all(p.requires_grad for p in trainer.critic.parameters())


def exact_gaussian_epsilon(sigma: float, steps: int, delta: float) -> float:
    """Balle & Wang 2018, theorem 8: ``steps`` Gaussian mechanisms are one of mu = sqrt(n)/sigma."""
    mu = math.sqrt(steps) / sigma

    def excess(epsilon: float) -> float:
        tail = norm.logcdf(-mu / 2 - epsilon / mu) + epsilon
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(tail) - delta)

    return float(brentq(excess, 0, 200))


def converted(renyi: dict[float, float], delta: float) -> float:
    """From Renyi divergences to epsilon (Balle et al. 2020, theorem 21)."""
    return min(
        value + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, value in renyi.items()
    )


def test_epsilon_without_sampling_has_a_closed_form() -> None:
    """All volumes in every step: the Renyi divergence of order a is n a / (2 sigma^2)."""
    sigma, steps, delta = 4.0, 20, 1e-4
    settings = {"batch_size": RECORDS, "steps": steps, "noise_multiplier": sigma, "delta": delta}
    history = [(sigma, 1.0, steps)]
    renyi = budget(**settings).epsilon(history)
    form = {order: steps * order / (2 * sigma**2) for order in ORDERS}
    assert renyi == pytest.approx(converted(form, delta), rel=1e-6)
    exact = exact_gaussian_epsilon(sigma, steps, delta)
    assert exact < renyi < 1.2 * exact
    composed = budget(**settings, accountant="prv").epsilon(history)
    assert exact <= composed < exact + 0.03


def test_epsilon_with_sampling_is_the_integral() -> None:
    """The Renyi divergence of the sampled Gaussian (Mironov et al. 2019, eq. 3), by quadrature."""
    sigma, rate, steps = 1.5, BATCH / RECORDS, 100
    plan = budget(steps=steps)

    def divergence(order: float) -> float:
        def density(x: float) -> float:
            ratio = (1 - rate) + rate * math.exp((2 * x - 1) / (2 * sigma**2))
            return norm.pdf(x, scale=sigma) * ratio**order

        value, _ = quad(density, -30, 60, limit=500, points=[0, order])
        return steps * math.log(value) / (order - 1)

    orders = [order for order in ORDERS if order < 12]
    expected = converted({order: divergence(order) for order in orders}, plan.delta)
    assert plan.epsilon([(sigma, rate, steps)]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_noise_is_what_the_target_needs(target: float, accountant: str) -> None:
    plan = budget(target_epsilon=target, noise_multiplier=None, steps=200, accountant=accountant)
    spent = plan.epsilon([(plan.noise_multiplier, plan.sample_rate, 200)])
    assert 0.995 * target < spent <= target
    assert plan.delta == pytest.approx(1 / 120)
    assert plan.epsilon([]) == 0.0
    # a command line cannot take the preset's target away
    assert budget(target_epsilon=target, noise_multiplier=0.7).noise_multiplier == 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_multiplier": None}, "target_epsilon: expected a number, or a noise_multiplier"),
        ({"noise_multiplier": 0.0}, "noise_multiplier: expected a number over 0, found 0.0"),
        ({"clipping_norm": -1.0}, "clipping_norm: expected a number over 0, found -1.0"),
        ({"batch_size": 13}, "batch_size: expected 1 to 12 volumes, found 13"),
        ({"accountant": "gdp"}, "accountant: expected rdp or prv, found 'gdp'"),
    ],
)
def test_budget_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget(**settings)


class Mixing(Critic):
    """Batch norm lets samples see each other."""

    def __init__(self) -> None:
        super().__init__(PATCH, filters=16, norm="none")
        self.features.append(nn.BatchNorm3d(16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "spectral"}, "critic_norm: expected instance or none, found spectral norm"),
        ({"critic": Mixing()}, "critic: expected no buffers"),
        ({"match_padding": True}, "match_padding: expected False in private training"),
        ({"amp": True}, "amp: expected False in private training"),
        ({"weight_clip": 0.0}, "weight_clip: expected a number over 0, found 0.0"),
    ],
)
def test_trainer_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer([item([1])], **settings)


def test_without_opacus_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^opacus: .*pip install 'medpair\[dp\]'\), found none$"):
        budget()


def test_nan_of_the_generator_stops_the_run() -> None:
    trainer = make_trainer([item([1])], max_bad_steps=1)
    trainer.generator.head.bias.data.fill_(np.nan)
    with pytest.raises(
        FloatingPointError, match=r"iteration 1: expected finite .*generator_loss nan"
    ):
        trainer.run()
