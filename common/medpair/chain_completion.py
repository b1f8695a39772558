"""Classes for what has no label, around label maps that lack them, before images are drawn."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from medpair.data.card import card_path
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json

# What completes label maps: its options, and the folder of its weights
COMPLETION = "medgen3d_mcdpm_completion"
COMPLETED = "completed"
# where it looks for weights among the bundles' own (configs/complete.json does, too)
BESIDE = Path("medgen3d_mcdpm", "models", "completion.pt")


def completion_weights(bundles: Path, models: Path | None, trained: Path | None) -> Path:
    """Return where the weights lie that complete label maps, whether they are there or not.

    Args:
        bundles: the folder with the bundles.
        models: that with an earlier run's weights.
        trained: the run that trains its own.
    """
    if trained is not None:
        return trained / "models" / COMPLETION / "model.pt"
    return bundles / BESIDE if models is None else models / COMPLETION / "model.pt"


def completion_training(preset: str | None, images: Path) -> tuple[list[str], dict[str, Any]]:
    """Return configs and knobs of the training that goes with images' weights.

    Args:
        preset: of all trainings; where they are fine-tunings, there is nothing that this one could
            begin from, and ``compact`` takes its place.
        images: weights of the second stage, which say how many classes there are.
    """
    overlays = ["compact" if preset == "finetune" else preset] if preset else []
    return ["train", *overlays, "completion"], {"unlabelled_classes": len(hidden_classes(images))}


def hidden_classes(weights: Path) -> list[str]:
    """Return the names of the classes of what has no label that weights know."""
    cohort = read_json(card_path(weights))["cohort"]
    labels = list(cohort["labels"])
    return labels[len(labels) - len(cohort.get("unlabelled", ())) :]


def may_complete(
    images: Path,
    completion: Path,
    labels: Path | None,
    label_group: str | None = None,
    split: str = "training",
) -> bool:
    """Return whether weights that are there complete label maps.

    Args:
        images: weights of the second stage.
        completion: those that complete.
        labels: dataset folder of the label maps; None: generated ones, by weights not known here.
        label_group: merge of the labels.
        split: which list of ``dataset.json``.
    """
    if not completion.exists():
        return False
    if labels is not None:
        return lacks_unlabelled(labels, images, label_group, split)
    with suppress(DataError, KeyError, TypeError, AttributeError):
        return bool(hidden_classes(images))
    return False


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
        hidden = hidden_classes(weights)
        folder = load_dataset(labels, images=False)
        drawn = any(case.image is not None for case in folder.split(split))
        return not (drawn or {*hidden} <= {*folder.labels(label_group).names})
    return False
