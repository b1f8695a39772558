"""Generator and critic: sizes, ranges, initial weights, normalisation, export."""

import io

import pytest
import torch
from paper_wgan import PaperCritic, PaperGenerator, copy_weights
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medpair.networks.wgan import Critic, Generator

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("filters", "generator", "critic"),
    [(512, 139_916_994, 4_780_353), (1024, 289_123_714, 18_850_433)],
)
def test_parameter_counts_of_the_paper(filters: int, generator: int, critic: int) -> None:
    with torch.device("meta"):
        assert count(Generator(filters=filters)) == generator
        for norm in ("spectral", "instance", "none"):
            assert count(Critic(filters=filters, norm=norm)) == critic


def test_compact_generator_is_smaller_for_the_same_patch() -> None:
    with torch.device("meta"):
        paper, compact = Generator(filters=256), Generator(filters=256, num_upsamples=4)
        assert count(compact.stem) < count(paper.stem) / 7
        latent = torch.empty(1, 128)
        assert compact(latent).shape == paper(latent).shape == (1, 2, 128, 128, 64)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize(("patch_size", "num_upsamples"), [((8, 24, 16), 3), ((16, 32, 16), 4)])
def test_generator_shape_and_range(num_labels: int, patch_size, num_upsamples: int) -> None:
    torch.manual_seed(0)
    generator = Generator(
        patch_size, num_labels, latent_size=5, filters=16, num_upsamples=num_upsamples
    )
    with torch.no_grad():
        generator.head.weight.mul_(100)
    latent = torch.randn(3, 5)
    pair = generator(latent)
    assert pair.shape == (3, 1 + num_labels, *patch_size)
    assert -1 <= pair.min() < -0.9
    assert 0.9 < pair.max() <= 1
    torch.testing.assert_close(generator(latent.view(3, 5, 1, 1, 1)), pair, rtol=0, atol=0)


def test_settings_rebuild_the_generator() -> None:
    generator = Generator((16, 16, 32), 2, latent_size=5, filters=32, num_upsamples=4)
    twin = Generator(**generator.settings)
    twin.load_state_dict(generator.state_dict())
    latent = torch.randn(2, 5)
    torch.testing.assert_close(twin.eval()(latent), generator.eval()(latent), rtol=0, atol=0)


def fused_and_plain(layout: torch.memory_format) -> tuple[Generator, Generator]:
    """Two generators with the same weights; the state dict of one loads strictly in the other."""
    torch.manual_seed(0)
    fused, plain = (Generator((24, 40, 8), 1, 6, 16, fused=fused) for fused in (True, False))
    plain.load_state_dict(fused.state_dict())
    return fused.to(memory_format=layout), plain.to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_generator_equals_plain_one(layout: torch.memory_format) -> None:
    fused, plain = fused_and_plain(layout)
    latent, weight = torch.randn(2, 6), torch.randn(2, 2, 24, 40, 8) / 100
    found, expected = fused(latent), plain(latent)
    torch.testing.assert_close(found, expected, **CLOSE)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for (name, one), other in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_networks_equal_the_papers_in_plain_layers() -> None:
    torch.manual_seed(0)
    patch_size = (32, 16, 24)
    generator, critic = Generator(patch_size, filters=16), Critic(patch_size, filters=16)
    paper_generator = PaperGenerator(patch_size, filters=16)
    paper_critic = PaperCritic(patch_size, filters=16)
    copy_weights(generator, paper_generator)
    copy_weights(critic, paper_critic)
    latent = torch.randn(2, 128)
    pair = generator(latent)
    torch.testing.assert_close(pair, paper_generator(latent), **CLOSE)
    torch.testing.assert_close(critic(pair), paper_critic(pair), **CLOSE)


@pytest.mark.parametrize("norm", ["spectral", "instance", "none"])
@pytest.mark.parametrize(
    ("patch_size", "grid"),
    [((32, 16, 16), (2, 1, 1)), ((24, 40, 8), (2, 3, 1)), ((8, 8, 56), (1, 1, 4))],
)
def test_critic_takes_multiples_of_eight(norm: str, patch_size, grid) -> None:
    critic = Critic(patch_size, num_labels=2, filters=8, norm=norm)
    pair = torch.randn(3, 3, *patch_size)
    assert critic.features(pair).shape == (3, 8, *grid)
    assert critic(pair).shape == (3, 1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Generator((12, 16, 16), filters=16),
        lambda: Generator((24, 16, 16), filters=16, num_upsamples=4),
        lambda: Generator((16, 16), filters=16),
        lambda: Generator((16, 16, 0), filters=16),
        lambda: Critic((16, 16, 12), filters=16),
        lambda: Critic((16, 16, 16, 16), filters=16),
    ],
)
def test_refuses_patch_sizes(build) -> None:
    with pytest.raises(ValueError, match="patch_size: expected three positive multiples of"):
        build()


