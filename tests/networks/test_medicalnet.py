import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10
from torch import nn
from torch.nn import functional

from medpair.networks.medicalnet import load_medicalnet, medicalnet_input, medicalnet_resnet10

# {parameter of the published file: its shape}, from the network's description (Med3D, section 3)
STAGES = {1: (64, 64), 2: (64, 128), 3: (128, 256), 4: (256, 512)}


def published(seed=0):
    """Weights as the published file names them, batch norm statistics too."""
    shapes = {"conv1.weight": (64, 1, 7, 7, 7)}
    norms = {"bn1": 64}
    for stage, (before, after) in STAGES.items():
        block = f"layer{stage}.0"
        shapes[f"{block}.conv1.weight"] = (after, before, 3, 3, 3)
        shapes[f"{block}.conv2.weight"] = (after, after, 3, 3, 3)
        norms |= {f"{block}.bn1": after, f"{block}.bn2": after}
        if stage > 1:
            shapes[f"{block}.downsample.0.weight"] = (after, before, 1, 1, 1)
            norms[f"{block}.downsample.1"] = after
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: torch.randn(shape, generator=generator) / np.sqrt(np.prod(shape[1:]))
        for key, shape in shapes.items()
    }
    for key, width in norms.items():
        state[f"{key}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{key}.bias"] = 0.1 * torch.randn(width, generator=generator)
        state[f"{key}.running_mean"] = 0.1 * torch.randn(width, generator=generator)
        state[f"{key}.running_var"] = 1 + 0.1 * torch.rand(width, generator=generator)
    return state


def by_hand(state, x):
    """The features, computed from the weights and the table of strides and dilations."""

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))

    x = norm(functional.conv3d(x, state["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = functional.max_pool3d(x, 3, stride=2, padding=1)
    for stage, stride, far in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        block = f"layer{stage}.0"
        first = state[f"{block}.conv1.weight"]
        y = functional.conv3d(x, first, stride=stride, padding=far, dilation=far)
        y = norm(y, f"{block}.bn1").relu()
        y = functional.conv3d(y, state[f"{block}.conv2.weight"], padding=far, dilation=far)
        y = norm(y, f"{block}.bn2")
        if stage > 1:
            x = functional.conv3d(x, state[f"{block}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{block}.downsample.1")
        x = (x + y).relu()
    assert x.shape[2:] == (4, 3, 2)  # an eighth, rounded up
    return x.mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def volume():
    return torch.randn(2, 1, 32, 24, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [False, True])
@torch.inference_mode()
def test_published_names_give_the_dilated_network(volume, prefix, nested):
    state = published()
    content = {prefix + key: value for key, value in state.items()}
    content[prefix + "conv_seg.0.weight"] = torch.zeros(512, 32, 2, 2, 2)
    network = medicalnet_resnet10()
    load_medicalnet(network, {"epoch": 3, "state_dict": content} if nested else content)
    found = network(volume)
    assert found.shape == (2, 512)
    torch.testing.assert_close(found, by_hand(state, volume), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_it_is_not_monais_resnet10(volume):
    state = published()
    strided = resnet10(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
    ).eval()
    strided.load_state_dict(state)
    dilated = medicalnet_resnet10()
    load_medicalnet(dilated, state)
    difference = (strided(volume) - dilated(volume)).abs().mean()
    assert difference > 0.05 * dilated(volume).abs().mean()


def test_network_is_built_for_evaluation():
    network = medicalnet_resnet10()
    assert not network.training
    dilations = {
        name: module.dilation[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3)
    }
    assert sorted(dilations.values()) == [1, 1, 1, 1, 2, 2, 4, 4]


def test_wrong_weights_are_refused_by_their_first_key():
    network = medicalnet_resnet10()
    with pytest.raises(ValueError, match=r"^conv1\.weight: expected .* found none$"):
        load_medicalnet(network, {"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"^conv1\.weight: "):
        load_medicalnet(network, {"state_dict": 3})
    state = published()
    del state["layer3.0.downsample.1.bias"], state["layer4.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"^layer3\.0\.downsample\.1\.bias: "):
        load_medicalnet(network, state)
    state = published() | {"conv1.weight": torch.zeros(64, 3, 7, 7, 7)}
    with pytest.raises(
        ValueError, match=r"conv1\.weight: .*\(64, 1, 7, 7, 7\).*\(64, 3, 7, 7, 7\)"
    ):
        load_medicalnet(network, state)
    # a deeper network of the same family has more blocks
    state = published() | {"layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"^layer1\.1\.conv1\.weight: "):
        load_medicalnet(network, state)


def test_input_is_standardised_by_what_is_above_zero():
    image = np.zeros((12, 12, 12), np.float32)
    image[:4] = 30.0
    image[4:8] = 10.0
    image[8] = -5.0
    found = medicalnet_input(image, 0)
    assert found.shape == (1, 1, 12, 12, 12)
    assert found.dtype == torch.float32
    values = found[0, 0].numpy()
    # mean 20 and standard deviation 10 of the voxels above 0
    np.testing.assert_allclose(values[:4], 1.0)
    np.testing.assert_allclose(values[4:8], -1.0)
    np.testing.assert_allclose(values[8], -2.5)
    noise = values[9:]
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_noise_is_a_function_of_the_seed():
    image = np.zeros((4, 4, 4), np.float32)
    image[0] = np.arange(16).reshape(4, 4)
    assert torch.equal(medicalnet_input(image, 1, 2), medicalnet_input(image, 1, 2))
    first, second = medicalnet_input(image, 1), medicalnet_input(image, 2)
    assert torch.equal((first != second)[0, 0], torch.from_numpy(image == 0))


def test_volumes_without_spread_stay_finite():
    flat = medicalnet_input(np.full((3, 3, 3), 7.0), 0)
    assert torch.equal(flat, torch.zeros(1, 1, 3, 3, 3))
    dark = medicalnet_input(np.linspace(-3, -1, 27).reshape(3, 3, 3), 0)
    assert dark.mean().abs() < 1e-6
    assert medicalnet_input(np.zeros((3, 3, 3)), 0).std() > 0.5
