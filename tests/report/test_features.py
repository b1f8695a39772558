"""Feature extractors: slices, MedicalNet, segmenters, Inception."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bundles.conftest import BUNDLES, run
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, file_sha256, read_volume, save_torch, write_json
from medpair.metrics.distance import dice
from medpair.networks.medicalnet import medicalnet_resnet10
from medpair.networks.segmenters import segmenter
from medpair.report import features_inception
from medpair.report.features_inception import InceptionSlices
from medpair.report.features_medicalnet import MedicalNetVolumes
from medpair.report.features_segmenter import Moments, SegmenterBottleneck
from medpair.report.package_weights import PackageWeights
from medpair.report.pairs import Pair, open_pairs
from medpair.report.view_slices import as_picture, slice_indices, spread, take_slice

NO_INCEPTION = features_inception.missing()


def pair(size=(16, 14, 12), seed=0, spacing=(1.0, 1.0, 1.0), name="case"):
    rng = np.random.default_rng(seed)
    image = rng.normal(200, 20, size).astype(np.float32)
    label = np.zeros(size, np.uint8)
    label[4:12, 4:10, 3:9] = 1
    return Pair(name, image + 100 * label, label, spacing)


def plain(content):
    return json.loads(json.dumps(content, allow_nan=False)) == content


# --- slices


def test_slices_are_spread_through_the_labelled_part():
    assert spread(1) == (0.5,)
    assert spread(5) == pytest.approx((0.1, 0.3, 0.5, 0.7, 0.9))
    label = np.zeros((30, 40, 50), np.uint8)
    label[10:20, 5, 7:9] = 3
    size = label.shape
    assert slice_indices(label, size, "sagittal", spread(5)) == [11, 13, 15, 17, 19]
    # a thin part gives each slice once
    assert slice_indices(label, size, "coronal", spread(5)) == [5]
    assert slice_indices(label, size, "axial", spread(5)) == [7, 8]
    assert slice_indices(np.zeros_like(label), size, "axial", spread(5)) == [5, 15, 25, 35, 45]
    assert slice_indices(None, size, "axial", (0.0, 1.0)) == [0, 49]


def test_slices_are_head_or_front_up():
    x, y, z = np.indices((4, 5, 6))
    axial = take_slice(100 * x + 10 * y + z, "axial", 2)
    assert axial[0].tolist() == [42, 142, 242, 342]  # front row, left column is x = 0
    coronal = take_slice(100 * x + 10 * y + z, "coronal", 1)
    assert coronal[0].tolist() == [15, 115, 215, 315]
    sagittal = take_slice(100 * x + 10 * y + z, "sagittal", 3)
    assert sagittal[-1].tolist() == [300, 310, 320, 330, 340]


def test_picture_keeps_range_and_mean():
    plane = np.linspace(-1, 1, 40 * 30, dtype=np.float32).reshape(40, 30)
    large, small = as_picture(plane, (299, 299)), as_picture(plane, (10, 10))
    for picture in (large, small):
        assert torch.equal(picture[0], picture[2])
        assert picture.abs().max() <= 1
        assert abs(float(picture.mean())) < 1e-3
    # finer than the new grid: smoothed away, not sampled
    stripes = np.tile([-1.0, 1.0], (40, 20))
    assert as_picture(stripes, (10, 10))[:, 2:-2, 2:-2].abs().max() < 0.1


# --- MedicalNet


@pytest.fixture(scope="module")
def medicalnet(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_10_23dataset.pth"
    state = {f"module.{key}": value for key, value in medicalnet_resnet10().state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


def test_medicalnet_gives_a_vector_per_volume(medicalnet):
    extractor = MedicalNetVolumes(medicalnet, seed=4)
    pairs = [pair(seed=0), pair((20, 17, 18), seed=1), pair(seed=0, name="copy")]
    found = extractor.features(pairs)["volume"]
    assert found.values.shape == (3, extractor.dimension)
    assert found.values.dtype == np.float32
    assert found.volume.tolist() == [0, 1, 2]
    # background noise depends on the volume, not on its place: copies coincide
    assert np.array_equal(found.values[0], found.values[2])
    alone = extractor.features(pairs[1:2])["volume"].values
    assert np.array_equal(alone[0], found.values[1])
    other = MedicalNetVolumes(medicalnet, seed=5).features(pairs[:1])["volume"].values
    assert not np.array_equal(other[0], found.values[0])
    said = extractor.describe()
    assert plain(said)
    assert (said["weights"], said["sha256"]) == (medicalnet.name, file_sha256(medicalnet))


def test_medicalnet_refuses_other_files(tmp_path):
    for content, reason in (
        ({"state_dict": {"bn1.weight": torch.ones(64)}}, r"resnet\.pth: conv1\.weight: expected"),
        ([torch.ones(1)], r"resnet\.pth: expected a dictionary"),
    ):
        torch.save(content, tmp_path / "resnet.pth")
        with pytest.raises(DataError, match=reason):
            MedicalNetVolumes(tmp_path / "resnet.pth")
    with pytest.raises(DataError, match=r"none\.pth: expected a checkpoint, found nothing"):
        MedicalNetVolumes(tmp_path / "none.pth")


# --- segmenters

NETWORKS = {
    "unet3d": {"patch_size": (16, 16, 16), "channels": (4, 8, 8, 12)},
    "unet2d": {"patch_size": (16, 16, 4), "channels": (4, 8, 8, 12)},
    "unetr": {"patch_size": (16, 16, 16), "hidden_size": 24},
    "swin_unetr": {"patch_size": (64, 32, 32), "feature_size": 12},
}
DIMENSIONS = {"unet3d": 24, "unet2d": 24, "unetr": 48, "swin_unetr": 384}


def saved_segmenter(folder, architecture="unet3d", spacing=(1.0, 1.0, 1.0), seed=0):
    torch.manual_seed(seed)
    config = {"architecture": architecture, "num_classes": 3, **NETWORKS[architecture]}
    save_torch(folder / "model.pt", segmenter(**config).state_dict())
    names = ["background", "class_1", "class_2"]
    task = {"labels": names, "spacing": spacing, "longest": [16, 16, 16]}
    write_json(folder / "model.json", {"task": task, "segmenter": config})
    return folder / "model.pt"


@torch.inference_mode()
def deepest(network, architecture, x):
    """The deepest activations (C, voxels) of a whole patch, by the network's own parts."""
    if architecture == "unetr":
        return network.proj_feat(network.vit(x)[0])[0].flatten(1)
    if architecture == "swin_unetr":
        return network.encoder10(network.swinViT(x)[4])[0].flatten(1)
    if architecture == "unet2d":
        network, x = network.network, x[0].permute(3, 0, 1, 2)
    block = network.model
    for _ in range(3):
        x, block = block[0](x), block[1].submodule
    return block(x).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_deepest_level_of_each_segmenter(architecture, tmp_path):
    extractor = SegmenterBottleneck(saved_segmenter(tmp_path, architecture))
    whole = pair(NETWORKS[architecture]["patch_size"])
    found = extractor.features([whole, pair((14, 12, 12), seed=1)])["volume"]
    assert found.values.shape == (2, DIMENSIONS[architecture])
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    assert not np.array_equal(found.values[0], found.values[1])
    x = deepest(extractor.network, architecture, torch.from_numpy(whole.unit())[None, None])
    expected = torch.cat([x.mean(dim=1), x.std(dim=1, correction=0)])
    np.testing.assert_allclose(found.values[0], expected, rtol=1e-3, atol=1e-4)
    assert extractor.labels == ("background", "class_1", "class_2")
    assert plain(extractor.describe())


