import pytest
import torch
from tests.conftest import randomized
from torch.nn import functional

from medpair.networks.stlpips import Blur, ShiftTolerantAlexNet


@pytest.fixture(scope="module")
def network():
    network = randomized(ShiftTolerantAlexNet(), std=0.05)
    for number in range(5):
        head = network.get_submodule(f"lin{number}.model.1")
        head.weight.data.abs_()
    return network


def pictures(count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 64, 48, generator=generator) * 2 - 1


def test_blur_keeps_the_mean_and_every_second_sample():
    blur = Blur(4)
    x = torch.rand(1, 4, 9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blur(torch.ones_like(x)), torch.ones(1))
    # where the reflected border is out of reach, sample k lies at 2 k - 1 of the picture
    binomial = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    dense = functional.conv2d(x, binomial.expand(4, 1, 3, 3), padding=1, groups=4)
    assert blur(x).shape == (1, 4, 6, 7)
    assert torch.allclose(blur(x)[:, :, 1:5, 1:6], dense[:, :, 1:9:2, 1:11:2])


@torch.inference_mode()
def test_distance_is_zero_for_equals_symmetric_and_positive(network):
    first, second = pictures(seed=0), pictures(seed=1)
    assert torch.equal(network(first, first), torch.zeros(2))
    found = network(first, second)
    assert found.shape == (2,)
    assert (found > 0).all()
    assert torch.equal(found, network(second, first))


@torch.inference_mode()
def test_distance_of_a_level_is_that_of_directions(network):
    # scaled activations of the first level point the same way: with its other heads at zero, and
    # no biases, a picture and its half are at distance 0
    alone = ShiftTolerantAlexNet()
    alone.load_state_dict(network.state_dict())
    for number in range(1, 5):
        alone.get_submodule(f"lin{number}.model.1").weight.data.zero_()
    alone.get_submodule("net.slice1.0").bias.data.zero_()
    alone.scaling_layer.shift.zero_()
    first = pictures()
    assert (alone(first, first / 2) < 1e-6).all()
    assert (alone(first, -first) > 1e-3).all()
