from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bundles.conftest import SMALL_WGAN
from tests.bundles.conftest import dataset as dataset
from tests.bundles.conftest import trained_wgan as trained_wgan

from medpair.data.cohort import read_cohort
from medpair.data.files import DataError
from medpair.data.labels import LabelChannels
from medpair.data.patches import PatchDataset
from medpair.inferers.critic_scores import critic_scores_of
from medpair.networks.wgan import Critic
from medpair.report.pairs import open_pairs


def test_scores_are_those_of_the_critic_in_training(
    dataset: str, trained_wgan: Callable[[str], Path]
) -> None:
    """By hand: the training's own volumes, patches and channels through the saved critic."""
    folder = trained_wgan("compact")
    real, holdout = open_pairs(dataset), open_pairs(dataset, "validation")
    scores = critic_scores_of(folder / "checkpoint.pt", real, holdout)
    assert (scores["members"].shape, scores["others"].shape) == ((6,), (2,))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    critic = Critic(SMALL_WGAN["patch_size"], 2, SMALL_WGAN["critic_filters"], "none")
    critic.load_state_dict(state["objects"]["critic"])
    _, volumes = read_cohort(dataset)
    patches = PatchDataset(volumes, SMALL_WGAN["patch_size"], 0)
    channels = LabelChannels(2, -1.0, 1.0, 0.0)
    with torch.no_grad():
        for index, score in enumerate(scores["members"]):
            item = patches[index]
            pair = torch.cat([item["image"][None], channels.encode(item["label"][None])], 1)
            assert score == pytest.approx(float(critic(pair)), abs=1e-5)
    assert np.ptp(scores["members"]) > 0


def test_a_checkpoint_without_a_critic_is_refused(
    dataset: str, trained_wgan: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = trained_wgan("compact")
    pairs = open_pairs(dataset)
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    state = torch.load(copy / "checkpoint.pt", weights_only=True)
    torch.save({**state, "objects": {}}, copy / "checkpoint.pt")
    with pytest.raises(DataError, match="expected a critic"):
        critic_scores_of(copy / "checkpoint.pt", pairs, pairs)
    other = replace(pairs, classes=replace(pairs.classes, names=("background", "a", "b")))
    with pytest.raises(DataError, match="labels: expected the training's"):
        critic_scores_of(folder / "checkpoint.pt", other, pairs)


def test_normalisation_must_be_known_where_volumes_are_cut(
    dataset: str, trained_wgan: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained_wgan("compact"), copy)
    card = json.loads((copy / "model.json").read_text())
    card.pop("normalize", None)
    card["cohort"]["sizes"] = [[99, 99, 99]]
    (copy / "model.json").write_text(json.dumps(card))
    pairs = open_pairs(dataset)
    with pytest.raises(DataError, match="normalize: expected volume or patch"):
        critic_scores_of(copy / "checkpoint.pt", pairs, pairs)
    assert len(critic_scores_of(copy / "checkpoint.pt", pairs, pairs, "volume")["others"]) == 6


def test_the_critic_is_shown_volumes_as_it_saw_them_on_whatever_grid_the_report_is(
    dataset: str, trained_wgan: Callable[[str], Path]
) -> None:
    folder = trained_wgan("compact")
    pairs = open_pairs(dataset)
    coarse = replace(pairs, spacing=(2.0, 2.0, 2.0))
    plain = critic_scores_of(folder / "checkpoint.pt", pairs, pairs)
    again = critic_scores_of(folder / "checkpoint.pt", coarse, coarse)
    np.testing.assert_array_equal(plain["members"], again["members"])
