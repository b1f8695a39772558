"""From noise to label volumes: MC-DPM's autoregression over windows of slices (Han et al. 2023).

A volume begins with one window at a random position, generated unconditionally, and grows in both
directions: the last n slices that are there are given for the next window, the first n for the one
before, until both ends are reached. The forward and backward windows of all volumes of a batch are
denoised together, so that a volume takes half as many rounds as it has windows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.utils.data import Dataset

from medpair.data.card import network_of, part_of
from medpair.data.cohort import Cohort, LabelledVolume, cohort_of
from medpair.data.files import DataError
from medpair.data.patches import PAD_LABEL, extract
from medpair.data.sampling import derive_seed
from medpair.data.slices import Box, framed
from medpair.data.traits import Traits, size_offsets_of, traits_of, wanted_scores
from medpair.data.unlabelled import joined
from medpair.diffusion.solvers import Solver
from medpair.inferers.label_growth import BACKWARD, FORWARD, SIZES, START, Growth
from medpair.inferers.label_windows import WindowDenoiser, require_sequence
from medpair.metrics.label_plausible import LabelReference, implausible, label_reference
from medpair.metrics.label_shape import label_shape
from medpair.networks.mcdpm import MaskSequenceDenoiser

logger = logging.getLogger(__name__)


def denoiser_from_card(card: dict[str, Any]) -> MaskSequenceDenoiser:
    """Rebuild the network that a card describes, in the layout that samples fastest.

    Raises:
        DataError: if the card is another bundle's.
    """
    require_sequence(card)
    network = network_of(card, "network", MaskSequenceDenoiser)
    # channels last; convolutions in three dimensions choose theirs themselves
    return convert_conv2d_weight_memory_format(network, torch.channels_last)


def _reference(**content: Any) -> LabelReference:
    return LabelReference.from_json(content)


def reference_of(
    volumes: Sequence[LabelledVolume], cohort: Cohort, frame: Sequence[int], axis: int
) -> dict[str, Any]:
    """Return what is remembered of the training labels, as the frame shows them, for the card.

    What has no label has no shape either: a neck may end anywhere, in as many pieces as it likes.
    """
    known = cohort.labelled.num_labels
    labels = [joined(framed(volume.label, frame, PAD_LABEL), known) for volume in volumes]
    shapes = [label_shape(label, known, cohort.spacing, axis) for label in labels]
    return label_reference(shapes).to_json()


def sequence_entry(
    frame: Sequence[int], box: Box, axis: int, window: int, overlap: int, completes: bool = False
) -> dict[str, Any]:
    """Return how the network sees a volume, for the card (see ``SliceOrder``)."""
    entry = {"axis": axis, "frame": list(box.size), "window": window, "overlap": overlap}
    if list(box.size) != list(frame):
        entry |= {"corner": list(box.corner), "volume_size": list(frame)}
    if completes:
        entry["completes"] = True
    return entry


class IndexDataset(Dataset[dict[str, Any]]):
    """Samples that are nothing but their index: ``image`` (1,) int64 and ``index``."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": torch.tensor([index]), "index": index}