def test_scale_of_the_intensities_does_not_matter_to_a_segmenter(tmp_path):
    extractor = SegmenterBottleneck(saved_segmenter(tmp_path))
    one = pair()
    bright = Pair("bright", 50 * one.image + 1000, one.label, one.spacing)
    (features, label), (again, same) = extractor.examine(one), extractor.examine(bright)
    np.testing.assert_allclose(again, features, rtol=1e-3, atol=1e-4)
    assert np.mean(label != same) < 1e-3


@pytest.mark.skipif(
    "MEDPAIR_DATA" not in os.environ, reason="MEDPAIR_DATA names no folder of real volumes"
)
def test_shipped_segmenter_sees_real_hippocampi():
    extractor = SegmenterBottleneck(BUNDLES / "unet_segmentation" / "models" / "model.pt")
    folder = Path(os.environ["MEDPAIR_DATA"]) / "hippocampus_mr"
    scores = [
        dice(extractor.predict(one) == value, one.label == value)
        for one in open_pairs(folder, "validation", limit=3)
        for value in (1, 2)
    ]
    assert np.mean(scores) > 0.8


def test_moments_weigh_voxels_inside_the_volume_alone():
    rng = torch.Generator().manual_seed(0)
    activations = torch.randn(2, 3, 4, 4, 2, generator=rng)
    inside = torch.zeros(2, 1, 16, 16, 8)
    inside[0] = 1
    inside[1, :, :8, :, :] = 1  # the first two of four activations along the first axis
    moments = Moments(3)
    moments.add(activations[:1], inside[:1])
    moments.add(activations[1:], inside[1:])
    kept = torch.cat([activations[0].flatten(1), activations[1, :, :2].flatten(1)], dim=1)
    expected = torch.cat([kept.mean(dim=1), kept.std(dim=1, correction=0)])
    np.testing.assert_allclose(moments.vector(), expected.numpy(), rtol=1e-5)


