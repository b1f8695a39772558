"""The arithmetic of a WGAN iteration, in closed form and against the paper's own loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.inferers import SimpleInferer
from paper_wgan import (
    BETAS,
    PaperCritic,
    PaperGenerator,
    PaperLoop,
    copy_weights,
    settle_spectral_norm,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medpair.data.labels import LabelChannels
from medpair.data.sampling import torch_generator
from medpair.engines.augment import CriticAugmentation
from medpair.engines.averaging import AveragedWeights, recalibrate_batch_norm
from medpair.engines.wgan import LATENT, PENALTY, WGANTrainer, gradient_penalty
from medpair.networks.wgan import Critic, Generator

PATCH = (32, 16, 16)
LATENT_SIZE = 8
FILTERS = 16
SEED = 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
Optimizer = Callable[[Any, float], torch.optim.Optimizer]


def short_sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Steps in proportion to the gradients, long enough that every parameter moves visibly.

    Adam's first step is all but the sign of the gradient, so a gradient that is nothing but
    rounding moves a parameter by the whole learning rate; only this optimizer compares sizes.
    """
    return torch.optim.SGD(parameters, lr=100 * lr)


def adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, betas=BETAS)


def real_batch(size: int, seed: int = 0, patch: tuple[int, ...] = PATCH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    box = torch.tensor([[[0, 0, 0], list(patch)]] * size)
    return {
        "image": torch.rand(size, 1, *patch, generator=generator) * 2 - 1,
        "label": (torch.rand(size, 1, *patch, generator=generator) > 0.7).to(torch.uint8),
        "box": box,
    }


def pairs(batch: dict[str, Tensor]) -> Tensor:
    """The critic's input in the paper's code: image in -1..1 beside label in {0, 1}."""
    return torch.cat([batch["image"], batch["label"].float()], dim=1)


def make_trainer(
    batches: list[dict[str, Tensor]],
    norm: str = "none",
    optimizer: Optimizer = sgd,
    inferer: Any = None,
    **settings: Any,
) -> WGANTrainer:
    torch.manual_seed(1)
    patch = batches[0]["image"].shape[2:]
    generator = Generator(patch, latent_size=LATENT_SIZE, filters=FILTERS)
    critic = Critic(patch, filters=FILTERS, norm=norm)
    settle_spectral_norm(critic)
    return WGANTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=batches,
        generator=generator,
        critic=critic,
        generator_optimizer=optimizer(generator.parameters(), 2e-4),
        critic_optimizer=optimizer(critic.parameters(), 4e-4),
        inferer=inferer or SimpleInferer(),
        label_channels=LabelChannels(1, off=0.0, on=1.0, threshold=0.4),
        seed=SEED,
        **settings,
    )


def paper_loop(trainer: WGANTrainer, norm: str, optimizer: Optimizer) -> PaperLoop:
    """The paper's loop on copies of the trainer's weights."""
    patch = trainer.generator.patch_size
    generator = PaperGenerator(patch, latent_size=LATENT_SIZE, filters=FILTERS)
    critic = PaperCritic(patch, filters=FILTERS, norm=norm)
    copy_weights(trainer.generator, generator)
    copy_weights(trainer.critic, critic)
    return PaperLoop(
        generator,
        critic,
        optimizer(generator.parameters(), 2e-4),
        optimizer(critic.parameters(), 4e-4),
    )


def latent_of(size: int, number: int) -> Tensor:
    """The latent vectors that the trainer draws in its first iteration."""
    return torch.randn(size, LATENT_SIZE, generator=torch_generator(SEED, 1, LATENT, number))


def epsilon_of(size: int, number: int) -> float:
    return torch.rand(size, generator=torch_generator(SEED, 1, PENALTY, number))[0].item()


class Linear(nn.Module):
    """D(x) = <w, x>."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight[:, None]


class Quadratic(nn.Module):
    """D(x) = a |x|^2 / 2, whose gradient is a x."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.flatten(1).square().sum(dim=1, keepdim=True) / 2


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_penalty_of_a_linear_critic(batch_size: int) -> None:
    """The gradient is w everywhere; stacked over the batch its norm is sqrt(B) |w|."""
    weight = draw(2 * 3 * 4 * 5)
    length = weight.norm().item()
    real, fake = draw(batch_size, 2, 3, 4, 5), draw(batch_size, 2, 3, 4, 5) + 1
    epsilon = torch.linspace(0.1, 0.8, batch_size)
    per_sample = gradient_penalty(Linear(weight), real, fake, epsilon)
    whole = gradient_penalty(Linear(weight), real, fake, epsilon, "batch")
    assert per_sample.item() == pytest.approx((length - 1) ** 2, rel=1e-5)
    assert whole.item() == pytest.approx((batch_size**0.5 * length - 1) ** 2, rel=1e-5)


