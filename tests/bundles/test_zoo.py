"""What MONAI's model zoo checks of a submission, on every bundle, none excluded.

``meta_schema_20240725.json`` beside this file is MONAI's own schema (Apache-2.0), word for word,
from https://project-monai.github.io/schema/: the zoo downloads it, tests do not.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import (
    ConfigParser,
    ckpt_export,
    onnx_export,
    verify_metadata,
    verify_net_in_out,
)
from torch import Tensor, nn

from medpair.data.files import read_json, save_torch
from tests.bundles.conftest import BUNDLES
from tests.conftest import randomized

NAMES = sorted(path.name for path in BUNDLES.iterdir() if path.is_dir())
SCHEMA = Path(__file__).parent / "meta_schema_20240725.json"
# Their inference.json says what the network is where no card lies beside ckpt_path
DESCRIBED = [name for name in NAMES if name.startswith("medgen3d")]
# networks of bundles without weights are built small, unless there is time: same code, same shapes
SMALL = {
    "medgen3d_mcdpm": {
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
    },
    "medgen3d_semantic_refiner": {
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_res_blocks": 1,
        "hidden": 8,
    },
    "medgen3d_vid2vid": {"channels": [8, 16], "hidden": 8},
}
UNTRAINED = "network_def#card#untrained#network"
LABELS = ["background", *(f"class_{k}" for k in range(1, 5))]


class Submission:
    """A copy of a bundle as the zoo gets it, with weights made up where it ships none."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.root = name, folder / name
        shutil.copytree(BUNDLES / name, self.root)
        small = {} if os.environ.get("MEDPAIR_LONG") else SMALL.get(name, {})
        self.overrides = {f"{UNTRAINED}#{key}": value for key, value in small.items()}
        self.weights = self.root / "models" / "model.pt"
        if not self.weights.exists():
            # with training's own zeros at the start, any two networks would agree
            save_torch(self.weights, randomized(self.network(), std=0.05).state_dict())

    @property
    def metadata(self) -> dict[str, Any]:
        return read_json(self.root / "configs" / "metadata.json")

    def parser(self, config: str = "inference", **overrides: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self.root / "configs" / f"{config}.json"))
        parser.read_meta(str(self.root / "configs" / "metadata.json"))
        for key, value in {"bundle_root": str(self.root), **overrides}.items():
            parser[key] = value
        return parser

    def network(self) -> nn.Module:
        return self.parser(**self.overrides).get_parsed_content("network_def").eval()

    def trained(self) -> nn.Module:
        network = self.network()
        network.load_state_dict(torch.load(self.weights, weights_only=True))
        return network

    def verb(self, verb: Callable[..., None], **options: Any) -> None:
        """Run one of MONAI's verbs as the zoo runs it."""
        configs = self.root / "configs"
        verb(
            net_id="network_def",
            meta_file=str(configs / "metadata.json"),
            config_file=str(configs / "inference.json"),
            bundle_root=str(self.root),
            **options,
        )


@pytest.fixture(scope="module", params=NAMES)
def submission(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Submission(request.param, tmp_path_factory.mktemp("zoo"))


def example(entry: dict[str, Any], batch: int = 2) -> Tensor:
    """Return data of a described shape; one number for each sample has no channel axis."""
    shape = [batch, entry["num_channels"], *entry["spatial_shape"]]
    drawn = torch.rand(shape if entry["spatial_shape"] or shape[1] > 1 else shape[:1])
    low, high = entry["value_range"] or (0.0, 1.0)
    data = drawn * (high - low) + low
    classes = entry["format"] == "segmentation" and high > 1
    return data.round() if classes else data


def inputs(network: nn.Module, described: dict[str, Any]) -> dict[str, Tensor]:
    """Return arguments of a network's forward: the first under its own name, others as said."""
    first = next(iter(inspect.signature(network.forward).parameters))
    torch.manual_seed(0)
    return {first if name == "image" else name: example(entry) for name, entry in described.items()}


def test_files_that_a_bundle_must_have() -> None:
    for name in NAMES:
        root = BUNDLES / name
        for path in ("LICENSE", "configs/metadata.json", "configs/inference.json"):
            assert (root / path).is_file(), (name, path)
        readme = (root / "docs" / "README.md").read_text(encoding="utf-8")
        assert readme.startswith("# ")
        weights = list((root / "models").glob("*.pt"))
        assert bool(weights) == (root / "docs" / "data_license.txt").is_file(), name
        assert all(path.stat().st_size < 25 * 2**20 for path in root.rglob("*"))
        assert not [path for path in root.rglob("*") if path.is_symlink()]
        assert not list(root.rglob("*.py")), "a bundle holds no Python of its own"


def test_metadata_follows_the_schema(submission: Submission, tmp_path: Path) -> None:
    meta, schema = submission.root / "configs" / "metadata.json", tmp_path / "schema.json"
    shutil.copy(SCHEMA, schema)  # where there is one, nothing is downloaded
    assert submission.metadata["schema"].endswith(SCHEMA.name)
    verify_metadata(meta_file=str(meta), filepath=str(schema))
    broken = {**submission.metadata, "critic_data_format": {"inputs": {"image": {"type": "x"}}}}
    other = tmp_path / "metadata.json"
    other.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(other), filepath=str(schema))


def test_versions_are_in_order(submission: Submission) -> None:
    metadata = submission.metadata
    versions = [[int(part) for part in text.split(".")] for text in metadata["changelog"]]
    assert next(iter(metadata["changelog"])) == metadata["version"]
    assert versions == sorted(versions, reverse=True)
    assert len({tuple(version) for version in versions}) == len(versions)
    # MONAI compares versions as text
    assert all(len(version) == 3 and max(version) < 10 for version in versions)
    assert metadata["name"]
    for text in (metadata["monai_version"], *metadata["required_packages_version"].values()):
        assert text[0].isdigit()


