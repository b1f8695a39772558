"""Measure what bending does to label maps: how well they fit their images, and if they break.

python tests/benchmarks/measure_bent_labels.py hippocampus_mr --output_dir bent

writes the validation cases as they are (``plain``) and deformed as training copies are, labels once
of the nearest voxels (``nearest``), once as copies have them (``splines``). The shipped segmenter
then says how well each folder's labels fit its images::

    C=bundles/unet_segmentation/configs
    python -m monai.bundle run --config_file "['$C/inference.json','$C/evaluate.json']" \\
        --bundle_root bundles/unet_segmentation --dataset_dir bent/splines --split training \\
        --output_dir scores

It also prints in how many pieces simulated vessels are, as they were and bent.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import label as pieces

from medpair.data.cohort import read_pair
from medpair.data.dataset import entry, load_dataset, write_dataset_json
from medpair.data.deform import Deformation, bent_label, positions, sample
from medpair.data.files import Volume, write_volume
from medpair.data.phantoms.cohort import KINDS
from medpair.data.sampling import numpy_generator

READ = {"nearest": lambda label, at: sample(label, at, 0), "splines": bent_label}
VESSELS, SIZE = 8, (64, 64, 48)


def main(arguments: list[str] | None = None) -> None:
    """Write the folders, print the pieces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("bent"))
    parser.add_argument("--turn_degrees", type=float, default=4.0)
    parser.add_argument("--bend_millimetres", type=float, default=1.0)
    options = parser.parse_args(arguments)
    deform = Deformation(1, options.turn_degrees, options.bend_millimetres)
    write_folders(options.dataset_dir, options.output_dir, deform)
    for kind, (mean, error) in vessel_pieces(deform).items():
        print(f"vessels, {kind}: {mean:.1f} pieces (standard error {error:.1f})")


def write_folders(dataset_dir: Path, output_dir: Path, deform: Deformation) -> None:
    """Write each validation case into the three folders, which list them as training cases."""
    folder = load_dataset(dataset_dir)
    labels = folder.labels(None)
    cases = []
    for number, case in enumerate(folder.split("validation")):
        image, label = read_pair(case, labels)
        grid = image.spacing
        at = positions(label.shape, grid, grid, deform, numpy_generator(0, number, 0))
        cases.append(entry(f"case_{number:03d}"))
        bent = {name: (sample(image.array, at, 3), read(label, at)) for name, read in READ.items()}
        for name, pair in {"plain": (image.array, label), **bent}.items():
            affine = np.diag([*grid, 1.0])
            for role, array in zip(("image", "label"), pair, strict=True):
                write_volume(output_dir / name / cases[-1][role], Volume(array, affine))
    values = {name: index for index, name in enumerate(labels.names)}
    for name in ("plain", *READ):
        write_dataset_json(output_dir / name, name, values, {"training": cases})


def vessel_pieces(deform: Deformation) -> dict[str, tuple[float, float]]:
    """Return the mean number of pieces and its standard error, of two bends of each phantom."""
    counts: dict[str, list[int]] = {}
    one = (1.0, 1.0, 1.0)
    for seed in range(VESSELS):
        label = KINDS["vessels"].make(SIZE, seed=seed, spacing=one).label
        for copy in range(2):
            at = positions(SIZE, one, one, deform, numpy_generator(seed, copy))
            bent = {name: read(label, at) for name, read in READ.items()}
            for name, array in {"as they were": label, **bent}.items():
                counts.setdefault(name, []).append(pieces(array > 0, np.ones((3, 3, 3)))[1])
    return {
        name: (float(np.mean(found)), float(np.std(found, ddof=1) / len(found) ** 0.5))
        for name, found in counts.items()
    }


if __name__ == "__main__":
    main()