def test_penalty_of_a_quadratic_critic() -> None:
    """The gradient a x shows where x was taken; d/da goes through the penalty's own gradient."""
    a = 0.3
    real, fake = draw(3, 2, 4, 4, 4), draw(3, 2, 4, 4, 4).flip(0) * 2
    epsilon = torch.tensor([0.1, 0.5, 0.9])
    shares = epsilon.view(-1, 1, 1, 1, 1)
    radius = (shares * real + (1 - shares) * fake).flatten(1).norm(dim=1)
    critic = Quadratic(a)
    penalty = gradient_penalty(critic, real, fake, epsilon)
    assert penalty.item() == pytest.approx((a * radius - 1).square().mean().item(), rel=1e-5)
    (slope,) = torch.autograd.grad(penalty, critic.a)
    assert slope.item() == pytest.approx((2 * (a * radius - 1) * radius).mean().item(), rel=1e-5)
    # batch: the first epsilon for all, one norm for all
    radius = (epsilon[0] * real + (1 - epsilon[0]) * fake).norm()
    penalty = gradient_penalty(critic, real, fake, epsilon, "batch")
    assert penalty.item() == pytest.approx((a * radius - 1).square().item(), rel=1e-5)


def test_penalty_per_sample_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    critic = Critic(PATCH, filters=FILTERS, norm="none")
    critic.score.weight.data.mul_(30)  # gradients of about length 1, not 0
    real, fake = draw(3, 2, *PATCH), draw(3, 2, *PATCH).flip(0)
    epsilon = torch.tensor([0.2, 0.6, 0.7])

    def one(i: int, mode: str) -> float:
        part = slice(i, i + 1)
        return gradient_penalty(critic, real[part], fake[part], epsilon[part], mode).item()

    together = gradient_penalty(critic, real, fake, epsilon).item()
    assert together == pytest.approx(np.mean([one(i, "per_sample") for i in range(3)]), rel=1e-4)
    # the paper's form does depend on them: the test would see it
    together = gradient_penalty(critic, real, fake, epsilon, "batch").item()
    assert together != pytest.approx(np.mean([one(i, "batch") for i in range(3)]), rel=0.1)


def test_penalty_stays_out_of_the_generator() -> None:
    """Unlike the paper's loop, which fills the generator's gradients and throws them away."""
    batch = real_batch(2)
    trainer = make_trainer([batch])
    loop = paper_loop(trainer, "none", sgd)
    loop.critic_step(pairs(batch), latent_of(2, 0), 0.5)
    assert all(parameter.grad is not None for parameter in loop.generator.parameters())
    fake = trainer.generator(latent_of(2, 0))
    gradient_penalty(trainer.critic, pairs(batch), fake, torch.rand(2)).backward()
    assert all(parameter.grad is None for parameter in trainer.generator.parameters())
    assert trainer.critic.score.weight.grad is not None


def assert_same_losses(found: dict[str, float], expected: dict[str, float]) -> None:
    assert expected
    for name, loss in expected.items():
        assert found[name] == pytest.approx(loss, rel=1e-5, abs=1e-5), name


def assert_same_parameters(found: nn.Module, expected: nn.Module) -> None:
    for one, (name, other) in zip(found.parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", ["none", "spectral"])
@pytest.mark.parametrize("reuse_fakes", [True, False])
def test_step_equals_the_papers(norm: str, reuse_fakes: bool) -> None:
    """Same weights, latents and epsilon; one penalty norm for the batch, as there."""
    batch = real_batch(4)
    trainer = make_trainer([batch], norm, penalty_mode="batch", reuse_fakes=reuse_fakes)
    loop = paper_loop(trainer, norm, sgd)
    before = copy.deepcopy(loop.critic)
    trainer.run()
    generator_latent = latent_of(4, 0 if reuse_fakes else 1)
    losses = loop.step(pairs(batch), latent_of(4, 0), generator_latent, epsilon_of(4, 0))
    assert_same_losses(trainer.state.output, losses)
    assert_same_parameters(trainer.critic, loop.critic)
    assert_same_parameters(trainer.generator, loop.generator)
    for old, (name, new) in zip(before.parameters(), loop.critic.named_parameters(), strict=True):
        # the last bias moves all scores alike, so no loss depends on it
        assert name == "linear.bias" or (new - old).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_adam_step_equals_the_papers(norm: str) -> None:
    """With the paper's optimizer: equal wherever the gradient is more than rounding."""
    batch = real_batch(4)
    trainer = make_trainer([batch], norm, adam, penalty_mode="batch")
    loop = paper_loop(trainer, norm, adam)
    gradients: list[Tensor] = []
    loop.critic_optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in loop.critic.parameters())
    )
    trainer.run()
    losses = loop.critic_step(pairs(batch), latent_of(4, 0), epsilon_of(4, 0))
    assert_same_losses(trainer.state.output, losses)
    compared = 0
    networks = trainer.critic.parameters(), loop.critic.parameters()
    for found, expected, gradient in zip(*networks, gradients, strict=True):
        clear = gradient.abs() > 1e-7  # ten times Adam's epsilon
        compared += int(clear.sum())
        torch.testing.assert_close(found[clear], expected[clear], **CLOSE)
    # taps that only ever see padding, on so small a grid, have none
    assert compared > 0.95 * sum(int(gradient.count_nonzero()) for gradient in gradients)


