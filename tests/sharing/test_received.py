"""A packed bundle where it was never made: no installed MedPair, no repository, another folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import monai
import pytest
from monai.bundle import download
from tests.bundles.conftest import BUNDLES, SMALL_WGAN
from tests.conftest import tiny_dataset

from medpair.data.dataset import load_dataset
from medpair.sharing.manifest import verify_bundle
from medpair.sharing.pack import pack_bundle

# Loads two bundles one after the other, then one whose code is of another version
SCRIPT = """
import json, os, sys, torch
from monai.bundle import create_workflow, load

received, report = sys.argv[1:]
os.chdir(received + "/wgan_sn_mp")
wgan = load("wgan_sn_mp", bundle_dir=received, workflow_type="inference", device="cpu")
import medpair
os.chdir(received + "/unet_segmentation")
unet = load("unet_segmentation", bundle_dir=received, workflow_type="inference", device="cpu")
flow = create_workflow(config_file="configs/inference.json", workflow_type="inference")
nets = {"wgan_sn_mp": wgan, "unet_segmentation": unet}
given = {name: torch.load(f"{received}/{name}/models/model.pt") for name in nets}
found = {
    "medpair": medpair.__file__,
    "loaded": [
        all(torch.equal(net.state_dict()[key], given[name][key]) for key in given[name])
        for name, net in nets.items()
    ],
    "inferer": type(flow.inferer).__name__,
    "refused": "",
}
with open(received + "/old/wgan_sn_mp/medpair/__init__.py") as handle:
    assert '"0.0.9"' in handle.read()
os.chdir("/")
root = received + "/old/wgan_sn_mp"
try:
    create_workflow(config_file=root + "/configs/inference.json", bundle_root=root)
except RuntimeError as error:
    found["refused"] = str(error.__cause__)
with open(report, "w") as handle:
    json.dump(found, handle)
"""


def strangers_python(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with all packages but MedPair: ``-S`` leaves out where an editable one lies."""
    packages = {Path(monai.__file__).parents[1].as_posix(), sysconfig.get_paths()["purelib"]}
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PYTHONPATH": os.pathsep.join(sorted(packages)),
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.run(
        [sys.executable, "-S", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with bundles that MONAI downloaded and unpacked."""
    folder = tmp_path_factory.mktemp("elsewhere")
    probe = strangers_python("-c", "import medpair", cwd=folder)
    if probe.returncode == 0:
        pytest.skip("MedPair is installed where every Python finds it, not as an editable package")
    assert "No module named 'medpair'" in probe.stderr
    dist = folder / "dist"
    for name in ("wgan_sn_mp", "unet_segmentation"):
        path = pack_bundle(BUNDLES / name, dist)
        assert verify_bundle(path) == []
        download(name=name, url=path.as_uri(), bundle_dir=str(folder), progress=False)
        assert verify_bundle(folder / name) == []
    return folder


def test_trains_and_samples_from_another_folder(received: Path, tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "set", count=2)
    root = received / "wgan_sn_mp"
    small = {**SMALL_WGAN, "max_epochs": 1, "random_patches": 1, "device": "cpu"}
    trained = strangers_python(
        *("-m", "monai.bundle", "run", "--bundle_root", str(root)),
        "--config_file",
        str([str(root / "configs" / name) for name in ("train.json", "compact.json")]),
        *("--dataset_dir", str(dataset), "--output_dir", "run"),
        *(word for key, value in small.items() for word in (f"--{key}", str(value))),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert {"model.pt", "model.json", "checkpoint.pt"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    # with the weights that came with it
    sampled = strangers_python(
        *("-m", "monai.bundle", "run", "--bundle_root", str(root)),
        *("--config_file", str(root / "configs" / "inference.json")),
        *("--num_samples", "2", "--output_dir", "made", "--device", "cpu"),
        cwd=tmp_path,
    )
    assert sampled.returncode == 0, sampled.stderr[-3000:]
    assert len(load_dataset(tmp_path / "made").cases["training"]) == 2
    # what Python compiled meanwhile, unless it was told not to, is all that use leaves behind
    assert all("__pycache__: expected no compiled code" in fault for fault in verify_bundle(root))
    for cache in list(root.rglob("__pycache__")):
        shutil.rmtree(cache)
    assert verify_bundle(root) == []


def test_bundles_in_one_process_run_their_own_code(received: Path, tmp_path: Path) -> None:
    old = received / "old" / "wgan_sn_mp"
    shutil.copytree(received / "wgan_sn_mp", old, ignore=shutil.ignore_patterns("__pycache__"))
    init = old / "medpair" / "__init__.py"
    init.write_text('"""Older."""\n\n__version__ = "0.0.9"\n')
    script, report = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(SCRIPT)
    done = strangers_python(str(script), str(received), str(report), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert Path(found["medpair"]).resolve() == (received / "wgan_sn_mp/medpair/__init__.py")
    assert found["loaded"] == [True, True]
    assert found["inferer"] == "FittingWindowInferer"
    assert f"{old / 'medpair'}: expected the bundle's own MedPair 0.0.9 to run" in found["refused"]
    assert f"in {received / 'wgan_sn_mp' / 'medpair'}" in found["refused"]