def test_keys_that_other_tools_read(submission: Submission) -> None:
    inference, train = (
        read_json(submission.root / "configs" / f"{name}.json") for name in ("inference", "train")
    )
    wanted = ("bundle_root", "device", "network_def", "inferer", "output_dir", "dataset_dir")
    assert not {*wanted, "dataset", "evaluator", "handlers", "run"} - set(inference)
    assert not {*wanted[:3], "output_dir", "dataset_dir", "train", "run"} - set(train)
    assert not {"trainer", "dataset", "inferer", "handlers"} - set(train["train"])
    assert "max_epochs" in train["train"]["trainer"]


def test_configs_find_the_bundles_own_code(submission: Submission) -> None:
    """The folder goes on Python's path, and the code is asked for its home, before all else."""
    for path in sorted((submission.root / "configs").glob("*.json")):
        config = read_json(path)
        first = config.get("initialize", config.get("+initialize"))
        if "initialize" in config:
            assert first[0] == "$sys.path.insert(0, @bundle_root)", path.name
            # hooks and signals of a federated client are its own
            own = {"hooks": False} if path.stem == "federated" else {}
            target = "medpair.engines.refusals.plain_refusals"
            expected = {"_target_": target, "bundle_root": "@bundle_root", **own}
            assert first[1] == expected, path.name
        if "imports" in config:
            assert "$import sys" in config["imports"], path.name


def test_network_has_the_shapes_that_the_metadata_says(submission: Submission) -> None:
    submission.verb(verify_net_in_out, device="cpu", **submission.overrides)
    described = submission.metadata["network_data_format"]
    network = submission.network()
    with torch.no_grad():
        output = network(**inputs(network, described["inputs"]))
    pred = described["outputs"]["pred"]
    assert list(output.shape) == [2, pred["num_channels"], *pred["spatial_shape"]]
    assert len(pred["channel_def"]) == pred["num_channels"]


@pytest.mark.parametrize("name", DESCRIBED)
def test_untrained_network_is_what_training_would_make(name: str, tmp_path: Path) -> None:
    """What a bundle without weights builds is train.json's default for a cohort of the classes."""
    train, inference = (
        read_json(BUNDLES / name / "configs" / f"{config}.json")
        for config in ("train", "inference")
    )
    untrained = inference["network_def"]["card"]["untrained"]["network"]
    assert {key: untrained[key] for key in SMALL[name]} == {key: train[key] for key in SMALL[name]}
    submission = Submission(name, tmp_path)
    shutil.rmtree(submission.root / "models")
    parser = submission.parser("train", cohort=SimpleNamespace(labels=LABELS), **SMALL[name])
    small = {f"{UNTRAINED}#{key}": value for key, value in SMALL[name].items()}
    plain = submission.parser(**small).get_parsed_content("network_def")
    assert plain.settings == parser.get_parsed_content("network_def").settings


def test_exported_torchscript_equals_the_network(submission: Submission, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    submission.verb(
        ckpt_export, filepath=str(path), ckpt_file=str(submission.weights), **submission.overrides
    )
    exported, network = torch.jit.load(str(path)), submission.trained()
    given = inputs(network, submission.metadata["network_data_format"]["inputs"])
    with torch.no_grad():
        expected, found = network(**given), exported(**given)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        alone = next(iter(given.values()))
        torch.testing.assert_close(exported(alone), network(alone), rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


def test_exported_onnx_equals_the_network(submission: Submission, tmp_path: Path) -> None:
    """MONAI's verb gives the network its first input alone; the others have their defaults."""
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra [export]")
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    path = tmp_path / "model.onnx"
    submission.verb(
        onnx_export, filepath=str(path), ckpt_file=str(submission.weights), **submission.overrides
    )
    network = submission.trained()
    described = submission.metadata["network_data_format"]["inputs"]["image"]
    data = example(described, batch=1)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data.numpy()})
    with torch.no_grad():
        expected = network(data)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


def other_networks(submission: Submission) -> dict[str, nn.Module]:
    """Return the networks of training beside the main one, as large as the metadata says."""
    sizes = {
        "wgan_sn_mp": {"patch_size": [48, 64, 48], "num_labels": 2, "critic_filters": 64},
        "medgen3d_vid2vid": {"num_classes": 5},
    }
    if submission.name not in sizes:
        return {}
    parser = submission.parser("train", **sizes[submission.name])
    config = read_json(submission.root / "configs" / "train.json")
    names = [key for key in config if key.endswith("_def") and key != "network_def"]
    return {name.removesuffix("_def"): parser.get_parsed_content(name) for name in names}


def test_networks_beside_the_main_one_are_described(submission: Submission) -> None:
    networks = other_networks(submission)
    described = {
        key.removesuffix("_data_format"): value
        for key, value in submission.metadata.items()
        if key.endswith("_data_format") and key != "network_data_format"
    }
    assert set(described) == set(networks)
    for name, network in networks.items():
        with torch.no_grad():
            found = network(**inputs(network, described[name]["inputs"]))
        # critics and segmenters also give their inner features
        found = found[0] if isinstance(found, tuple) else found
        outputs = found if isinstance(found, list) else [found]
        for output, said in zip(outputs, described[name]["outputs"].values(), strict=True):
            assert list(output.shape[1:]) == [said["num_channels"], *said["spatial_shape"]], name