def test_step_with_instance_norm_equals_the_papers() -> None:
    """On a larger patch, since a norm over the last two voxels would multiply rounding."""
    batch = real_batch(2, patch=(32, 32, 32))
    trainer = make_trainer([batch], "instance", short_sgd, penalty_mode="batch")
    loop = paper_loop(trainer, "instance", short_sgd)
    trainer.run()
    losses = loop.step(pairs(batch), latent_of(2, 0), latent_of(2, 0), epsilon_of(2, 0))
    assert_same_losses(trainer.state.output, losses)
    assert_same_parameters(trainer.critic, loop.critic)


class RecordingInferer:
    """Calls the network and keeps what it drew."""

    def __init__(self) -> None:
        self.fakes: list[Tensor] = []

    def __call__(self, latent: Tensor, network: nn.Module) -> Tensor:
        fake = network(latent)
        self.fakes.append(fake.detach().clone())
        return fake


def test_three_critic_steps_are_three_updates_on_other_fakes() -> None:
    batch = real_batch(6)
    inferer = RecordingInferer()
    trainer = make_trainer([batch], inferer=inferer, n_critic=3, penalty_mode="batch")
    loop = paper_loop(trainer, "none", sgd)
    steps = {"critic": 0, "generator": 0}

    def count(name: str) -> Callable[..., None]:
        return lambda *_: steps.update({name: steps[name] + 1})

    trainer.critic_optimizer.register_step_post_hook(count("critic"))
    trainer.generator_optimizer.register_step_post_hook(count("generator"))
    trainer.run()
    assert steps == {"critic": 3, "generator": 1}
    assert [len(fake) for fake in inferer.fakes] == [2, 2, 2]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (inferer.fakes[i] - inferer.fakes[j]).abs().max() > 0.01
    # three updates of the paper's critic, each on its third of the batch, end at the same weights
    for number, real in enumerate(pairs(batch).chunk(3)):
        loop.critic_step(real, latent_of(2, number), epsilon_of(2, number))
    losses = loop.generator_step(latent_of(2, 2))
    assert_same_losses(trainer.state.output, losses)
    assert_same_parameters(trainer.critic, loop.critic)


def seen_by_critic(trainer: WGANTrainer) -> list[Tensor]:
    """What the critic is given: interpolates, then real and fake, then the generator's fakes."""
    seen: list[Tensor] = []
    trainer.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    return seen


@pytest.mark.parametrize("match_padding", [True, False])
def test_match_padding_fills_exactly_outside_the_box(match_padding: bool) -> None:
    batch = real_batch(2)
    batch["box"] = torch.tensor([[[3, 0, 2], [30, 16, 9]], [[0, 0, 0], list(PATCH)]])
    inside = torch.zeros(2, 1, *PATCH, dtype=torch.bool)
    inside[0, :, 3:30, :, 2:9] = True
    inside[1] = True
    inferer = RecordingInferer()
    trainer = make_trainer([batch], inferer=inferer, match_padding=match_padding)
    seen = seen_by_critic(trainer)
    trainer.run()
    fill = torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1, 1)
    drawn = inferer.fakes[0]
    expected = torch.where(inside, drawn, fill) if match_padding else drawn
    assert not torch.equal(drawn, torch.where(inside, drawn, fill))
    _, both, last = seen
    torch.testing.assert_close(both[2:], expected, rtol=0, atol=0)
    torch.testing.assert_close(last, expected, rtol=0, atol=0)
    torch.testing.assert_close(both[:2], pairs(batch), rtol=0, atol=0)


