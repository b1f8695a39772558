"""A federation in one process: MONAI's client at each site, and a server of a dozen lines."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import Volume, write_volume
from medpair.data.sampling import numpy_generator
from tests.bundles.conftest import BUNDLES

Weights = dict[str, Tensor]


def client(
    bundle: str,
    overlays: Sequence[str] = (),
    evaluates: bool = False,
    local_epochs: int = 1,
    send_weight_diff: bool = False,
    **knobs: Any,
) -> MonaiAlgo:
    """Return MONAI's client of a bundle, initialized as NVIDIA FLARE does it."""
    configs = [f"configs/{name}.json" for name in ("train", *overlays, "federated")]
    knobs = {"device": torch.device("cpu"), **knobs}
    scores = {**knobs, "output_dir": f"{knobs['output_dir']}/global"}
    algo = MonaiAlgo(
        bundle_root=bundle,
        local_epochs=local_epochs,
        send_weight_diff=send_weight_diff,
        config_train_filename=list(configs),
        train_kwargs=knobs,
        config_evaluate_filename=list(configs) if evaluates else None,
        eval_kwargs=scores,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="executing the bundle config")
        algo.initialize(
            {ExtraItems.CLIENT_NAME: knobs["output_dir"], ExtraItems.APP_ROOT: str(BUNDLES)}
        )
    return algo


def weights_of(algo: MonaiAlgo) -> Weights:
    """Return what a site sends, as the server receives it: a copy."""
    return {key: value.clone() for key, value in algo.get_weights().weights.items()}


def averaged(sites: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> Weights:
    """FedAvg: the mean of the sites' weights, each counting as much as it has cases."""
    shares = [count / sum(counts) for count in counts]
    return {
        key: sum((s * w[key].double() for s, w in zip(shares, sites, strict=True)), torch.zeros(()))
        .to(sites[0][key].dtype)
        for key in sites[0]
    }  # fmt: skip


def federate(
    algos: Sequence[MonaiAlgo], counts: Sequence[int], rounds: int
) -> tuple[Weights, list[Weights]]:
    """Return the global weights after some rounds, and what the sites sent in the last."""
    weights = weights_of(algos[0])
    sent: list[Weights] = []
    for _ in range(rounds):
        sent = []
        for algo in algos:
            copies = {key: value.clone() for key, value in weights.items()}
            algo.train(ExchangeObject(weights=copies))
            sent.append(weights_of(algo))
        weights = averaged(sent, counts)
    return weights, sent


def judge(weights: Weights, bundle: str = "unet_segmentation", **knobs: Any) -> float:
    """Return the mean Dice of weights on the validation cases of ``dataset_dir``."""
    algo = MonaiAlgo(
        bundle_root=bundle,
        config_train_filename=None,
        config_evaluate_filename=["configs/train.json", "configs/federated.json"],
        eval_kwargs={"device": torch.device("cpu"), **knobs},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="executing the bundle config")
        algo.initialize({ExtraItems.APP_ROOT: str(BUNDLES)})
    return float(algo.evaluate(ExchangeObject(weights=dict(weights))).metrics["val_mean_dice"])


def scanner_site(
    folder: Path, contrast: Sequence[float], counts: tuple[int, int], seed: int
) -> str:
    """Write a site whose scanner shows a ball and a box brighter or darker than their ground.

    Args:
        folder: where to write.
        contrast: of the cases in turn, in units of the noise.
        counts: training and validation cases.
        seed: of places, sizes and noise.
    """
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for index in range(sum(counts)):
        rng = numpy_generator(seed, index)
        split = "training" if index < counts[0] else "validation"
        paths = entry(f"case_{index:03d}", split)
        size = rng.integers(13, 17, 3)
        grid = np.indices(tuple(size))
        label = np.zeros(tuple(size), np.uint8)
        box, ball = (rng.uniform(4, size - 5).reshape(3, 1, 1, 1) for _ in range(2))
        label[(np.abs(grid - box) <= rng.uniform(2, 3)).all(axis=0)] = 1
        label[np.linalg.norm(grid - ball, axis=0) <= rng.uniform(2.5, 3.5)] = 2
        shown = np.array([0.0, 1.0, 2.0])[label] * contrast[index % len(contrast)]
        image = np.rint(100 * shown + rng.normal(500, 100, label.shape)).astype(np.int16)
        for role, array in (("image", image), ("label", label)):
            write_volume(folder / paths[role], Volume(array, np.eye(4)))
        splits[split].append(paths)
    write_dataset_json(folder, folder.name, {"background": 0, "box": 1, "ball": 2}, splits)
    return str(folder)
