"""The segmenter as MONAI Label and MONAI Deploy read a bundle: by key, without its runner.

Neither application is installed; what follows does with the configs what they do
(``BundleInferTask``, ``BundleTrainTask``, ``MonaiBundleInferenceOperator``), on an image that
belongs to no dataset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged
from torch import Tensor

from medpair.data.files import Volume, read_json, write_volume
from tests.bundles.conftest import BUNDLES, run
from tests.conftest import tiny_dataset

ROOT = BUNDLES / "unet_segmentation"
METADATA = read_json(ROOT / "configs" / "metadata.json")["network_data_format"]


def parser(config: str) -> ConfigParser:
    """Read a config as both applications do: no ``initialize``, the bundle's folder put in."""
    result = ConfigParser()
    result.read_config(str(ROOT / "configs" / f"{config}.json"))
    result.config.update({"bundle_root": str(ROOT), "device": "cpu"})
    return result


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a lone image, oblique, with its own spacing and orientation; no dataset.json."""
    affine = np.diag([1.5, 0.8, 1.2, 1.0])
    affine[:3, 3] = -10.0, 4.0, 7.0
    array = np.random.default_rng(0).normal(200, 30, (24, 40, 30)).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_volume(path, Volume(array, affine, "LPS"))
    return path


def label_of(configs: ConfigParser, data: dict[str, Any], *dropped: Any) -> Tensor:
    """Segment as the applications do: their transforms one by one, less what they leave out."""

    def kept(name: str) -> list[Any]:
        compose = configs.get_parsed_content(name, instantiate=True)
        assert isinstance(compose, Compose)
        kept = [t for t in compose.transforms if not any(drop(t) for drop in dropped)]
        # Deploy tells by the first one whether the whole works on dictionaries
        assert isinstance(kept[0], MapTransform)
        return kept

    network = configs.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(ROOT / "models" / "model.pt", weights_only=True))
    for transform in kept("preprocessing"):
        data = transform(data)
    inferer = configs.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
    for transform in kept("postprocessing"):
        data = transform(data)
    return data["pred"]


@pytest.fixture(scope="module")
def expected(image: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return the label map that the bundle's own runner writes for the image."""
    dataset = tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=1, validation=0)
    stored = next((dataset / "imagesTr").iterdir())
    label = next((dataset / "labelsTr").iterdir())
    stored.write_bytes(image.read_bytes())
    scan = nib.load(image)
    nib.save(nib.Nifti1Image(np.zeros(scan.shape, np.uint8), scan.affine), label)
    output = tmp_path_factory.mktemp("predicted")
    run(
        "unet_segmentation",
        ["inference"],
        "infer",
        dataset_dir=str(dataset),
        output_dir=str(output),
        ckpt_path=str(ROOT / "models" / "model.pt"),
        split="training",
    )
    result = np.asarray(nib.load(next((output / "labels").iterdir())).dataobj)
    assert len(np.unique(result)) > 1, "an empty label map would compare nothing"
    return result


def test_monai_label_segments_an_image_without_label(
    image: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    key_image, key_pred = next(iter(METADATA["inputs"])), next(iter(METADATA["outputs"]))
    assert (key_image, key_pred) == ("image", "pred")
    names = METADATA["outputs"]["pred"]["channel_def"]
    labels = {name.lower(): int(value) for value, name in names.items() if name != "background"}
    assert labels == {"anterior": 1, "posterior": 2}
    # its name says what it is for
    assert "segmentation" in ROOT.name
    pred = label_of(parser("inference"), {"image": str(image)}, lambda t: isinstance(t, SaveImaged))
    assert set(np.unique(expected)) <= {0, *labels.values()}
    assert np.array_equal(np.asarray(pred[0]), expected)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_monai_deploy_segments_an_image_in_memory(
    image: Path, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # only these are taken for volumes, others for pickled objects
    assert METADATA["inputs"]["image"]["type"] == METADATA["outputs"]["pred"]["type"] == "image"
    configs = parser("inference")
    loaded = LoadImaged("image")({"image": str(image)})
    pred = label_of(configs, loaded, lambda t: "LoadImage" in type(t).__name__ or _saves(t))
    assert np.array_equal(np.asarray(pred[0]), expected)
    assert not list(tmp_path.iterdir()), "nothing is written"


def _saves(transform: Any) -> bool:
    return "SaveImage" in type(transform).__name__


def test_monai_label_finds_what_it_overrides_in_training() -> None:
    train = parser("train")
    for key in ("network", "network_def", "train#trainer#max_epochs"):
        assert train.get(key) is not None
    for key in ("train#dataset#data", "validate#dataset#data"):
        assert train.get(key) is not None, "a datalist is put in its place"
    handlers = train.get("train#handlers")
    assert all("_target_" in handler for handler in handlers)
    # it inserts a loader of its own, by this name, unless there is one
    assert not [h for h in handlers if h["_target_"] == "CheckpointLoader"]
    assert train.get("run"), "the run_id that it asks for"
