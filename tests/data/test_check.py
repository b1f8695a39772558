"""Every fault that the check promises to find, really provoked in a folder of real files."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.damage import (
    DATATYPE,
    DIM,
    MAGIC,
    PIXDIM,
    QFORM_CODE,
    QUATERN,
    SFORM_CODE,
    SLOPE,
    SROW,
    UNITS,
    VOX_OFFSET,
    edit_bytes,
    edit_json,
    edit_voxels,
)

from medpair.data import nifti_stream
from medpair.data.check import Fault, check_dataset, format_report, require_valid
from medpair.data.check_volume import examine
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, Volume, read_volume, write_volume

SIZE = (10, 8, 6)


@pytest.fixture
def folder(tiny_dataset: Callable[..., Path], tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "cohort", count=3, size=SIZE, roi=True)


def image(folder: Path, index: int = 0) -> Path:
    return folder / f"images{'Tr' if index < 3 else 'Vl'}/case_{index:03d}_0000.nii.gz"


def label(folder: Path, index: int = 0) -> Path:
    return folder / f"labels{'Tr' if index < 3 else 'Vl'}/case_{index:03d}.nii.gz"


def roi(folder: Path, index: int = 0) -> Path:
    return folder / f"rois{'Tr' if index < 3 else 'Vl'}/case_{index:03d}.nii.gz"


def only(faults: list[Fault], path: Path, key: str, level: str = "error") -> Fault:
    """Assert that there is this one fault and return it."""
    assert [(f.file, f.key, f.level) for f in faults] == [(str(path), key, level)], faults
    fault = faults[0]
    assert str(fault) == f"{path}: {key}: expected {fault.expected}, found {fault.found}"
    return fault


# --- what is valid ---------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "LAS", "LPI", "SRA"])
@pytest.mark.parametrize("tilt", [0.0, 25.0])
def test_clean_folder_has_no_fault(
    tiny_dataset: Callable[..., Path], tmp_path: Path, orientation: str, tilt: float
) -> None:
    folder = tiny_dataset(
        tmp_path / "d", 2, SIZE, 3, (0.7, 1.2, 2.5), orientation, tilt=tilt, roi=True
    )
    assert "".join(nib.aff2axcodes(nib.load(image(folder)).affine)) == orientation
    assert check_dataset(folder) == []
    assert check_dataset(folder, quick=True) == []
    require_valid(folder)


def test_labels_need_not_be_consecutive(folder: Path) -> None:
    for index in range(4):
        edit_voxels(label(folder, index), lambda a: np.choose(a, [0, 40, 7]).astype(np.uint8))
    edit_json(folder, lambda c: c.update(labels={"background": 0, "a": 7, "b": 40}))
    assert check_dataset(folder) == []


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["nifti-2", "big-endian", "float64", "scaled"])
def test_other_ways_to_store_a_volume_are_valid(folder: Path, kind: str, ending: str) -> None:
    def convert(listed: str) -> str:
        old = nib.load(folder / listed)
        array = np.asarray(old.dataobj)
        new = nib.Nifti1Image(array, old.affine)
        if kind == "nifti-2":
            new = nib.Nifti2Image(array, old.affine)
        elif kind == "big-endian":
            header = nib.Nifti1Header(endianness=">")
            header.set_data_dtype(array.dtype)
            new = nib.Nifti1Image(array, old.affine, header)
        elif kind == "float64":
            new = nib.Nifti1Image(array.astype(np.float64), old.affine)
        else:
            new = nib.Nifti1Image(2 * (array + 4), old.affine)
            new.header.set_slope_inter(0.5, -4.0)
        path = listed.removesuffix(".nii.gz") + ending
        nib.save(new, folder / path)
        return path

    edit_json(
        folder,
        lambda c: c["training"].__setitem__(
            0, {role: convert(path) for role, path in c["training"][0].items()}
        ),
    )
    assert check_dataset(folder) == []


def test_gzip_stream_of_several_members_is_valid(folder: Path) -> None:
    # as bgzip and parallel compressors write it: the last member's length is not the file's
    content = gzip.decompress(image(folder).read_bytes())
    image(folder).write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert check_dataset(folder) == []
    assert check_dataset(folder, quick=True) == []


def test_bare_paths_and_missing_labels_are_valid_in_test(folder: Path) -> None:
    shutil.copytree(folder / "imagesVl", folder / "imagesTs")
    edit_voxels(folder / "imagesTs/case_003_0000.nii.gz", lambda a: a + 1)
    (folder / "imagesTs/case_003_0000.nii.gz").rename(folder / "imagesTs/other.nii.gz")
    edit_json(folder, lambda c: c.update(test=["imagesTs/other.nii.gz"]))
    assert check_dataset(folder) == []


# --- files ------------------------------------------------------------------------------------


@pytest.mark.fault(4)
@pytest.mark.parametrize("quick", [True, False])
def test_missing_file(folder: Path, quick: bool) -> None:
    label(folder, 1).unlink()
    fault = only(check_dataset(folder, quick=quick), label(folder, 1), "training[1].label")
    assert (fault.expected, fault.found) == ("a NIfTI volume", "nothing there")


@pytest.mark.fault(2)
@pytest.mark.parametrize("quick", [True, False])
def test_empty_file(folder: Path, quick: bool) -> None:
    image(folder, 3).write_bytes(b"")
    fault = only(check_dataset(folder, quick=quick), image(folder, 3), "validation[0].image")
    assert (fault.expected, fault.found) == ("a NIfTI volume", "an empty file (0 bytes)")


@pytest.mark.fault(1)
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.9, 0.999])
def test_truncated_file(folder: Path, part: float, quick: bool) -> None:
    whole = image(folder).read_bytes()
    image(folder).write_bytes(whole[: int(part * len(whole))])
    fault = only(check_dataset(folder, quick=quick), image(folder), "gzip")
    assert fault.expected == "a complete gzip stream"
    assert fault.found == f"a truncated one ({int(part * len(whole))} bytes, no end marker)"


@pytest.mark.fault(1)
@pytest.mark.parametrize("quick", [True, False])
def test_truncated_before_compression(folder: Path, quick: bool) -> None:
    content = gzip.decompress(image(folder).read_bytes())
    image(folder).write_bytes(gzip.compress(content[:-100]))
    fault = only(check_dataset(folder, quick=quick), image(folder), "voxels")
    assert fault.expected == f"{352 + 480 * 2} bytes ((10, 8, 6) of int16)"
    assert fault.found == f"{352 + 480 * 2 - 100}: truncated"


@pytest.mark.fault(3)
def test_every_flipped_bit_is_found(tiny_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "d", 1, (6, 4, 3), 1, validation=0)
    whole = image(folder).read_bytes()
    tried = harmless = loads = 0
    # the ten bytes before hold a date and flags that no checksum covers
    for bit in range(80, 8 * len(whole), 7):
        tried += 1
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        image(folder).write_bytes(damaged)
        faults = [f for f in check_dataset(folder) if f.level == "error"]
        if not any(f.file == str(image(folder)) for f in faults):
            # some bits say nothing: padding, and Huffman codes that no symbol uses
            assert gzip.decompress(damaged) == gzip.decompress(whole), bit
            harmless += 1
        with contextlib.suppress(Exception):
            loads += np.asarray(nib.load(image(folder)).dataobj).size > 0
    assert harmless < 0.05 * tried
    assert loads > 0  # what a reader lets through, the check finds


@pytest.mark.fault(3)
def test_flipped_checksum(folder: Path) -> None:
    content = bytearray(image(folder).read_bytes())
    content[-8] ^= 1
    image(folder).write_bytes(content)
    fault = only(check_dataset(folder), image(folder), "gzip")
    assert fault.expected == "a matching checksum"
    assert fault.found.startswith("damage: CRC check failed")
    # the quick part does not read so far: this is what the full part is for
    assert check_dataset(folder, quick=True) == []


def test_trailing_bytes_behind_the_gzip_stream(folder: Path) -> None:
    with open(image(folder), "ab") as stream:
        stream.write(b"left over")
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), image(folder), "gzip")
        assert fault.expected == "the end of the file behind the gzip stream"
        assert fault.found == "trailing bytes"


def test_more_voxels_than_announced(folder: Path) -> None:
    content = gzip.decompress(label(folder).read_bytes())
    label(folder).write_bytes(gzip.compress(content + bytes(7)))
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), label(folder), "voxels")
        assert fault.expected == f"the end of the file after {352 + 480} bytes"
        assert fault.found == "7 bytes more"


def test_no_gzip_stream(folder: Path) -> None:
    image(folder).write_bytes(gzip.decompress(image(folder).read_bytes()))
    fault = only(check_dataset(folder, quick=True), image(folder), "gzip")
    assert fault.expected == "a valid gzip stream"
    assert "Not a gzipped file" in fault.found


@pytest.mark.fault(22)
def test_folder_of_slices_and_foreign_formats(folder: Path) -> None:
    (folder / "series").mkdir()
    (folder / "volume.nrrd").write_bytes(b"NRRD0004")
    os.mkfifo(folder / "pipe.nii.gz")
    paths = ["series", "volume.nrrd", "pipe.nii.gz"]
    edit_json(folder, lambda c: c.update(test=[{"image": path} for path in paths]))
    series, nrrd, pipe = check_dataset(folder)
    assert series.found == "a folder (of DICOM slices? convert them to one NIfTI file)"
    assert (nrrd.key, nrrd.expected) == ("test[1].image", "a name that ends in .nii.gz or .nii")
    assert nrrd.found == "volume.nrrd"
    assert pipe.found == "something that is no regular file"


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.fault(7)
def test_shape_differs(folder: Path) -> None:
    edit_voxels(label(folder, 2), lambda a: a[:-1])
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), label(folder, 2), "shape")
        assert fault.expected == f"(10, 8, 6), the shape of {image(folder, 2)}"
        assert fault.found == "(9, 8, 6)"


@pytest.mark.fault(5, 6)
@pytest.mark.parametrize("path", [label, roi])
def test_affine_shifted_by_a_millimetre(folder: Path, path: Callable[[Path], Path]) -> None:
    old = nib.load(path(folder))
    affine = old.affine.copy()
    affine[0, 3] += 1.0
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj), affine), path(folder))
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), path(folder), "affine")
        expected = "[[1, 0, 0, -5], [0, 1, 0, -4], [0, 0, 1, -3]], the affine of "
        assert fault.expected == expected + str(image(folder))
        found = "[[1, 0, 0, -4], [0, 1, 0, -4], [0, 0, 1, -3]], which differs by up to 1"
        assert fault.found == found


def test_a_label_stored_in_another_orientation_than_its_image_is_told_so(folder: Path) -> None:
    volume = read_volume(label(folder), None)
    write_volume(label(folder), Volume(volume.array, volume.affine, "LAS"))
    fault = only(check_dataset(folder), label(folder), "affine")
    assert fault.found.endswith("(stored in another orientation: LAS, the image RAS)")


@pytest.mark.parametrize(("part", "differs"), [(0.5e-3, False), (2e-3, True)])
def test_affine_tolerance_is_a_thousandth_of_the_spacing(
    tiny_dataset: Callable[..., Path], tmp_path: Path, part: float, differs: bool
) -> None:
    folder = tiny_dataset(tmp_path / "d", 1, SIZE, spacing=(0.25, 0.5, 1.0), validation=0)
    old = nib.load(label(folder))
    affine = old.affine.copy()
    affine[1, 3] += part * 0.25
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj), affine), label(folder))
    assert [fault.key for fault in check_dataset(folder)] == (["affine"] if differs else [])


@pytest.mark.fault(15)
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_pixdim_that_is_no_voxel_size(folder: Path, value: float) -> None:
    edit_bytes(image(folder), PIXDIM + 8, "f", value)
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), image(folder), "pixdim")
        assert fault.expected == "three positive, finite voxel sizes"
        assert fault.found == f"[1, {value:g}, 1]"


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_affine_without_three_axes(folder: Path, value: float) -> None:
    edit_bytes(image(folder), SROW + 20, "f", value)
    fault = only(check_dataset(folder, quick=True), image(folder), "affine")
    assert fault.expected == "three independent axes of positive, finite spacing"
    assert fault.found == f"[[1, 0, 0, -5], [0, {value:g}, 0, -4], [0, 0, 1, -3]]"


def test_quaternion_of_no_rotation(folder: Path) -> None:
    edit_bytes(image(folder), SFORM_CODE, "h", 0)
    edit_bytes(image(folder), QUATERN, "3f", 1.0, 1.0, 1.0)
    fault = only(check_dataset(folder, quick=True), image(folder), "affine")
    assert fault.expected == "a readable qform"


def test_geometry_that_readers_take_differently_is_a_warning(folder: Path) -> None:
    edit_bytes(image(folder), PIXDIM + 4, "f", 1.5)
    fault = only(check_dataset(folder, quick=True), image(folder), "pixdim", "warning")
    assert fault.expected == "the affine's voxel sizes [1, 1, 1]"
    assert fault.found == "[1.5, 1, 1]: readers differ in which they take"


def test_missing_orientation_is_a_warning(folder: Path) -> None:
    edit_bytes(image(folder), QFORM_CODE, "2h", 0, 0)
    faults = [f for f in check_dataset(folder, quick=True) if f.level == "warning"]
    fault = only(faults, image(folder), "affine", "warning")
    assert fault.expected == "an sform or a qform"


def test_qform_alone_and_a_sign_of_zero_are_valid(folder: Path) -> None:
    # the standard reads a zero before the voxel sizes as 1
    edit_bytes(image(folder), SFORM_CODE, "h", 0)
    edit_bytes(image(folder), PIXDIM, "f", 0.0)
    assert check_dataset(folder) == []
    assert read_volume(image(folder)).affine[2, 2] == 1.0


def test_unknown_form_code(folder: Path) -> None:
    edit_bytes(image(folder), SFORM_CODE, "h", 77)
    # which affine a reader takes is unknown, so it is compared with none
    edit_bytes(image(folder), SROW + 12, "f", 99.0)
    fault = only(check_dataset(folder, quick=True), image(folder), "sform_code")
    assert (fault.expected, fault.found) == ("0 to 5", "77")


def test_other_units_are_a_warning(folder: Path) -> None:
    edit_bytes(image(folder), UNITS, "B", 3)
    fault = only(check_dataset(folder, quick=True), image(folder), "xyzt_units", "warning")
    assert (fault.expected, fault.found) == ("millimetres", "micrometres")


@pytest.mark.fault(14)
def test_four_dimensions(folder: Path) -> None:
    edit_voxels(image(folder), lambda a: np.stack([a, a], axis=-1))
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), image(folder), "shape")
        assert (fault.expected, fault.found) == ("a 3D volume", "4 axes (10, 8, 6, 2)")


def test_fourth_dimension_of_one_is_dropped_as_by_the_reader(folder: Path) -> None:
    edit_voxels(image(folder), lambda a: a[..., None])
    assert check_dataset(folder) == []
    assert read_volume(image(folder)).array.shape == SIZE


@pytest.mark.parametrize(
    ("offset", "form", "values", "key", "found"),
    [
        (0, "i", [1234], "sizeof_hdr", "the bytes b'\\xd2\\x04\\x00\\x00'"),
        (DIM, "h", [12], "dim", "12"),
        (DIM + 2, "h", [-3], "shape", "(-3, 8, 6)"),
        (DIM + 4, "h", [0], "shape", "(10, 0, 6)"),
        (DATATYPE, "h", [128], "datatype", "[('R', 'u1'), ('G', 'u1'), ('B', 'u1')]"),
        (DATATYPE, "h", [32], "datatype", "complex64"),
        (DATATYPE, "h", [999], "datatype", "the unknown code 999"),
        (VOX_OFFSET, "f", [0.0], "vox_offset", "0"),
        (VOX_OFFSET, "f", [float("nan")], "vox_offset", "nan"),
        (SLOPE, "2f", [1.0, float("inf")], "scl_inter", "inf"),
        (MAGIC, "4s", [b"ni1\0"], "magic", "b'ni1'"),
    ],
)
def test_damaged_header_field(
    folder: Path, offset: int, form: str, values: list[Any], key: str, found: str
) -> None:
    edit_bytes(image(folder), offset, form, *values)
    for quick in (True, False):
        assert only(check_dataset(folder, quick=quick), image(folder), key).found == found


def test_absurd_size_is_refused_without_reading(folder: Path) -> None:
    edit_bytes(image(folder), DIM, "4h", 3, 30000, 30000, 30000)
    tracemalloc.start()
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick), image(folder), "dim")
        assert fault.expected == "at most 4 GiB of voxels"
        assert fault.found == "(30000, 30000, 30000) of int16, 50291.4 GiB"
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_size_beyond_the_file_is_found_by_the_quick_part(folder: Path) -> None:
    edit_bytes(image(folder), DIM, "4h", 3, 1000, 1000, 1000)
    for quick in (True, False):
        fault = only(check_dataset(folder, quick=quick)[:1], image(folder), "voxels")
        assert fault.expected == "2000000352 bytes ((1000, 1000, 1000) of int16)"
        assert fault.found == "1312: truncated"


def test_a_bomb_is_read_in_bounded_memory(folder: Path) -> None:
    content = gzip.decompress(image(folder).read_bytes())
    with gzip.open(image(folder), "wb", compresslevel=1) as stream:
        stream.write(content)
        for _ in range(100):
            stream.write(bytes(2**20))
    tracemalloc.start()
    fault = only(check_dataset(folder), image(folder), "voxels")
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert fault.found == f"{2**26} bytes more at least"


# --- voxels -----------------------------------------------------------------------------------


@pytest.mark.fault(12)
def test_nan_and_infinity(folder: Path) -> None:
    def damage(array: np.ndarray) -> None:
        array[0, 0, :3] = np.nan
        array[1, 1, 1] = np.inf
        array[1, 1, 2] = -np.inf

    edit_voxels(image(folder, 3), damage, np.float32)
    fault = only(check_dataset(folder), image(folder, 3), "voxels")
    assert (fault.expected, fault.found) == ("finite values", "3 NaN and 2 infinite voxels")
    assert check_dataset(folder, quick=True) == []


def test_nothing_but_nan(folder: Path) -> None:
    edit_voxels(image(folder), lambda a: a.fill(np.nan), np.float32)
    assert only(check_dataset(folder), image(folder), "voxels").found.startswith("480 NaN")


@pytest.mark.fault(13)
def test_constant_image(folder: Path) -> None:
    edit_voxels(image(folder), lambda a: a.fill(3))
    fault = only(check_dataset(folder), image(folder), "voxels", "warning")
    assert (fault.expected, fault.found) == ("an image that varies", "3 in every finite voxel")


def test_values_that_overflow(folder: Path) -> None:
    edit_voxels(image(folder), lambda a: a * 1e300, np.float64)
    fault = only(check_dataset(folder), image(folder), "voxels")
    assert fault.expected == "values that float32 can hold"
    assert fault.found.endswith("e+302")


@pytest.mark.fault(8)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float32])
def test_label_value_outside_the_labels(folder: Path, dtype: Any) -> None:
    edit_voxels(label(folder, 1), lambda a: a.__setitem__((0, 0, slice(0, 4)), 255), dtype)
    fault = only(check_dataset(folder), label(folder, 1), "values")
    assert fault.expected == "values in [0, 1, 2]"
    assert fault.found == "[255] in 4 voxels; map them, or add them to `labels`"


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.uint64, 2**64 - 255), (np.int64, -(2**63)), (np.float64, 1e30), (np.int8, -128)],
)
def test_label_value_that_would_overflow(folder: Path, dtype: Any, value: float) -> None:
    edit_voxels(label(folder), lambda a: a.__setitem__((0, 0, 0), value), dtype)
    fault = only(check_dataset(folder), label(folder), "values")
    assert fault.found.startswith(f"[{int(value)}] in 1 voxels")
    edit_voxels(label(folder), lambda a: a.fill(value), dtype)
    fault = only(check_dataset(folder), label(folder), "values")
    assert fault.found.startswith(f"[{int(value)}] in 480 voxels")


@pytest.mark.fault(9)
def test_fractions_in_a_label(folder: Path) -> None:
    edit_voxels(label(folder), lambda a: a.__setitem__((0, 0, slice(0, 3)), 0.5), np.float32)
    fault = only(check_dataset(folder), label(folder), "values")
    assert fault.expected == "whole numbers (within 0.001)"
    assert fault.found == "3 voxels with fractions, such as [0.5]"


@pytest.mark.fault(9)
@pytest.mark.parametrize(("deviation", "level"), [(5e-4, "warning"), (2e-3, "error")])
def test_label_nearly_whole(folder: Path, deviation: float, level: str) -> None:
    edit_voxels(label(folder), lambda a: np.where(a == 1, 1 - deviation, a), np.float64)
    fault = only(check_dataset(folder), label(folder), "values", level)
    assert f"{deviation:g}" in fault.found or f"[{1 - deviation:g}]" in fault.found


def test_scaled_label_with_fractions(folder: Path) -> None:
    # uint8 0..2 with a slope of 0.5, as a float label saved as integers becomes
    edit_bytes(label(folder), SLOPE, "2f", 0.5, 0.0)
    assert "such as [0.5]" in only(check_dataset(folder), label(folder), "values").found


def test_nan_in_a_label(folder: Path) -> None:
    edit_voxels(label(folder), lambda a: a.__setitem__((0, 0, 0), np.nan), np.float32)
    assert only(check_dataset(folder), label(folder), "voxels").expected == "finite values"


def test_image_listed_as_label_is_reported_in_bounded_memory(
    tiny_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_dataset(tmp_path / "d", 1, (64, 64, 64), validation=0)
    edit_voxels(label(folder), lambda a: np.random.default_rng(0).random(a.shape), np.float32)
    faults = check_dataset(folder)
    assert [fault.key for fault in faults] == ["values", "labels"]
    assert faults[0].found.split()[0] in {str(n) for n in range(260_000, 262_145)}


def test_distinct_values_are_collected_up_to_a_limit(folder: Path) -> None:
    header = nib.load(label(folder)).affine
    values = np.arange(7, 7 + 30**3, dtype=np.int32).reshape(30, 30, 30)
    nib.save(nib.Nifti1Image(values, header), label(folder))
    nib.save(nib.Nifti1Image(values, header), image(folder))
    fault = next(f for f in check_dataset(folder) if f.key == "values")
    assert fault.found.startswith("[7, 8, 9, ")
    assert "and 9988 more] in at least 10000 voxels;" in fault.found


def test_mask_that_is_not_zero_and_one(folder: Path) -> None:
    edit_voxels(roi(folder, 2), lambda a: a * 255)
    fault = only(check_dataset(folder), roi(folder, 2), "values")
    assert fault.expected == "0 and 1 in a region of interest"
    assert fault.found == f"[255] in {8 * 6 * 4} voxels"


def test_a_label_may_be_the_mask_and_is_checked_as_both(folder: Path) -> None:
    edit_json(folder, lambda c: c["training"][1].update(roi=c["training"][1]["label"]))
    fault = only(check_dataset(folder), label(folder, 1), "values")
    assert fault.expected == "0 and 1 in a region of interest"


def test_empty_mask_is_a_warning(folder: Path) -> None:
    edit_voxels(roi(folder), lambda a: a * 0)
    assert only(check_dataset(folder), roi(folder), "values", "warning").found == "0 everywhere"


@pytest.mark.fault(11)
def test_background_only_label_is_a_warning(folder: Path) -> None:
    edit_voxels(label(folder, 1), lambda a: a * 0)
    fault = only(check_dataset(folder), label(folder, 1), "values", "warning")
    assert (fault.expected, fault.found) == ("a foreground", "background only")


@pytest.mark.fault(10)
def test_class_in_no_case_is_a_warning(folder: Path) -> None:
    edit_json(folder, lambda c: c["labels"].update(ghost=9, spectre=3))
    fault = only(check_dataset(folder), folder / "dataset.json", "labels", "warning")
    assert fault.found == "no voxel of [spectre, ghost]"


def test_class_of_an_unreadable_label_is_not_called_absent(folder: Path) -> None:
    for index in (1, 2, 3):
        edit_voxels(label(folder, index), lambda a: np.minimum(a, 1))
    assert check_dataset(folder) == []
    label(folder, 0).write_bytes(label(folder, 0).read_bytes()[:-1])
    only(check_dataset(folder), label(folder, 0), "gzip")


def test_labels_outside_the_chosen_group_are_background(folder: Path) -> None:
    groups = {"first": {"1": {"name": "one", "values": [1]}}}
    edit_json(folder, lambda c: c.update(label_groups=groups))
    edit_voxels(label(folder, 1), lambda a: np.where(a == 1, 0, a))
    assert check_dataset(folder) == []
    fault = only(check_dataset(folder, "first"), label(folder, 1), "values", "warning")
    assert fault.found == "background only"


# --- duplicates -------------------------------------------------------------------------------


@pytest.mark.fault(19)
def test_same_volume_in_two_splits_under_different_names(folder: Path) -> None:
    shutil.copy(image(folder, 1), image(folder, 3))
    assert check_dataset(folder, quick=True) == []
    fault = only(check_dataset(folder), image(folder, 3), "voxels")
    assert fault.expected == "a volume that no other split has"
    assert fault.found == f"those of {image(folder, 1)} (training)"


def test_same_voxels_are_found_whatever_header_and_compression(folder: Path) -> None:
    content = bytearray(gzip.decompress(image(folder, 1).read_bytes()))
    content[148:158] = b"saved anew"
    image(folder, 3).write_bytes(gzip.compress(bytes(content), compresslevel=9))
    only(check_dataset(folder), image(folder, 3), "voxels")


def test_same_volume_twice_in_one_split(folder: Path) -> None:
    shutil.copy(image(folder, 0), image(folder, 1))
    assert only(check_dataset(folder), image(folder, 1), "voxels").expected == "a volume of its own"


@pytest.mark.fault(19)
@pytest.mark.parametrize("quick", [True, False])
def test_same_file_in_two_splits(folder: Path, quick: bool) -> None:
    edit_json(folder, lambda c: c["validation"].append(c["training"][1]))
    faults = check_dataset(folder, quick=quick)
    assert [(f.file, f.key, f.expected, f.found) for f in faults] == [
        (
            str(folder / listed),
            f"validation[1].{role}",
            "a file in one split",
            f"it in training[1].{role} too",
        )
        for role, listed in (
            ("image", "imagesTr/case_001_0000.nii.gz"),
            ("label", "labelsTr/case_001.nii.gz"),
        )
    ]


def test_same_file_behind_a_link_or_another_spelling(folder: Path) -> None:
    (folder / "imagesVl/linked.nii.gz").symlink_to(image(folder, 0))
    (folder / "labelsVl/linked.nii.gz").symlink_to(label(folder, 0))
    linked = {"image": "imagesVl/linked.nii.gz", "label": "labelsVl/linked.nii.gz"}
    again = {"image": "imagesTr/../imagesTr/case_002_0000.nii.gz", "label": linked["label"]}
    edit_json(folder, lambda c: c["validation"].extend([linked, again]))
    found = [(f.key, f.found) for f in check_dataset(folder)]
    assert found == [
        ("validation[1].image", "it in training[0].image too"),
        ("validation[1].label", "it in training[0].label too"),
        ("validation[2].image", "it in training[2].image too"),
        ("validation[2].label", "it in training[0].label too"),
    ]


def test_file_listed_twice_in_a_split_and_as_its_own_label(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["training"][1]["label"] = content["training"][0]["label"]
        content["training"][2]["label"] = content["training"][2]["image"]

    edit_json(folder, edit)
    faults = check_dataset(folder, quick=True)
    assert [(f.key, f.expected, f.found) for f in faults] == [
        ("training[1].label", "a file listed once", "it in training[0].label too"),
        ("training[2].label", "a file listed once", "it in training[2].image too"),
    ]


@pytest.mark.fault(20)
@pytest.mark.parametrize("quick", [True, False])
def test_same_name_in_one_split(folder: Path, quick: bool) -> None:
    for site, index in (("north", 0), ("south", 1)):
        (folder / site).mkdir()
        image(folder, index).rename(folder / site / "t1.nii.gz")
        edit_json(
            folder,
            lambda c, i=index, s=site: c["training"][i].update(image=f"{s}/t1.nii.gz"),
        )
    path = folder / "south/t1.nii.gz"
    fault = only(check_dataset(folder, quick=quick), path, "training[1].image")
    assert fault.expected == "a file name of its own, after which the case is named"
    assert fault.found == "the name 't1' of training[0].image"


@pytest.mark.fault(19)
@pytest.mark.parametrize("quick", [True, False])
def test_same_name_in_two_splits(folder: Path, quick: bool) -> None:
    for path in (image(folder, 3), label(folder, 3), roi(folder, 3)):
        path.rename(path.with_name(path.name.replace("003", "001")))
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("case_003", "case_001"))
    path = folder / "imagesVl/case_001_0000.nii.gz"
    fault = only(check_dataset(folder, quick=quick), path, "validation[0].image")
    assert fault.expected == "a case that no other split has"
    assert fault.found == "the name 'case_001' of training[1].image"


# --- paths ------------------------------------------------------------------------------------


def test_paths_that_leave_the_folder_are_refused_unread(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii.gz"
    outside.write_bytes(b"not to be read")
    (folder / "out.nii.gz").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.nii.gz").symlink_to(folder / "loop.nii.gz")
    bad = {
        str(outside): f"the absolute path {str(outside)!r}",
        "../outside.nii.gz": "'../outside.nii.gz', which leaves it",
        "a/../../outside.nii.gz": "'a/../../outside.nii.gz', which leaves it",
        "out.nii.gz": f"'out.nii.gz', a link to {outside}",
        "linked/outside.nii.gz": f"'linked/outside.nii.gz', a link to {outside}",
        "nul\0.nii.gz": "'nul\\x00.nii.gz' (",
        "": "''",
    }
    edit_json(folder, lambda c: c.update(test=[{"image": path} for path in bad]))
    faults = check_dataset(folder)
    assert len(faults) == len(bad)
    for index, (fault, found) in enumerate(zip(faults, bad.values(), strict=True)):
        assert (fault.file, fault.key) == (str(folder / "dataset.json"), f"test[{index}].image")
        assert fault.expected == "a path inside the dataset folder"
        assert fault.found.startswith(found)
    edit_json(folder, lambda c: c.update(test=["loop.nii.gz"]))
    assert [fault.key for fault in check_dataset(folder)] == ["test[0].image"]


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert check_dataset(tmp_path / "alias") == []


# --- dataset.json -----------------------------------------------------------------------------


def test_no_folder_and_no_json(tmp_path: Path) -> None:
    fault = only(check_dataset(tmp_path / "nowhere"), tmp_path / "nowhere", "folder")
    assert (fault.expected, fault.found) == ("a dataset folder", "no folder there")
    fault = only(check_dataset(tmp_path), tmp_path / "dataset.json", "file")
    assert (fault.expected, fault.found) == ("a JSON file", "nothing there")


@pytest.mark.fault(24)
@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        (b'{"name": "a",}', "valid JSON", "line 1 column 14"),
        (b"\xff\xfe", "valid JSON", "can't decode byte"),
        (b"[" * 100_000, "valid JSON", "recursion"),
        (b"[1]", "an object", "list [1]"),
        (b"", "valid JSON", "line 1 column 1"),
    ],
)
def test_broken_json(folder: Path, text: bytes, expected: str, found: str) -> None:
    (folder / "dataset.json").write_bytes(text)
    fault = only(check_dataset(folder), folder / "dataset.json", "file")
    assert fault.expected == expected
    assert found in fault.found


def test_deep_json_is_shown_shortened(folder: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    edit_json(folder, lambda c: c["validation"].append(deep))
    fault = only(check_dataset(folder), folder / "dataset.json", "validation[1]")
    assert fault.found == "[[[[...]]]]"


@pytest.mark.fault(24)
def test_key_given_twice(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    text = text.replace('"class_1": 1', '"class_1": 1, "class_2": 1')
    (folder / "dataset.json").write_text(text)
    fault = only(check_dataset(folder), folder / "dataset.json", "class_2")
    assert (fault.expected, fault.found) == ("each key once in an object", "'class_2' 2 times")


@pytest.mark.parametrize(
    ("change", "key", "expected", "found"),
    [
        ({"name": 3}, "name", "the dataset's name", "3"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "channel_names", "one channel", "'T2'"),
        ({"file_ending": ".nrrd"}, "file_ending", "'.nii.gz'", "'.nrrd'"),
        ({"labels": None}, "labels", "names with values", "none"),
        ({"labels": {"0": "bg", "1": "a"}}, "labels", "{name: value}", "the other way round"),
        ({"labels": {"bg": 0, "a": 1.5, "b": 2}}, "labels", "one whole number", "'a': 1.5"),
        ({"labels": {"bg": 0, "a": True, "b": 2}}, "labels", "one whole number", "'a': True"),
        ({"labels": {"bg": 0, "a": 1, "b": 1, "c": 2}}, "labels", "of its own", "1 for ['a', 'b']"),
        ({"training": {}}, "training", "a list of cases", "dict {}"),
    ],
)
def test_entry_of_the_wrong_kind(
    folder: Path, change: dict[str, Any], key: str, expected: str, found: str
) -> None:
    edit_json(folder, lambda c: c.update(change))
    faults = check_dataset(folder, quick=True)
    fault = only(faults[:1], folder / "dataset.json", key)
    assert expected in fault.expected
    assert found in fault.found


def test_no_background(folder: Path) -> None:
    edit_json(folder, lambda c: c.update(labels={"a": 1, "b": 2}))
    fault = only(check_dataset(folder), folder / "dataset.json", "labels")
    assert fault.expected == "0 for the background and at least one value more"
    assert fault.found == "[1, 2]"


def test_missing_names_are_warnings(folder: Path) -> None:
    edit_json(folder, lambda c: [c.pop(key) for key in ("name", "channel_names", "file_ending")])
    faults = check_dataset(folder)
    assert [(f.key, f.level) for f in faults] == [
        (key, "warning") for key in ("name", "channel_names", "file_ending")
    ]
    require_valid(folder)


def test_the_modality_of_decathlon_is_a_channel(folder: Path) -> None:
    edit_json(folder, lambda c: c.update(modality=c.pop("channel_names")))
    assert check_dataset(folder, quick=True) == []
    edit_json(folder, lambda c: c.update(modality={"0": "FLAIR", "1": "T1w"}))
    fault = only(check_dataset(folder, quick=True), folder / "dataset.json", "modality")
    assert "'T1w'" in fault.found


def test_announced_number_of_cases_is_a_warning(folder: Path) -> None:
    edit_json(folder, lambda c: c.update(numTraining=7))
    fault = only(check_dataset(folder), folder / "dataset.json", "numTraining", "warning")
    assert (fault.expected, fault.found) == ("3, the number of training cases", "7")


@pytest.mark.parametrize("name", ["valdiation", "testing", "val"])
def test_a_list_of_cases_with_another_name_is_a_warning(folder: Path, name: str) -> None:
    edit_json(folder, lambda c: c.update({name: c.pop("validation"), "authors": ["A", {}]}))
    fault = only(check_dataset(folder), folder / "dataset.json", name, "warning")
    assert fault.expected == "lists of cases named training, validation, test"
    assert fault.found == "1 case in a list that is not read"
    require_valid(folder)


def test_a_byte_order_mark_is_no_fault(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert check_dataset(folder) == []
    assert len(load_dataset(folder).split("training")) == 3


def test_label_groups(folder: Path) -> None:
    groups = {
        "unknown": {"1": {"name": "a", "values": [1, 99]}},
        "twice": {"1": {"name": "a", "values": [1]}, "2": {"name": "b", "values": [2, 1]}},
        "broken": {"1": {"name": "a", "values": 1}, "x": {"name": "b", "values": [2]}},
        "empty": {},
        "background": {"0": {"name": "a", "values": [0]}},
    }
    edit_json(folder, lambda c: c.update(label_groups=groups))
    found = {f.key: (f.expected, f.found) for f in check_dataset(folder, "missing")}
    assert found["label_group"] == (
        "one of ['background', 'broken', 'empty', 'twice', 'unknown']",
        "'missing'",
    )
    assert found["label_groups.unknown"] == ("values in [0, 1, 2]", "[99]")
    assert found["label_groups.twice"] == ("each value in one class", "[1] more than once")
    assert set(found) > {"label_groups.broken.1", "label_groups.broken.x", "label_groups.empty"}
    assert found["label_groups.background"] == ("a class besides the background", "[0]")
    assert len(found) == 7


@pytest.mark.fault(21)
def test_image_without_label(folder: Path) -> None:
    edit_json(folder, lambda c: c["validation"][0].pop("label"))
    fault = only(check_dataset(folder), folder / "dataset.json", "validation[0].label")
    assert (fault.expected, fault.found) == ("a label beside the image", "none")


@pytest.mark.parametrize("case", [3, {}, {"label": "labelsTr/a.nii.gz"}, None])
def test_entry_without_image(folder: Path, case: Any) -> None:
    edit_json(folder, lambda c: c["validation"].append(case))
    fault = only(check_dataset(folder), folder / "dataset.json", "validation[1]")
    assert (fault.expected, fault.found) == ('{"image": path, "label": path}', repr(case))


@pytest.mark.fault(19)
def test_empty_dataset_and_empty_splits(folder: Path) -> None:
    edit_json(folder, lambda c: c.update(validation=[]))
    assert check_dataset(folder) == []
    path = folder / "dataset.json"
    only(check_dataset(folder, splits=["training", "validation"]), path, "validation")
    edit_json(folder, lambda c: c.update(training=[], validation=c["training"], numTraining=0))
    fault = only(check_dataset(folder), path, "training")
    assert (fault.expected, fault.found) == ("cases", "none")
    assert check_dataset(folder, splits=["validation"]) == []
    edit_json(folder, lambda c: c.update(validation=[]))
    assert only(check_dataset(folder), path, "training").found == "none in any split"


def test_only_the_chosen_splits_are_read(folder: Path) -> None:
    image(folder, 3).write_bytes(b"")
    assert len(check_dataset(folder)) == 1
    assert check_dataset(folder, splits=["training"]) == []
    with pytest.raises(DataError, match=r"splits: expected some of .* found \['holdout'\]"):
        check_dataset(folder, splits=["holdout"])


# --- all of them, and how they are told -------------------------------------------------------


def break_many(folder: Path) -> set[tuple[str, str]]:
    """Break a folder in many ways; return file and key of each fault."""
    image(folder, 0).write_bytes(image(folder, 0).read_bytes()[:-20])
    edit_voxels(label(folder, 0), lambda a: a.__setitem__((0, 0, 0), 255))
    edit_voxels(image(folder, 1), lambda a: a.__setitem__((0, 0, 0), np.nan), np.float32)
    edit_voxels(label(folder, 1), lambda a: np.where(a == 2, 0.5, a[..., :1]), np.float32)
    edit_bytes(label(folder, 2), PIXDIM + 4, "f", 0.0)
    roi(folder, 2).unlink()
    edit_json(folder, lambda c: c["validation"].append(c["training"][2] | {"roi": "/etc/passwd"}))
    return {
        (str(image(folder, 0)), "gzip"),
        (str(label(folder, 0)), "values"),
        (str(image(folder, 1)), "voxels"),
        (str(label(folder, 1)), "values"),
        (str(label(folder, 2)), "pixdim"),
        (str(roi(folder, 2)), "training[2].roi"),
        (str(image(folder, 2)), "validation[1].image"),
        (str(label(folder, 2)), "validation[1].label"),
        (str(folder / "dataset.json"), "validation[1].roi"),
    }


@pytest.mark.fault(1, 8, 9, 12, 15)
def test_all_faults_are_listed_at_once(folder: Path) -> None:
    expected = break_many(folder)
    faults = check_dataset(folder, "nowhere")
    assert {(f.file, f.key) for f in faults} == expected | {
        (str(folder / "dataset.json"), "label_group")
    }
    assert len(faults) == len(expected) + 1


def test_require_valid_lists_all_errors_and_logs_warnings(
    folder: Path, tiny_dataset: Callable[..., Path], tmp_path: Path, caplog: Any
) -> None:
    other = tiny_dataset(tmp_path / "other", 1, SIZE, validation=0)
    require_valid([folder, other])
    for broken in (folder, other):
        label(broken).unlink()
        image(broken).write_bytes(b"")
    edit_json(folder, lambda c: c.update(numTraining=7))
    with (
        caplog.at_level(logging.WARNING, logger="medpair.data.check"),
        pytest.raises(DataError) as caught,
    ):
        require_valid([folder, str(other)])
    first, *lines = str(caught.value).splitlines()
    assert first == f"{folder}, {other}: expected a valid dataset, found 4 errors:"
    assert [line.split(": ")[0] for line in lines] == [
        str(path) for broken in (folder, other) for path in (image(broken), label(broken))
    ]
    assert [record.message.split(": ")[1] for record in caplog.records] == ["numTraining"]
    with pytest.raises(DataError, match="found 'tissues'"):
        require_valid(other, label_group="tissues")
    with pytest.raises(DataError, match="dataset_dir: expected a dataset folder, found none"):
        require_valid([])


def test_require_valid_runs_from_a_bundle_configuration(folder: Path) -> None:
    from monai.bundle import ConfigParser

    config = {
        "dataset_dir": str(folder),
        "check": {
            "_target_": "medpair.data.check.require_valid",
            "dataset_dir": "@dataset_dir",
            "splits": ["training", "validation"],
        },
    }
    assert ConfigParser(config).get_parsed_content("check") is None
    image(folder).unlink()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the parser wraps it
        ConfigParser(config).get_parsed_content("check")
    chain = [caught.value, caught.value.__cause__]
    assert any(str(image(folder)) in str(error) for error in chain)


def test_report_has_errors_first_and_a_summary_last(folder: Path) -> None:
    edit_json(folder, lambda c: c.update(numTraining=7))
    image(folder, 1).unlink()
    image(folder, 2).write_bytes(b"")
    lines = format_report(folder, check_dataset(folder)).splitlines()
    assert [line[:40] for line in lines] == [
        "error: imagesTr/case_001_0000.nii.gz: tr",
        "error: imagesTr/case_002_0000.nii.gz: tr",
        "warning: dataset.json: numTraining: expe",
        f"{folder}: 2 errors and 1 warning"[:40],
    ]
    assert lines[-1].endswith(": 2 errors and 1 warning")
    assert format_report(folder, []) == f"{folder}: no fault found"


def test_hostile_names_stay_on_one_line(folder: Path) -> None:
    name = "evil\n\x1b[2Jname\u2028.nii.gz"
    edit_json(folder, lambda c: c.update(test=[name, "lone \ud800 surrogate.nii.gz"]))
    faults = check_dataset(folder)
    assert len(faults) == 2
    assert len(format_report(folder, faults).splitlines()) == 3
    assert "evil\\n\\x1b[2Jname\\u2028" in str(faults[1])


def test_each_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    real = gzip.open
    monkeypatch.setattr(
        nifti_stream.gzip, "open", lambda path, mode: opened.append(path) or real(path, mode)
    )
    assert check_dataset(folder) == []
    assert sorted(opened) == sorted(folder.glob("*/*.nii.gz"))


def test_quick_check_of_168_pairs_takes_well_under_two_seconds(folder: Path) -> None:
    pairs = []
    for index in range(168):
        pairs.append({"image": f"i/{index}.nii.gz", "label": f"l/{index}.nii.gz"})
        for role, source in (("image", image(folder)), ("label", label(folder))):
            (folder / pairs[-1][role]).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / pairs[-1][role])
    edit_json(folder, lambda c: c.update(training=pairs, numTraining=168))
    start = time.process_time()
    require_valid(folder)
    assert time.process_time() - start < 1.0


# --- whatever comes ---------------------------------------------------------------------------

DTYPES = ["u1", "i1", "<i2", ">i2", "<u4", ">i4", "<i8", "<u8", "<f4", ">f4", "<f8"]


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    slope=st.sampled_from([None, 2.0, -0.5]),
    classes=st.booleans(),
)
def test_contents_are_what_a_reader_sees(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dtype: str,
    slope: float | None,
    classes: bool,
) -> None:
    from hypothesis.extra.numpy import arrays, from_dtype

    kind = np.dtype(dtype)
    elements = st.one_of(st.integers(0, 9).map(kind.type), from_dtype(kind))
    if kind.kind == "f":
        elements = st.one_of(st.integers(0, 9).map(float), st.sampled_from([0.5, np.nan, np.inf]))
    array = data.draw(arrays(kind, (3, 4, 2), elements=elements))
    path = tmp_path_factory.mktemp("contents") / "volume.nii.gz"
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(kind)
    header.set_data_shape(array.shape)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    if slope is not None:
        header["scl_slope"], header["scl_inter"] = slope, 3.0
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + array.tobytes("F")))
    result = examine(path, "image", classes, full=True)
    assert result.faults == []
    assert result.contents is not None
    seen = np.asarray(nib.load(path).dataobj)
    finite = seen[np.isfinite(seen)] if seen.dtype.kind == "f" else seen
    assert result.contents.nan == (np.isnan(seen).sum() if seen.dtype.kind == "f" else 0)
    assert result.contents.infinite + result.contents.nan + finite.size == seen.size
    if not classes:
        if finite.size:
            assert result.contents.low == pytest.approx(float(finite.min()))
            assert result.contents.high == pytest.approx(float(finite.max()))
        return
    near, values = finite, finite
    if finite.dtype.kind == "f":
        near = finite[np.abs(finite - np.rint(finite)) <= 1e-3]
        values = np.rint(near)
    values, counts = np.unique(values, return_counts=True)
    assert result.contents.whole == {
        int(value): int(count) for value, count in zip(values, counts, strict=True)
    }
    assert result.contents.fractions == finite.size - near.size


@settings(max_examples=300, deadline=None)
@given(offset=st.integers(0, 347), replacement=st.binary(min_size=1, max_size=4))
def test_any_header_is_survived_and_what_passes_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, offset: int, replacement: bytes
) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SIZE)
    header.set_qform(np.diag([1, 2, 3, 1]), 1)
    header.set_sform(np.diag([1, 2, 3, 1]), 1)
    header["vox_offset"] = 352
    content = bytearray(header.binaryblock + bytes(4) + np.arange(480, dtype=np.int16).tobytes())
    content[offset : min(offset + len(replacement), 348)] = replacement[: 348 - offset]
    path = tmp_path_factory.mktemp("header") / "volume.nii"
    path.write_bytes(content)
    result = examine(path, "image", False, full=True)
    if not any(fault.level == "error" for fault in result.faults):
        volume = read_volume(path)
        assert np.isfinite(volume.affine).all()
        assert min(volume.spacing) > 0
        assert sorted(volume.array.shape) == sorted(result.header.shape)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["name", "channel_names", "labels", "label_groups", "training", "validation", "test"]
        ),
        JSON,
        max_size=3,
    )
)
def test_any_json_is_survived_and_what_passes_can_be_loaded(
    folder: Path, changes: dict[str, Any]
) -> None:
    path = folder / "dataset.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(original) | changes))
        faults = check_dataset(folder, quick=True)
        assert all("\n" not in str(fault) for fault in faults)
        if not any(fault.level == "error" for fault in faults):
            assert load_dataset(folder).split("training")
            assert load_dataset(folder).labels().num_labels >= 1
    finally:
        path.write_text(original)


def test_a_sheared_grid_is_a_warning(folder: Path) -> None:
    for path in (image(folder), label(folder), folder / "roiTr/case_000.nii.gz"):
        if not path.exists():
            continue
        stored = nib.load(path)
        affine = stored.affine.copy()
        affine[1, 2] += np.tan(np.deg2rad(20.0)) * affine[2, 2]
        nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), path)
    faults = [fault for fault in check_dataset(folder) if fault.file == str(image(folder))]
    assert [(fault.level, fault.expected) for fault in faults] == [
        ("warning", "axes at right angles")
    ]


def test_classes_of_one_name_in_a_merge(folder: Path) -> None:
    classes = {"1": {"name": "both", "values": [1]}, "2": {"name": "both", "values": [2]}}
    edit_json(folder, lambda content: content.update(label_groups={"merge": classes}))
    (fault,) = check_dataset(folder, label_group="merge")
    assert (fault.level, fault.key, fault.found) == ("error", "label_groups.merge", "'both'")


def test_a_class_without_a_name(folder: Path) -> None:
    edit_json(folder, lambda content: content["labels"].update({" ": 3}))
    (fault,) = check_dataset(folder)
    assert (fault.key, fault.found) == ("labels", "3 without one")
