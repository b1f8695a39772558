"""The verb ``report``: which parts there are, and what each needs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medpair.chain import SEGMENTATION, find_bundles, train_step
from medpair.data.card import check_spacing
from medpair.data.files import DataError, file_sha256, read_json
from medpair.engines.device import require_device
from medpair.flags import listed
from medpair.report import features_inception, perceptual
from medpair.report.alignment_part import alignment_part
from medpair.report.build import Cohorts, Step, build_report, fingerprint, with_progress
from medpair.report.diversity_part import diversity_part
from medpair.report.features import FeatureExtractor
from medpair.report.features_segmenter import SegmenterBottleneck
from medpair.report.fidelity_part import fidelity_part
from medpair.report.holdout import refuse_overlap, split_of_holdout
from medpair.report.label_part import label_part
from medpair.report.pairs import PairFolder, few, open_pairs
from medpair.report.part import Part
from medpair.report.privacy import privacy_part
from medpair.report.privacy_section import privacy_section
from medpair.report.sections import (
    alignment_section,
    diversity_section,
    fidelity_section,
    label_section,
)
from medpair.report.usefulness import usefulness_part, usefulness_section
from medpair.report.verdict import summary
from medpair.utility_plan import REAL, SYNTHETIC

# Volumes of a cohort, and slices per view, that go through a network for photographs: its time
INCEPTION_VOLUMES, INCEPTION_SLICES = 60, 2


@dataclass(frozen=True)
class Evidence:
    """The parts of the report, and what they have in common.

    Attributes:
        cohorts: what is compared.
        output: the report's folder.
        bundles: the folder with the bundles.
        label_group: merge of the real labels.
        given_segmenter: weights of a segmenter trained on the real cohort; None trains one.
        segmenter_epochs: length of that training, 50 iterations each.
        medicalnet: MedicalNet's weights, or None.
        critic: training checkpoint of a WGAN, or None.
        utility: folder of ``medpair utility``, or None.
        axis: of the slices whose overlap is taken.
        seed: of all draws.
        device: cpu or cuda.
    """

    cohorts: Cohorts
    output: Path
    bundles: Path
    label_group: str | None = None
    given_segmenter: Path | None = None
    segmenter_epochs: int = 10
    medicalnet: Path | None = None
    critic: Path | None = None
    utility: Path | None = None
    axis: int = 2
    seed: int = 0
    device: str = "cpu"

    @cached_property
    def segmenter(self) -> SegmenterBottleneck:
        """The segmenter of real pairs: the given one, or one that is trained now."""
        path = self.given_segmenter
        real = self.cohorts.real
        if path is None:
            knobs: dict[str, Any] = {
                "dataset_dir": str(real.folder.root.resolve()),
                "max_epochs": self.segmenter_epochs,
                "has_validation": False,
                "seed": self.seed,
                "label_group": self.label_group,
                "spacing": None if real.spacing is None else list(real.spacing),
            }
            knobs = {key: value for key, value in knobs.items() if value is not None}
            # a folder for each cohort and length: another one does not find this one's weights
            mark = fingerprint([real.state(), knobs])[:8]
            folder = self.output / "segmenter" / mark
            knobs["device"] = self.device
            train_step(folder, find_bundles(self.bundles) / SEGMENTATION, ["train"], knobs)
            path = folder / "model.pt"
        network = SegmenterBottleneck(path, self.device)
        if network.labels[1:] != real.names:
            raise DataError(
                f"{path}: expected a segmenter of the classes {list(real.names)}, "
                f"found {list(network.labels[1:])}"
            )
        return network

    def steps(self) -> dict[str, Step]:
        """Return all parts that can be made, in the order of the page."""
        judge = {"segmenter": _hash(self.given_segmenter), "epochs": self.segmenter_epochs}
        of_fidelity = {
            **judge,
            "medicalnet": _hash(self.medicalnet),
            "inception": features_inception.missing() is None,
        }
        of_diversity = {"lpips": perceptual.missing() is None}
        of_privacy = {**judge, "critic": _hash(self.critic)}
        steps = {
            "labels": Step(self._labels, label_section, {"axis": self.axis}),
            "fidelity": Step(self._fidelity, fidelity_section, of_fidelity),
            "diversity": Step(self._diversity, diversity_section, of_diversity),
            "alignment": Step(self._alignment, alignment_section, judge),
            "privacy": Step(self._privacy, privacy_section, of_privacy),
        }
        if self.utility is not None:
            folder = self.utility
            steps["usefulness"] = Step(
                lambda: usefulness_part(
                    folder,
                    {REAL: self.cohorts.real.folder, SYNTHETIC: self.cohorts.synthetic.folder},
                ),
                usefulness_section,
                {"table": _hash(folder / "utility.json")},
            )
        return steps

    def _labels(self) -> Part:
        cohorts = self.cohorts
        return label_part(cohorts.real, cohorts.synthetic, self.axis, self.seed, with_progress)

    def _fidelity(self) -> Part:
        extractors: list[FeatureExtractor] = [self.segmenter]
        left_out = {}
        if self.medicalnet is not None:
            from medpair.report.features_medicalnet import MedicalNetVolumes

            extractors.append(MedicalNetVolumes(self.medicalnet, self.seed, self.device))
        else:
            left_out["MedicalNet"] = "no weights were given (--medicalnet resnet_10_23dataset.pth)"
        real, synthetic = self.cohorts.real, self.cohorts.synthetic
        part = fidelity_part(real, synthetic, extractors, left_out, self.seed, with_progress)
        reason = features_inception.missing()
        if reason is not None:
            part.numbers["left_out"]["Inception-v3"] = reason
            part.notes.append(f"Inception-v3 is left out: {reason}.")
            return part
        inception = features_inception.InceptionSlices(INCEPTION_SLICES, device=self.device)
        real, synthetic = (few(p, INCEPTION_VOLUMES, self.seed) for p in (real, synthetic))
        slices = fidelity_part(real, synthetic, [inception], {}, self.seed, with_progress)
        part.numbers["features"] |= slices.numbers["features"]
        part.figures |= {f"{name}_inception": png for name, png in slices.figures.items()}
        part.notes += [note for note in slices.notes if note not in part.notes]
        return part

    def _diversity(self) -> Part:
        learned: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {}
        reason, left_out = perceptual.missing(), {}
        if reason is None:
            network = perceptual.ShiftTolerantLpips(device=self.device)
            learned[network.name] = network.distance
        else:
            left_out["LPIPS"] = reason
        cohorts = self.cohorts
        return diversity_part(cohorts.real, cohorts.synthetic, learned, left_out, self.seed)

    def _alignment(self) -> Part:
        return alignment_part(
            self.cohorts.synthetic,
            self.cohorts.holdout,
            self.segmenter.predict,
            self.segmenter.describe(),
            self.seed,
            with_progress,
        )

    def _privacy(self) -> Part:
        cohorts = self.cohorts
        scores: Mapping[str, np.ndarray] | None = None
        if self.critic is not None and cohorts.holdout is not None:
            from medpair.inferers.critic_scores import critic_scores_of

            scores = critic_scores_of(self.critic, cohorts.real, cohorts.holdout)

        def embed(pairs: PairFolder) -> np.ndarray:
            return self.segmenter.features(with_progress(pairs, "embedding"))["volume"].values

        return privacy_part(
            cohorts.real,
            cohorts.synthetic,
            cohorts.holdout,
            embed=embed,
            critic_scores=scores,
        )


def run_report(
    real: str | Path,
    synthetic: str | Path,
    output_dir: str | Path,
    holdout: str | Path | None = None,
    holdout_split: str | None = None,
    parts: Sequence[str] | str | None = None,
    label_group: str | None = None,
    spacing: Sequence[float] | None = None,
    segmenter: str | Path | None = None,
    segmenter_epochs: int = 10,
    medicalnet: str | Path | None = None,
    critic: str | Path | None = None,
    utility: str | Path | None = None,
    axis: int = 2,
    max_volumes: int = 200,
    seed: int = 0,
    device: str | None = None,
    whole_images: bool = False,
    bundles: str | Path = "bundles",
) -> Path:
    """Make the report of a synthetic cohort; the arguments are those of ``medpair report``.

    Raises:
        DataError: if a folder, a part's name or a network cannot be used.
    """
    numbers = {"max_volumes": (max_volumes, 1), "segmenter_epochs": (segmenter_epochs, 1)}
    for key, (value, least) in {**numbers, "seed": (seed, 0)}.items():
        if not isinstance(value, int) or value < least:
            raise DataError(f"{key}: expected a whole number of {least} or more, found {value!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise DataError(f"device: expected cpu or cuda, found {device!r}")
    require_device(device)
    if Path(output_dir).exists() and not Path(output_dir).is_dir():
        raise DataError(f"{output_dir}: expected a folder for the report, found a file")
    if critic is not None and holdout is None:
        raise DataError("critic: expected --holdout FOLDER beside it, found none")
    if spacing is not None:
        check_spacing(spacing)
    grid = None if spacing is None else (spacing[0], spacing[1], spacing[2])

    def opened(root: str | Path, split: str) -> PairFolder:
        return open_pairs(root, split, label_group, max_volumes, seed, grid)

    second = None
    if holdout is not None:
        split = holdout_split or split_of_holdout(Path(real), Path(holdout))
        second = opened(holdout, split)
    cohorts = Cohorts(opened(real, "training"), opened(synthetic, "training"), second)
    refuse_overlap(cohorts)
    cohorts.check()
    evidence = Evidence(
        cohorts,
        Path(output_dir),
        Path(bundles),
        label_group,
        _path(segmenter),
        segmenter_epochs,
        _path(medicalnet),
        _path(critic),
        _path(utility),
        axis,
        seed,
        device,
    )
    steps = evidence.steps()
    wanted = list(steps) if parts is None else listed(parts)
    for name in wanted:
        if name == "usefulness" and name not in steps:
            raise DataError("parts: usefulness: expected --utility FOLDER beside it, found none")
        if name not in steps:
            raise DataError(f"parts: expected some of {list(steps)}, found {name!r}")
    settings = {
        "seed": seed,
        "label_group": label_group,
        "spacing": None if grid is None else list(grid),
        "max_volumes": max_volumes,
    }
    command = shlex.join(["medpair", *sys.argv[1:]])
    return build_report(Path(output_dir), cohorts, steps, command, settings, whole_images, wanted)


def verdict_line(page: Path) -> str:
    """Return the three sentences with which a report's page begins, as one line."""
    return " ".join(" ".join(summary(read_json(page.with_name("report.json")))).split())


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _hash(path: Path | None) -> str | None:
    """Return the SHA-256 of a file.

    Raises:
        DataError: if there is none.
    """
    if path is None:
        return None
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found none there")
    return file_sha256(path)
