"""Files are whole or absent, and volumes come back as they were written."""

from __future__ import annotations

import gzip
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medpair.data.files import (
    DataError,
    Volume,
    append_jsonl,
    atomic_path,
    load_torch,
    read_json,
    read_volume,
    save_torch,
    write_json,
    write_text,
    write_volume,
)

# --- atomic writes ----------------------------------------------------------------------------


def test_exception_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_success_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_text(path, "ä")
    write_text(path, "ö")
    assert path.read_bytes() == "ö".encode()
    assert list(path.parent.iterdir()) == [path]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_partial_name_keeps_the_ending_and_is_hidden(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "volume.nii.gz") as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.name.endswith(".nii.gz")
        partial.write_bytes(b"x")


KILLED = """
import os, sys
import numpy as np
from medpair.data import files

def stop(*_):
    print("ready", flush=True)
    sys.stdin.read()  # until killed

what, path = sys.argv[1:]
if what == "half":
    with files.atomic_path(path) as partial:
        with open(partial, "wb") as stream:
            stream.write(b"half")
            stream.flush()
            stop()
elif what == "volume":
    # everything is written, nothing renamed
    os.fsync = stop
    files.write_volume(path, files.Volume(np.ones((4, 5, 6), np.int16), np.eye(4)))
"""


@pytest.mark.parametrize("what", ["half", "volume"])
def test_killed_writer_leaves_the_old_file_whole(tmp_path: Path, what: str) -> None:
    path = tmp_path / "volume.nii.gz"
    volume = Volume(np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    write_volume(path, volume)
    before = path.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, what, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    assert path.read_bytes() == before
    # what is left never has the final name, and does not stand in the way
    assert [left.name.startswith(".partial-") for left in tmp_path.iterdir() if left != path] == [
        True
    ]
    write_volume(path, Volume(volume.array + 1, np.eye(4)))
    assert np.array_equal(read_volume(path, np.int16).array, volume.array + 1)


# --- JSON -------------------------------------------------------------------------------------


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"name": "Gefäß", "values": [1, 2.5, None, True]}
    write_json(path, content)
    assert read_json(path) == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == content
    with pytest.raises(DataError, match=r"none\.json: expected a JSON file, found nothing there"):
        read_json(tmp_path / "none.json")
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(DataError, match=r"a\.json: expected valid JSON, found .*line 2 column 6"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="expected valid JSON"):
        read_json(path)