class LabelVolumeInferer(WindowDenoiser):
    """Generate label volumes by index.

    Sample i depends on (weights, seed, i) and these options alone.

    Args:
        card: what lies beside the weights.
        seed: of the cohort to be made.
        solver: ``ancestral``, ``ddim``, ``dpm_solver_pp`` or ``flow``.
        steps: evaluations per window.
        log_snr: where the steps of ``dpm_solver_pp`` begin and end, as log(signal / noise). For
            None, here and in the two before, see ``label_sampler``.
        guidance: weight w of classifier-free guidance, ``unconditional + w (conditional -
            unconditional)``; 1 is none, and costs half. In the unconditional branch the given
            slices are noised like the others and not marked.
        evidence: for the objective ``classes``: weight of what a voxel's noisy code says of itself.
            1 is Bayes' rule, as in training; after a short training less of it leaves fewer specks.
            None: what the card says (``sampling``), else 1.
        sizes: for a network that is told the classes' sizes: those wanted, {class: standard
            deviations from the cohort's mean, of the logarithm}. The others, all by default, are
            drawn for each volume as they vary in the cohort.
        size_offsets: what is added to the wanted sizes (the drawn ones, too) before the network is
            told them, {class: standard deviations}: more, where it makes less of a class than it
            is told. None: what the card says (``sampling``), else nothing.
        height: N, slices of the generated volume; None: as in training.
        reject: replace an implausible volume by that of the next attempt's seed.
        attempts: tries before an implausible volume is kept.

    Attributes:
        records: for each index made, its attempts, reasons of rejection, seams.
    """

    def __init__(
        self,
        card: dict[str, Any],
        seed: int = 0,
        solver: Solver | None = None,
        steps: int | None = None,
        log_snr: Sequence[float] | None = None,
        guidance: float = 1.0,
        evidence: float | None = None,
        sizes: Mapping[str, float] | None = None,
        size_offsets: Mapping[str, float] | None = None,
        height: int | None = None,
        reject: bool = False,
        attempts: int = 10,
    ) -> None:
        if not isinstance(reject, bool):  # the text "false" would count as true
            raise ValueError(f"reject: expected True or False, found {reject!r}")
        if attempts < 1:
            raise ValueError(f"attempts: expected at least 1, found {attempts}")
        super().__init__(card, solver, steps, log_snr, guidance, evidence, height)
        if self.completes:
            raise DataError(
                "model.json: sequence: expected weights that generate label maps, found some that "
                "complete given ones (configs/complete.json after inference.json)"
            )
        self.traits: Traits | None = None
        if card["network"].get("sizes"):
            self.traits = traits_of(card, "size_traits")
        self.sizes = wanted_scores(self.traits, sizes, "sizes", "size_conditioning")
        if size_offsets is None:
            self.size_offsets = size_offsets_of(card, self.traits)
        else:
            self.size_offsets = wanted_scores(
                self.traits, size_offsets, "size_offsets", "size_conditioning"
            )
        self.cohort = cohort_of(card)
        self.reference = part_of(card, "label_reference", _reference)
        self.seed = seed
        self.reject = reject
        self.attempts = attempts
        self.records: dict[int, dict[str, Any]] = {}

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is, for its sidecar."""
        return {
            **self.sampler.origin(),
            "guidance": self.guidance,
            "evidence": self.evidence,
            **({"wanted_sizes": self.sizes} if self.sizes else {}),
            **({"size_offsets": self.size_offsets} if self.size_offsets else {}),
            "frame": self.volume_size,
            "reject": self.reject,
            **({"attempts": self.attempts} if self.reject else {}),
        }

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return label volumes (B, 1, W, H, D) for indices (B, 1).

        Raises:
            OutOfMemoryError: if not even one window fits.
        """
        indices = [int(i) for i in inputs.flatten().tolist()]
        return self._plausible(indices, network, inputs.device)

    def _plausible(self, indices: list[int], network: nn.Module, device: torch.device) -> Tensor:
        """Return volumes (B, 1, W, H, D), implausible ones replaced if they are to be."""
        done: dict[int, np.ndarray] = {}
        open_indices = indices
        history: dict[int, list[list[str]]] = {index: [] for index in indices}
        for attempt in range(self.attempts):
            grown = self.grow(network, open_indices, attempt, device)
            rejected = []
            for index, growth in zip(open_indices, grown, strict=True):
                done[index] = self.placed(growth)
                reasons = self._reasons(done[index])
                history[index].append(reasons)
                self.records[index] = {
                    "attempt": attempt,
                    "plausible": not reasons,
                    "seams": sorted(self.corner[self.axis] + seam for seam in growth.seams),
                    "rejected": [r for r in history[index] if r],
                }
                if self.traits is not None and growth.sizes is not None:
                    scores = (round(float(score), 3) for score in growth.sizes)
                    self.records[index]["sizes"] = dict(zip(self.traits.names, scores, strict=True))
                if reasons:
                    rejected.append(index)
            open_indices = rejected
            if not open_indices or not self.reject:
                break
        for index in open_indices:
            logger.warning("label volume %d is implausible: %s", index, history[index][-1])
        stacked = np.stack([done[index] for index in indices])[:, None]
        return torch.from_numpy(stacked)

    def grow(
        self, network: nn.Module, indices: Sequence[int], attempt: int, device: torch.device
    ) -> list[Growth]:
        """Generate one volume for each index, the windows of a round together."""
        return list(self.grown(network, [self._begin(i, attempt) for i in indices], device))

    def placed(self, growth: Growth) -> np.ndarray:
        """Return the volume (W, H, D) of what was grown in the frame: background beyond it."""
        label = np.moveaxis(growth.label, 0, self.axis)
        return extract(label, [-first for first in self.corner], self.volume_size, PAD_LABEL)

    def _begin(self, index: int, attempt: int) -> Growth:
        """Return an empty volume that is to begin at a position of its own."""
        _, *plane = self._window_shape()
        height = self.frame[self.axis]
        dtype = np.uint8 if self.code.num_classes <= 256 else np.uint16
        streams = {
            stream: torch.Generator().manual_seed(derive_seed(self.seed, index, attempt, stream))
            for stream in (START, FORWARD, BACKWARD)
        }
        volume = Growth.begun(np.zeros((height, *plane), dtype), self.window, streams)
        if self.traits is not None:
            stream = torch.Generator().manual_seed(derive_seed(self.seed, index, attempt, SIZES))
            volume.sizes = self.traits.draw(stream, self.sizes)
            volume.told = self.traits.shifted(volume.sizes, self.size_offsets)
        return volume

    def _reasons(self, label: np.ndarray) -> list[str]:
        known = self.cohort.labelled
        label = joined(label, known.num_labels)
        shape = label_shape(label, known.num_labels, known.spacing, self.axis)
        return implausible(shape, self.reference, names=known.labels[1:])