def test_augmentation_reaches_real_and_fake() -> None:
    batch = real_batch(2)
    inferer = RecordingInferer()
    augmentation = CriticAugmentation(offset=0.5)
    trainer = make_trainer([batch], inferer=inferer, augmentation=augmentation)
    seen = seen_by_critic(trainer)
    trainer.run()
    for augmented, plain in ((seen[1][:2], pairs(batch)), (seen[1][2:], inferer.fakes[0])):
        moved = (augmented - plain)[:, 0].flatten(1)
        assert moved.abs().max() > 1e-2
        torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), **CLOSE)
        assert (moved[0, 0] - moved[1, 0]).abs() > 1e-3
        torch.testing.assert_close(augmented[:, 1], plain[:, 1], rtol=0, atol=0)


def test_not_finite_loss_names_its_iteration() -> None:
    batches = [real_batch(2, seed=number) for number in range(3)]
    batches[1]["image"][0, 0, 5, 5, 5] = float("nan")
    trainer = make_trainer(batches, max_bad_steps=1)
    done: list[int] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: done.append(engine.state.iteration)
    )
    with pytest.raises(FloatingPointError, match=r"iteration 2: .*critic_loss.*nan"):
        trainer.run()
    assert done == [1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_mode": "mean"}, "penalty_mode: expected per_sample or batch, found 'mean'"),
        ({"n_critic": 0}, "n_critic: expected at least 1, found 0"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer([real_batch(1)], **settings)


FILL = torch.tensor([-1.0, 0.25])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(pair: Tensor, move: tuple[int, ...]) -> Tensor:
    """One sample (C, H, W, D), moved by whole voxels; what comes in is ``FILL``."""
    result = FILL.view(-1, 1, 1, 1).expand_as(pair).clone()
    source, target = [slice(None)], [slice(None)]
    for step, size in zip(move, pair.shape[1:], strict=True):
        source.append(slice(max(0, -step), size - max(0, step)))
        target.append(slice(max(0, step), size - max(0, -step)))
    result[tuple(target)] = pair[tuple(source)]
    return result


def test_augmentation_at_zero_is_the_identity() -> None:
    pair = draw(2, 2, 4, 5, 6)
    torch.testing.assert_close(CriticAugmentation()(pair, FILL, rng()), pair, rtol=0, atol=0)


def test_shift_moves_each_sample_and_fills() -> None:
    reach, pair = 2, draw(8, 2, 4, 5, 6)
    out = CriticAugmentation(shift=reach)(pair, FILL, rng())
    span = range(-reach, reach + 1)
    moves = [(a, b, c) for a in span for b in span for c in span]
    found = set()
    for before, after in zip(pair, out, strict=True):
        fits = [m for m in moves if torch.allclose(moved(before, m), after, rtol=0, atol=1e-6)]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) >= 6  # of 125 moves, eight samples rarely share one
    assert {step for move in found for step in move} == set(span)


def test_gain_and_offset_change_the_image_alone() -> None:
    pair = draw(40, 2, 3, 4, 5)
    out = CriticAugmentation(gain=0.2, offset=0.1)(pair, FILL, rng())
    torch.testing.assert_close(out[:, 1], pair[:, 1], rtol=0, atol=0)
    factors, offsets = [], []
    for before, after in zip(pair[:, 0].flatten(1), out[:, 0].flatten(1), strict=True):
        factor, level = np.polyfit(before.double().numpy() + 1, after.double().numpy() + 1, 1)
        torch.testing.assert_close(after, (before + 1) * factor - 1 + level, **CLOSE)
        factors.append(factor)
        offsets.append(level)
    assert 0.8 <= min(factors) < 0.95
    assert 1.05 < max(factors) <= 1.2
    assert -0.1 <= min(offsets) < -0.03
    assert 0.03 < max(offsets) <= 0.1


def test_augmentation_is_differentiable() -> None:
    augmentation = CriticAugmentation(shift=1, gain=0.2, offset=0.1)
    pair = draw(2, 2, 3, 2, 3).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: augmentation(x, FILL, rng(3)), pair)
    # voxels that were moved out get no gradient, the others the shift's one
    shift = CriticAugmentation(shift=1)
    out = shift(pair, FILL, rng(3))
    (gradient,) = torch.autograd.grad(out.sum(), pair)
    assert set(gradient.unique().tolist()) == {0.0, 1.0}


