"""Every command in every document is run, word by word but for sizes, in one folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import read_json, write_json
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
)
from tests.conftest import tiny_dataset
from tests.documents.command_server import reduced, write_shims
from tests.sharing.dicom_files import dicom_folder

ROOT = Path(__file__).parents[2]
# in this order: what one document of a bundle makes, the next may use
BUNDLES = ("wgan_sn_mp", "medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner")
GENERAL = (
    "README.md",
    "bundles/unet_segmentation/docs/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
)
DOCUMENTS = (*GENERAL, *(f"bundles/{name}/docs/README.md" for name in BUNDLES))
# First words of command lines that are not run here, and where they are
ELSEWHERE = {
    "make": "the gate and test_demo.py",
    "source": "the tests run in an environment already",
    "torchrun": "bundles/test_multi_gpu.py",
}
ONCE = {"max_epochs": 1, "val_interval": 1, "log_interval": 1, "device": "cpu"}
UNET = {key: value for key, value in SMALL_UNET.items() if key != "hidden_size"}
SIZES: dict[str, dict[str, Any]] = {
    "wgan_sn_mp train.json": {
        **SMALL_WGAN,
        **ONCE,
        "patch_size": [32, 32, 32],
        "iterations_per_epoch": 1,
    },
    "wgan_sn_mp inference.json": {"num_samples": 4, "device": "cpu"},
    "medgen3d_mcdpm train.json": {**SMALL_MCDPM, **ONCE, "iterations_per_epoch": 1},
    "medgen3d_mcdpm inference.json": {"num_samples": 4, "steps": 2, "attempts": 1, "device": "cpu"},
    "medgen3d_vid2vid train.json": {**SMALL_VID2VID, **ONCE, "iterations_per_epoch": 1},
    "medgen3d_vid2vid inference.json": {"device": "cpu"},
    "medgen3d_semantic_refiner train.json": {**SMALL_REFINER, **ONCE, "iterations_per_epoch": 1},
    "medgen3d_semantic_refiner inference.json": {
        "refine_steps": 1,
        "grid_steps": 10,
        "num_samples": 4,
        "device": "cpu",
    },
    "unet_segmentation train.json": {**UNET, **ONCE, "iterations_per_epoch": 1, "max_cases": 1},
    "unet_segmentation inference.json": {"device": "cpu"},
    "medpair phantom": {"count": 2, "size": "[32,32,32]", "validation": 1},
    "medpair utility": {
        "max_epochs": 1,
        "finetune_epochs": 1,
        "real_cases": "2",
        "seeds": "0",
        "device": "cpu",
    },
    "medpair report": {"segmenter_epochs": 1, "device": "cpu"},
}
TIME_LIMIT = 600


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a document in one language."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_here(block: str) -> str:
    """Return a block of shell without the lines whose first word is run elsewhere."""
    lines = block.replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if (line.split() or [""])[0] not in ELSEWHERE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for the general documents, and one for those of each method."""
    return {
        method: with_cohorts(tmp_path_factory.mktemp(method))
        for method in ("general", "wgan", "medgen3d")
    }


def method_of(document: str) -> str:
    """Return whose folder a document's commands are run in."""
    return next((name for name in ("wgan", "medgen3d") if f"/{name}_" in document), "general")


def with_cohorts(root: Path) -> Path:
    """Give a folder the bundles and the cohorts that the documents speak of; return it."""
    (root / "bundles").symlink_to(ROOT / "bundles")
    for name, seed in {
        "my_cohort": 0,
        "hippocampus_mr": 1,
        "new_cohort": 2,
        "hippocampus_30": 4,
    }.items():
        rename(tiny_dataset(root / name, count=6, validation=3, seed=seed), "anterior", "posterior")
    size, spacing = (36, 32, 32), (2.0, 2.0, 2.0)
    brain = tiny_dataset(root / "brain_t1", 6, size, 4, spacing, validation=3)
    content = read_json(brain / "dataset.json")
    tissues = ("subcortical_gray_matter", "white_matter", "csf", "cortex")
    content["label_groups"] = {
        "four_tissues": {str(k): {"name": name, "values": [k]} for k, name in enumerate(tissues, 1)}
    }
    write_json(brain / "dataset.json", content)
    maps = tiny_dataset(root / "my_label_maps", count=2, validation=0, seed=9)
    rename(maps, "anterior", "posterior")
    content = read_json(maps / "dataset.json")
    content["channel_names"] = {}
    content["training"] = [{"label": case["label"]} for case in content["training"]]
    write_json(maps / "dataset.json", content)
    dicom_folder(root / "my_dicom")
    return root


def rename(folder: Path, *names: str) -> None:
    """Give a tiny dataset's classes other names."""
    content = read_json(folder / "dataset.json")
    content["labels"] = {"background": 0} | {name: k for k, name in enumerate(names, 1)}
    write_json(folder / "dataset.json", content)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose ``python`` and ``medpair`` are run by one process that is warm."""
    base = tmp_path_factory.mktemp("server")
    # a socket's path has room for 100 characters, and TMPDIR may be longer
    short = Path(tempfile.mkdtemp(prefix="medpair", dir="/tmp"))
    address, shims = str(short / "socket"), base / "bin"
    write_shims(shims, address)
    paths = [str(ROOT), str(ROOT / "common"), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    server = Path(__file__).with_name("command_server.py")
    with subprocess.Popen(
        [sys.executable, str(server), address, json.dumps(SIZES), str(shims)],
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield {**variables, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}"}
        process.kill()
    shutil.rmtree(short)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of(document: str, folders: dict[str, Path], environment: dict[str, str]) -> None:
    folder = folders[method_of(document)]
    for block in blocks(document, "bash"):
        script = run_here(block)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
        told = done.stdout[-3000:] + done.stderr[-3000:]
        assert done.returncode == 0, f"{document}:\n{script}\n\n{told}"


def test_every_document_is_here() -> None:
    """No document with commands is left out, none has an unknown kind of block."""
    places = ("*.md", "docs/**/*.md", "bundles/**/*.md", "common/**/*.md", "tests/**/*.md")
    found = {path.relative_to(ROOT).as_posix() for place in places for path in ROOT.glob(place)}
    assert {path for path in found if blocks(path, "bash")} <= set(DOCUMENTS)
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        kinds = set(re.findall(r"^```(\w*)$", text, re.MULTILINE)) - {""}
        assert kinds <= {"bash", "json", "text", "yaml"}, document


def test_the_dataset_json_of_the_readme(tmp_path: Path) -> None:
    """The example is a valid dataset once its files are there."""
    (example,) = blocks("README.md", "json")
    content = json.loads(example)
    source = load_dataset(tiny_dataset(tmp_path / "source", count=2, validation=0))
    splits = [content[name] for name in ("training", "validation")]
    for case, files in zip(source.split("training"), splits, strict=True):
        assert case.image is not None
        assert case.label is not None
        for role, path in {"image": case.image, "label": case.label}.items():
            target = tmp_path / "set" / files[0][role]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    write_json(tmp_path / "set" / "dataset.json", content)
    assert errors_of(check_dataset(tmp_path / "set")) == []


def test_sizes_replace_what_a_command_says() -> None:
    words = ["python", "a/train.json", "--max_epochs", "100", "--seed", "1"]
    small = reduced(words, {"train.json": {"max_epochs": 1}, "inference.json": {"steps": 2}})
    assert small == ["python", "a/train.json", "--seed", "1", "--max_epochs", "1"]
    words = ["medpair", "report", "--utility", "utility"]
    assert reduced(words, {"medpair utility": {"seeds": "0"}}) == words
