"""What is declared of a network is true of it: its tensors change shape there and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from medpair.data.label_codes import LabelCode
from medpair.networks import transfer
from medpair.networks.mcdpm import MaskSequenceDenoiser
from medpair.networks.segmenters import segmenter
from medpair.networks.semantic_diffusion import SemanticDenoiser
from medpair.networks.transfer import Anatomy
from medpair.networks.vid2vid import ImageSequenceGenerator, MultiScaleCritic, SliceSegmenter
from medpair.networks.wgan import Critic, Generator

Built = tuple[nn.Module, Anatomy]
SIZES = {2: (32, 16, 16), 3: (48, 32, 64)}


def pairs(labels: int) -> Built:
    net = Generator(SIZES[labels], labels, 8, 16, 4)
    return net, transfer.pair_generator(**net.settings)


def critic(norm: str) -> Callable[[int], Built]:
    def build(labels: int) -> Built:
        size = SIZES[labels]
        return Critic(size, labels, 16, norm), transfer.pair_critic(size, labels)

    return build


def masks(objective: str, encoding: str) -> Callable[[int], Built]:
    def build(labels: int) -> Built:
        # one more digit for the larger label set
        code = LabelCode(labels + 2, encoding)
        classes = labels + 2 if objective == "classes" else 0
        factor = 1 if classes else 2
        net = MaskSequenceDenoiser(
            4, code.channels, factor, (8, 16), 1, (False, True), 2, classes, 8
        )
        return net, transfer.mask_denoiser(net.settings, code.settings)

    return build


def views(kind: str) -> Callable[[int], Built]:
    def build(labels: int) -> Built:
        net = SemanticDenoiser(labels + 1, 1, kind, (8, 16), 1, (False, True), 8)
        return net, transfer.view_denoiser(net.settings)

    return build


def sequences(labels: int) -> Built:
    net = ImageSequenceGenerator(labels + 1, 1, 2, (8, 16), 8, positions=True)
    return net, transfer.sequence_generator(net.settings)


def sequence_critic(labels: int) -> Built:
    return MultiScaleCritic(3 * (labels + 1) + 1, 8, 1, 2), transfer.sequence_critic(1, labels + 1)


def slices(labels: int) -> Built:
    return SliceSegmenter(labels + 1), transfer.slice_segmenter(labels + 1)


def segmenters(architecture: str) -> Callable[[int], Built]:
    def build(labels: int) -> Built:
        settings = {
            "architecture": architecture,
            "num_classes": labels + 1,
            "patch_size": (64, 32, 32) if architecture == "swin_unetr" else SIZES[labels],
            "channels": [4, 8, 16, 16],
            "hidden_size": 24,
            "feature_size": 12,
        }
        return segmenter(**settings), transfer.segmenter(settings)

    return build


NETWORKS: dict[str, Callable[[int], Built]] = {
    "pairs": pairs,
    **{f"critic_{norm}": critic(norm) for norm in ("spectral", "instance", "none")},
    **{f"masks_{code}": masks("v", code) for code in ("bits", "grey", "one_hot")},
    **{f"classes_{code}": masks("classes", code) for code in ("bits", "one_hot")},
    **{f"views_{kind}": views(kind) for kind in ("shared", "separate")},
    "sequences": sequences,
    "sequence_critic": sequence_critic,
    "slices": slices,
    **{name: segmenters(name) for name in ("unet3d", "unet2d", "unetr", "swin_unetr")},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_change_where_it_is_declared(name: str) -> None:
    (small, first), (large, second) = (NETWORKS[name](labels) for labels in (2, 3))
    states = small.state_dict(), large.state_dict()
    assert states[0].keys() == states[1].keys()
    touched = 0
    for key, value in states[0].items():
        declared: dict[int, list[tuple[int, int]]] = {}
        for state, anatomy in zip(states, (first, second), strict=True):
            for axis in anatomy.class_axes(key):
                assert state[key].shape[axis.dim] == len(axis.slots), key
                assert len(set(axis.slots)) == len(axis.slots), key
            grid = anatomy.grid_axis(key)
            if grid is not None:
                assert state[key].shape[grid.dim] % torch.tensor(grid.grid).prod() == 0
        declared = {axis.dim: [] for axis in first.class_axes(key)}
        if (grid := first.grid_axis(key)) is not None:
            declared[grid.dim] = []
        # the direction that spectral norm keeps is no weight
        if not key.endswith("_v"):
            both = zip(value.shape, states[1][key].shape, strict=True)
            assert {dim for dim, (a, b) in enumerate(both) if a != b} <= set(declared), key
        touched += bool(declared)
    assert touched


@pytest.mark.parametrize("name", NETWORKS)
def test_early_parts_are_parts_of_the_network(name: str) -> None:
    network, anatomy = NETWORKS[name](2)
    names = [key for key, _ in network.named_parameters()]
    parts = [part for stage in anatomy.early for part in stage]
    assert len(set(parts)) == len(parts)
    for part in parts:
        assert any(key == part or key.startswith(part + ".") for key in names), part


def test_label_channels_of_a_generator_are_what_they_say() -> None:
    """Moving a slot's slice moves the output channel of its class."""
    _, anatomy = pairs(2)
    (axis,) = anatomy.class_axes("head.weight")
    assert [(slot.role, slot.klass) for slot in axis.slots] == [
        ("image", None),
        ("label", 1),
        ("label", 2),
    ]


