"""From latent vectors to a dataset folder of paired volumes.

Sample ``i`` depends on (weights, seed, i) alone: its latent vector and its size are drawn from
(seed, i), and batches are aligned, sample ``i`` always being number ``i mod batch_size`` of its
batch, whichever samples are asked for. So an interrupted or extended run gives the same files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from medpair import __version__
from medpair.data.cohort import Cohort, from_unit
from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import DataError, Volume, read_json, write_json, write_volume
from medpair.data.labels import LabelChannels
from medpair.data.patches import crop_box
from medpair.data.sampling import numpy_generator
from medpair.networks.wgan import Generator

logger = logging.getLogger(__name__)

# Intensities that span fewer whole steps than this keep fractions (scaled integers on disk).
WHOLE_STEPS = 500
# Fixes the meaning of (seed, index): two streams, so that sizes and latents are independent
LATENT_STREAM, SIZE_STREAM = 0, 1


def generator_from_card(card: dict[str, Any]) -> Generator:
    """Rebuild the generator that a card describes (see ``medpair.engines.checkpoint.ModelCard``).

    Raises:
        DataError: if the card has no generator.
    """
    if "generator" not in card:
        raise DataError("model.json: generator: expected the network's arguments, found none")
    return Generator(**card["generator"])


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


class AlignedBatches(Sampler[list[int]]):
    """Batches of indices such that an index has the same place in the same batch in every run.

    Args:
        writer: knows which samples are wanted and which of them are there already.
        batch_size: samples per batch.
    """

    def __init__(self, writer: PairWriter, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        self.writer = writer
        self.batch_size = batch_size

    def _blocks(self) -> list[int]:
        return sorted({index // self.batch_size for index in self.writer.missing()})

    def __len__(self) -> int:
        return len(self._blocks())

    def __iter__(self) -> Iterator[list[int]]:
        for block in self._blocks():
            yield list(range(block * self.batch_size, (block + 1) * self.batch_size))


class PairInferer:
    """Run the generator: latent vectors (B, latent_size) -> pairs (B, 1 + num_labels, H, W, D)."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the generator's output in fp32."""
        return network(inputs).float()


class PairWriter:
    """Turn generated pairs into volumes on the training cohort's scale and write them.

    As postprocessing it writes one pair; ``complete`` writes ``dataset.json``. Every pair has a
    sidecar ``provenance/NAME.json``, written last: a pair whose sidecar exists is whole.

    Args:
        output_dir: the dataset folder.
        card: what lies beside the weights: cohort and label channels.
        weights: path of the checkpoint that made the pairs; its SHA-256 goes into the sidecars.
        num_samples: how many.
        seed: of the cohort to be made.
        start_index: index of the first sample.
        split: list of ``dataset.json`` that the pairs go into.

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
    ) -> None:
        self.folder = Path(output_dir)
        self.cohort = Cohort.from_json(card["cohort"])
        self.label_channels = LabelChannels(**card["label_channels"])
        self.wanted = range(start_index, start_index + num_samples)
        self.split = split
        self.seed = seed
        self.origin = {
            "generator": "wgan",
            "weights": Path(weights).name,
            "weights_sha256": file_sha256(weights),
            "seed": seed,
            "medpair_version": __version__,
        }
        self._refuse_mixture()

    def missing(self) -> list[int]:
        """Return the wanted indices whose pair is not there yet."""
        return [index for index in self.wanted if not self._sidecar(index).exists()]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Write the pair of ``data``: ``pred`` (1 + num_labels, H, W, D) and its ``index``."""
        index = int(data["index"])
        if index in self.wanted and not self._sidecar(index).exists():
            self._write(index, torch.as_tensor(data["pred"]).cpu())
        return data

    def complete(self) -> Path:
        """Write ``dataset.json`` over all pairs in the folder."""
        names = sorted(path.stem for path in (self.folder / "provenance").glob("pair_*.json"))
        path = write_dataset_json(
            self.folder,
            f"{self.cohort.name}_synthetic",
            {name: value for value, name in enumerate(self.cohort.labels)},
            {self.split: [entry(name, self.split) for name in names]},
            {"0": self.cohort.channel},
            self.cohort.label_group,
            description=f"synthetic pairs; origin: {self.cohort.name}",
            licence=self.cohort.licence,
            origin=self.origin,
        )
        logger.info("%s: %d pairs", path, len(names))
        return path

    def _write(self, index: int, pair: Tensor) -> None:
        paths = entry(self._name(index), self.split)
        size = self._size(index, pair.shape[1:])
        box = crop_box(size, pair.shape[1:])
        label = self.label_channels.decode(pair[None, 1:])[0, 0].numpy()[box]
        low, high = self.cohort.intensity
        image = from_unit(pair[0].numpy().astype(np.float64)[box], low, high)
        affine = centred_affine(self.cohort.spacing, size)
        write_volume(
            self.folder / paths["image"], Volume(stored(image, low, high), affine), np.int16
        )
        write_volume(self.folder / paths["label"], Volume(np.ascontiguousarray(label), affine))
        write_json(self._sidecar(index), {"index": index, "size": list(size), **self.origin})

    def _size(self, index: int, patch: Sequence[int]) -> tuple[int, int, int]:
        """Draw the pair's size from the cohort's; axes longer than the patch are cut to it."""
        sizes = self.cohort.sizes
        rng = numpy_generator(self.seed, index, SIZE_STREAM)
        w, h, d = sizes[int(rng.integers(len(sizes)))]
        return min(w, patch[0]), min(h, patch[1]), min(d, patch[2])

    def _name(self, index: int) -> str:
        return f"pair_{index:06d}"

    def _sidecar(self, index: int) -> Path:
        return self.folder / "provenance" / f"{self._name(index)}.json"

    def _refuse_mixture(self) -> None:
        """Look at one pair that is already there; all of a folder have the same origin."""
        first = next(iter(sorted((self.folder / "provenance").glob("pair_*.json"))), None)
        if first is None:
            return
        there = read_json(first)
        differing = [
            f"{key}: {there.get(key)!r} there, {value!r} now"
            for key, value in self.origin.items()
            if there.get(key) != value
        ]
        if differing:
            raise DataError(
                f"{first}: expected pairs of the same origin, found {'; '.join(differing)} "
                "(choose another output_dir)"
            )


def stored(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return intensities as they are stored: int16 where whole steps are fine enough, else float.

    Floats are written as int16 with a scale factor.
    """
    info = np.iinfo(np.int16)
    if high - low >= WHOLE_STEPS and info.min <= low and high <= info.max:
        return np.rint(image).astype(np.int16)
    return image


def centred_affine(spacing: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """Return a RAS affine (4, 4) with the volume's centre at the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-0.5 * s * (n - 1) for s, n in zip(spacing, size, strict=True)]
    return affine


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: if it is missing.
    """
    try:
        with open(path, "rb") as handle:
            digest = hashlib.sha256()
            while block := handle.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except FileNotFoundError:
        raise DataError(f"{path}: expected a checkpoint, found nothing there") from None
