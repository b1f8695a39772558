"""The axes of a grid at exactly right angles, as MONAI's ``Spacing`` needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import zoom_affine
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import MetaKeys, TraceKeys


class StraightGridd(MapTransform, InvertibleTransform):
    """Let the axes of a grid be at exactly right angles, until the transform is inverted.

    MONAI's ``Spacing`` keeps the first voxel in its place where it finds the axes of the new grid
    parallel to those of the old, to 1e-8. The float32 header of a grid turned about two axes does
    not hold its angles to that; the new grid is then laid around the old one's centre, up to half
    a voxel off, without a word. Generators resample by voxel sizes alone
    (``medpair.data.resampling.resample``): with this before ``Spacingd`` segmenters see what they
    see. Voxels stay as they are, and so do their sizes; axes that are sheared count as straight, as
    they do there. The inverse gives the file's own affine back.

    Args:
        keys: entries (1, W, H, D) with an affine.
    """

    def __init__(self, keys: Sequence[str] | str) -> None:
        super().__init__(keys)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return ``data`` with affines of right angles in double precision."""
        result = dict(data)
        for key in self.key_iterator(result):
            own = result[key].affine
            volume = _with_affine(result[key], straightened(own))
            result[key] = self.push_transform(volume, extra_info={"affine": own})
        return result

    def inverse(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return ``data`` with the affines that it came with."""
        result = dict(data)
        for key in self.key_iterator(result):
            done = self.pop_transform(result[key])
            result[key] = _with_affine(result[key], done[TraceKeys.EXTRA_INFO]["affine"])
        return result


def straightened(affine: torch.Tensor) -> torch.Tensor:
    """Return the affine (4, 4) with axes at right angles, of the same lengths and beginning."""
    own = affine.detach().cpu().numpy().astype(np.float64)
    axes = own[:3, :3]
    if np.count_nonzero(axes) == 3:  # along the patient's axes: not a bit may change
        return torch.from_numpy(own)
    straight = zoom_affine(own, np.linalg.norm(axes, axis=0), diagonal=False)
    straight[:3, 3] = own[:3, 3]
    return torch.from_numpy(straight)


def _with_affine(volume: MetaTensor, affine: torch.Tensor) -> MetaTensor:
    """Return the same voxels and history with another affine; ``volume`` stays as it is."""
    meta = volume.meta | {MetaKeys.AFFINE: affine}
    history = list(volume.applied_operations)
    return MetaTensor(volume.as_tensor(), meta=meta, applied_operations=history)
