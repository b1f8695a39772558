"""MedicalNet features of whole volumes: those of Subramaniam et al. 2022."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medpair.data.files import DataError, file_sha256, load_torch
from medpair.data.slices import framed
from medpair.networks.medicalnet import (
    FEATURES,
    LEAST_SIZE,
    load_medicalnet,
    medicalnet_input,
    medicalnet_resnet10,
)
from medpair.report.features import FeatureSet, volume_features
from medpair.report.pairs import Pair


class MedicalNetVolumes:
    """512 features of a volume from MedicalNet's ResNet-10 (Subramaniam et al. 2022).

    Volumes go in as stored, 0 being the background, which becomes noise. The noise depends on the
    seed and the volume's voxels: equal volumes have equal features. The paper takes patches of
    128 x 128 x 64; here a volume is taken whole.

    Args:
        path: ``resnet_10_23dataset.pth`` of MedicalNet, which the user brings.
        seed: of the noise.
        device: where the network runs.

    Raises:
        DataError: if the file does not hold that network; names the file and the first key.
    """

    name = "medicalnet_volumes"
    dimension = FEATURES

    def __init__(self, path: str | Path, seed: int = 0, device: str | torch.device = "cpu") -> None:
        self.path, self.seed = Path(path), seed
        self.device = torch.device(device)
        content = load_torch(self.path)
        if not isinstance(content, dict):
            raise DataError(
                f"{path}: expected a dictionary of weights, found {type(content).__name__}"
            )
        self.network = medicalnet_resnet10()
        try:
            load_medicalnet(self.network, content)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        self.network.to(self.device)
        self.sha256 = file_sha256(self.path)

    def describe(self) -> dict[str, Any]:
        """Return weights' file, SHA-256, seed and preprocessing as plain data for JSON."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            "weights": self.path.name,
            "sha256": self.sha256,
            "seed": self.seed,
            "preprocessing": "whole volumes as stored, padded with 0 to at least "
            f"{LEAST_SIZE} voxels per axis; mean and standard deviation of voxels above 0 to 0 "
            "and 1; voxels equal to 0 replaced by normal noise",
        }

    def features(self, pairs: Iterable[Pair]) -> dict[str, FeatureSet]:
        """Return the one view ``volume``: a vector of 512 per volume."""
        return volume_features([self._vector(pair.image) for pair in pairs], self.dimension)

    @torch.inference_mode()
    def _vector(self, image: np.ndarray) -> np.ndarray:
        frame = [max(LEAST_SIZE, size) for size in image.shape]
        padded = framed(np.asarray(image, np.float32), frame, 0.0)
        content = zlib.crc32(np.ascontiguousarray(padded).tobytes())
        tensor = medicalnet_input(padded, self.seed, content).to(self.device)
        return self.network(tensor)[0].float().cpu().numpy()
