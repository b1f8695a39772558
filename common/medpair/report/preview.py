"""Pictures of pairs: three planes of each volume, the label laid over it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

from medpair.data.cohort import require_same_grid
from medpair.data.dataset import Case, DatasetFolder, load_dataset
from medpair.data.files import DataError, atomic_path, read_volume
from medpair.data.intensity import robust_range
from medpair.data.labels import whole_values

OVERLAY_STRENGTH = 0.45
GAP = 2


def colours(count: int) -> np.ndarray:
    """Return (count, 3) distinct colours, 0..255; index 0 (background) is black."""
    table = mpl.colormaps["tab10" if count <= 10 else "gist_rainbow"]
    picks = np.arange(count) if count <= 10 else np.linspace(0, 1, count)
    rgb = np.array([table(int(p) if count <= 10 else float(p))[:3] for p in picks])
    # red first: blue is hard to see on grey
    rgb = np.roll(rgb, -3, axis=0) if count <= 10 else rgb
    return np.vstack([[0, 0, 0], (rgb * 255)[: count - 1]]) if count > 1 else np.zeros((1, 3))


def overlay(image: np.ndarray, label: np.ndarray | None, palette: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of a slice in 0..1, its classes laid over in colour."""
    grey = np.repeat((np.clip(image, 0, 1) * 255)[..., None], 3, axis=2)
    if label is not None:
        painted = label > 0
        tint = palette[np.minimum(label, len(palette) - 1)]
        grey[painted] = (1 - OVERLAY_STRENGTH) * grey[painted] + OVERLAY_STRENGTH * tint[painted]
    return grey.astype(np.uint8)


def planes(volume: np.ndarray, centre: Sequence[int]) -> list[np.ndarray]:
    """Return the axial, coronal and sagittal slice through ``centre`` of (W, H, D), head up."""
    x, y, z = centre
    return [volume[:, :, z].T[::-1], volume[:, y, :].T[::-1], volume[x].T[::-1]]


def picture_of(
    rows: Sequence[tuple[np.ndarray, np.ndarray | None, str]], columns: int = 2, scale: int = 3
) -> np.ndarray:
    """Return (H, W, 3) uint8: each pair as three planes, plain and with its label.

    Args:
        rows: (image (W, H, D), label (W, H, D) or None, caption) of each pair.
        columns: pairs side by side.
        scale: enlargement, each voxel a square.
    """
    most = max((int(label.max()) if label is not None else 0 for _, label, _ in rows), default=0)
    palette = colours(most + 1)
    tiles = [_tile(image, label, caption, palette, scale) for image, label, caption in rows]
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    lines = -(-len(tiles) // columns)
    sheet = np.full((lines * (height + GAP), columns * (width + GAP), 3), 255, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _tile(
    image: np.ndarray, label: np.ndarray | None, caption: str, palette: np.ndarray, scale: int
) -> np.ndarray:
    """One pair: the three planes in a row, above the same with the label."""
    low, high = robust_range(image)
    grey = (image - low) / (high - low)
    centre = [size // 2 for size in image.shape]
    if label is not None and label.any():
        # the planes through most of the label, rather than through the volume's middle
        centre = [int(np.argmax((label > 0).sum(axis=other))) for other in ((1, 2), (0, 2), (0, 1))]
    plain = [overlay(view, None, palette) for view in planes(grey, centre)]
    strips = [plain]
    if label is not None:
        labelled = planes(label.astype(int), centre)
        strips.append(
            [overlay(v, k, palette) for v, k in zip(planes(grey, centre), labelled, strict=True)]
        )
    tile = np.vstack([_row(strip) for strip in strips])
    tile = tile.repeat(scale, axis=0).repeat(scale, axis=1)
    if not caption:
        return tile
    band = Image.new("RGB", (tile.shape[1], 14), "white")
    ImageDraw.Draw(band).text((2, 1), caption, fill="black")
    return np.vstack([np.asarray(band), tile])


def _row(views: Sequence[np.ndarray]) -> np.ndarray:
    """Join slices of different height side by side on black."""
    height = max(view.shape[0] for view in views)
    padded = [
        np.pad(view, ((0, height - view.shape[0]), (0, GAP), (0, 0)), constant_values=0)
        for view in views
    ]
    return np.hstack(padded)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG to a path of any name."""
    Image.fromarray(picture).save(path, format="PNG")


def _picked(
    dataset: DatasetFolder, split: str, count: int, names: Sequence[str] | None
) -> Sequence[Case]:
    """Return the cases of a list that are to be drawn."""
    found = dataset.split(split)
    if names is None:
        return found[:count]
    of_name = {case.name: case for case in found}
    unknown = [name for name in names if name not in of_name]
    if unknown:
        raise DataError(
            f"{dataset.root / 'dataset.json'}: {split}: expected cases named {', '.join(names)}, "
            f"found no {', '.join(unknown)} among {len(found)} such as {found[0].name}"
        )
    return [of_name[name] for name in names]


def preview_datasets(
    folders: Sequence[str | Path],
    output: str | Path,
    count: int = 4,
    split: str = "training",
    label_group: str | None = None,
    cases: Sequence[str] | None = None,
) -> Path:
    """Write one picture with pairs of each folder, a column a folder (two columns for one alone).

    Classes for what has no label are drawn like any other, where a folder has them: whoever looks
    wants to see what images were drawn to.

    Args:
        folders: dataset folders.
        output: the PNG.
        count: pairs per folder, the first of the list.
        split: which list.
        label_group: merge of labels.
        cases: names of the pairs in place of the first ``count``; every folder has them all.

    Returns:
        The path of the PNG.

    Raises:
        DataError: if a list is empty, or has no case of a name.
        ValueError: if nothing is to be drawn.
    """
    columns = []
    for folder in folders:
        dataset = load_dataset(folder, images=False)
        labels = dataset.labels(label_group)
        column = []
        for case in _picked(dataset, split, count, cases):
            label = None
            if case.label is not None:
                stored = read_volume(case.label, None)
                source = str(case.label)
                label = labels.encode(whole_values(stored.array, source), source)
            if case.image is not None:
                volume = read_volume(case.image)
                image = volume.array
                if case.label is not None:
                    require_same_grid(case.label, stored, volume)
            else:  # a label map alone is shown on its own silhouette
                assert label is not None
                image = (label > 0).astype(np.float32)
            column.append((image, label, f"{dataset.name}: {case.name}"))
        columns.append(column)
    rows = [pair for line in zip(*columns, strict=False) for pair in line]
    if not rows:
        raise ValueError("datasets, count, cases: expected at least one pair to draw, found none")
    largest = max(max(image.shape) for image, _, _ in rows)
    # one folder alone makes a sheet of two columns, rather than a tower
    abreast = len(columns) if len(columns) > 1 else min(2, len(rows))
    picture = picture_of(rows, columns=abreast, scale=max(1, 160 // largest))
    with atomic_path(output) as partial:
        save_png(partial, picture)
    return Path(output)
