"""Simulated cohorts as dataset folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import DataError, Volume, read_json, write_json, write_volume
from medpair.data.labels import LabelMap
from medpair.data.phantoms import Phantom
from medpair.data.phantoms.brain import BRAIN_LABELS, brain_phantom
from medpair.data.phantoms.thorax import THORAX_GROUPS, THORAX_LABELS, thorax_phantom
from medpair.data.phantoms.vessels import vessel_phantom
from medpair.data.sampling import derive_seed


@dataclass(frozen=True)
class Kind:
    """What one kind of cohort is.

    Attributes:
        make: called with ``size``, ``seed`` and ``spacing``, makes one volume.
        labels: names of its classes and their values.
        channel: name of its image.
        size: voxels per axis unless told otherwise.
        spacing: mm per axis unless told otherwise.
        groups: merges of its classes, as ``label_groups`` of a ``dataset.json``.
    """

    make: Callable[..., Phantom]
    labels: dict[str, int]
    channel: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    groups: dict[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "vessels": Kind(
        vessel_phantom,
        {"background": 0, "vessel": 1},
        "TOF-MRA (simulated)",
        (128, 128, 64),
        (0.5, 0.5, 0.7),
    ),
    "thorax": Kind(
        thorax_phantom, THORAX_LABELS, "CT", (128, 128, 96), (3.0, 3.0, 3.0), THORAX_GROUPS
    ),
    "brain": Kind(brain_phantom, BRAIN_LABELS, "T1 (simulated)", (90, 120, 120), (2.0, 2.0, 2.0)),
}


def write_phantom_cohort(
    kind: str,
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    validation: int = 0,
    progress: bool = False,
    label_group: str | None = None,
) -> Path:
    """Write a simulated cohort; volumes that are there already are kept.

    Volume ``i`` depends on (kind, seed, i, size, spacing) alone. The last ``validation`` of the
    ``count`` volumes go into the validation list. ``size`` (voxels) and ``spacing`` (mm) are the
    kind's own unless given. With ``label_group``, a merge of the kind's classes, the label maps are
    stored merged.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: if the kind is unknown, or the counts do not fit.
        DataError: if the folder holds volumes that were simulated otherwise or another dataset, or
            there is no such merge.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {sorted(KINDS)}, found {kind!r}")
    if not 0 <= validation < count:
        raise ValueError(f"validation: expected 0 to {count - 1} of {count}, found {validation}")
    made = KINDS[kind]
    size = made.size if size is None else tuple(size)
    spacing = made.spacing if spacing is None else tuple(spacing)
    root = Path(folder)
    own = {"labels": made.labels, "label_groups": made.groups}
    merge = LabelMap.from_dataset_json(own, label_group)
    claim = {"kind": kind, "seed": seed, "size": list(size), "spacing": list(spacing)}
    _claim(root, claim if label_group is None else claim | {"label_group": label_group})
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for index in tqdm(range(count), unit="volume", disable=not progress):
        split = "training" if index < count - validation else "validation"
        paths = entry(f"{kind}_{index:04d}", split, roi=True)
        splits[split].append(paths)
        if not all((root / path).exists() for path in paths.values()):
            phantom = made.make(size, seed=derive_seed(seed, index), spacing=spacing)
            if label_group is not None:
                phantom = replace(phantom, label=merge.encode(phantom.label))
            _write(root, paths, phantom)
    labels = dict(made.labels)
    more: dict[str, Any] = {"label_groups": made.groups} if made.groups else {}
    if label_group is not None:
        labels, more = {name: value for value, name in enumerate(merge.names)}, {}
    return write_dataset_json(
        root,
        f"simulated_{kind}",
        labels,
        splits,
        {"0": made.channel},
        **more,
        description=f"simulated by medpair phantom {kind}, seed {seed}; no person's data",
        licence="Apache-2.0",
    )


def _claim(root: Path, made: dict[str, Any]) -> None:
    """Note in ``phantom.json`` how the volumes are made; refuse those made otherwise."""
    path = root / "phantom.json"
    if not path.exists() and (root / "dataset.json").exists():
        raise DataError(
            f"{root}: expected an empty folder or one with phantom.json, found another dataset "
            "(choose another folder)"
        )
    there = read_json(path) if path.exists() else made
    # where nothing else is, the volumes were refused: of a wrong size, say
    if there != made and any(other != path for other in root.iterdir()):
        raise DataError(
            f"{path}: expected volumes made as asked for now, {made}, found {there} "
            "(choose another folder)"
        )
    write_json(path, made)


def _write(root: Path, paths: dict[str, str], phantom: Phantom) -> None:
    """Write the three volumes of a phantom; the image last."""
    affine = np.diag([*phantom.spacing, 1.0])
    affine[:3, 3] = [
        -0.5 * s * (n - 1) for s, n in zip(phantom.spacing, phantom.image.shape, strict=True)
    ]
    write_volume(root / paths["label"], Volume(phantom.label, affine))
    write_volume(root / paths["roi"], Volume(phantom.roi, affine))
    write_volume(root / paths["image"], Volume(phantom.image, affine))
