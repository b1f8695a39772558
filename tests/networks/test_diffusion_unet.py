"""The U-Net of the diffusion stages: what reaches what, and cached SPADE against recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medpair.networks.diffusion_unet import Attention, DiffusionUNet, embedding, groups_for
from medpair.networks.spade import SPADE, Modulation

SMALL: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "channels": (8, 16, 24),
    "num_res_blocks": 1,
    "attention_levels": (False, False, True),
}


def awake(network: nn.Module, seed: int = 0) -> Any:
    """Give every parameter a value: blocks and outputs that begin as zero hide what is wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return network.eval()


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(classes: int = 4, size: int = 16, seed: int = 2, count: int = 2) -> Tensor:
    picks = torch.randint(
        0, classes, (count, size // 4, size // 4), generator=torch.Generator().manual_seed(seed)
    )
    one_hot = F.one_hot(picks, classes).movedim(-1, 1).float()
    return F.interpolate(one_hot, size=(size, size), mode="nearest")


def steered(**options: Any) -> DiffusionUNet:
    return awake(DiffusionUNet(**{**SMALL, "label_channels": 4, "hidden": 8, **options}))


class Lazy(Sequence[Modulation]):
    """Modulations that are computed when their layer asks for them: nothing is cached."""

    def __init__(self, network: DiffusionUNet, label: Tensor) -> None:
        self.layers = [m for m in network.modules() if isinstance(m, SPADE)]
        self.label = label

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.layers[index].modulation(self.label)


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity() -> None:
    network = DiffusionUNet(**SMALL)
    x = draw(2, 2, 16, 16)
    assert network(x, torch.tensor([1.0, 500.0])).abs().max() == 0
    block = network.down[0][0]
    h = draw(2, 8, 16, 16)
    torch.testing.assert_close(block(h, draw(2, 32), None), h)


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_shape_and_factor(size: tuple[int, int]) -> None:
    network = awake(DiffusionUNet(**SMALL))
    assert network.factor == 4
    assert network(draw(2, 2, *size), torch.ones(2)).shape == (2, 3, *size)
    assert DiffusionUNet(**{**SMALL, "channels": (8,), "attention_levels": (True,)}).factor == 1
    with pytest.raises(ValueError, match=r"attention_levels: expected 3 entries.* found 2"):
        DiffusionUNet(**{**SMALL, "attention_levels": (False, True)})


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network = steered(positions=True, num_views=3)
    x, time = draw(3, 2, 16, 16), torch.tensor([3.0, 400.0, 999.0])
    label, position, view = labels(count=3), torch.tensor([0.0, 0.4, 0.9]), torch.arange(3)
    whole = network(x, time, network.modulations(label), position, view)
    for i in range(3):
        own = slice(i, i + 1)
        alone = network(
            x[own], time[own], network.modulations(label[own]), position[own], view[own]
        )
        torch.testing.assert_close(alone, whole[own], rtol=1e-4, atol=1e-5)


def test_modulations_cached_equal_recomputed() -> None:
    network = steered(num_res_blocks=2)
    label = labels()
    cached = network.modulations(label)
    # two for each block of the middle and of the decoder, the upsampling ones included
    assert len(cached) == 2 * (2 + 3 * 3 + 2)
    for time in (1.0, 300.0, 999.0):
        x, times = draw(2, 2, 16, 16, seed=int(time)), torch.full((2,), time)
        plain = network(x, times, Lazy(network, label))
        torch.testing.assert_close(network(x, times, cached), plain, rtol=0, atol=1e-6)


def test_every_modulation_goes_to_the_layer_it_was_made_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = steered(num_res_blocks=2)
    layers = [m for m in network.modules() if isinstance(m, SPADE)]
    cached = network.modulations(labels())
    made = {id(layer): scale for layer, (scale, _) in zip(layers, cached, strict=True)}
    used = []
    plain = SPADE.forward

    def watched(self: SPADE, x: Tensor, modulation: Modulation, silu: bool = False) -> Tensor:
        assert modulation[0] is made[id(self)]
        assert modulation[0].shape == x.shape
        used.append(id(self))
        return plain(self, x, modulation, silu)

    monkeypatch.setattr(SPADE, "forward", watched)
    network(draw(2, 2, 16, 16), torch.ones(2), cached)
    assert sorted(used) == sorted(made)


def test_spade_is_its_formula() -> None:
    layer = awake(SPADE(6, 4, 5, nn.GroupNorm(1, 6, affine=False), scale=2))
    x, label = draw(2, 6, 8, 8), labels()
    shrunk = label[:, :, 1::2, 1::2]  # constant in blocks of four: any voxel of a block will do
    hidden = F.relu(layer.shared[0](shrunk))
    gamma, beta = layer.gamma_beta(hidden).split(6, dim=1)
    mean, variance = x.mean((1, 2, 3), True), x.var((1, 2, 3), correction=0, keepdim=True)
    expected = (x - mean) / (variance + 1e-5).sqrt() * (1 + gamma) + beta
    torch.testing.assert_close(layer(x, layer.modulation(label)), expected)


def test_the_label_map_acts_in_the_decoder_and_the_encoder_sees_the_image_alone() -> None:
    network = steered()
    seen: dict[str, list[Tensor]] = {"down": [], "middle": [], "up": []}
    for part, kept in seen.items():
        blocks = list(getattr(network, part))
        for entry in blocks if part != "middle" else [[blocks[0]], [blocks[2]]]:
            entry[0].register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
    x, time = draw(2, 2, 16, 16), torch.full((2,), 100.0)
    one = network(x, time, network.modulations(labels(seed=2)))
    two = network(x, time, network.modulations(labels(seed=3)))
    assert (one - two).abs().max() > 1e-2
    for part, outputs in seen.items():
        half = len(outputs) // 2
        for a, b in zip(outputs[:half], outputs[half:], strict=True):
            assert torch.equal(a, b) == (part == "down")
    assert not any(isinstance(m, SPADE) for m in network.down.modules())


def test_time_view_and_position_reach_the_output() -> None:
    network = awake(DiffusionUNet(**SMALL, positions=True, num_views=3))
    x = draw(1, 2, 16, 16)

    def out(time: float = 10.0, position: float = 0.2, view: int = 0) -> Tensor:
        return network(x, torch.tensor([time]), [], torch.tensor([position]), torch.tensor([view]))

    base = out()
    for other in (out(time=11.0), out(position=0.21), out(view=1), out(view=2)):
        assert (other - base).abs().max() > 1e-3
    torch.testing.assert_close(out(), base, rtol=0, atol=0)


@pytest.mark.parametrize("label_channels", [0, 4])
def test_gradients_reach_every_parameter(label_channels: int) -> None:
    network = awake(
        DiffusionUNet(**SMALL, label_channels=label_channels, hidden=8, positions=True, num_views=2)
    )
    modulations = network.modulations(labels()) if label_channels else []
    out = network(
        draw(2, 2, 16, 16),
        torch.tensor([5.0, 700.0]),
        modulations,
        torch.tensor([0.1, 0.8]),
        torch.tensor([0, 1]),
    )
    (out * draw(*out.shape, seed=9)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_embedding_by_hand() -> None:
    found = embedding(torch.tensor([0.0, 2.0]), 4)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    expected = torch.tensor([2.0, 0.02]).cos(), torch.tensor([2.0, 0.02]).sin()
    torch.testing.assert_close(found[1], torch.cat(expected))


@pytest.mark.parametrize("channels", [8, 48, 64, 112, 176])
def test_attention_is_its_formula_with_heads_that_divide_the_channels(channels: int) -> None:
    layer = awake(Attention(channels))
    assert channels % layer.heads == 0
    assert channels // layer.heads >= min(channels, 32)
    x = draw(2, channels, 3, 5)
    flat = layer.norm(x).flatten(2)
    weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias
    q, k, v = (weight @ flat + bias[:, None]).chunk(3, dim=1)
    width, parts = channels // layer.heads, []
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[:, own].transpose(1, 2) @ k[:, own] / width**0.5
        parts.append(v[:, own] @ scores.softmax(dim=2).transpose(1, 2))
    expected = x + layer.out(torch.cat(parts, dim=1).view(x.shape))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_can_be_fused_whatever_the_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused kernels want a token's numbers side by side; else all (N, N) weights are kept."""
    strides, plain = [], F.scaled_dot_product_attention

    def recorded(*tokens: Tensor) -> Tensor:
        strides.extend(token.stride(-1) for token in tokens)
        return plain(*tokens)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    Attention(64)(draw(2, 64, 6, 5).to(memory_format=layout))
    assert strides == [1, 1, 1]


def test_an_odd_first_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"channels: expected an even first width, found \[9, 16"):
        DiffusionUNet(1, 1, [9, 16], attention_levels=(False, False))


def test_levels_narrower_than_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match="channels: expected at least 4 in every level, found 2"):
        groups_for(2)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (64, 16), (192, 32), (36, 9)])
def test_groups_have_four_channels_or_more(channels: int, groups: int) -> None:
    assert groups_for(channels) == groups
