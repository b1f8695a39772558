"""A segmenter as a judge: features of its deepest level, and its labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Invertd, Spacingd
from torch import Tensor, nn
from torch.nn import functional

from medpair.data.card import card_path
from medpair.data.files import DataError, file_sha256, load_torch
from medpair.data.patches import PAD_IMAGE
from medpair.data.segmentation import RobustScaled, read_segmenter_card
from medpair.networks.segmenters import SliceWise, segmenter_from_card
from medpair.report.features import FeatureSet, volume_features
from medpair.report.pairs import Pair


class SegmenterBottleneck:
    """Mean and standard deviation of a segmenter's deepest activations over a volume.

    The segmenter sees a volume as the segmentation bundle's inference shows it: at the card's
    spacing, the robust range at -1..1, in windows of the patch size. An activation counts as far
    as its voxels lie inside the volume and not in its padding; where windows overlap, once for
    each window.

    The deepest level is the innermost block of the U-Nets (for ``unet2d`` of every axial slice),
    the last tokens of UNETR, and the last stage of Swin UNETR after its residual block.

    Args:
        checkpoint: ``NAME.pt`` of a segmenter, its card ``NAME.json`` beside it.
        device: where the network runs.
        batch_size: windows at once.
        overlap: share of a window that its neighbours cover too.

    Raises:
        DataError: if the checkpoint or its card cannot be used; names the file.
    """

    name = "segmenter_bottleneck"

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device = "cpu",
        batch_size: int = 4,
        overlap: float = 0.5,
    ) -> None:
        self.path = Path(checkpoint)
        self.device = torch.device(device)
        self.card = read_segmenter_card(checkpoint)
        self.network = _load(self.path, self.card).to(self.device)
        self.dimension = 2 * bottleneck_channels(self.card["segmenter"])
        self.sha256 = file_sha256(self.path)
        self.bottleneck = Bottleneck(self.network)
        self.preprocessing = Compose(
            [Spacingd("image", pixdim=self.card["task"]["spacing"]), RobustScaled("image")]
        )
        self.restore = Invertd(
            "pred", self.preprocessing, orig_keys="image", nearest_interp=True, to_tensor=True
        )
        self.inferer = SlidingWindowInferer(
            self.card["segmenter"]["patch_size"],
            batch_size,
            overlap,
            mode="gaussian",
            cval=PAD_IMAGE,
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The segmenter's class names, background first."""
        return tuple(self.card["task"]["labels"])

    def describe(self) -> dict[str, Any]:
        """Return weights' file, SHA-256, network and preprocessing as plain data for JSON."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            "weights": self.path.name,
            "sha256": self.sha256,
            "segmenter": self.card["segmenter"],
            "spacing": list(self.card["task"]["spacing"]),
            "labels": list(self.labels),
            "preprocessing": "the segmenter's spacing; robust range (0.5th to 99.5th percentile) "
            "to -1..1; windows of its patch size, padded with -1",
        }

    def features(self, pairs: Iterable[Pair]) -> dict[str, FeatureSet]:
        """Return the one view ``volume``: mean, then standard deviation, of each channel."""
        return volume_features([self.examine(pair)[0] for pair in pairs], self.dimension)

    def predict(self, pair: Pair) -> np.ndarray:
        """Return the segmenter's labels (W, H, D), class indices on the pair's own grid."""
        return self.examine(pair)[1]

    @torch.inference_mode()
    def examine(self, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
        """Return features (D,) and labels (W, H, D) of a pair from one pass over its image."""
        affine = torch.diag(torch.tensor([*pair.spacing, 1.0], dtype=torch.float64))
        image = MetaTensor(torch.from_numpy(np.array(pair.image, np.float32))[None], affine=affine)
        data = self.preprocessing({"image": image})
        seen = data["image"].as_tensor().to(self.device)[None]
        # the windows' padding is -1 in both channels: the second tells it from the volume
        stacked = torch.cat([seen, torch.ones_like(seen)], dim=1)
        moments = Moments(self.dimension // 2)

        def window(x: Tensor) -> Tensor:
            scores = self.network(x[:, :1])
            moments.add(self.bottleneck.activations(len(x)), (x[:, 1:] > 0).float())
            return scores

        scores = self.inferer(stacked, window)
        data["pred"] = MetaTensor(scores[0].argmax(dim=0, keepdim=True).float().cpu())
        label = np.rint(self.restore(data)["pred"].numpy()[0]).astype(np.int64)
        return moments.vector(), label


class Bottleneck:
    """Keep what the deepest level of a segmenter gives at each forward pass."""

    def __init__(self, network: nn.Module) -> None:
        self.slices = isinstance(network, SliceWise)
        self.kept: Tensor | None = None
        inner = network.network if isinstance(network, SliceWise) else network
        if hasattr(inner, "decoder5"):  # UNETR and Swin UNETR: what the first decoder is given
            inner.get_submodule("decoder5").register_forward_pre_hook(self._keep_input)
        else:  # MONAI's UNet: (down, skip connection around (down, ...), up)
            block = inner.get_submodule("model")
            while isinstance(block, nn.Sequential):
                block = block.get_submodule("1.submodule")
            block.register_forward_hook(self._keep_output)

    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.kept = inputs[0]

    def _keep_output(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept = output

    def activations(self, batch: int) -> Tensor:
        """Return the last pass's activations (B, C, h, w, d) for its ``batch`` windows."""
        assert self.kept is not None
        found, self.kept = self.kept, None
        if self.slices:
            return found.unflatten(0, (batch, -1)).permute(0, 2, 3, 4, 1)
        return found


class Moments:
    """Weighted mean and standard deviation of activations that come window by window."""

    def __init__(self, channels: int) -> None:
        self.weight = torch.zeros((), dtype=torch.float64)
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, activations: Tensor, inside: Tensor) -> None:
        """Add (B, C, h, w, d), weighted by the mean of ``inside`` (B, 1, H, W, D) at each."""
        h, w, d = activations.shape[2:]
        share = functional.adaptive_avg_pool3d(inside, (h, w, d)).double()
        values = activations.double()
        first = (share * values).sum(dim=(0, 2, 3, 4))
        second = (share * values.square()).sum(dim=(0, 2, 3, 4))
        self.sums += torch.stack([first, second]).cpu()
        self.weight += share.sum().cpu()

    def vector(self) -> np.ndarray:
        """Return the means, then the standard deviations, (2 C,) float32."""
        mean, square = self.sums / self.weight
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, spread]).float().numpy()


def bottleneck_channels(segmenter: dict[str, Any]) -> int:
    """Return the channels of the deepest level of the segmenter that a card describes."""
    if segmenter["architecture"] == "unetr":
        return int(segmenter["hidden_size"])
    if segmenter["architecture"] == "swin_unetr":
        return 16 * int(segmenter["feature_size"])
    return int(segmenter["channels"][-1])


def _load(path: Path, card: dict[str, Any]) -> nn.Module:
    """Return the trained network of a card in evaluation mode."""
    network = segmenter_from_card(card)
    state = load_torch(path)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: expected the weights of the segmenter beside it ({card_path(path)})"
            f", found others: {reason[:200]}"
        ) from None
    return network.eval()
