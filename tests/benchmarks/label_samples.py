"""Label volumes made by a trained label diffusion, and what is measured of each, as JSON lines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import permutation_test
from torch import nn

from medpair.data.card import Card
from medpair.data.cohort import read_card, read_cohort
from medpair.data.files import load_torch
from medpair.data.patches import PAD_LABEL
from medpair.data.slices import framed
from medpair.inferers.label_growth import Growth, Window
from medpair.inferers.label_volume import LabelVolumeInferer, denoiser_from_card
from medpair.metrics.label_adjacency import adjacency
from medpair.metrics.label_plausible import implausible
from medpair.metrics.label_shape import label_shape, seam_ratio


class FirstWindow(LabelVolumeInferer):
    """A volume's first window alone, somewhere along its axis."""

    def _next(self, number: int, volume: Growth) -> list[Window]:
        return []


def open_model(checkpoint: Path) -> tuple[Card, nn.Module]:
    """Return a label diffusion's card and its network, ready to sample."""
    card = read_card(checkpoint)
    network = denoiser_from_card(card)
    state = load_torch(checkpoint)
    network.load_state_dict(state.get("model", state))
    return card, network.eval()


def weights_id(network: nn.Module) -> str:
    """Return what tells these weights from others; the same in half precision."""
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def span_of(inferer: LabelVolumeInferer) -> list[float] | None:
    """Return where the sampler's steps begin and end, as JSON keeps it; None for everywhere."""
    span = inferer.sampler.log_snr
    return None if span is None else list(span)


def span_option(text: str) -> list[float]:
    """Read the option ``--log_snr=-4,0.5``."""
    return [float(word) for word in text.split(",")]


def where(solver: str, log_snr: list[float] | None) -> dict[str, Any]:
    """Return the option for the solver that takes it."""
    return {"log_snr": log_snr} if solver == "dpm_solver_pp" else {}


def sample_lines(
    inferer: LabelVolumeInferer, network: nn.Module, indices: Sequence[int]
) -> list[dict[str, Any]]:
    """Make volumes in one batch and return a line of each: what made it, its cost, its statistics.

    ``seconds`` are the processor's (all threads), ``windows`` those of the volume, and ``calls``
    how often the network ran for the batch, per volume.
    """
    before, start = inferer.evaluations, time.process_time()
    with torch.no_grad():
        grown = inferer.grow(network, indices, 0, torch.device("cpu"))
    seconds = (time.process_time() - start) / len(indices)
    made = {
        "weights": weights_id(network),
        "solver": inferer.sampler.solver,
        "steps": inferer.sampler.steps,
        "log_snr": span_of(inferer),
        "seed": inferer.seed,
        "evidence": inferer.evidence,
        "size_offsets": inferer.size_offsets,
        "calls": (inferer.evaluations - before) / len(indices),
        "seconds": round(seconds, 3),
    }
    return [
        {**made, "index": index, "windows": 1 + len(growth.seams), **_measured(inferer, growth)}
        for index, growth in zip(indices, grown, strict=True)
    ]


def _measured(inferer: LabelVolumeInferer, growth: Growth) -> dict[str, Any]:
    label = inferer.placed(growth)
    line = statistics_of(label, inferer)
    try:
        seams = [inferer.corner[inferer.axis] + seam for seam in growth.seams]
        seam = seam_ratio([label], [seams], inferer.axis, inferer.cohort.num_labels)
        line["seams"] = [seam.at_seams * seam.seams, seam.beside * seam.seams]
    except ValueError:  # no seam has slices beside it
        line["seams"] = [0.0, 0.0]
    return line


def statistics_of(label: np.ndarray, inferer: LabelVolumeInferer) -> dict[str, Any]:
    """Return a label map's shape, the contacts of its classes, and why it is implausible."""
    cohort = inferer.cohort
    shape = label_shape(label, cohort.num_labels, cohort.spacing, inferer.axis)
    contacts = adjacency(label, cohort.num_labels, cohort.spacing)
    return {
        "shape": shape.to_json(),
        "adjacency": [[round(float(share), 5) for share in row] for row in contacts],
        "implausible": implausible(shape, inferer.reference, names=cohort.labels[1:]),
    }


def real_lines(
    inferer: LabelVolumeInferer, dataset_dir: str | Path, label_group: str | None
) -> list[dict[str, Any]]:
    """Measure the training label maps of a dataset folder, as the model's frame shows them."""
    cohort, volumes = read_cohort(dataset_dir, label_group, inferer.cohort.spacing)
    assert cohort.labels == inferer.cohort.labels, f"other classes than the model's: {cohort}"
    labels = (framed(volume.label, inferer.volume_size, PAD_LABEL) for volume in volumes)
    return [statistics_of(label, inferer) for label in labels]


def window_statistics(
    inferer: FirstWindow, network: nn.Module, indices: Sequence[int], device: torch.device
) -> np.ndarray:
    """Make first windows; return (N, 2 K): shares of the voxels, then pieces, of the K classes."""
    with torch.no_grad():
        grown = inferer.grow(network, indices, 0, device)
    rows = []
    for growth in grown:
        label = growth.label[growth.low : growth.high]
        shape = label_shape(label, inferer.cohort.num_labels, (1, 1, 1), axis=0)
        rows.append([*(volume / label.size for volume in shape.volume), *shape.components])
    return np.array(rows)


def swapped(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return (F,) the p of a test that swaps the two of a pair, for (N, F) statistics of both."""
    found = permutation_test(
        (one, two),
        lambda first, second, axis: (first - second).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        random_state=np.random.default_rng(0),
    )
    return np.asarray(found.pvalue)
