"""What a trained WGAN critic says of real pairs: the attack on whoever shares a checkpoint.

A critic that scores its training pairs above others gives them away (Hayes et al. 2019, "LOGAN:
membership inference attacks against generative models", PoPETs 2019(1):133-152, the white-box
attack).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medpair.data.card import part_of
from medpair.data.cohort import Cohort, LabelledVolume, cohort_of, read_card
from medpair.data.files import DataError, load_torch
from medpair.data.intensity import to_unit
from medpair.data.labels import LabelChannels
from medpair.data.patches import PatchDataset
from medpair.data.resampling import resample
from medpair.networks.wgan import Critic

if TYPE_CHECKING:  # only their names: this floor lies below the report
    from medpair.report.pairs import Pair, PairFolder


def critic_scores_of(
    checkpoint: str | Path, real: PairFolder, holdout: PairFolder, normalize: str | None = None
) -> dict[str, np.ndarray]:
    """Score real pairs with the critic of a training run, as it saw them, without augmentation.

    Args:
        checkpoint: ``checkpoint.pt`` of a WGAN run, its ``model.json`` beside it.
        real: the pairs that the run was trained on.
        holdout: pairs that it was not trained on.
        normalize: ``volume`` or ``patch``, as in training; None: as the card says.

    Returns:
        ``members`` (N,) and ``others`` (M,): the mean score over the patches of each pair.

    Raises:
        DataError: if the file holds no critic, the classes are others than the training's, or
            ``normalize`` matters and is not known.
    """
    path = Path(checkpoint)
    card = read_card(path.with_name("model.pt"))
    cohort = cohort_of(card)
    state = load_torch(path)
    critic, patch = _critic(path, state, card)
    chosen = normalize or card.get("normalize")
    if chosen is None:
        # a volume that fits into the patch is stretched to -1..1 either way
        if any(n > p for size in cohort.sizes for n, p in zip(size, patch, strict=True)):
            raise DataError(
                f"{path.with_name('model.json')}: normalize: expected volume or patch, found "
                "nothing (give it as the argument)"
            )
        chosen = "volume"
    channels = part_of(card, "label_channels", LabelChannels)
    scores = {}
    for key, asked in (("members", real), ("others", holdout)):
        # as stored: brought to a report's grid and back they would be other volumes
        pairs = replace(asked, spacing=None)
        if pairs.names != cohort.labels[1:]:
            raise DataError(
                f"{pairs.folder.root / 'dataset.json'}: labels: expected the training's "
                f"{list(cohort.labels[1:])}, found {list(pairs.names)}"
            )
        scores[key] = np.array(
            [_score(critic, _as_trained(pair, cohort), patch, chosen, channels) for pair in pairs]
        )
    return scores


def _critic(
    path: Path, state: Mapping[str, Any], card: Mapping[str, Any]
) -> tuple[Critic, list[int]]:
    if not isinstance(state, Mapping) or "critic" not in state.get("objects", {}):
        raise DataError(f"{path}: objects: expected a critic among them, found none")
    settings = state["settings"]
    patch = [int(size) for size in settings["patch_size"]]
    critic = Critic(
        patch,
        int(card["generator"]["num_labels"]),
        int(settings["critic_filters"]),
        settings["critic_norm"],
    )
    try:
        critic.load_state_dict(state["objects"]["critic"])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: expected the critic of its settings, found {reason}") from error
    return critic.eval(), patch


def _as_trained(pair: Pair, cohort: Cohort) -> LabelledVolume:
    """Return a pair on the grid and the scale of training (as ``read_cohort`` makes it)."""
    image = resample(pair.image, pair.spacing, cohort.spacing, order=1)
    label = resample(pair.label, pair.spacing, cohort.spacing, order=0)
    return LabelledVolume(to_unit(image, *cohort.range_of(image)), label)


@torch.no_grad()
def _score(
    critic: Critic,
    volume: LabelledVolume,
    patch: list[int],
    normalize: str,
    channels: LabelChannels,
) -> float:
    """Return the mean score over the systematic patches: those in which every voxel was seen."""
    found = []
    dataset = PatchDataset([volume], patch, random_patches=0, normalize=normalize)
    for index in range(len(dataset)):
        item = dataset[index]
        pair = torch.cat([item["image"][None], channels.encode(item["label"][None])], dim=1)
        found.append(float(critic(pair)))
    return float(np.mean(found))
