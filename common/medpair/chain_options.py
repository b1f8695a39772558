"""Knobs by bundle: which belong to which, and which would have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medpair.chain_completion import COMPLETION
from medpair.data.files import DataError

# MedGen3D's stages in order: each bundle, and the folder of what it makes
LABELS, IMAGES, REFINER = "medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner"
STAGES = {LABELS: "labels", IMAGES: "images", REFINER: "pairs"}


def require_options(options: Any) -> None:
    """Refuse options that are not knobs by bundle, such as ``{'medgen3d_mcdpm': {'steps': 10}}``.

    Raises:
        DataError: names what was found instead.
    """
    if not isinstance(options, Mapping):
        raise DataError(
            f"options: expected knobs by bundle, {{'{LABELS}': {{'steps': 10}}}}, found {options!r}"
        )
    known = [*STAGES, COMPLETION]
    unknown = [bundle for bundle in options if bundle not in known]
    if unknown:
        raise DataError(f"options: expected some of {known}, found {unknown}")
    for bundle, knobs in options.items():
        if not isinstance(knobs, Mapping) or not all(isinstance(key, str) for key in knobs):
            raise DataError(
                f"options: {bundle}: expected knobs by name, {{'seed': 1}}, found {knobs!r}"
            )


def separated(knobs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the knobs of a bundle's inference, and those named ``train_KEY``, of its training."""
    prefix = "train_"
    training = {k.removeprefix(prefix): v for k, v in knobs.items() if k.startswith(prefix)}
    return {k: v for k, v in knobs.items() if not k.startswith(prefix)}, training


def refuse_training_knobs(
    preset: str | None,
    label_group: str | None,
    training: Iterable[str],
    options: Mapping[str, Mapping[str, Any]],
) -> None:
    """Refuse knobs of a training where nothing is trained.

    Raises:
        DataError: names all of them.
    """
    given = {"preset": preset, "label_group": label_group}
    found = {key for key, value in given.items() if value is not None} | {*training}
    names = sorted(found)
    for bundle, knobs in options.items():
        names += [f"options: {bundle}: {key}" for key in knobs if key.startswith("train_")]
    if names:
        raise DataError(
            f"{', '.join(names)}: expected --dataset_dir beside it, to train on, found none"
        )


def refuse_completion_knobs(completes: bool, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse knobs of what completes label maps where nothing does.

    Raises:
        DataError: names them.
    """
    if options.get(COMPLETION) and not completes:
        raise DataError(
            f"options: {COMPLETION}: expected none where no label map is completed (which takes "
            "weights with classes for what has no label, or --unlabelled_classes, and label maps "
            f"that lack them), found {sorted(options[COMPLETION])}"
        )


def refuse_label_knobs(num_samples: int | None, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse knobs of the first stage where one's own label maps take its place.

    Raises:
        DataError: names the knob.
    """
    if num_samples is not None:
        raise DataError(
            "num_samples: expected it without --labels, each of which gets an image, found both"
        )
    if options.get(LABELS):
        raise DataError(
            f"options: {LABELS}: expected none with --labels, which take this stage's place, "
            f"found {sorted(options[LABELS])}"
        )
