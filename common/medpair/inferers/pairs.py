"""From latent vectors to a dataset folder of paired volumes.

Sample ``i`` depends on (weights, seed, i) alone: its latent vector and its size are drawn from
(seed, i), and batches are aligned, sample ``i`` always being number ``i mod batch_size`` of its
batch, whichever samples are asked for. So an interrupted or extended run gives the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from medpair.data.card import network_of, part_of
from medpair.data.cohort import cohort_of
from medpair.data.files import DataError, Volume, file_sha256, write_volume
from medpair.data.intensity import from_unit
from medpair.data.labels import LabelChannels
from medpair.data.memory import Parts
from medpair.data.patches import crop_box
from medpair.data.sampling import numpy_generator
from medpair.inferers.background import Background
from medpair.inferers.folder import SyntheticFolder, centred_affine, wanted_range, whole_steps
from medpair.networks.wgan import Generator

# Fixes the meaning of (seed, index): two streams, so that sizes and latents are independent
LATENT_STREAM, SIZE_STREAM = 0, 1
# What a cohort says of the differential privacy of its generator; the card says more
PRIVACY = ("epsilon", "delta", "noise_multiplier", "clipping_norm", "unit")


def generator_from_card(card: dict[str, Any]) -> Generator:
    """Rebuild the generator that a card describes (see ``medpair.engines.checkpoint.ModelCard``).

    Raises:
        DataError: if the card has no generator.
    """
    if "generator" not in card:
        raise DataError("model.json: generator: expected the network's arguments, found none")
    return network_of(card, "generator", Generator)


class LatentDataset(Dataset[dict[str, Any]]):
    """Latent vectors by index: an item has ``image`` (latent_size,) float32 and ``index``.

    Args:
        latent_size: length of the vector.
        seed: of the cohort to be made.
    """

    def __init__(self, latent_size: int, seed: int = 0) -> None:
        self.latent_size = latent_size
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = numpy_generator(self.seed, index, LATENT_STREAM)
        latent = rng.standard_normal(self.latent_size, dtype=np.float32)
        return {"image": torch.from_numpy(latent), "index": index}


class PairInferer:
    """Run the generator: latent vectors (B, latent_size) -> pairs (B, 1 + num_labels, H, W, D).

    A batch that does not fit into memory is made in parts: the same pairs.
    """

    def __init__(self) -> None:
        self.parts = Parts("pairs")

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the generator's output in fp32."""

        def pairs(part: slice) -> Tensor:
            return network(inputs[part]).float()

        return torch.cat(self.parts(pairs, len(inputs), inputs))


class PairWriter:
    """Turn generated pairs into volumes on the training cohort's scale and write them.

    As postprocessing it writes one pair; ``complete`` writes ``dataset.json``. Every pair has a
    sidecar ``provenance/NAME.json``, written last: a pair whose sidecar exists is whole. Files are
    the same whoever writes them.

    Args:
        output_dir: the dataset folder.
        card: what lies beside the weights: cohort and label channels.
        weights: path of the checkpoint that made the pairs; its SHA-256 goes into the sidecars.
        num_samples: how many.
        seed: of the cohort to be made.
        start_index: index of the first sample.
        split: list of ``dataset.json`` that the pairs go into.
        num_workers: threads that compress and write while further pairs are made; 0 writes each
            pair before the next one is made.

    Raises:
        DataError: if ``output_dir`` holds pairs made with other weights or another seed.
    """

    def __init__(
        self,
        output_dir: str | Path,
        card: dict[str, Any],
        weights: str | Path,
        num_samples: int,
        seed: int = 0,
        start_index: int = 0,
        split: str = "training",
        num_workers: int = 0,
    ) -> None:
        self.background = Background(num_workers)
        self.cohort = cohort_of(card)
        self.label_channels = part_of(card, "label_channels", LabelChannels)
        self.wanted = wanted_range(start_index, num_samples)
        self.seed = seed
        origin = {
            "generator": "wgan",
            "weights": Path(weights).name,
            "weights_sha256": file_sha256(weights),
            "seed": seed,
        }
        if "privacy" in card:  # spent in training; sampling spends nothing more
            origin["privacy"] = {key: card["privacy"][key] for key in PRIVACY}
        self.folder = SyntheticFolder(output_dir, self.cohort, origin, split)

    def missing(self) -> list[int]:
        """Return the wanted indices whose pair is not there yet."""
        return [index for index in self.wanted if not self.folder.has(index)]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Write the pair of ``data``: ``pred`` (1 + num_labels, H, W, D) and its ``index``."""
        index = int(data["index"])
        if index in self.wanted and not self.folder.has(index):
            image, label = self._volumes(index, torch.as_tensor(data["pred"]))
            if self.folder.begun:
                self.background(self._write, index, image, label)
            else:
                with self.folder.writing():
                    self._write(index, image, label)
        return data

    def complete(self) -> Path:
        """Write ``dataset.json`` over all pairs in the folder."""
        self.background.finish()
        return self.folder.complete()

    def _volumes(self, index: int, pair: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return image and label as few bytes as they can be, in the order of the file.

        On the device: what leaves it is a third of the pair, and who writes need only compress.
        """
        if pair.device.type == "mps":  # knows no float64
            pair = pair.cpu()
        box = crop_box(self._size(index, pair.shape[1:]), pair.shape[1:])
        label, image = self.label_channels.decode(pair[None, 1:])[0, 0][box], pair[0][box]
        low, high = self.cohort.intensity
        if whole_steps(low, high):
            image = from_unit(image.double(), low, high).round_().to(torch.int16)
        return in_file_order(image), in_file_order(label)

    def _write(self, index: int, image: np.ndarray, label: np.ndarray) -> None:
        root, paths = self.folder.root, self.folder.paths(index)
        affine = centred_affine(self.cohort.spacing, image.shape)
        if image.dtype.kind == "f":
            image = from_unit(image.astype(np.float64), *self.cohort.intensity)
        write_volume(root / paths["image"], Volume(image, affine), np.int16)
        write_volume(root / paths["label"], Volume(label, affine))
        self.folder.finish_case(index, size=list(image.shape))

    def _size(self, index: int, patch: Sequence[int]) -> tuple[int, int, int]:
        """Draw the pair's size from the cohort's; axes longer than the patch are cut to it."""
        sizes = self.cohort.sizes
        rng = numpy_generator(self.seed, index, SIZE_STREAM)
        w, h, d = sizes[int(rng.integers(len(sizes)))]
        return min(w, patch[0]), min(h, patch[1]), min(d, patch[2])


def in_file_order(volume: Tensor) -> np.ndarray:
    """Return (W, H, D) voxels on the CPU, the first axis running fastest, as NIfTI stores them."""
    return volume.permute(2, 1, 0).contiguous().cpu().numpy().transpose(2, 1, 0)