@pytest.mark.parametrize("objective", ["classes", "v"])
def test_outputs_of_a_mask_denoiser_are_what_they_say(objective: str) -> None:
    """What is added to the biases of a slot's slices shows in that class, and there alone."""
    network, anatomy = masks(objective, "one_hot")(2)
    (axis,) = anatomy.class_axes("unet.conv_out.bias")
    x = torch.randn(1, 4, 4, 8, 8)
    given: Any = (x, torch.tensor([5.0]), torch.zeros(1, 4), torch.zeros(1))
    before = network(*given)
    with torch.no_grad():
        for index, slot in enumerate(axis.slots):
            if slot.klass == 2 and "variance" not in slot.role and "slice 1" in slot.role:
                network.get_parameter("unet.conv_out.bias")[index] += 1.0
    difference = (network(*given) - before)[0]
    assert torch.allclose(difference[2, 1], torch.ones(8, 8), atol=1e-5)
    difference[2, 1] = 0
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("objective", ["classes", "v"])
def test_inputs_of_a_mask_denoiser_are_what_they_say(objective: str) -> None:
    """The first layer without a slot's slices does not see that class."""
    network, anatomy = masks(objective, "one_hot")(2)
    (axis,) = anatomy.class_axes("unet.conv_in.weight")
    weight = network.get_parameter("unet.conv_in.weight")
    with torch.no_grad():
        for index, slot in enumerate(axis.slots):
            if slot.klass != 2:
                weight[:, index] = 0
    seen = []
    network.get_submodule("unet.conv_in").register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    for klass in (None, 1, 2):
        x = torch.zeros(1, 4, 4, 8, 8)
        if klass is not None:
            x[:, klass] = 1.0
        network(x, torch.tensor([5.0]), torch.zeros(1, 4), torch.zeros(1))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_label_inputs_of_a_sequence_generator_are_what_they_say() -> None:
    network, anatomy = sequences(2)
    (axis,) = anatomy.class_axes("encoder.0.0.weight")
    assert axis.slots[-5].role == "position"
    label = torch.full((1, 3, 8, 8), 2)
    shown = network.labels(label)[0]  # type: ignore[operator]
    on = [slot for slot, plane in zip(axis.slots, shown, strict=False) if plane.any()]
    assert {slot.klass for slot in on} == {2}
    assert len(on) == 3


def test_critics_settings_are_read_off_their_weights() -> None:
    state = MultiScaleCritic(10, 12, 3, 2).state_dict()
    found = transfer.sequence_critic_settings(state)
    assert found == {"channels": 12, "num_layers": 3, "num_scales": 2}
