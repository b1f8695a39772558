"""MedicalNet's 3D ResNet-10 as a feature extractor (Chen et al. 2019, Med3D, arXiv 1904.00625).

Subramaniam et al. 2022 take the 512 features of its last stage for their Fréchet distance. The
network keeps its resolution in the last two stages and dilates instead; MONAI's ``resnet10`` takes
the same weights but strides there, so its features are other features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.networks.nets import ResNet
from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

from medpair.data.sampling import numpy_generator

FEATURES = 512
# Below this, the padding of the dilated stages is most of what they see.
LEAST_SIZE = 16
# {stage: dilation} of the stages that dilate in place of striding
DILATIONS = {"layer3": 2, "layer4": 4}
# nn.DataParallel's prefix, which the published files have; the heads that features do not need
PREFIX, HEADS = "module.", ("conv_seg.", "fc.")


def medicalnet_resnet10() -> ResNet:
    """Build the network: (B, 1, H, W, D) -> (B, 512), the mean over the last stage's voxels.

    Its parameters have the names of the published file (``resnet_10_23dataset.pth``). It is in
    evaluation mode, and its weights are random until ``load_medicalnet``.
    """
    network = ResNet(
        ResNetBlock,
        [1, 1, 1, 1],
        [64, 128, 256, FEATURES],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    for name, dilation in DILATIONS.items():
        for module in getattr(network, name).modules():
            if isinstance(module, nn.Conv3d):
                _dilate(module, dilation)
    return network.eval()


def _dilate(convolution: nn.Conv3d, dilation: int) -> None:
    """Give a convolution stride 1, and its taps a distance of ``dilation`` voxels."""
    convolution.stride = (1, 1, 1)
    if convolution.kernel_size == (3, 3, 3):
        convolution.dilation = convolution.padding = (dilation,) * 3


def load_medicalnet(network: ResNet, content: Mapping[str, object]) -> None:
    """Load the weights of a published file, as ``torch.load`` gives them.

    Args:
        network: from ``medicalnet_resnet10``; changed in place.
        content: the state dict, or a dictionary that has it under ``state_dict``; names may begin
            with ``module.``, and the segmentation head (``conv_seg``) is left out.

    Raises:
        ValueError: if a parameter is missing, of another shape, or not the network's; names it.
    """
    inner = content.get("state_dict", content)
    stored = inner if isinstance(inner, Mapping) else {}
    state = {
        key.removeprefix(PREFIX): value
        for key, value in stored.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    state = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    expected = network.state_dict()
    # files older than torch 0.4.1 do not count batches, and evaluation does not ask
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    for key, value in expected.items():
        if key not in state:
            raise ValueError(f"{key}: expected weights of MedicalNet's ResNet-10, found none")
        if state[key].shape != value.shape:
            raise ValueError(
                f"{key}: expected shape {tuple(value.shape)}, found {tuple(state[key].shape)}"
            )
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise ValueError(f"{unknown[0]}: expected no weights of that name (ResNet-10), found some")
    network.load_state_dict(state)


def medicalnet_input(image: np.ndarray, *counters: int) -> Tensor:
    """Return a volume as MedicalNet's preprocessing leaves it, (1, 1, H, W, D) float32.

    Intensities are shifted and scaled by the mean and standard deviation of the voxels above 0;
    voxels that equal 0, the background, become noise from N(0, 1). A volume without a voxel above
    0 takes the statistics of all its voxels, and one without spread is only shifted.

    Args:
        image: (H, W, D) as stored.
        counters: seed of the noise.
    """
    volume = np.asarray(image, np.float64)
    inside = volume[volume > 0] if (volume > 0).any() else volume
    spread = float(inside.std())
    scaled = (volume - inside.mean()) / (spread if spread > 0 else 1.0)
    noise = numpy_generator(*counters).standard_normal(volume.shape)
    result = np.where(volume == 0, noise, scaled).astype(np.float32)
    return torch.from_numpy(result)[None, None]
