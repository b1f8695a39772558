"""MC-DPM's denoiser: slices as channels, marks of what is given, the window's position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.networks.test_diffusion_unet import awake, draw
from torch import Tensor, nn

from medpair.networks.diffusion_unet import embedding
from medpair.networks.mcdpm import MaskSequenceDenoiser, Neighbourhood

SMALL: dict[str, Any] = {
    "channels": (8, 16),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
}


def denoiser(
    window: int = 4, code: int = 2, factor: int = 1, patch: int = 1
) -> MaskSequenceDenoiser:
    return awake(MaskSequenceDenoiser(window, code, factor, **SMALL, patch=patch))


def inputs(window: int = 4, code: int = 2) -> dict[str, Tensor]:
    known = torch.zeros(2, window)
    known[0, :2] = 1
    return {
        "x": draw(2, code, window, 8, 12),
        "time": torch.tensor([10.0, 800.0]),
        "known": known,
        "position": torch.tensor([0.0, 0.6]),
    }


@pytest.mark.parametrize(
    ("window", "code", "factor", "patch"), [(4, 2, 1, 1), (3, 1, 2, 1), (5, 3, 2, 2)]
)
def test_shape_and_settings_rebuild_it(window: int, code: int, factor: int, patch: int) -> None:
    network = denoiser(window, code, factor, patch)
    given = inputs(window, code)
    out = network(**given)
    assert out.shape == (2, code * factor, window, 8, 12)
    assert network.factor == 2 * patch
    twin = MaskSequenceDenoiser(**network.settings)
    twin.load_state_dict(network.state_dict())
    torch.testing.assert_close(twin.eval()(**given), out, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(10, 12), (8, 13), (9, 12)])
def test_slices_that_cannot_be_halved_are_refused_with_the_sizes_that_were_typed(
    size: tuple[int, int],
) -> None:
    network = denoiser(patch=2)
    expected = rf"volume_size: .* multiples of 4, found \({size[0]}, {size[1]}\)"
    with pytest.raises(ValueError, match=expected):
        network(draw(2, 2, 4, *size))


def test_slices_are_channels_of_the_unet_in_the_order_of_code_then_slice() -> None:
    """What goes in and comes out keeps its place: code channel c of slice k is c * m + k."""
    network, given = denoiser(factor=2), inputs()
    flat = [given["x"][:, c, k] for c in range(2) for k in range(4)]
    planes = [given["known"][:, k, None, None].expand(2, 8, 12) for k in range(4)]
    x = torch.stack(flat + planes, dim=1)
    out = network.unet(x, given["time"], position=given["position"])
    for parameter in network.direct.parameters():
        nn.init.zeros_(parameter)
    found = network(**given)
    for c in range(4):
        for k in range(4):
            torch.testing.assert_close(found[:, c, k], out[:, c * 4 + k], rtol=0, atol=0)


def test_the_pixels_of_a_patch_are_channels_of_the_unet() -> None:
    network, given = denoiser(patch=2), inputs()
    for parameter in network.direct.parameters():
        nn.init.zeros_(parameter)
    planes = given["known"][:, None, :, None, None].expand(2, 1, 4, 8, 12)
    channels = torch.cat([given["x"], planes], dim=1).flatten(1, 2)
    # channel c, row 2 y + i, column 2 x + j  ->  channel 4 c + 2 i + j, row y, column x
    packed = torch.stack([channels[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=2)
    out = network.unet(packed.flatten(1, 2), given["time"], position=given["position"])
    parts = out.view(2, 8, 4, 4, 6)
    found = network(**given).flatten(1, 2)
    for i in (0, 1):
        for j in (0, 1):
            torch.testing.assert_close(found[:, :, i::2, j::2], parts[:, :, 2 * i + j])


@pytest.mark.parametrize("factor", [1, 2])
def test_the_input_adds_to_its_own_channel_of_the_mean_by_a_weight_of_time(factor: int) -> None:
    network, given = denoiser(factor=factor), inputs()
    with_input = network(**given)
    direct = network.direct(network.unet.time(embedding(given["time"], network.unet.base))).view(
        2, 2, 4, 1, 1
    )
    assert (direct[0] - direct[1]).abs().min() > 1e-3
    for parameter in network.direct.parameters():
        nn.init.zeros_(parameter)
    added = with_input - network(**given)
    torch.testing.assert_close(added[:, :2], direct * given["x"], rtol=1e-4, atol=1e-5)
    # the variance has no part in it
    assert added[:, 2:].abs().sum() == 0


def test_a_new_network_predicts_zero() -> None:
    assert MaskSequenceDenoiser(4, 2, 2, **SMALL)(**inputs()).abs().max() == 0


def test_everything_that_is_given_reaches_every_slice() -> None:
    network, given = denoiser(), inputs()
    base = network(**given)
    one_slice = given["x"].clone()
    one_slice[:, :, 3] += 1
    marked = given["known"].clone()
    marked[:, 3] = 1
    for change in (
        {"x": one_slice},
        {"known": marked},
        {"position": given["position"] + 0.1},
        {"time": given["time"] + 5},
    ):
        other = network(**{**given, **change})
        assert (other - base).abs().amax(dim=(1, 3, 4)).min() > 1e-3


def test_memory_layout_changes_nothing() -> None:
    network, given = denoiser(), inputs()
    plain = network(**given)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network(**given), plain, rtol=1e-4, atol=1e-5)


def test_neighbours_correct_within_two_voxels_in_all_three_directions_and_no_further() -> None:
    network = awake(MaskSequenceDenoiser(6, 2, 1, **SMALL, classes=3, neighbourhood=8))
    given = inputs(window=6)
    # group norm sees the whole window: what reaches further than two convolutions is that alone
    network.neighbourhood.norm = nn.Identity()
    evidence = draw(2, 3, 6, 8, 12)
    base = network(**given, evidence=evidence)
    other = evidence.clone()
    other[0, 1, 2, 4, 5] += 3
    change = (network(**given, evidence=other) - base)[0].abs().amax(dim=0)
    slices, rows, columns = torch.nonzero(change > 1e-6).T
    assert (slices.min(), slices.max()) == (0, 4)
    assert (rows.min(), rows.max()) == (2, 6)
    assert (columns.min(), columns.max()) == (3, 7)


def test_neighbours_are_corrected_in_fp32_on_a_cpu() -> None:
    network = awake(Neighbourhood(3, 8, 16))
    formats: list[torch.dtype] = []
    for module in (network.conv1, network.conv2, network.conv_out):
        module.register_forward_hook(lambda module, given, output: formats.append(output.dtype))
    logits, emb = draw(2, 3, 4, 8, 12), draw(2, 16)
    expected = network(logits, emb)
    with torch.autocast("cpu", torch.bfloat16):
        # as the U-Net around it hands them over
        torch.testing.assert_close(network(logits, emb), expected, rtol=0, atol=0)
        corrected = network(logits.bfloat16(), emb.bfloat16())
    assert set(formats) == {corrected.dtype} == {torch.float32}


def test_without_a_neighbourhood_evidence_changes_nothing() -> None:
    network = awake(MaskSequenceDenoiser(4, 2, 1, **SMALL, classes=3))
    given = inputs()
    evidence = draw(2, 3, 4, 8, 12)
    torch.testing.assert_close(network(**given, evidence=evidence), network(**given))
    assert network.settings["neighbourhood"] == 0
    # codes have no classes to correct
    plain = MaskSequenceDenoiser(4, 2, 1, **SMALL, neighbourhood=8)
    assert plain.neighbourhood is None


def test_what_was_said_before_is_heard_once_it_is_learned() -> None:
    told = MaskSequenceDenoiser(4, 2, 1, **SMALL, patch=2, self_conditioning=True)
    given, said = inputs(), draw(2, 2, 4, 8, 12)
    assert told.settings["self_conditioning"]
    without = MaskSequenceDenoiser(4, 2, 1, **SMALL, patch=2)
    awake(without)
    # all of a network without it fits; its own layer is zero: the same function
    left = told.load_state_dict(without.state_dict(), strict=False)
    assert left.missing_keys == ["previous.weight"]
    assert not left.unexpected_keys
    base = without(**given)
    assert torch.equal(told(**given, previous=said), base)
    awake(told)
    base = told(**given)
    # nothing said is zero said, and each slice of it reaches every slice
    torch.testing.assert_close(told(**given, previous=torch.zeros_like(said)), base)
    one_slice = torch.zeros_like(said)
    one_slice[:, :, 1] = 1
    other = told(**given, previous=one_slice)
    assert (other - base).abs().amax(dim=(1, 3, 4)).min() > 1e-3


def test_sizes_are_heard_once_they_are_learned() -> None:
    settings = {**SMALL, "patch": 2, "classes": 3, "neighbourhood": 8}
    told = MaskSequenceDenoiser(4, 2, 1, **settings, sizes=3)
    without = awake(MaskSequenceDenoiser(4, 2, 1, **settings))
    given = {**inputs(), "evidence": draw(2, 3, 4, 8, 12)}
    sizes = draw(2, 3)
    # all of a network without them fits; their last layer is zero: the same function
    left = told.load_state_dict(without.state_dict(), strict=False)
    assert {key.split(".")[0] for key in left.missing_keys} == {"sizes"}
    assert torch.equal(told(**given, sizes=sizes), without(**given))
    awake(told)
    base = told(**given)
    # not told is the cohort's mean; each volume hears its own sizes, in every slice
    torch.testing.assert_close(told(**given, sizes=torch.zeros(2, 3)), base)
    other = torch.zeros(2, 3)
    other[1, 2] = 1
    change = (told(**given, sizes=other) - base).abs().amax(dim=(1, 3, 4))
    assert change[0].max() == 0
    assert change[1].min() > 1e-3
    # and so does the correction by neighbours
    heard = []
    assert told.neighbourhood is not None
    told.neighbourhood.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[1]))
    told(**given)
    told(**given, sizes=other)
    assert not torch.equal(heard[0][1], heard[1][1])
    assert torch.equal(heard[0][0], heard[1][0])