def test_jsonl_appends_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.jsonl"
    append_jsonl(path, {"step": 1, "loss": 0.5})
    append_jsonl(path, {"step": 2, "note": "a\nb"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "note": "a\nb"}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_jsonl(path, {"loss": float("inf")})
    assert len(path.read_text().splitlines()) == 2


# --- checkpoints ------------------------------------------------------------------------------


class Arbitrary:
    """What ``weights_only`` must not load."""


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    content = {"weights": {"w": torch.arange(6.0).view(2, 3)}, "step": 7, "names": ["a"]}
    save_torch(tmp_path / "model.pt", content)
    loaded = load_torch(tmp_path / "model.pt")
    assert torch.equal(loaded["weights"].pop("w"), content["weights"].pop("w"))
    assert loaded == content


def test_a_compressed_checkpoint_is_smaller_and_reads_as_any_other(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    content = {"w": torch.randn(300, 300, generator=generator).half(), "count": torch.tensor(7)}
    plain, small, again = (tmp_path / name for name in ("plain.pt", "small.pt", "again.pt"))
    save_torch(plain, content)
    save_torch(small, content, compress=True)
    save_torch(again, content, compress=True)
    assert small.stat().st_size < 0.95 * plain.stat().st_size
    assert small.read_bytes() == again.read_bytes()  # no date, no chance
    for found in (load_torch(small), torch.load(small, weights_only=True)):
        assert found.keys() == content.keys()
        assert all(torch.equal(found[key], content[key]) for key in content)
    assert load_torch(small, "meta")["w"].shape == (300, 300)


def test_a_small_file_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_torch(path, {"w": torch.zeros(10**7)}, compress=True)  # 40 MB in 40 kB
    assert path.stat().st_size < 10**5
    with pytest.raises(DataError, match=r"does not load .*: 4\d+ bytes when they are inflated"):
        load_torch(path)


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    save_torch(path, {"step": 1})
    before = path.read_bytes()
    with pytest.raises(pickle.UnpicklingError, match="Arbitrary"):
        save_torch(path, {"step": 2, "extra": Arbitrary()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(28)
def test_load_refuses_with_file_and_size(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(DataError, match=r"model\.pt: expected a checkpoint, found nothing there"):
        load_torch(path)
    save_torch(path, {"w": torch.zeros(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"model\.pt: .* \({len(whole) // 2} bytes\)"):
        load_torch(path)
    torch.save({"extra": Arbitrary()}, path)
    with pytest.raises(DataError, match="expected a checkpoint of plain tensors"):
        load_torch(path)


# --- volumes ----------------------------------------------------------------------------------

AXES = [("R", "L"), ("A", "P"), ("S", "I")]


@st.composite
def orientations(draw: st.DrawFn) -> str:
    """One of the 48 axis codes."""
    return "".join(draw(st.sampled_from(pair)) for pair in draw(st.permutations(AXES)))


@st.composite
def affines(draw: st.DrawFn, shear: bool = False) -> np.ndarray:
    """An affine whose axes are closest to R, A, S, oblique or not."""
    angles = [draw(st.sampled_from([0.0, -20.0, 7.5, 31.0])) for _ in range(3)]
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if shear:
        # the tilted gantry of a CT scanner: no rotation expresses it
        matrix = matrix @ np.array([[1, 0, 0], [0, 1, draw(st.floats(0.1, 0.3))], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = matrix * [draw(st.floats(0.2, 6.0)) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    identity = [[0, 1], [1, 1], [2, 1]]
    assume(np.array_equal(nib.orientations.io_orientation(affine), identity))
    return affine


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    orientation=orientations(),
    dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 99),
)
def test_volume_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    affine: np.ndarray,
    orientation: str,
    dtype: Any,
    ending: str,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("volume") / f"volume{ending}"
    array = np.random.default_rng(seed).integers(0, 200, (4, 5, 6)).astype(dtype)
    write_volume(path, Volume(array, affine, orientation))
    back = read_volume(path, dtype)
    assert np.array_equal(back.array, array)
    assert back.array.dtype == dtype
    assert back.orientation == orientation
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)
    np.testing.assert_allclose(back.spacing, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-4)
    stored = nib.load(path)
    assert "".join(nib.aff2axcodes(stored.affine)) == orientation
    np.testing.assert_allclose(stored.get_sform(), stored.get_qform(), atol=1e-4)
    assert (stored.header["sform_code"], stored.header["qform_code"]) == (1, 1)
    assert stored.header.get_xyzt_units()[0] == "mm"
    assert stored.get_data_dtype() == dtype


@settings(max_examples=20, deadline=None)
@given(affine=affines(shear=True), orientation=orientations())
def test_sheared_grid_survives_in_the_sform(
    tmp_path_factory: pytest.TempPathFactory, affine: np.ndarray, orientation: str
) -> None:
    path = tmp_path_factory.mktemp("volume") / "volume.nii"
    write_volume(path, Volume(np.ones((3, 4, 5), np.uint8), affine, orientation))
    np.testing.assert_allclose(read_volume(path).affine, affine, atol=1e-4)
    header = nib.load(path).header
    # a valid qform would be another grid, which readers that prefer it would take
    assert (header["sform_code"], header["qform_code"]) == (1, 0)


def test_bytes_in_foreign_order_are_written_in_ours(tmp_path: Path) -> None:
    array = np.arange(60, dtype=">f4").reshape(3, 4, 5)
    write_volume(tmp_path / "v.nii", Volume(array, np.eye(4)))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii", None).array, array)


def test_a_marked_corner_stays_where_it_is_in_the_world(tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.int16)
    array[3, 0, 5] = 1
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-10, 20, 30]
    write_volume(tmp_path / "v.nii.gz", Volume(array, affine, "PSR"))
    stored = nib.load(tmp_path / "v.nii.gz")
    assert stored.shape == (5, 6, 4)
    index = np.argwhere(np.asarray(stored.dataobj))[0]
    assert index.tolist() == [4, 5, 3]
    assert (stored.affine @ [*index, 1])[:3].tolist() == [-4, 20, 50]


def test_identical_content_gives_identical_bytes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9, (6, 5, 4)).astype(np.int16)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_volume(tmp_path / name, Volume(array, np.eye(4), "LPS"))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    # no flags (so no file name inside) and no time in the gzip header
    assert one[3:8] == bytes(5)
    write_volume(tmp_path / "two.nii.gz", Volume(array + 1, np.eye(4), "LPS"))
    assert (tmp_path / "two.nii.gz").read_bytes() != one


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_whole_floats_are_stored_as_they_are(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(0, 3, (6, 5, 4)).astype(np.float32)
    write_volume(tmp_path / "label.nii.gz", Volume(array, np.eye(4)), dtype)
    stored = nib.load(tmp_path / "label.nii.gz")
    assert stored.get_data_dtype() == dtype
    assert np.array_equal(np.asarray(stored.dataobj.get_unscaled()), array)
    assert np.array_equal(read_volume(tmp_path / "label.nii.gz").array, array)


@pytest.mark.parametrize(("low", "scale"), [(-90, 0.37), (-90, 1e4), (0, 1e4)])
def test_floats_that_do_not_fit_are_scaled(tmp_path: Path, low: int, scale: float) -> None:
    array = scale * np.random.default_rng(0).integers(low, 90, (6, 5, 4)).astype(np.float32)
    write_volume(tmp_path / "image.nii.gz", Volume(array, np.eye(4)), np.int16)
    back = read_volume(tmp_path / "image.nii.gz").array
    step = (array.max() - array.min()) / 65535
    assert np.abs(back - array).max() <= 0.51 * step
    assert nib.load(tmp_path / "image.nii.gz").get_data_dtype() == np.int16


@pytest.mark.fault(1, 2, 14)
def test_read_refuses_what_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    with pytest.raises(
        DataError, match=r"v\.nii\.gz: file: expected a NIfTI volume, found nothing"
    ):
        read_volume(path)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.eye(4)), path)
    with pytest.raises(DataError, match=r"shape: expected a 3D .* found 4 axes \(3, 4, 5, 2\)"):
        read_volume(path)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 1), np.int16), np.eye(4)), path)
    assert read_volume(path).array.shape == (3, 4, 5)
    noise = np.random.default_rng(0).integers(0, 999, (16, 16, 16)).astype(np.int16)
    write_volume(path, Volume(noise, np.eye(4)))
    whole = path.read_bytes()
    damages = {
        b"": "file: expected a NIfTI volume, found an empty file",
        whole[: len(whole) // 2]: "gzip: expected a complete gzip stream, found a truncated one",
        gzip.compress(b"no header"): "sizeof_hdr: expected a NIfTI header",
        b"plain text": "gzip: expected a valid gzip stream",
    }
    for damaged, message in damages.items():
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"v\.nii\.gz: {message}"):
            read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR"])
