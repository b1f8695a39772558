"""Label values: merging them into groups, and label maps as network channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpair.data.files import DataError

# Whole numbers stored as floats carry rounding; further off is a fraction.
WHOLE_TOLERANCE = 1e-3
# Between the largest and the smallest value: beyond it (atlases number structures in the hundreds
# of millions) a table from value to class would be larger than the volume.
WIDE = 2**20


@dataclass(frozen=True)
class LabelMap:
    """The classes of a dataset: index 0 is background, index k the k-th class.

    Stored values may be any integers; networks and written datasets use the indices.

    Attributes:
        names: name of each class; ``names[0]`` is the background's.
        values: for each class, the stored values merged into it.
        ignored: stored values that the label set has but the chosen group does not: background.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()

    @property
    def num_labels(self) -> int:
        """Number of foreground classes."""
        return len(self.names) - 1

    @property
    def channel_def(self) -> dict[str, int]:
        """Return ``{name: index}``, the ``labels`` entry of a dataset written with this map."""
        return {name: index for index, name in enumerate(self.names)}

    def known(self) -> set[int]:
        """All stored values that this map accepts."""
        return {value for group in self.values for value in group} | set(self.ignored)

    def without(self, names: Collection[str]) -> LabelMap:
        """Return the map in which the classes of these names are background."""
        out = [bool(k) and name in names for k, name in enumerate(self.names)]
        pairs = list(zip(self.names, self.values, out, strict=True))
        ignored = [value for _, group, left in pairs if left for value in group]
        return LabelMap(
            tuple(name for name, _, left in pairs if not left),
            tuple(group for _, group, left in pairs if not left),
            (*self.ignored, *ignored),
        )

    def encode(self, stored: np.ndarray, source: str = "label") -> np.ndarray:
        """Map stored values (any shape, whole numbers) to class indices, uint8 or uint16.

        Raises:
            DataError: if a value is a fraction or not in the label set; names the values and
                ``source``.
        """
        found = np.unique(stored)
        fractions = found[~np.isfinite(found) | (found != np.rint(found))]
        if fractions.size:
            raise DataError(
                f"{source}: expected whole label values, found {short_list(fractions.tolist())}"
            )
        unknown = sorted({int(value) for value in found} - self.known())
        if unknown:
            raise DataError(
                f"{source}: expected label values in {short_list(sorted(self.known()))}, "
                f"found {short_list(unknown)}"
            )
        dtype = np.uint8 if len(self.names) <= 256 else np.uint16
        if len(found) and int(found[-1]) - int(found[0]) >= WIDE:
            index_of = {value: index for index, group in enumerate(self.values) for value in group}
            indices = np.array([index_of.get(int(value), 0) for value in found], dtype)
            return indices[np.searchsorted(found, stored)]
        lowest = int(found[0]) if len(found) else 0
        table = np.zeros((int(found[-1]) - lowest + 1) if len(found) else 1, dtype=dtype)
        for index, group in enumerate(self.values):
            for value in group:
                if 0 <= value - lowest < len(table):
                    table[value - lowest] = index
        return table[stored.astype(np.int64) - lowest]

    @classmethod
    def from_dataset_json(cls, content: Mapping[str, Any], group: str | None = None) -> LabelMap:
        """Build the map from a ``dataset.json``; ``group`` names one of its ``label_groups``.

        Raises:
            DataError: if there are no labels, no background, no such group, or classes without a
                name of their own.
        """
        labels = content.get("labels")
        if not isinstance(labels, Mapping) or not all(map(is_whole, labels.values())):
            raise DataError(f"labels: expected {{name: whole number}}, found {labels}")
        if 0 not in labels.values() or len(labels) < 2:
            raise DataError(
                "labels: expected names with values, 0 for the background and at least one more, "
                f"found {labels}"
            )
        background = next(name for name, value in labels.items() if value == 0)
        if group is None:
            ordered = sorted((value, name) for name, value in labels.items() if value != 0)
            names = [name for _, name in ordered]
            _check_class_names("labels", (background, *names))
            return cls((background, *names), ((0,), *((value,) for value, _ in ordered)))
        groups = content.get("label_groups") or {}
        if group not in groups:
            raise DataError(f"label_group: expected one of {sorted(groups)}, found {group!r}")
        try:
            entries = [groups[group][key] for key in sorted(groups[group], key=int)]
            entries = [entry for entry in entries if 0 not in entry["values"]]
            values = tuple(tuple(int(value) for value in entry["values"]) for entry in entries)
            names = [str(entry["name"]) for entry in entries]
        except (LookupError, TypeError, ValueError):
            expected = '{index: {"name": name, "values": [whole numbers]}}'
            raise DataError(
                f"label_groups.{group}: expected {expected}, found {groups[group]}"
            ) from None
        _check_class_names(f"label_groups.{group}", (background, *names))
        merged = {value for merged_values in values for value in merged_values}
        rest = tuple(sorted(set(labels.values()) - merged - {0}))
        return cls((background, *names), ((0,), *values), rest)


