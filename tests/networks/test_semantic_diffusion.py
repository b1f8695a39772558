"""The refiner's denoiser: its views, its label maps, and what may be computed once."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from tests.conftest import randomized
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from medpair.engines.diffusion import recompute_activations
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser
from medpair.networks.spade import places_of

CLASSES = 3
Views = Literal["separate", "shared"]


def denoiser(views: Views = "shared", **options: Any) -> SemanticDenoiser:
    settings = {
        "channels": (8, 16),
        "num_res_blocks": 1,
        "attention_levels": (False, True),
        "hidden": 8,
        **options,
    }
    network = randomized(SemanticDenoiser(CLASSES, views=views, **settings))
    assert isinstance(network, SemanticDenoiser)
    return network


@pytest.fixture
def slices() -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    x = torch.randn(3, 1, 8, 12, generator=random)
    label = torch.randint(0, CLASSES, (3, 8, 12), generator=random)
    return x, torch.tensor([1.0, 400.0, 990.0]), label


def predict(
    network: SemanticDenoiser, slices: tuple[Tensor, Tensor, Tensor], view: str = "axial"
) -> Tensor:
    x, time, label = slices
    return network(x, time, network.modulations(network.one_hot(label), view), view)


@pytest.mark.parametrize("views", ["separate", "shared"])
@pytest.mark.parametrize("output_factor", [1, 2])
def test_views_are_told_apart(
    views: Views, output_factor: int, slices: tuple[Tensor, Tensor, Tensor]
) -> None:
    network = denoiser(views, output_factor=output_factor)
    results = [predict(network, slices, view) for view in VIEWS]
    assert all(result.shape == (3, output_factor, 8, 12) for result in results)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(results[one], results[two])


def test_separate_views_share_no_weight(slices: tuple[Tensor, Tensor, Tensor]) -> None:
    network = denoiser("separate")
    predict(network, slices, "coronal").square().sum().backward()
    for name, part in network.networks.items():
        touched = [p.grad is not None and bool(p.grad.any()) for p in part.parameters()]
        assert any(touched) == (name == "coronal")
    count = {v: sum(p.numel() for p in denoiser(v).parameters()) for v in ("separate", "shared")}
    views = denoiser("shared").network_of("axial").view
    assert views is not None
    assert count["separate"] == 3 * (count["shared"] - views.weight.numel())


def test_a_shared_network_without_its_view_embedding_is_the_same_for_all(
    slices: tuple[Tensor, Tensor, Tensor],
) -> None:
    network = denoiser("shared")
    views = network.network_of("axial").view
    assert views is not None
    torch.nn.init.zeros_(views.weight)
    first = predict(network, slices, "axial")
    assert all(torch.equal(predict(network, slices, view), first) for view in VIEWS)


def test_labels_steer_each_slice_for_itself(slices: tuple[Tensor, Tensor, Tensor]) -> None:
    network = denoiser()
    x, time, label = slices
    other = label.clone()
    other[1] = (other[1] + 1) % CLASSES
    one, two = predict(network, slices), predict(network, (x, time, other))
    torch.testing.assert_close(one[[0, 2]], two[[0, 2]])
    assert (one[1] - two[1]).abs().max() > 1e-3
    # whatever the noisy image is, the modulations are those of the labels alone
    modulations = network.modulations(network.one_hot(label), "axial")
    again = network(x, time, [(a.clone(), b.clone()) for a, b in modulations], "axial")
    assert torch.equal(again, one)
    alone = predict(network, (x[1:2], time[1:2], label[1:2]))
    torch.testing.assert_close(alone, one[1:2], rtol=1e-4, atol=1e-5)


def test_no_label_map_is_all_zero(slices: tuple[Tensor, Tensor, Tensor]) -> None:
    network = denoiser()
    label = slices[2]
    one_hot = network.one_hot(label)
    assert one_hot.shape == (3, CLASSES, 8, 12)
    assert torch.equal(one_hot.argmax(1), label)
    assert (one_hot.sum(1) == 1).all()
    withheld = network.modulations(torch.zeros_like(one_hot), "sagittal")
    background = network.modulations(network.one_hot(torch.zeros_like(label)), "sagittal")
    for (gamma, beta), (other_gamma, other_beta) in zip(withheld, background, strict=True):
        # nothing depends on the place but for the convolutions' own borders
        inner = gamma[..., 2:-2, 2:-2]
        if inner.numel():
            torch.testing.assert_close(inner, inner[:1, :, :1, :1].expand_as(inner))
        assert not torch.allclose(gamma, other_gamma)
        assert not torch.allclose(beta, other_beta)


def test_settings_rebuild_the_network(slices: tuple[Tensor, Tensor, Tensor]) -> None:
    network = denoiser("separate", output_factor=2, channels=(8, 8, 16), attention_levels=(0, 0, 1))
    assert network.factor == 4
    again = SemanticDenoiser(**network.settings)
    again.load_state_dict(network.state_dict())
    assert torch.equal(predict(again, slices, "coronal"), predict(network, slices, "coronal"))


def test_other_kinds_of_views_are_refused() -> None:
    with pytest.raises(ValueError, match="views: expected separate or shared, found 'one'"):
        SemanticDenoiser(CLASSES, views="one")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["noise", "regions", "flat", "none"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_what_is_kept_once_for_each_neighbourhood_is_what_each_pixel_gets(
    kind: str, layout: torch.memory_format
) -> None:
    network = denoiser(channels=(8, 16, 16), attention_levels=(False, False, True))
    # of one channel, slices themselves have no layout
    network = convert_conv2d_weight_memory_format(network, layout)
    random = torch.Generator().manual_seed(4)
    label = torch.randint(0, CLASSES, (3, 24, 16), generator=random)
    if kind in ("regions", "flat"):
        label[:] = 1
    if kind == "regions":
        label[:, 6:, :9], label[1, 12:] = 2, 0
    one_hot = network.one_hot(label if kind != "none" else torch.full_like(label, 99))
    x = torch.randn(3, 1, 24, 16, generator=random)
    time = torch.tensor([1.0, 400.0, 990.0])
    whole, kept = (
        method(one_hot, "axial") for method in (network.modulations, network.compact_modulations)
    )
    with torch.no_grad():
        expected = network(x, time, whole, "axial")
        torch.testing.assert_close(network(x, time, kept, "axial"), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(network(x, time, None, "axial", one_hot), expected)
    # with gradients nothing is changed in place: the same numbers
    torch.testing.assert_close(network(x, time, kept, "axial"), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(x, time, whole, "axial"), expected)
    # of 3 x 24 x 16 pixels: one class at 25 places from the border, or few edges and corners
    most = {"noise": 1152 + CLASSES + 2, "regions": 144, "flat": CLASSES + 27, "none": CLASSES + 27}
    assert kept[-1][1].shape[1] <= most[kind]


def test_two_neighbourhoods_share_a_row_only_if_they_are_alike() -> None:
    random = torch.Generator().manual_seed(5)
    label = torch.randint(0, 2, (2, 12, 14), generator=random)
    label[0, :7] = 1
    places = places_of(functional.one_hot(label, 3).movedim(-1, 1).float())
    around = functional.pad(label + 1, (2, 2, 2, 2))
    seen = around.unfold(1, 5, 1).unfold(2, 5, 1).flatten(3).flatten(0, 2)
    row = places.index.flatten().long()
    same = (seen[:, None] == seen).all(dim=2)
    assert torch.equal(same, row[:, None] == row)
    assert torch.equal(seen[places.pixels[row]], seen)


def test_a_block_that_computes_its_activations_again_has_the_same_gradients(
    slices: tuple[Tensor, Tensor, Tensor],
) -> None:
    network = denoiser(output_factor=2)
    x, time, label = slices
    kept, gradients = [], []
    for recompute in (False, True):
        recompute_activations(network, recompute)
        network.zero_grad()
        sizes: list[int] = []

        def packed(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor):
            output = network(x, time, None, "coronal", network.one_hot(label))
        kept.append(sum(sizes))
        output.square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert kept[1] < kept[0] / 2
