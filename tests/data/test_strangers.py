"""Files of strangers: refused, or rendered harmless, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tests.damage import DIM, edit_bytes, edit_json, edit_voxels

from medpair.data.card import MAX_INTEGER, network_of, read_plain_card
from medpair.data.check import check_dataset
from medpair.data.cohort import cohort_of, read_card, read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_volume, save_torch, write_json
from medpair.data.segmentation import load_items, read_segmenter_card
from medpair.data.whole_files import WholeFilesd
from medpair.networks.wgan import Generator

SIZE = (10, 8, 6)
MEBIBYTE = 2**20


@pytest.fixture
def folder(tiny_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "cohort", count=2, size=SIZE, validation=0)


def image(folder: Path) -> Path:
    return folder / "imagesTr/case_000_0000.nii.gz"


# --- paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["image", "label", "roi"])
@pytest.mark.parametrize("way", ["above", "through", "absolute", "link", "linked folder", "nul"])
def test_paths_out_of_the_folder_are_refused_by_every_reader(
    way: str, role: str, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.nii.gz"
    shutil.copy(image(folder), secret)
    (folder / "link.nii.gz").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    path = {
        "above": "../secret.nii.gz",
        "through": "imagesTr/../../secret.nii.gz",
        "absolute": str(secret),
        "link": "link.nii.gz",
        "linked folder": "folder/secret.nii.gz",
        "nul": "secret\0.nii.gz",
    }[way]
    edit_json(folder, lambda c: c["training"][1].update({role: path}))
    assert [fault.key for fault in check_dataset(folder)] == [f"training[1].{role}"]
    for read in (load_dataset, load_items, read_cohort):
        with pytest.raises(DataError, match=rf"training\[1\]: {role}: expected a path inside") as e:
            read(folder)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", [".nii.gz", ".hidden.nii.gz", "_0000.nii.gz", "n" * 240])
def test_names_that_no_output_could_have_are_refused(name: str, folder: Path) -> None:
    name = name if name.endswith(".nii.gz") else f"{name}.nii.gz"
    image(folder).rename(folder / name)
    edit_json(folder, lambda c: c["training"][0].update(image=name))
    (fault,) = check_dataset(folder, quick=True)
    assert fault.key == "training[0].image"


# --- sizes ------------------------------------------------------------------------------------

MEASURED = """
import resource, sys, time, tracemalloc
from pathlib import Path
import numpy, torch  # what importing takes is not what is measured
from medpair.data.files import DataError, read_volume, read_grid, verify_file
from medpair.data.check import check_dataset
limit = int(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
readers = (read_volume, verify_file, lambda p: check_dataset(p.parents[1]))
for path, what in [(Path(path), what) for path in sys.argv[2:] for what in readers]:
    start = time.process_time()
    try:
        found = what(path)
        found = [str(f) for f in found if f.level == "error"] if isinstance(found, list) else found
    except DataError as error:
        found = str(error)
    print(f"{time.process_time() - start:.1f} {found}")
"""


def measured(limit: int, *paths: Path) -> list[tuple[float, str]]:
    """Read volumes in a process that may take ``limit`` bytes; return seconds and words."""
    command = [sys.executable, "-c", MEASURED, str(limit), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    return [(float(seconds), words) for seconds, _, words in lines]


def bomb(path: Path, header: bytes, zeros: int) -> None:
    """Write a gzip file of a header and many zeros; it stays under a thousandth of them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    with open(path, "wb") as stream:
        stream.write(packer.compress(header))
        block = bytes(16 * MEBIBYTE)
        for _ in range(zeros // len(block)):
            stream.write(packer.compress(block))
        stream.write(packer.flush())


def header_of(*shape: int) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


def test_bombs_and_giants_take_little_memory_and_time(folder: Path, tmp_path: Path) -> None:
    """Of 512 MiB behind a small header 64 are looked at; what is announced is not believed."""
    hidden, empty, half = (
        image(shutil.copytree(folder, tmp_path / name)) for name in ("hidden", "empty", "half")
    )
    bomb(hidden, header_of(*SIZE), 512 * MEBIBYTE)
    assert hidden.stat().st_size < MEBIBYTE
    # two gigabytes announced, a kilobyte there; then 256 MiB, half of them there
    empty.write_bytes(gzip.compress(header_of(1000, 1000, 1000) + bytes(900)))
    bomb(half, header_of(512, 512, 512), 128 * MEBIBYTE)
    words = f"the end of the file after {352 + 2 * 480} bytes, found {64 * MEBIBYTE} bytes more"
    found = measured(100 * MEBIBYTE, hidden, empty, half)
    assert len(found) == 9
    for number, (seconds, message) in enumerate(found):
        assert (words if number < 3 else "truncated") in message
        assert seconds < 5


@pytest.mark.parametrize("form", ["nifti-1", "nifti-2"])
def test_headers_that_announce_terabytes_are_refused_unread(folder: Path, form: str) -> None:
    if form == "nifti-1":
        edit_bytes(image(folder), DIM, "4h", 3, 32767, 32767, 32767)
    else:
        header = bytearray(nib.Nifti2Header().binaryblock)
        struct.pack_into("<4q", header, 16, 3, 10**6, 10**6, 10**6)
        struct.pack_into("<q", header, 168, 544)
        struct.pack_into("<h", header, 12, 4)
        struct.pack_into("<d", header, 104, 1.0)
        for place in (112, 120, 128):
            struct.pack_into("<d", header, place, 1.0)
        image(folder).write_bytes(gzip.compress(bytes(header) + bytes(100)))
    found = [fault.key for fault in check_dataset(folder)]
    assert "dim" in found
    for read in (read_volume, WholeFilesd("image")):
        with pytest.raises(DataError, match="dim: expected at most 4 GiB of voxels"):
            read({"image": str(image(folder))} if isinstance(read, WholeFilesd) else image(folder))


def test_more_voxels_than_floats_have_room_for_are_refused(folder: Path) -> None:
    header = bytearray(header_of(2048, 1024, 1024))
    struct.pack_into("<2h", header, 70, 2, 8)
    image(folder).write_bytes(gzip.compress(bytes(header) + bytes(100)))
    with pytest.raises(DataError, match=f"dim: expected at most {2**30} voxels"):
        read_volume(image(folder))


def test_a_spacing_that_asks_for_terabytes_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=f"expected at most {2**30} voxels at .* mm, found"):
        read_cohort(folder, spacing=[0.001, 0.001, 0.001])
    with pytest.raises(DataError, match=f"case_000_0000.nii.gz: expected at most {2**30} voxels"):
        WholeFilesd("image", [0.001, 0.001, 0.001])({"image": str(image(folder))})


def test_ten_thousand_labels(folder: Path) -> None:
    path = folder / "labelsTr/case_000.nii.gz"
    values = np.arange(27_000, dtype=np.int32).reshape(30, 30, 30) % 10_000
    for where, array in ((path, values), (image(folder), values)):
        nib.save(nib.Nifti1Image(array, nib.load(path).affine), where)
    fault = next(fault for fault in check_dataset(folder) if fault.key == "values")
    assert "and 9985 more]" in fault.found
    with pytest.raises(DataError, match=r"found \[3, 4, 5, .* and 9985 more\]") as caught:
        read_cohort(folder)
    assert len(str(caught.value)) < 500
    # as many as the label set has are used
    names = {"background": 0} | {f"class {n}": n for n in range(1, 10_000)}
    edit_json(folder, lambda c: c.update(labels=names))
    assert not [fault for fault in check_dataset(folder) if fault.level == "error"]
    cohort, volumes = read_cohort(folder)
    assert cohort.num_labels == 9999
    assert volumes[0].label.max() == 9999


# --- cards ------------------------------------------------------------------------------------

SMALL = {"patch_size": [16, 16, 16], "num_labels": 1, "latent_size": 4, "filters": 8}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small generator's weights and card."""
    network = Generator(**SMALL)
    save_torch(tmp_path / "model.pt", network.state_dict())
    cohort = {
        "name": "c",
        "labels": ["background", "a"],
        "spacing": [1.0, 1.0, 1.0],
        "sizes": [[16, 14, 12]],
        "intensity": [0.0, 100.0],
    }
    card = {"cohort": cohort, "generator": network.settings, "label_channels": {"num_labels": 1}}
    write_json(tmp_path / "model.json", card)
    return tmp_path / "model.pt"


def rebuilt(weights: Path) -> Generator:
    card = read_card(weights)
    cohort_of(card)
    return network_of(card, "generator", Generator)


def test_a_sound_card_builds_the_network_of_the_weights(weights: Path) -> None:
    network = rebuilt(weights)
    network.load_state_dict(torch.load(weights, weights_only=True))


ABSURD: dict[str, tuple[list[str], Any, str]] = {
    "huge filters": (["generator", "filters"], 10**9, "generator.filters: expected whole numbers"),
    "large filters": (["generator", "filters"], 2**19, "many more numbers than the weights have"),
    "other filters": (["generator", "filters"], 16, "expected the network whose weights lie"),
    "negative": (["generator", "filters"], -8, "generator: "),
    "no filters": (["generator", "filters"], 0, "generator: "),
    "fraction": (["generator", "filters"], 8.5, "generator: "),
    "text": (["generator", "filters"], "8", "generator: "),
    "null": (["generator", "latent_size"], None, "generator: "),
    "list": (["generator", "latent_size"], [4], "generator: "),
    "levels": (["generator", "num_upsamples"], MAX_INTEGER, "generator: "),
    "infinite": (["generator", "label_bias"], float("inf"), "generator.label_bias: expected num"),
    "not a number": (["cohort", "intensity"], [float("nan"), 1.0], "cohort.intensity: expected"),
    "huge float": (["cohort", "intensity"], [0.0, 1e300], "cohort.intensity: expected numbers"),
    "no range": (["cohort", "intensity"], [1.0, 1.0], "cohort: .* intensity: expected a range"),
    "patch": (["generator", "patch_size"], [10**5] * 3, "patch_size: expected three numbers"),
    "large patch": (["generator", "patch_size"], [2048, 1024, 1024], "patch_size: expected three"),
    "negative patch": (["generator", "patch_size"], [-16, 16, 16], "patch_size: expected three"),
    "two axes": (["generator", "patch_size"], [16, 16], "patch_size: expected three numbers"),
    "sizes": (["cohort", "sizes"], [[10**4, 10**4, 10**4]], "cohort.sizes: expected three"),
    "no sizes": (["cohort", "sizes"], [], "cohort: .* sizes: expected those"),
    "sizes of text": (["cohort", "sizes"], "big", "cohort.sizes: expected three"),
    "spacing": (["cohort", "spacing"], [0.0, 1.0, 1.0], "cohort: .* spacing: expected three"),
    "tiny spacing": (["cohort", "spacing"], [1e-9, 1.0, 1.0], "cohort: .* spacing: expected"),
    "spacing of text": (["cohort", "spacing"], "111", "cohort: .* spacing: expected three"),
    "labels": (["cohort", "labels"], ["a"], "cohort: .* labels: expected 2 to 10000"),
    "many labels": (["cohort", "labels"], [str(n) for n in range(20_000)], "labels: expected 2 to"),
    "same labels": (["cohort", "labels"], ["a", "a"], "cohort: .* labels: expected 2 to"),
    "labels of numbers": (["cohort", "labels"], [0, 1], "cohort: .* labels: expected names"),
    "name": (["cohort", "name"], {"a": 1}, "cohort: .* expected text"),
    "unknown": (["cohort", "extra"], 1, "cohort: expected arguments"),
    "no object": (["cohort"], [1], "cohort: expected an object"),
    "foreign": (["generator", "device"], "cuda", "generator: expected arguments"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_cards_are_refused_in_one_line(name: str, weights: Path) -> None:
    place, value, words = ABSURD[name]
    path = weights.with_suffix(".json")
    content = json.loads(path.read_text())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        rebuilt(weights)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < 600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "expected valid JSON"),
        ('{"a":' * 50 + "1" + "}" * 50, "expected at most 12 levels"),
        ('{"cohort": {}, "cohort": {}}', "cohort: expected each key once"),
        ('{"generator": {"filters": ' + "9" * 5000 + "}}", "expected valid JSON"),
        ("[1]", "expected an object"),
        ("{}", "cohort: expected an entry of that name"),
        ('{"x": "' + "a" * 2**24 + '"}', "expected at most 16777216 bytes"),
    ],
)
def test_cards_of_another_form_are_refused(text: str, words: str, weights: Path) -> None:
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        rebuilt(weights)
    assert len(str(caught.value)) < 600