def test_labels_are_those_of_the_bundle(tmp_path):
    # larger than the patch, and of another spacing than the network's
    folder = tiny_dataset(tmp_path / "data", 2, (22, 20, 14), spacing=(1, 1, 1.5), validation=1)
    checkpoint = saved_segmenter(tmp_path, spacing=(1.2, 1.2, 1.2))
    run(
        "unet_segmentation",
        ["inference"],
        ckpt_path=str(checkpoint),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "predictions"),
        split="training",
    )
    extractor = SegmenterBottleneck(checkpoint)
    seen = set()
    for one in open_pairs(folder):
        written = read_volume(tmp_path / "predictions" / "labels" / f"{one.name}.nii.gz", np.int64)
        found = extractor.predict(one)
        assert np.array_equal(found, written.array)
        seen |= set(np.unique(found).tolist())
    assert len(seen) > 1


def test_segmenter_refuses_weights_of_another_card(tmp_path):
    checkpoint = saved_segmenter(tmp_path)
    save_torch(checkpoint, {"weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"model\.json: segmenter: expected the network whose"):
        SegmenterBottleneck(checkpoint)


# --- weights of packages


def test_missing_package_says_what_to_install():
    weights = PackageWeights("no_such_package", "no-such", "a.pt", "0" * 64)
    assert weights.missing() == "no-such is not installed: install medpair[fid]"
    with pytest.raises(DataError, match="no-such is not installed"):
        weights.checked()


def test_other_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "carrier" / "a.pt").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = file_sha256(tmp_path / "carrier" / "a.pt")
    assert PackageWeights("carrier", "carrier", "a.pt", expected).checked().name == "a.pt"
    with pytest.raises(DataError, match=rf"a\.pt: expected SHA-256 0+, found {expected}"):
        PackageWeights("carrier", "carrier", "a.pt", "0" * 64).checked()


# --- Inception


def test_inception_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="slices: expected 1 or more, found 0"):
        InceptionSlices(slices=0)
    with pytest.raises(ValueError, match="views: expected some of"):
        InceptionSlices(views=["oblique"])


@pytest.mark.skipif(NO_INCEPTION is not None, reason=str(NO_INCEPTION))
def test_inception_features_of_each_view():
    extractor = InceptionSlices(slices=1, views=("axial", "coronal"), batch_size=2)
    flat = Pair("flat", np.ones((8, 8, 8), np.float32), np.zeros((8, 8, 8), np.uint8), (1, 1, 1))
    shifted = pair()
    shifted = Pair("brighter", 3 * shifted.image + 7, shifted.label, shifted.spacing)
    found = extractor.features([pair(), flat, shifted])
    assert set(found) == {"axial", "coronal"}
    for view in found.values():
        # the flat volume has no slice to show
        assert view.volume.tolist() == [0, 2]
        assert view.values.shape == (2, 2048)
        np.testing.assert_allclose(view.values[0], view.values[1], rtol=0.01, atol=1e-3)
        assert (view.values >= 0).all()  # pool3 averages rectified activations
    distance = np.linalg.norm(found["axial"].values[0] - found["coronal"].values[0])
    assert distance > 1
    said = extractor.describe()
    assert plain(said)
    assert said["package_version"] != "unknown"
