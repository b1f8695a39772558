"""Whether label maps need classes for what has no label before images are drawn to them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from medpair.data.card import card_path
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json


def lacks_unlabelled(
    labels: Path, weights: Path, label_group: str | None = None, split: str = "training"
) -> bool:
    """Return whether images are drawn with classes for what has no label, which label maps lack.

    Real images say where these classes are: label maps beside them lack nothing.

    Args:
        labels: the dataset folder.
        weights: of the second stage.
        label_group: merge of the labels.
        split: which list of ``dataset.json``.
    """
    # where a file is missing or faulty, the stage that needs it says so in its own words
    with suppress(DataError, KeyError, TypeError, AttributeError):
        cohort = read_json(card_path(weights))["cohort"]
        hidden = cohort["labels"][-len(cohort["unlabelled"]) :] if "unlabelled" in cohort else []
        folder = load_dataset(labels, images=False)
        drawn = any(case.image is not None for case in folder.split(split))
        return not (drawn or {*hidden} <= {*folder.labels(label_group).names})
    return False