def test_augmentation_depends_on_its_generator_alone() -> None:
    augmentation = CriticAugmentation(shift=2, gain=0.2, offset=0.1)
    pair = draw(4, 2, 4, 5, 6)
    first = augmentation(pair, FILL, rng(1))
    torch.manual_seed(77)
    torch.testing.assert_close(augmentation(pair, FILL, rng(1)), first, rtol=0, atol=0)
    assert not torch.equal(augmentation(pair, FILL, rng(2)), first)


class Tiny(nn.Module):
    """One parameter and one buffer."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("count", torch.tensor(value))


def test_averaged_weights_by_hand() -> None:
    """Shares of the old mean: none at first, then 3/12, 4/13, ... until the decay, here 0.4."""
    network = Tiny(1.0)
    averaged = AveragedWeights(network, decay=0.4)
    mean = 1.0
    for update, value in enumerate([3.0, -2.0, 5.0, 0.5, 8.0, 13.0], start=1):
        network.weight.data.fill_(value)
        network.count.fill_(value)
        averaged.update(network)
        share = [0.0, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4][update - 1]
        mean = share * mean + (1 - share) * value
        assert averaged.network.weight.item() == pytest.approx(mean, rel=1e-6)
        assert averaged.network.count.item() == value
    assert network.weight.item() == 13.0
    assert not averaged.network.weight.requires_grad


def test_averaged_weights_go_on_after_loading() -> None:
    network = Tiny(1.0)
    averaged, restored = AveragedWeights(network), AveragedWeights(Tiny(0.0))
    for value in (4.0, 9.0):
        network.weight.data.fill_(value)
        averaged.update(network)
    restored.load_state_dict(copy.deepcopy(averaged.state_dict()))
    network.weight.data.fill_(-3.0)
    averaged.update(network)
    restored.update(network)
    assert restored.network.weight.item() == averaged.network.weight.item()


def test_recalibration_gives_the_mean_statistics_of_the_batches() -> None:
    torch.manual_seed(0)
    network = Generator((16, 8, 8), latent_size=4, filters=8).eval()
    linear, unflatten, norm = network.stem[0], network.stem[1], network.stem[2]
    norm.running_mean.fill_(100)  # of other weights; to be forgotten
    batches = [torch.randn(3, 4) * scale for scale in (1, 2, 5)]
    recalibrate_batch_norm(network, batches)
    with torch.no_grad():
        inputs = [unflatten(linear(batch)).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([x.mean(dim=1) for x in inputs]).mean(dim=0)
    variance = torch.stack([x.var(dim=1) for x in inputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, mean, **CLOSE)
    torch.testing.assert_close(norm.running_var, variance, **CLOSE)
    assert not network.training
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm3d)] == [0.1] * 4


def test_sampled_weights_do_not_depend_on_the_batch() -> None:
    """``model_state`` is the averaged generator with statistics fixed: samples stand alone."""
    trainer = make_trainer([real_batch(2, seed=number) for number in range(2)], averaging=0.5)
    trainer.run()
    state = trainer.model_state()
    network = Generator(PATCH, latent_size=LATENT_SIZE, filters=FILTERS).eval()
    network.load_state_dict(state)
    for name, parameter in trainer.averaged.network.named_parameters():
        torch.testing.assert_close(state[name], parameter.data, rtol=0, atol=0)
    # the statistics are those of the averaged weights: they leave mean 0 and variance 1
    drawn = network.stem[1](network.stem[0](torch.randn(2000, LATENT_SIZE)))
    normalised = (drawn.transpose(0, 1).flatten(1) - state["stem.2.running_mean"][:, None]) / (
        state["stem.2.running_var"][:, None].sqrt()
    )
    assert normalised.mean(dim=1).abs().max() < 0.3
    assert 0.7 < normalised.std(dim=1).min() <= normalised.std(dim=1).max() < 1.3
    again = trainer.model_state()
    assert all(torch.equal(state[name], again[name]) for name in state)
    latent = torch.randn(3, LATENT_SIZE)
    torch.testing.assert_close(network(latent)[:1], network(latent[:1]), **CLOSE)


def test_spectral_norms_of_the_generators_step_are_computed_in_fp32() -> None:
    """A GPU would compute their products in half precision (on a CPU autocast leaves them be)."""
    trainer = make_trainer([real_batch(2)], norm="spectral", amp=True, amp_dtype="bfloat16")
    mixed: list[bool] = []
    for layer in trainer.critic.modules():
        if parametrize.is_parametrized(layer, "weight"):
            norm = layer.parametrizations["weight"][0]
            norm.register_forward_hook(lambda *_: mixed.append(torch.is_autocast_enabled("cpu")))
    trainer._generator_step(pairs(real_batch(2)))
    assert mixed
    assert not any(mixed)
