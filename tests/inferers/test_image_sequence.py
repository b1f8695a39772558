"""Image volumes slice by slice: lock-step, directions, padding, and what each slice sees."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from tests.conftest import randomized
from torch import Tensor
from torch.nn import functional

from medpair.data.traits import Traits, traits_entry
from medpair.inferers.image_sequence import ImageSequenceInferer, sequence_generator_from_card
from medpair.networks.vid2vid import ImageSequenceGenerator

CLASSES = 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def generator(**options: Any) -> ImageSequenceGenerator:
    settings = {"num_classes": CLASSES, "channels": (8, 16), "hidden": 8, **options}
    network = randomized(sequence_generator_from_card({"network": settings}))
    assert isinstance(network, ImageSequenceGenerator)
    return network


def inferer(
    axis: int = 2, direction: Literal["forward", "backward"] = "forward"
) -> ImageSequenceInferer:
    return ImageSequenceInferer({"sequence": {"axis": axis}}, direction)


def labels(batch: int = 3, size: tuple[int, int, int] = (8, 12, 6), seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, CLASSES, (batch, 1, *size), generator=random).to(torch.uint8)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_volumes_in_lock_step_are_those_drawn_alone(direction: Any) -> None:
    network, method, label = generator(), inferer(direction=direction), labels()
    together = method(label, network)
    assert together.shape == (3, 1, 8, 12, 6)
    alone = torch.cat([method(label[i : i + 1], network) for i in range(3)])
    torch.testing.assert_close(together, alone, **CLOSE)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("past", "radius"), [(1, 0), (2, 1), (3, 2)])
def test_each_slice_sees_its_labels_and_what_was_drawn_before(
    past: int, radius: int, direction: Any
) -> None:
    network, label = generator(past=past, radius=radius, positions=True), labels(1)
    volume = inferer(direction=direction)(label, network)
    planes, places = label[0, 0].permute(2, 0, 1), torch.arange(6) / 6
    if direction == "backward":
        planes, places, volume = planes.flip(0), places.flip(0), volume.flip(4)
    drawn: list[Tensor] = []
    with torch.no_grad():
        for z in range(6):
            window = torch.stack(
                [planes[min(max(z + d, 0), 5)] for d in range(-radius, radius + 1)]
            )
            before = [drawn[z - k] if z >= k else torch.zeros(8, 12) for k in range(past, 0, -1)]
            there = torch.tensor([[float(z >= k) for k in range(past, 0, -1)]])
            past_images = torch.stack(before)[None]
            drawn.append(network(window[None], past_images, there, places[z : z + 1])[0, 0])
    expected = torch.stack(drawn, dim=-1)[None, None]
    torch.testing.assert_close(volume, expected, **CLOSE)


def test_backward_is_forward_on_the_flipped_volume() -> None:
    network, label = generator(), labels(2)
    backward = inferer(direction="backward")(label, network)
    forward = inferer()(label.flip(4), network).flip(4)
    torch.testing.assert_close(backward, forward, rtol=0, atol=0)
    assert (backward - inferer()(label, network)).abs().max() > 0.01


@pytest.mark.parametrize("axis", [0, 1])
def test_the_slicing_axis_may_be_any(axis: int) -> None:
    network, label = generator(), labels(2, (8, 8, 8))
    turned = inferer(axis)(label.movedim(4, axis + 2), network).movedim(axis + 2, 4)
    torch.testing.assert_close(turned, inferer()(label, network), **CLOSE)


def test_intensities_stay_in_range() -> None:
    network = randomized(generator(), std=3.0)
    assert isinstance(network, ImageSequenceGenerator)
    volume = inferer()(labels(), network)
    assert volume.dtype == torch.float32
    assert 0.9 < volume.abs().max() <= 1


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_padded_slices_are_neither_past_nor_neighbours(direction: Any) -> None:
    network, method, label = generator(radius=2), inferer(direction=direction), labels(2)
    # the first volume begins two slices later than the second, in the same frame
    framed = torch.zeros(2, 1, 8, 12, 11, dtype=torch.uint8)
    inside = torch.zeros(2, 1, 8, 12, 11)
    for number, start in enumerate((3, 1)):
        framed[number, ..., start : start + 6] = label[number]
        inside[number, ..., start : start + 6] = 1
    volume = method(framed, network, inside=inside)
    for number, start in enumerate((3, 1)):
        alone = method(label[number : number + 1], network)[0]
        torch.testing.assert_close(volume[number, ..., start : start + 6], alone, **CLOSE)
    assert (volume[inside == 0] == -1).all()


def test_the_past_is_padded_as_in_training() -> None:
    network, label = generator(past=1), labels(1)
    inside = functional.pad(torch.ones(1, 1, 5, 9, 6), (0, 0, 1, 2, 1, 2))
    volume = inferer()(label, network, inside=inside)
    seen = torch.where(inside > 0, volume, -1.0)[..., 2].flatten(0, 1)[None]
    window = label[0, 0, ..., 2:5].permute(2, 0, 1)[None]
    with torch.no_grad():
        image = network(window, seen, torch.ones(1, 1))[:, :1]
    torch.testing.assert_close((volume[..., 3] * inside[..., 3])[0], (image * inside[..., 3])[0])


def test_other_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="direction: expected forward or backward, found 'up'"):
        inferer(direction="up")  # type: ignore[arg-type]
    assert inferer(direction="backward").origin() == {"direction": "backward"}


def contrasted(**options: Any) -> ImageSequenceInferer:
    values = np.array([[0.1, 0.5], [0.2, 0.7], [0.3, 0.9], [0.0, 0.4]])
    traits = Traits.fit(["a", "b"], values)
    card = {
        "sequence": {"axis": 2},
        "network": {"contrast": True},
        "cohort": {"labels": ["background", "a", "b"]},
        "contrast_traits": traits_entry(traits),
    }
    return ImageSequenceInferer(card, **options)


def test_each_volume_has_a_contrast_of_its_own() -> None:
    network, label = generator(contrast=True), labels(3)
    method = contrasted(seed=4)
    together = method(label, network, index=torch.tensor([7, 2, 5]))
    for row, number in enumerate((7, 2, 5)):
        alone = method(label[row : row + 1], network, index=torch.tensor([number]))
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
    # the same labels under another number, or with another seed, look different
    one = label[:1]
    first, second = (method(one, network, index=torch.tensor([i])) for i in (2, 7))
    assert (first - second).abs().max() > 0.01
    other = contrasted(seed=5)(one, network, index=torch.tensor([2]))
    assert (first - other).abs().max() > 0.01
    assert method.origin() == {"direction": "forward", "seed": 4}
    assert inferer().origin() == {"direction": "forward"}


def test_wanted_contrast_is_what_the_network_is_told() -> None:
    method = contrasted(contrast={"b": 2.0})
    told = method._contrast(list(range(50)), torch.device("cpu"))
    assert told is not None
    assert (told[:, 1] == 2.0).all()
    # a goes along with b
    assert told[:, 0].mean() > 1.0
    assert method.origin()["wanted_contrast"] == {"b": 2.0}
    with pytest.raises(ValueError, match=r"contrast: expected classes among .* found 'c'"):
        contrasted(contrast={"c": 1.0})
    with pytest.raises(ValueError, match="trained without contrast_conditioning"):
        ImageSequenceInferer({"sequence": {"axis": 2}}, contrast={"a": 1.0})
