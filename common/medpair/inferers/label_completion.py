"""Around a label map that is given: generating what has no label, for the stages that need it.

A network trained for it (``completes``) knows classes for what has no label, and is given those
that have one, voxel by voxel. So one's own label maps, and generated ones without such classes, get
the head around the brain that images are drawn to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medpair.data.cohort import Cohort
from medpair.data.files import DataError, Volume, write_volume
from medpair.data.sampling import derive_seed
from medpair.data.slices import unframed
from medpair.data.unlabelled import joined
from medpair.diffusion.solvers import Solver
from medpair.inferers.case_writer import CaseWriter
from medpair.inferers.cases import CaseVolumes
from medpair.inferers.label_growth import BACKWARD, FORWARD, START, Growth
from medpair.inferers.label_windows import WindowDenoiser

# Half as many as for whole label maps: heads that 10 and 5 steps generate around a brain have the
# same share of each class, and neighbours agree as often (the bundle's README)
COMPLETION_STEPS = 5
# What inference.json asks of whole label maps, as long as nothing is asked for
WHOLE = {
    "guidance": 1.0,
    "sizes": None,
    "size_offsets": None,
    "height": None,
    "reject": False,  # without which attempts have no effect for whole ones either
}


def labels_to_complete(
    cohort: Cohort, completes: bool, size_conditioning: bool = False, crop_to_labels: bool = False
) -> int:
    """Return how many classes are given in a training that completes label maps; 0 in any other.

    Raises:
        ValueError: if nothing is to be generated, or a knob makes no sense with labels given.
    """
    if not isinstance(completes, bool):  # the text "false" would count as true
        raise ValueError(f"completes: expected True or False, found {completes!r}")
    if not completes:
        return 0
    if not cohort.unlabelled:
        raise ValueError(
            "completes: expected a background divided into unlabelled_classes of 1 or more, which "
            "are what is generated, found one that is not divided"
        )
    for name, value in (
        ("size_conditioning", size_conditioning),
        ("crop_to_labels", crop_to_labels),
    ):
        if value:
            raise ValueError(f"{name}: expected False with completes, found True")
    return cohort.labelled.num_labels


class LabelCompleter(WindowDenoiser):
    """Generate what has no label around label maps that are given.

    Volume i depends on (weights, seed, i), its label map and these options alone. Every labelled
    voxel stays as it is.

    Args:
        card: what lies beside the weights.
        seed: of what is generated.
        solver: ``ancestral``, ``ddim``, ``dpm_solver_pp`` or ``flow``.
        steps: evaluations per window; None: 5 for ``dpm_solver_pp``.
        log_snr: where the steps of ``dpm_solver_pp`` begin and end. For None, here and in the two
            before, see ``label_sampler``.
        evidence: see ``LabelVolumeInferer``.
        whole: knobs of whole label maps, which would have no effect around given ones.

    Raises:
        DataError: if the weights are none that complete label maps.
        ValueError: if a knob of whole label maps is used.
    """

    def __init__(
        self,
        card: dict[str, Any],
        seed: int = 0,
        solver: Solver | None = None,
        steps: int | None = None,
        log_snr: Sequence[float] | None = None,
        evidence: float | None = None,
        whole: Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in (whole or {}).items():
            if value != WHOLE[name]:
                raise ValueError(
                    f"{name}: expected {WHOLE[name]} with complete.json, as it is the label map "
                    f"given that decides, found {value!r}"
                )
        if steps is None and solver in (None, "dpm_solver_pp"):
            steps = COMPLETION_STEPS
        super().__init__(card, solver, steps, log_snr, 1.0, evidence, None)
        if not self.completes:
            raise DataError(
                "model.json: sequence: completes: expected weights that complete label maps, found "
                "some that generate whole ones (configs/completion.json trains the former)"
            )
        self.seed = seed

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is, for its sidecar."""
        return {"seed": self.seed, **self.sampler.origin(), "evidence": self.evidence}

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: nn.Module, index: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return label maps (B, 1, W, H, D) with classes for what has no label.

        Args:
            inputs: (B, 1, W, H, D) class indices; what is not of a label is generated.
            network: a ``MaskSequenceDenoiser``.
            index: (B,) whose random streams to use.
            args: none.
            kwargs: none.

        Raises:
            OutOfMemoryError: if not even one window fits.
        """
        self.frame = list(inputs.shape[2:])
        dtype = np.uint8 if self.code.num_classes <= 256 else np.uint16
        volumes = []
        for volume, number in zip(inputs[:, 0].cpu().numpy(), index.tolist(), strict=True):
            label = joined(volume.astype(dtype), self.completes)
            streams = {
                stream: torch.Generator().manual_seed(derive_seed(self.seed, int(number), stream))
                for stream in (START, FORWARD, BACKWARD)
            }
            slices = np.ascontiguousarray(np.moveaxis(label, self.axis, 0))
            volumes.append(Growth.begun(slices, self.window, streams))
        grown = self.grown(network, volumes, inputs.device)
        done = np.stack([np.moveaxis(volume.label, 0, self.axis) for volume in grown])
        return torch.from_numpy(done[:, None])


class CompletionWriter(CaseWriter):
    """Write completed label maps under the names, and on the grids, of those that were given.

    The arguments are those of ``CaseWriter`` but for what concerns images.
    """

    images = False

    def __init__(
        self,
        output_dir: str | Path,
        cases: CaseVolumes,
        card: dict[str, Any],
        weights: str | Path,
        inferer: LabelCompleter,
        num_samples: int | None = None,
        start_index: int = 0,
        split: str = "training",
    ) -> None:
        generator = "medgen3d_mcdpm_completion"
        which = (num_samples, start_index, split)
        super().__init__(
            output_dir, cases, card, weights, inferer, generator, *which, keep_unlabelled=True
        )

    def _write(self, index: int, frame: np.ndarray) -> None:
        given, volume, _ = self.cases.read(self.cases.cases[index], with_image=False)
        made = unframed(frame, given.shape).astype(given.dtype)
        geometry = (volume.affine, volume.orientation)
        path = self.folder.root / self.folder.paths(index)["label"]
        write_volume(path, Volume(np.ascontiguousarray(made), *geometry))
        self._finish(index)
