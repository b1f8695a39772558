"""The image sequence generator's equation, the warp, and what the critics and the segmenter see."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import randomized
from torch import Tensor
from torch.nn import functional

from medpair.networks.vid2vid import (
    ImageSequenceGenerator,
    MultiScaleCritic,
    Slice,
    SliceSegmenter,
    warp,
)

CLASSES = 3


def generator(**options: Any) -> ImageSequenceGenerator:
    settings = {"num_classes": CLASSES, "channels": (8, 16), "hidden": 8, **options}
    network = randomized(ImageSequenceGenerator(**settings))
    assert isinstance(network, ImageSequenceGenerator)
    return network


def slice_of(network: ImageSequenceGenerator, *inputs: Tensor) -> Slice:
    return Slice.of(network(*inputs))


def inputs(past: int = 2, radius: int = 1, batch: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    label = torch.randint(0, CLASSES, (batch, 2 * radius + 1, 8, 12), generator=random)
    return label, torch.rand(batch, past, 8, 12, generator=random) * 2 - 1


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -3), (-1, 2), (5, 5)])
def test_warp_by_whole_pixels_is_exact(shift: tuple[int, int]) -> None:
    image = torch.rand(2, 3, 7, 9)
    flow = torch.tensor(shift, dtype=torch.float32).view(1, 2, 1, 1).expand(2, 2, 7, 9)
    rows = (torch.arange(7) + shift[0]).clamp(0, 6)
    columns = (torch.arange(9) + shift[1]).clamp(0, 8)
    torch.testing.assert_close(warp(image, flow), image[:, :, rows][..., columns])


def test_warp_moves_each_pixel_by_its_own_flow() -> None:
    image = torch.rand(1, 1, 6, 6)
    flow = torch.randint(-2, 3, (1, 2, 6, 6)).float()
    rows = (torch.arange(6)[:, None] + flow[0, 0].long()).clamp(0, 5)
    columns = (torch.arange(6) + flow[0, 1].long()).clamp(0, 5)
    torch.testing.assert_close(warp(image, flow)[0, 0], image[0, 0, rows, columns])


def test_gradient_reaches_the_flow() -> None:
    # on a plane, the warped image is linear in the flow: its slopes are the plane's
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    image = (3 * rows - 2 * columns)[None, None]
    flow = torch.full((1, 2, 8, 8), 0.3, requires_grad=True)
    warped = warp(image, flow)
    middle = (slice(None), slice(None), slice(1, 7), slice(1, 7))
    torch.testing.assert_close(warped[middle], (image + 3 * 0.3 - 2 * 0.3)[middle])
    warped.sum().backward()
    assert flow.grad is not None
    torch.testing.assert_close(flow.grad[0, 0, 1:7, 1:7], torch.full((6, 6), 3.0))
    torch.testing.assert_close(flow.grad[0, 1, 1:7, 1:7], torch.full((6, 6), -2.0))


@pytest.mark.parametrize(("past", "radius"), [(1, 0), (2, 1), (3, 2)])
def test_a_slice_is_composed_of_what_is_drawn_and_what_is_moved(past: int, radius: int) -> None:
    network = generator(past=past, radius=radius)
    kept: list[Tensor] = []
    network.to_image.register_forward_hook(lambda module, args, output: kept.append(output))
    label, images = inputs(past, radius)
    result = slice_of(network, label, images, torch.ones(2, past))
    raw = torch.tanh(kept[0])
    assert result.image.shape == result.warped.shape == (2, 1, 8, 12)
    assert result.flow.shape == (2, 2, 8, 12)
    assert (result.flow.abs() > 1e-3).any()
    assert ((result.occlusion > 0) & (result.occlusion < 1)).all()
    torch.testing.assert_close(result.warped, warp(images[:, -1:], result.flow))
    composed = result.occlusion * raw + (1 - result.occlusion) * result.warped
    torch.testing.assert_close(result.image, composed)
    assert result.image.abs().max() <= 1 + 1e-6


def test_without_past_a_slice_is_drawn_anew() -> None:
    network = generator()
    kept: list[Tensor] = []
    network.to_image.register_forward_hook(lambda module, args, output: kept.append(output))
    label, images = inputs()
    none = torch.zeros(2, 2)
    one, two = slice_of(network, label, images, none), slice_of(network, label, 5 - images, none)
    assert torch.equal(one.image, two.image)
    assert (one.occlusion == 1).all()
    torch.testing.assert_close(one.image, torch.tanh(kept[0]), rtol=0, atol=0)
    # each image of a batch for itself
    mixed = slice_of(network, label, images, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    torch.testing.assert_close(mixed.image[0], one.image[0])
    assert (mixed.image[1] - one.image[1]).abs().max() > 1e-3
    whole = slice_of(network, label, images, torch.ones(2, 2))
    torch.testing.assert_close(mixed.image[1], whole.image[1])


def test_only_available_images_are_seen() -> None:
    network = generator()
    label, images = inputs()
    changed = images.clone()
    changed[:, 0] = torch.rand(2, 8, 12)
    last_only = torch.tensor([[0.0, 1.0]]).expand(2, 2)
    assert torch.equal(
        slice_of(network, label, images, last_only).image,
        slice_of(network, label, changed, last_only).image,
    )
    both = torch.ones(2, 2)
    assert not torch.allclose(
        slice_of(network, label, images, both).image, slice_of(network, label, changed, both).image
    )


def test_training_begins_without_movement() -> None:
    network = ImageSequenceGenerator(CLASSES, channels=(8, 16), hidden=8)
    label, images = inputs()
    result = slice_of(network, label, images, torch.ones(2, 2))
    assert (result.flow == 0).all()
    assert (result.occlusion == 0.5).all()
    torch.testing.assert_close(result.warped, images[:, -1:])


def test_label_windows_are_one_hot_slice_by_slice() -> None:
    network = generator(radius=1)
    label, images = inputs(batch=1)
    encoded = network.labels(label)
    assert encoded.shape == (1, 3 * CLASSES, 8, 12)
    for number in range(3):
        for k in range(CLASSES):
            expected = (label[:, number] == k).float()
            assert torch.equal(encoded[:, number * CLASSES + k], expected)
    assert torch.equal(network.labels(label.to(torch.uint8)), encoded)
    # every slice of the window acts
    before = slice_of(network, label, images, torch.ones(1, 2)).image
    for number in range(3):
        other = label.clone()
        other[:, number] = (other[:, number] + 1) % CLASSES
        assert not torch.allclose(slice_of(network, other, images, torch.ones(1, 2)).image, before)


def test_the_place_in_the_volume_acts_where_it_is_asked_for() -> None:
    network = generator(positions=True)
    label, images = inputs()
    there = torch.ones(2, 2)
    low, high = (
        slice_of(network, label, images, there, torch.full((2,), p)).image for p in (0.2, 0.8)
    )
    assert (low - high).abs().max() > 1e-3
    each = slice_of(network, label, images, there, torch.tensor([0.2, 0.8])).image
    torch.testing.assert_close(each[0], low[0])
    torch.testing.assert_close(each[1], high[1])
    # the critics' labels are without it
    assert network.labels(label).shape[1] == 3 * CLASSES
    with pytest.raises(ValueError, match="position: expected the slice's place in the volume"):
        slice_of(network, label, images, there)
    plain = generator()
    place = torch.tensor([0.2, 0.8])
    assert torch.equal(plain(label, images, there), plain(label, images, there, place))


def test_slices_of_odd_sizes_are_refused() -> None:
    network = generator(channels=(8, 8, 8))
    with pytest.raises(ValueError, match=r"multiples of 4, found \(8, 10\)"):
        slice_of(network, torch.zeros(1, 3, 8, 10), torch.zeros(1, 2, 8, 10), torch.ones(1, 2))


def test_settings_rebuild_the_network() -> None:
    network = generator(channels=(8, 12, 16), past=1, radius=2, positions=True)
    assert network.factor == 4
    again = ImageSequenceGenerator(**network.settings)
    again.load_state_dict(network.state_dict())
    label, images = inputs(1, 2)
    there, place = torch.ones(2, 1), torch.tensor([0.1, 0.6])
    assert torch.equal(
        slice_of(again, label, images, there, place).image,
        slice_of(network, label, images, there, place).image,
    )


def test_each_critic_sees_half_the_size_of_the_one_before() -> None:
    critic = randomized(MultiScaleCritic(4, channels=8, num_layers=1, num_scales=3))
    x = torch.rand(2, 4, 32, 40)
    scores, features = critic(x)
    assert len(scores) == 3
    assert len(features) == 3 * 2
    for number, (score, single) in enumerate(zip(scores, critic.critics, strict=True)):
        smaller = functional.avg_pool2d(x, 2**number)
        *inner, own = single(smaller)
        torch.testing.assert_close(score, own)
        for one, two in zip(inner, features[2 * number : 2 * number + 2], strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("layers", "scales", "least"), [(1, 1, 6), (2, 2, 24), (3, 2, 48)])
def test_slices_too_small_for_the_critics_are_refused(layers: int, scales: int, least: int) -> None:
    critic = MultiScaleCritic(1, channels=4, num_layers=layers, num_scales=scales)
    scores, _ = critic(torch.rand(1, 1, least, least))
    assert scores[-1].shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=f"at least {least} pixels a side, found"):
        critic(torch.rand(1, 1, 2 * least, least - 1))


def test_the_segmenter_learns_what_the_slices_show() -> None:
    torch.manual_seed(0)
    segmenter = SliceSegmenter(CLASSES, channels=(8, 12, 16))
    label = torch.arange(CLASSES).repeat_interleave(4)[None, None].expand(4, 16, 12).clone()
    label[2:] = label[2:].flip(2)
    image = label[:, None] - 1.0
    logits, features = segmenter(image)
    assert logits.shape == (4, CLASSES, 16, 12)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 16, 12), (12, 8, 6), (16, 4, 3)]
    optimizer = torch.optim.Adam(segmenter.parameters(), lr=1e-2)
    for _ in range(40):
        loss = functional.cross_entropy(segmenter(image)[0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (segmenter(image)[0].argmax(1) == label).float().mean() > 0.95


def test_contrast_is_painted_onto_the_current_labels() -> None:
    network = generator(contrast=True)
    label, past = inputs()
    means = torch.tensor([[0.1, 0.9], [-0.2, 0.4]])
    seen: list[Tensor] = []
    network.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    drawn = network(label, past, contrast=means)
    channels = 3 * CLASSES
    for volume in range(2):
        # the background has none
        painted = torch.cat([torch.zeros(1), means[volume]])[label[volume, 1].long()]
        assert torch.equal(seen[0][volume, channels], painted)
    assert torch.equal(seen[0][:, :channels], network.labels(label))
    # SPADE sees it too: other means, another picture; not told is the cohort's mean
    other = network(label, past, contrast=means + torch.tensor([[0.0], [0.5]]))
    assert torch.equal(other[0], drawn[0])
    assert (other[1, 0] - drawn[1, 0]).abs().max() > 0.01
    torch.testing.assert_close(network(label, past), network(label, past, contrast=0 * means))
    twin = ImageSequenceGenerator(**network.settings)
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin(label, past, contrast=means), drawn)


@pytest.mark.parametrize(("past", "radius"), [(0, 1), (-1, 1), (2, -1)])
def test_slices_that_cannot_be_seen_are_refused(past: int, radius: int) -> None:
    with pytest.raises(ValueError, match="past, radius: expected at least 1 and 0 slices, found"):
        ImageSequenceGenerator(3, radius=radius, past=past)