@pytest.mark.parametrize("filters", [0, -16])
def test_refuses_networks_without_filters(filters: int) -> None:
    for build in (Generator, Critic):
        with pytest.raises(ValueError, match=f"filters: expected a multiple of .*found {filters}"):
            build((32, 32, 32), filters=filters)
    with pytest.raises(ValueError, match="at least 1, found 0 and 128"):
        Generator((32, 32, 32), num_upsamples=0)


def test_refuses_filters_and_norms() -> None:
    with pytest.raises(ValueError, match="filters: expected a multiple of 16, found 24"):
        Generator((16, 16, 16), filters=24, num_upsamples=4)
    with pytest.raises(ValueError, match="filters: expected a multiple of 8, found 12"):
        Critic((16, 16, 16), filters=12)
    with pytest.raises(ValueError, match=r"norm: expected instance, .* found 'batch'"):
        Critic((16, 16, 16), filters=16, norm="batch")


def convolutions(network: nn.Module) -> list[nn.Conv3d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv3d)]


def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    critic = Critic((16, 16, 16), filters=16)
    assert len(convolutions(critic)) == 4
    for conv in convolutions(critic):
        with torch.no_grad():
            conv.parametrizations.weight.original.mul_(7)
        for _ in range(500):
            weight = conv.weight  # in training, each look is one power iteration
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_spectral_norm_leaves_the_linear_layer_free() -> None:
    """Features do not change with the scale of the kernels, scores do with the Linear layer's."""
    torch.manual_seed(0)
    critic = Critic((16, 16, 16), filters=16).eval()
    assert not parametrize.is_parametrized(critic.score)
    with torch.no_grad():
        for conv in convolutions(critic):
            conv.bias.zero_()
        critic.score.bias.zero_()
        pair = torch.randn(2, 2, 16, 16, 16)
        score = critic(pair)
        for conv in convolutions(critic):
            conv.parametrizations.weight.original.mul_(3)
        torch.testing.assert_close(critic(pair), score, **CLOSE)
        critic.score.weight.mul_(5)
        torch.testing.assert_close(critic(pair), 5 * score, **CLOSE)


def test_instance_norm_follows_every_convolution_and_has_no_weights() -> None:
    torch.manual_seed(0)
    critic = Critic((32, 32, 32), filters=16, norm="instance")
    kinds = [type(layer) for layer in critic.features]
    assert kinds == [nn.Conv3d, nn.InstanceNorm3d, nn.LeakyReLU] * 4
    assert not any(parametrize.is_parametrized(conv) for conv in convolutions(critic))
    assert count(critic) == count(Critic((32, 32, 32), filters=16, norm="none"))
    # the first convolution's mean and scale, hence the image's, are lost on the critic
    pair = torch.randn(2, 2, 32, 32, 32)
    with torch.no_grad():
        score = critic(pair)
        critic.features[0].weight.mul_(4)
        critic.features[0].bias.add_(1)
        torch.testing.assert_close(critic(pair), score, rtol=1e-3, atol=1e-3)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize(("paper_init", "scale"), [(True, 0.0), (False, 1.0)])
def test_initial_weights_of_the_generator(paper_init: bool, scale: float) -> None:
    torch.manual_seed(0)
    generator = Generator((8, 8, 8), filters=256, latent_size=16, paper_init=paper_init)
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm3d)]
    assert [norm.num_features for norm in norms] == [256, 128, 64, 32]
    scales = flat([norm.weight for norm in norms])
    assert scales.mean().item() == pytest.approx(scale, abs=0.01)  # 4 standard errors
    assert scales.std().item() == pytest.approx(0.05, rel=0.15)
    assert all((norm.bias == 0).all() for norm in norms)
    for conv in convolutions(generator):
        assert conv.weight.mean().item() == pytest.approx(0, abs=5e-3)
        assert conv.weight.std().item() == pytest.approx(0.05, rel=0.1)
    linear = generator.stem[0].weight
    assert linear.abs().max().item() == pytest.approx(16**-0.5, rel=0.01)  # PyTorch's own


@pytest.mark.parametrize("norm", ["spectral", "none"])
def test_initial_weights_of_the_critic(norm: str) -> None:
    torch.manual_seed(0)
    critic = Critic((16, 16, 16), filters=64, norm=norm)
    for conv in convolutions(critic):
        weight = conv.parametrizations.weight.original if norm == "spectral" else conv.weight
        assert weight.mean().item() == pytest.approx(0, abs=0.01)
        assert weight.std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("fused", [True, False])
def test_generator_exports_to_torchscript(fused: bool) -> None:
    torch.manual_seed(0)
    generator = Generator((16, 24, 8), latent_size=6, filters=16, fused=fused).eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(generator), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for batch_size in (1, 3):
        latent = torch.randn(batch_size, 6)
        torch.testing.assert_close(loaded(latent), generator(latent), rtol=0, atol=1e-6)