@pytest.mark.parametrize("stored", [np.int16, np.uint8, np.float32])
def test_a_volume_is_the_file_that_nibabel_writes(
    name: str, orientation: str, stored: type, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([0.5, 0.7, 2.0, 1.0])
    whole, broken = rng.integers(0, 99, (5, 4, 3)).astype(stored), rng.normal(size=(5, 4, 3))
    # the second time from a kept header, and voxels in the file's own order
    for array in (whole, np.asfortranarray(whole), broken.astype(np.float32)):
        write_volume(tmp_path / name, Volume(array, affine, orientation), stored)
        plain = nib.Nifti1Image(array, affine, dtype=np.dtype(stored))
        axes = (nib.orientations.axcodes2ornt(codes) for codes in ("RAS", orientation))
        plain = plain.as_reoriented(nib.orientations.ornt_transform(*axes))
        plain.header.set_data_dtype(stored)
        plain.set_qform(plain.affine, code=1)
        plain.set_sform(plain.affine, code=1)
        plain.header.set_xyzt_units("mm", "sec")
        nib.save(plain, tmp_path / "plain.nii")
        content = (tmp_path / name).read_bytes()
        content = gzip.decompress(content) if name.endswith("gz") else content
        assert content == (tmp_path / "plain.nii").read_bytes()
        assert "".join(nib.aff2axcodes(nib.load(tmp_path / name).affine)) == orientation