def test_a_network_of_many_modules_is_stopped(weights: Path) -> None:
    def endless(length: int) -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Identity() for _ in range(length)))

    card = read_plain_card(weights)
    card["generator"] = {"length": 10**4}
    with pytest.raises(DataError, match="many more modules than the weights have"):
        network_of(card, "generator", endless)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": {"labels": ["a", "b"], "spacing": [1.0, 1.0, -1.0]}}, "task: .* spacing"),
        ({"task": {"labels": ["a", "b"]}}, "task: expected arguments"),
        ({"task": {"labels": ["a", "b", "c"], "spacing": [1.0, 1.0, 1.0]}}, "network of 3 classes"),
        ({"segmenter": [1]}, "segmenter: expected a network"),
        ({"segmenter": None}, "segmenter: expected a network"),
    ],
)
def test_absurd_cards_of_segmenters_are_refused(
    change: dict[str, Any], words: str, weights: Path
) -> None:
    sound = {"task": {"labels": ["a", "b"], "spacing": [1.0, 1.0, 1.0], "longest": [9, 9, 9]}}
    write_json(weights.with_suffix(".json"), {**sound, "segmenter": {"num_classes": 2}, **change})
    with pytest.raises(DataError, match=words):
        read_segmenter_card(weights)


# --- names ------------------------------------------------------------------------------------


def test_errors_stay_on_one_line_whatever_names_and_headers_say(folder: Path) -> None:
    name = "two\nlines \x1b[2J\u2028.nii.gz"
    image(folder).rename(folder / name)
    edit_json(folder, lambda c: c["training"][0].update(image=name))
    edit_voxels(folder / name, lambda a: np.stack([a, a], axis=-1))
    for read in (read_volume, lambda p: WholeFilesd("image")({"image": str(p)})):
        with pytest.raises(DataError, match="shape: expected a 3D volume") as caught:
            read(folder / name)
        assert str(caught.value).isprintable()
