"""What MONAI's readers do not look at, looked at before they read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from monai.transforms import MapTransform

from medpair.data.files import read_grid, verify_file
from medpair.data.resampling import resampled_size


class WholeFilesd(MapTransform):
    """Read files to their end before MONAI's reader does, which stops before the checksum.

    Args:
        keys: entries that hold paths.
        spacing: millimetres per RAS axis that they will be brought to, or None.
    """

    def __init__(self, keys: Sequence[str] | str, spacing: Sequence[float] | None = None) -> None:
        super().__init__(keys)
        self.spacing = spacing

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return ``data`` as it is; raises DataError for a file that cannot be used, naming it."""
        for key in self.key_iterator(data):
            if not isinstance(data[key], (str, os.PathLike)):  # an application has read it already
                continue
            size, spacing = read_grid(data[key])
            if self.spacing is not None:
                resampled_size(size, list(spacing), self.spacing, data[key])
            verify_file(data[key])
        return data