def _check_class_names(where: str, names: Sequence[str]) -> None:
    """Refuse names that do not tell classes from each other: every card and table goes by them."""
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise DataError(f"{where}: expected a name of its own for each class, found {list(names)}")


@dataclass(frozen=True)
class LabelChannels:
    """Label maps as the channels that a tanh network can draw, and back.

    One channel per foreground class holds ``off`` or ``on``. A voxel belongs to the class whose
    channel is largest, and to the background where no channel exceeds ``threshold``. With one
    class, ``off=0, on=1, threshold=0.4`` this is exactly the rule of Subramaniam et al.'s code.
    """

    num_labels: int
    off: float = -1.0
    on: float = 1.0
    threshold: float = 0.0

    def encode(self, label: Tensor) -> Tensor:
        """(B, 1, H, W, D) class indices -> (B, num_labels, H, W, D) channels."""
        classes = torch.arange(1, self.num_labels + 1, device=label.device)
        hot = label == classes.view(1, -1, *[1] * (label.ndim - 2)).to(label.dtype)
        return torch.where(hot, self.on, self.off).float()

    def decode(self, channels: Tensor) -> Tensor:
        """(B, num_labels, H, W, D) channels -> (B, 1, H, W, D) class indices.

        They are uint8, or int32 where there are more than 255 classes.
        """
        top, index = channels.max(dim=1, keepdim=True)
        dtype = torch.uint8 if self.num_labels <= 255 else torch.int32
        return torch.where(top > self.threshold, index + 1, 0).to(dtype)


def whole_values(stored: np.ndarray, source: str = "label") -> np.ndarray:
    """Return label values as integers of any shape; those stored as floats are rounded.

    Raises:
        DataError: if a value is further than 0.001 from a whole number, or is not finite.
    """
    if stored.dtype.kind in "iub":
        return stored
    values = np.rint(stored)
    with np.errstate(invalid="ignore"):  # infinity less itself
        far = ~(np.abs(values - stored) <= WHOLE_TOLERANCE)
    if far.any():
        examples = short_list(np.unique(stored[far])[:6].tolist())
        raise DataError(
            f"{source}: expected whole label values (within {WHOLE_TOLERANCE:g}), found "
            f"{int(far.sum())} voxels with others, such as {examples}"
        )
    # what int64 cannot hold is in no label set, and must not wrap around into one
    return np.clip(values, -(2.0**62), 2.0**62).astype(np.int64)


def is_whole(value: Any) -> bool:
    """Return whether a value of a JSON file is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def short_list(values: Sequence[Any], limit: int = 12) -> str:
    """Return the first values and how many more there are, for messages."""
    shown = ", ".join(str(value) for value in values[:limit])
    more = len(values) - limit
    return f"[{shown}, and {more} more]" if more > 0 else f"[{shown}]"
