"""The arithmetic of the image sequence generator's training: who learns what from what."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from ignite.engine import Events
from tests.conftest import randomized
from torch import Tensor, nn
from torch.nn import functional

from medpair.engines.vid2vid import Sequence, Vid2VidTrainer
from medpair.networks.vid2vid import (
    ImageSequenceGenerator,
    MultiScaleCritic,
    Slice,
    SliceSegmenter,
    warp,
)

CLASSES, PAST, RADIUS, STEPS, SIZE = 3, 2, 1, 3, 16
NETWORKS = ("generator", "image_critic", "temporal_critic", "segmenter")


def batch_of(available: Any = ((1, 1), (1, 1)), steps: int = STEPS, seed: int = 0) -> Any:
    random = torch.Generator().manual_seed(seed)
    count = len(available)
    inside = torch.zeros(count, PAST + steps, SIZE, SIZE)
    inside[..., 2:14, 1:16] = 1
    image = torch.rand(inside.shape, generator=random) * 2 - 1
    rows = PAST + steps + 2 * RADIUS
    label = torch.randint(0, CLASSES, (count, rows, SIZE, SIZE), generator=random)
    return {
        "image": torch.where(inside > 0, image, -1.0),
        "label": label.to(torch.uint8),
        "inside": inside,
        "available": torch.tensor(available, dtype=torch.float32),
        "position": (torch.arange(steps) / 10 + 0.3).expand(count, steps),
    }


def telling_batch() -> Any:
    """Return a batch whose intensities are its labels."""
    batch = batch_of()
    current = batch["label"][:, RADIUS : RADIUS + PAST + STEPS].float() - 1
    return {**batch, "image": torch.where(batch["inside"] > 0, current, -1.0)}


def trainer_of(batches: Any = (), **options: Any) -> Vid2VidTrainer:
    torch.manual_seed(0)
    generator = ImageSequenceGenerator(
        CLASSES,
        RADIUS,
        PAST,
        channels=(8, 16),
        hidden=8,
        positions=True,
        contrast=options.pop("contrast", False),
    )
    randomized(generator)
    image_critic = MultiScaleCritic((2 * RADIUS + 1) * CLASSES + 1, 8, 1, 2)
    temporal_critic = MultiScaleCritic(PAST + 1, 8, 1, 2)
    segmenter = SliceSegmenter(CLASSES, (4, 8))
    critics = [*image_critic.parameters(), *temporal_critic.parameters()]
    return Vid2VidTrainer(
        "cpu",
        options.pop("max_epochs", 1),
        list(batches),
        generator,
        image_critic,
        temporal_critic,
        segmenter,
        torch.optim.Adam(generator.parameters(), 2e-3),
        torch.optim.Adam(critics, 2e-3),
        torch.optim.Adam(segmenter.parameters(), 2e-3),
        **options,
    )


@contextmanager
def only_changes(trainer: Vid2VidTrainer, *names: str) -> Iterator[None]:
    """Check that a step changes these networks, and no other."""
    before = {
        name: [p.detach().clone() for p in getattr(trainer, name).parameters()] for name in NETWORKS
    }
    yield
    for name, old in before.items():
        new = list(getattr(trainer, name).parameters())
        changed = [not torch.equal(a, b) for a, b in zip(old, new, strict=True)]
        assert any(changed) == (name in names), name


def test_each_network_learns_from_its_own_loss_alone() -> None:
    trainer = trainer_of()
    sequence = trainer._draw(batch_of())
    with only_changes(trainer, "segmenter"):
        trainer._segmenter_step(sequence)
    with only_changes(trainer, "image_critic", "temporal_critic"):
        trainer._critic_step(sequence)
    with only_changes(trainer, "generator"):
        trainer._generator_step(sequence)
    # the judges stood still for the generator's step only
    judges: list[nn.Module] = [getattr(trainer, name) for name in NETWORKS[1:]]
    assert all(p.requires_grad for judge in judges for p in judge.parameters())
    with only_changes(trainer, *NETWORKS):
        trainer._iteration(trainer, batch_of())


def test_every_part_of_the_generator_learns() -> None:
    trainer = trainer_of()
    before = {name: p.detach().clone() for name, p in trainer.generator.named_parameters()}
    trainer._iteration(trainer, batch_of())
    still = [n for n, p in trainer.generator.named_parameters() if torch.equal(before[n], p)]
    # a bias before an instance norm does nothing
    assert not [name for name in still if "bias" not in name]


def test_what_is_drawn_is_padded_like_the_real_slices() -> None:
    trainer = trainer_of()
    sequence = trainer._draw(batch_of())
    fake, real = sequence.fake(), sequence.real[:, PAST:]
    inside = sequence.inside[:, PAST:] > 0
    assert fake.shape == real.shape == (2, STEPS, 1, SIZE, SIZE)
    assert torch.equal(fake[~inside], real[~inside])
    drawn = torch.stack([slice_.image for slice_ in sequence.drawn], dim=1)
    torch.testing.assert_close(fake[inside], drawn[inside])
    (gradient,) = torch.autograd.grad(fake.square().sum(), sequence.drawn[0].image)
    assert (gradient[~inside[:, 0]] == 0).all()
    assert (gradient[inside[:, 0]] != 0).any()


def test_slices_are_drawn_from_the_generators_own_past() -> None:
    trainer = trainer_of()
    batch = batch_of(((1, 1), (0, 0)))
    sequence = trainer._draw(batch)
    images = [batch["image"][:, :1], batch["image"][:, 1:2], *sequence.fake().unbind(1)]
    there = [batch["available"][:, :1], batch["available"][:, 1:], *[torch.ones(2, 1)] * STEPS]
    for step, slice_ in enumerate(sequence.drawn):
        first = PAST + step
        window = batch["label"][:, first : first + 2 * RADIUS + 1]
        assert torch.equal(sequence.label[:, step], window)
        past = torch.cat(images[step : step + PAST], dim=1).detach()
        known = torch.cat(there[step : step + PAST], dim=1)
        again = Slice.of(trainer.generator(window, past, known, batch["position"][:, step]))
        torch.testing.assert_close(slice_.image, again.image)


def test_the_past_carries_no_gradient() -> None:
    sequence = trainer_of()._draw(batch_of())
    for step in range(1, STEPS):
        image = sequence.drawn[step].image.sum()
        earlier = [slice_.image for slice_ in sequence.drawn[:step]]
        gradients = torch.autograd.grad(image, earlier, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in gradients)


def test_the_temporal_critic_sees_whole_courses_only() -> None:
    trainer = trainer_of()
    batch = batch_of(((1, 1), (0, 1), (0, 0)))
    sequence = trainer._draw(batch)
    fake = sequence.fake()
    (image_critic, *single), (temporal_critic, real, drawn) = trainer._judged(sequence, fake)
    assert image_critic is trainer.image_critic
    assert temporal_critic is trainer.temporal_critic
    # step 0: the first; step 1: also the second; step 2: all
    rows = [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    mixed = torch.cat([sequence.real[:, :PAST], fake], dim=1)
    for images, courses in ((sequence.real, real), (mixed, drawn)):
        expected = torch.stack([images[n, step : step + PAST + 1, 0] for n, step in rows])
        torch.testing.assert_close(courses, expected)
    # the other critic sees every slice, under the labels around it
    labels = trainer.generator.labels(sequence.label.flatten(0, 1))
    for images, shown in zip((sequence.real[:, PAST:], fake), single, strict=True):
        torch.testing.assert_close(shown, torch.cat([labels, images.flatten(0, 1)], dim=1))


def test_without_a_whole_course_the_temporal_critic_rests() -> None:
    trainer = trainer_of()
    with only_changes(trainer, "generator", "image_critic", "segmenter"):
        result = trainer._iteration(trainer, batch_of(((0, 0), (0, 0)), steps=2))
    assert "temporal" not in result
    assert all(torch.tensor(value).isfinite() for value in result.values())


def test_critics_have_the_least_squares_loss() -> None:
    trainer = trainer_of()
    sequence = trainer._draw(batch_of())
    expected = torch.zeros(())
    with torch.no_grad():
        for critic, real, fake in trainer._judged(sequence, sequence.fake()):
            # instance normalisation: each image for itself
            pairs = zip(critic(real)[0], critic(fake)[0], strict=True)
            terms = [((a - 1).square().mean() + b.square().mean()) / 2 for a, b in pairs]
            expected += torch.stack(terms).mean()
    torch.testing.assert_close(trainer._critic_step(sequence).detach(), expected)


def test_the_generators_loss_is_the_weighted_sum() -> None:
    weights = {
        "adversarial_weight": 1.5,
        "feature_weight": 2.0,
        "perceptual_weight": 3.0,
        "alignment_weight": 5.0,
        "l1_weight": 7.0,
        "flow_weight": 11.0,
    }
    trainer = trainer_of(**weights)
    sequence = trainer._draw(telling_batch())
    for _ in range(10):
        trainer._segmenter_step(sequence)
    real, fake = sequence.real[:, PAST:].flatten(0, 1), sequence.fake().flatten(0, 1)
    with torch.no_grad():
        logits, features = trainer.segmenter(fake)
        real_logits, real_features = trainer.segmenter(real)
        scores = [c(f)[0] for c, _, f in trainer._judged(sequence, sequence.fake())]
        apart = []
        for critic, first, second in trainer._judged(sequence, sequence.fake()):
            layers = zip(critic(second)[1], critic(first)[1], strict=True)
            apart.append(torch.stack([functional.l1_loss(a, b) for a, b in layers]).mean())
    trainer._generator_step(sequence)
    losses = trainer.bad_steps.values
    close = functools.partial(pytest.approx, rel=1e-4)
    assert losses["l1"] == close(functional.l1_loss(fake, real).item())
    distances = [functional.l1_loss(a, b) for a, b in zip(features, real_features, strict=True)]
    assert losses["perceptual"] == close(torch.stack(distances).mean().item())
    label = sequence.label[:, :, RADIUS].flatten(0, 1).long()
    inside = sequence.inside[:, PAST:, 0].flatten(0, 1) > 0
    entropies = [
        functional.cross_entropy(x, label, reduction="none")[inside].mean().item()
        for x in (logits, real_logits)
    ]
    assert entropies[0] > entropies[1] + 0.01
    assert losses["alignment"] == close(entropies[0] - entropies[1])
    for name, maps in zip(("adversarial", "temporal"), scores, strict=True):
        expected = torch.stack([(score - 1).square().mean() for score in maps]).mean()
        assert losses[name] == close(expected.item())
    assert min(apart) > 0
    assert losses["features"] == close(torch.stack(apart).mean().item())
    assert losses["generator"] == close(
        1.5 * (losses["adversarial"] + losses["temporal"])
        + 2 * losses["features"]
        + 3 * losses["perceptual"]
        + 5 * losses["alignment"]
        + 7 * losses["l1"]
        + 11 * losses["flow"]
    )


def test_drawn_slices_need_not_show_labels_better_than_real_ones() -> None:
    trainer = trainer_of()
    sequence = trainer._draw(telling_batch())
    real = sequence.real[:, PAST:]
    opinion = trainer._segmenters_opinion(sequence, real)
    assert opinion["alignment"] == 0
    assert opinion["perceptual"] == 0
    # real slices that show nothing: whatever is drawn is as good
    blind = dataclasses.replace(sequence, real=torch.full_like(sequence.real, -1.0))
    for _ in range(20):
        trainer._segmenter_step(sequence)
    assert trainer._segmenters_opinion(blind, real)["alignment"] == 0
    assert trainer._segmenters_opinion(sequence, blind.real[:, PAST:])["alignment"] > 0.01


def moving_sequence(flow: tuple[float, float], available: float = 1.0) -> Sequence:
    """Return a picture that moves one pixel down per slice; each slice has the same flow."""
    torch.manual_seed(1)
    picture = torch.rand(1, 1, SIZE + 5, SIZE)
    real = torch.stack([picture[:, :, 5 - i : 5 - i + SIZE] for i in range(5)], dim=1)
    inside = torch.zeros_like(real)
    inside[..., 2:-2, 2:-2] = 1
    field = torch.tensor(flow).view(1, 2, 1, 1).expand(1, 2, SIZE, SIZE)
    none = torch.zeros(1, 1, SIZE, SIZE)
    drawn = [Slice(none, field, none, none)] * STEPS
    there = torch.full((1, PAST), available)
    return Sequence(real, torch.zeros(1, STEPS, 3, SIZE, SIZE), inside, there, drawn)


def test_the_flow_loss_is_nothing_where_neighbours_are_warped_onto_each_other() -> None:
    trainer = trainer_of()
    assert trainer._flow_loss(moving_sequence((-1.0, 0.0))) < 1e-5
    wrong = moving_sequence((1.0, 0.0))
    moved = warp(wrong.real[:, PAST - 1], wrong.drawn[0].flow)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    first = (moved - wrong.real[:, PAST])[inner].abs().mean()
    assert first > 0.2
    torch.testing.assert_close(trainer._flow_loss(wrong), first, rtol=0.1, atol=0)
    # where there is no last slice, the first step's flow means nothing
    begun = moving_sequence((-1.0, 0.0), available=0.0)
    begun.drawn[0] = wrong.drawn[0]
    assert trainer._flow_loss(begun) < 1e-5


def test_training_approaches_the_real_slices() -> None:
    trainer = trainer_of([telling_batch()] * 25, averaging=0.5)
    history: list[dict[str, float]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: history.append(engine.state.output)
    )
    trainer.run()
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in history)
    for key in ("l1", "segmenter", "generator"):
        assert history[-1][key] < 0.8 * history[0][key], key
    # what is saved are the averaged weights
    own = trainer.generator.state_dict()
    mean = trainer.model_state()
    assert mean.keys() == own.keys()
    changed = [key for key in own if own[key].is_floating_point() and not own[key].equal(mean[key])]
    assert changed
    assert max((own[key] - mean[key]).abs().max() for key in changed) < 0.05


def test_a_loss_that_is_not_finite_stops_with_the_iteration() -> None:
    bad = batch_of()
    bad["image"][0, PAST - 1] = float("nan")
    with pytest.raises(FloatingPointError, match="iteration 2: expected finite losses"):
        trainer_of([batch_of(), bad], max_bad_steps=1).run()
    # only the segmenter, which sees real slices alone, has learned
    trainer = trainer_of(max_bad_steps=1)
    with only_changes(trainer, "segmenter"), pytest.raises(FloatingPointError):
        trainer._iteration(trainer, bad)


@pytest.mark.parametrize("name", ["amp", "channels_last"])
def test_text_for_a_flag_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected True or False, found 'false'"):
        trainer_of(**{name: "false"})


def test_mixed_precision_stays_close() -> None:
    results = [trainer_of(amp=amp)._iteration(None, batch_of()) for amp in (False, True)]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, rel=0.1, abs=0.02), key


def test_everything_that_learns_is_in_the_checkpoint() -> None:
    trainer = trainer_of()
    held = trainer.state_objects()
    assert set(held) == {
        *NETWORKS,
        "optimizer",
        "critic_optimizer",
        "segmenter_optimizer",
        "averaged",
        "bad_steps",
    }
    result: list[Tensor] = []
    for name in ("optimizer", "critic_optimizer", "segmenter_optimizer"):
        result += [p for group in held[name].param_groups for p in group["params"]]
    learned = [p for name in NETWORKS for p in held[name].parameters()]
    assert {id(p) for p in result} == {id(p) for p in learned}


def test_every_slice_of_a_sequence_is_told_its_volumes_contrast() -> None:
    trainer = trainer_of(contrast=True)
    batch = {**batch_of(), "contrast": torch.tensor([[0.1, 0.9], [-0.2, 0.4]])}
    told: list[Tensor] = []
    trainer.generator.register_forward_pre_hook(lambda _, given: told.append(given[4]))
    trainer._draw(batch)
    assert len(told) == STEPS
    assert all(torch.equal(means, batch["contrast"]) for means in told)
