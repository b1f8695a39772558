"""The bundles on a pretended GPU: nothing is left on the other device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
    volumes,
)
from tests.pretended_gpu import pretended_gpu


def test_what_a_gpu_refuses_is_refused() -> None:
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == torch.device("cuda:0")
        assert there.is_cuda
        assert not here.is_cuda
        assert (there * 2 + torch.tensor(1.0)).is_cuda
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.bool()],
            lambda: torch.nn.Linear(3, 3)(there),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        for wrong in (there.numpy, lambda: np.asarray(there)):
            with pytest.raises(TypeError, match="numpy"):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        with pytest.raises(RuntimeError, match="generator"):
            there.normal_(generator=torch.Generator())


def test_what_a_gpu_does_is_done() -> None:
    with pretended_gpu() as gpu:
        layer = torch.nn.Linear(3, 2).to("cuda")
        result = layer(torch.ones(1, 3).cuda()).sum()
        result.backward()
        assert result.is_cuda
        assert layer.weight.grad.is_cuda
        assert result.item() == float(result)
        optimizer = torch.optim.Adam(layer.parameters())
        optimizer.step()
        twin = copy.deepcopy(layer)
        assert all(
            p.is_cuda for p in (*twin.parameters(), optimizer.state[layer.weight]["exp_avg"])
        )
        back = twin.weight.detach().cpu()
        assert not back.is_cuda
        assert back.numpy().shape == (2, 3)
        assert torch.zeros(5, device="cuda")[torch.tensor([1, 2])].is_cuda
        assert torch.zeros_like(back, device="cuda").is_cuda
        assert not torch.zeros_like(twin.weight, device="cpu").is_cuda
        array = np.zeros(2)
        assert torch.as_tensor(array, device="cuda").is_cuda
        assert not torch.as_tensor(array).is_cuda
        assert gpu.transfers > 3


WGAN, SEGMENTER = "wgan_sn_mp", "unet_segmentation"
LABELS, IMAGES, REFINER = "medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner"
SMALL = {
    WGAN: SMALL_WGAN,
    LABELS: SMALL_MCDPM,
    IMAGES: SMALL_VID2VID,
    REFINER: SMALL_REFINER,
    SEGMENTER: SMALL_UNET,
}
# as few evaluations as there can be
SAMPLING: dict[str, dict[str, Any]] = {
    WGAN: {"num_samples": 2},
    LABELS: {"num_samples": 2, "steps": 2},
    IMAGES: {},
    # as many slices at a time on both devices: their number decides how convolutions round
    REFINER: {"refine_steps": 2, "grid_steps": 4, "slice_batch": 32},
    SEGMENTER: {"split": "validation"},
}
# The paper's form of each, and all that is ours at once
RUNS: dict[str, tuple[str, list[str], dict[str, Any], dict[str, Any]]] = {
    "wgan_gp": (WGAN, ["wgan_gp"], {"iterations_per_epoch": None, "penalty_mode": "batch"}, {}),
    "wgan compact": (WGAN, ["compact"], {"critic_norm": "instance", "n_critic": 2}, {}),
    "wgan_dp": (WGAN, ["wgan_dp"], {}, {}),
    "labels": (LABELS, [], {"learn_variance": True}, {"solver": "ancestral"}),
    "labels compact": (
        LABELS,
        ["compact"],
        {"self_conditioning": True, "size_conditioning": True, "deformed_copies": 1},
        {"evidence": 0.8, "reject": True},
    ),
    "images": (IMAGES, [], {}, {"direction": "backward"}),
    "images compact": (IMAGES, ["compact"], {"contrast_conditioning": True}, {}),
    "refiner": (REFINER, [], {"views": "separate", "recompute": True}, {"guidance": 1.5}),
    "refiner compact": (REFINER, ["compact"], {"mask_dropout": 0.2}, {"combine": "alternate"}),
    "unet3d": (SEGMENTER, [], {}, {}),
    "unet2d": (SEGMENTER, ["unet2d"], {}, {}),
}


@pytest.mark.parametrize(
    ("name", "amp"),
    [
        *((name, True) for name in RUNS if name != "wgan_dp"),  # which has none
        *((name, False) for name in RUNS if "compact" in name or name in ("wgan_dp", "unet3d")),
    ],
)
def test_training_going_on_and_inference(
    name: str, amp: bool, dataset: str, tmp_path: Path
) -> None:
    bundle, presets, training, sampling = RUNS[name]
    knobs = {"device": torch.device("cuda"), "num_workers": 0, "amp": amp}
    weights = str(tmp_path / "run" / "model.pt")
    training = {**SMALL[bundle], **training, **knobs, "dataset_dir": dataset}
    sampling = {**SAMPLING[bundle], **sampling, "ckpt_path": weights}
    if "num_samples" not in sampling:
        sampling["dataset_dir"] = dataset
    # a finished run that is asked for again reads its checkpoint
    epochs = [2, 2] if bundle == SEGMENTER or name == "wgan_dp" else [1, 2]
    with pretended_gpu() as gpu:
        for number in epochs:
            run(
                bundle,
                ["train", *presets],
                **{**training, "output_dir": str(tmp_path / "run"), "max_epochs": number},
            )
        assert gpu.transfers
        run(bundle, ["inference"], "infer", output_dir=str(tmp_path / "gpu"), **sampling, **knobs)
    found = volumes(tmp_path / "gpu")
    assert found
    if not amp:
        run(bundle, ["inference"], "infer", output_dir=str(tmp_path / "cpu"), **sampling)
        assert same(found, volumes(tmp_path / "cpu"))


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
