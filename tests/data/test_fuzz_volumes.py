"""Random volumes, damages and lists: a faithful round trip, or a refusal in one line.

``MEDPAIR_LONG=1`` tries ten times as many.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tests.conftest import tiny_dataset
from tests.damage import DIM

from medpair.data.check import check_dataset
from medpair.data.cohort import Cohort, read_cohort
from medpair.data.dataset import load_dataset, write_dataset_json
from medpair.data.files import DataError, Volume, read_grid, read_volume, verify_file, write_volume
from medpair.data.labels import LabelMap, whole_values
from medpair.data.nifti_stream import whole_header
from medpair.data.orientation import axis_codes, to_ras
from medpair.inferers.folder import SyntheticFolder

TIMES = 10 if os.environ.get("MEDPAIR_LONG") else 1
# in memory where there is such a folder
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FUZZ = settings(
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
DTYPES = ["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">i4", "<u4", "<i8", "<u8", "<f4", ">f4", "<f8"]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        yield Path(folder)


def one_line(error: BaseException, path: Path) -> None:
    """Assert that a refusal is one line that begins with its file."""
    assert type(error) is DataError
    assert str(error).startswith(f"{path}: ")
    assert str(error).isprintable()
    assert len(str(error)) < 1000


# --- volumes that somebody else's program wrote ------------------------------------------------

angles = st.sampled_from([0.0, 0.0, 0.01, -20.0, 31.0, 45.0, 60.0, 89.0, 90.0, 180.0])
lengths = st.one_of(st.floats(0.05, 12.0), st.sampled_from([1.0, 0.5, 1e-3, 100.0]))
offsets = st.one_of(st.floats(-500, 500), st.sampled_from([0.0, 1e5, -32768.0]))


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any grid: turned, flipped, permuted, sheared, thin; now and then one that is none."""
    turn = Rotation.from_euler("xyz", [draw(angles) for _ in range(3)], degrees=True).as_matrix()
    order = np.eye(3)[list(draw(st.permutations(range(3))))]
    flips = np.diag([draw(st.sampled_from([1.0, -1.0])) for _ in range(3)])
    shear = np.eye(3)
    shear[0, 1] = draw(st.sampled_from([0.0, 0.0, 0.2, 5.0]))
    affine = np.eye(4)
    affine[:3, :3] = turn @ order @ flips @ shear * [draw(lengths) for _ in range(3)]
    affine[:3, 3] = [draw(offsets) for _ in range(3)]
    if draw(st.integers(0, 19)) == 0:
        row, column = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        affine[row, column] = draw(st.sampled_from([0.0, np.nan, np.inf, 1e30, -1e-30]))
    return affine


@st.composite
def volumes(draw: st.DrawFn, label: bool) -> bytes:
    """A NIfTI file as bytes, its header written field by field."""
    shape = [draw(st.integers(1, 5)) for _ in range(draw(st.sampled_from([*[3] * 16, 2, 4])))]
    shape += draw(st.sampled_from([[], [], [], [1]]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    two = draw(st.booleans())
    order = ">" if dtype.str[0] == ">" else "<"
    header = (nib.Nifti2Header if two else nib.Nifti1Header)(endianness=order)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["datatype"] = nib.nifti1.data_type_codes.code[dtype.newbyteorder("=")]
    header["bitpix"] = 8 * dtype.itemsize
    header["vox_offset"] = extra = (544 if two else 352) + 16 * draw(st.integers(0, 2))
    affine = draw(affines())
    with np.errstate(all="ignore"):
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        header["sform_code"] = draw(st.sampled_from([*[1] * 14, 0, 0, 2, 5, 6, -1]))
        for row in range(3):
            header[f"srow_{'xyz'[row]}"] = affine[row]
        if draw(st.booleans()) and np.isfinite(affine).all():
            # a qform that agrees, or one of another grid
            other = affine if draw(st.booleans()) else np.diag([1.0, 2.0, 3.0, 1.0])
            header.set_qform(other, 1, strip_shears=True)
    header["scl_slope"] = draw(st.sampled_from([1.0, 1.0, 0.0, np.nan, 0.5, -2.0, 1e-3, np.inf]))
    header["scl_inter"] = draw(st.sampled_from([*[0.0] * 9, 10.0, -0.25, np.nan]))
    header["xyzt_units"] = draw(st.sampled_from([0, 2, 2, 3, 7]))
    count = int(np.prod(shape))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    values: Any = rng.integers(0, 4 if label else 120, count)
    if dtype.kind == "f" and draw(st.integers(0, 5)) == 0:
        values = values + rng.choice([0.0, 0.25, 1e-4, np.nan, np.inf], count)
    with np.errstate(all="ignore"):
        voxels = values.astype(dtype).tobytes()
    voxels = voxels[: len(voxels) + draw(st.sampled_from([0] * 12 + [-1, -3]))]
    return header.binaryblock + bytes(extra - len(header.binaryblock)) + voxels


@settings(FUZZ, max_examples=700 * TIMES)
@given(content=volumes(label=False), packed=st.booleans(), turn=st.integers(0, 1))
def test_images_come_back_or_are_refused(
    scratch: Path, content: bytes, packed: bool, turn: int
) -> None:
    path = scratch / f"image.nii{'.gz' * packed}"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    try:
        first = read_volume(path)
    except DataError as error:
        one_line(error, path)
        return
    # what nibabel reads, turned as nibabel turns it
    seen = nib.load(path)
    seen = seen.slicer[..., 0] if seen.ndim == 4 else seen
    array, affine = to_ras(np.asarray(seen.dataobj), seen.affine)
    np.testing.assert_array_equal(first.array, array.astype(np.float32))
    np.testing.assert_allclose(first.affine, affine, rtol=1e-6, atol=1e-6)
    assert first.orientation == axis_codes(seen.affine)
    grid, spacing = read_grid(path)
    assert grid == first.array.shape
    np.testing.assert_allclose(spacing, first.spacing)
    # written as a generator writes it, and read again
    again = scratch / "again.nii.gz"
    finite = np.isfinite(first.array).all()
    write_volume(again, first, np.float32 if turn or not finite else None)
    second = read_volume(again)
    scale = max(1.0, float(np.abs(first.affine).max()))
    np.testing.assert_allclose(second.affine, first.affine, atol=1e-4 * scale, rtol=1e-6)
    assert second.orientation == first.orientation
    np.testing.assert_array_equal(second.array, first.array)


@settings(FUZZ, max_examples=450 * TIMES)
@given(content=volumes(label=True), packed=st.booleans())
def test_label_maps_come_back_exactly_or_are_refused(
    scratch: Path, content: bytes, packed: bool
) -> None:
    path = scratch / f"label.nii{'.gz' * packed}"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    classes = LabelMap(("background", "a", "b"), ((0,), (1,), (2, 3)))
    try:
        stored = read_volume(path, None)
        label = classes.encode(whole_values(stored.array, str(path)), str(path))
    except DataError as error:
        one_line(error, path)
        return
    np.testing.assert_array_equal(label, np.minimum(np.rint(stored.array), 2))
    again = scratch / "again.nii.gz"
    write_volume(again, Volume(label, stored.affine, stored.orientation))
    back = read_volume(again, None)
    assert back.array.dtype == label.dtype == np.uint8
    np.testing.assert_array_equal(back.array, label)
    np.testing.assert_allclose(back.affine, stored.affine, rtol=1e-4, atol=1e-4)


# --- whole datasets ----------------------------------------------------------------------------


@settings(FUZZ, max_examples=150 * TIMES)
@given(data=st.data(), values=st.sets(st.integers(-3, 300), min_size=1, max_size=4))
def test_datasets_are_reported_or_used(scratch: Path, data: st.DataObject, values: set) -> None:
    """What the check passes can be trained on, and generated from; nothing else raises."""
    folder = scratch / "set"
    image, label = folder / "imagesTr/a_0000.nii.gz", folder / "labelsTr/a.nii.gz"
    folder.mkdir(exist_ok=True)
    labels = {"background": 0} | {f"c{v}": v for v in sorted(values - {0})}
    affine = data.draw(affines())
    size = tuple(data.draw(st.integers(1, 6)) for _ in range(3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    drawn = np.array([0, *values] if data.draw(st.booleans()) else [0, 1, 2])
    try:
        orientation = "".join(nib.aff2axcodes(affine)).replace("None", "")
        assert len(orientation) == 3
        write_volume(image, Volume(rng.integers(0, 900, size).astype(np.int16), affine))
        write_volume(label, Volume(rng.choice(drawn, size).astype(np.int16), affine))
    except Exception:
        return
    paths = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    write_dataset_json(folder, "set", labels, {"training": [paths]})
    errors = [fault for fault in check_dataset(folder) if fault.level == "error"]
    if errors:
        with contextlib.suppress(DataError):  # only the check compares spacings
            read_cohort(folder)
            assert {fault.key for fault in errors} <= {"spacing"}
        return
    cohort, volumes = read_cohort(folder)
    again = Cohort.from_json(json.loads(json.dumps(cohort.to_json())))
    assert again == cohort
    assert set(np.unique(volumes[0].label)) <= set(range(cohort.num_labels + 1))
    # as a generator leaves them
    made = SyntheticFolder(scratch / "made", cohort, {"generator": "fuzz", "seed": 0})
    grid = read_volume(image)
    entry = made.paths(0)
    write_volume(made.root / entry["image"], Volume(grid.array, grid.affine), np.int16)
    write_volume(made.root / entry["label"], Volume(volumes[0].label, grid.affine))
    made.finish_case(0)
    made.complete()
    left = [fault for fault in check_dataset(made.root) if fault.level == "error"]
    made.sidecar(0).unlink()
    (made.root / "dataset.json").unlink()
    assert not left
    np.testing.assert_array_equal(
        read_volume(made.root / entry["label"], None).array, volumes[0].label
    )


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def sound(scratch: Path) -> Path:
    return tiny_dataset(scratch / "sound", count=2, size=(5, 4, 3), num_labels=1, roi=True)


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Yield the place of every value inside a JSON document."""
    yield place
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield from places(item, (*place, key))


@settings(FUZZ, max_examples=300 * TIMES)
@given(data=st.data(), kind=st.sampled_from(["random", "replaced", "removed", "text"]))
def test_any_list_is_reported_and_never_raises(sound: Path, data: st.DataObject, kind: str) -> None:
    path = sound / "dataset.json"
    original = path.read_text()
    content = json.loads(original)
    if kind == "random":
        text = json.dumps(data.draw(JSON))
    elif kind == "text":
        cut = data.draw(st.integers(0, len(original)))
        text = original[:cut] + data.draw(st.text(max_size=3)) + original[cut + 1 :]
    else:
        place = data.draw(st.sampled_from(list(places(content))[1:]))
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if kind == "removed":
            del inner[place[-1]]
        else:
            inner[place[-1]] = data.draw(JSON)
        text = json.dumps(content)
    try:
        path.write_bytes(text.encode(errors="surrogatepass"))
        faults = check_dataset(sound)
        assert all(str(fault).isprintable() for fault in faults)
        errors = [fault for fault in faults if fault.level == "error"]
        if errors:
            with contextlib.suppress(DataError):  # only the check looks at what is not used
                read_cohort(sound)
            return
        assert load_dataset(sound).labels().num_labels >= 1
        assert read_cohort(sound)[1]
    finally:
        path.write_text(original)


# --- damage -----------------------------------------------------------------------------------


def damaged_reads(path: Path, whole: bytes, damaged: bytes) -> bool:
    """Assert the rule of damage; return whether the file was taken.

    Whatever is taken has the same decompressed bytes as the whole file. (What lies before them in
    the gzip header, such as the date, carries no meaning.)
    """
    path.write_bytes(damaged)
    try:
        read_volume(path)
    except DataError as error:
        one_line(error, path)
        with pytest.raises(DataError):
            verify_file(path)
        return False
    assert gzip.decompress(damaged) == gzip.decompress(whole)
    return True


def test_a_file_cut_anywhere_is_refused(scratch: Path) -> None:
    path = scratch / "cut.nii.gz"
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    write_volume(path, Volume(array, np.diag([1.0, 2.0, 3.0, 1.0]), "PSR"))
    whole = path.read_bytes()
    for length in range(0, len(whole), 1 if TIMES > 1 else 2):
        assert not damaged_reads(path, whole, whole[:length])
    plain = scratch / "cut.nii"
    write_volume(plain, Volume(array, np.eye(4)))
    content = plain.read_bytes()
    for length in range(0, len(content), 1 if TIMES > 1 else 3):
        plain.write_bytes(content[:length])
        with pytest.raises(DataError) as caught:
            read_volume(plain)
        one_line(caught.value, plain)


def test_a_flipped_bit_is_refused_or_says_nothing(scratch: Path) -> None:
    path = scratch / "flipped.nii.gz"
    array = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    write_volume(path, Volume(array, np.diag([1.0, 2.0, 3.0, 1.0]), "PSR"))
    whole = path.read_bytes()
    taken = tried = 0
    for bit in range(0, 8 * len(whole), 1 if TIMES > 1 else 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        tried += 1
        taken += damaged_reads(path, whole, bytes(damaged))
    # date, flags and system in the gzip header; codes that no symbol uses
    assert taken < 0.1 * tried


@settings(FUZZ, max_examples=300 * TIMES)
@given(bit=st.integers(0, 8 * 348 - 1))
def test_a_flipped_bit_of_an_uncompressed_header_is_survived(scratch: Path, bit: int) -> None:
    """No checksum covers it: the volume is read as the header now says, or refused."""
    path = scratch / "header.nii"
    array = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    write_volume(path, Volume(array, np.diag([1.0, 2.0, 3.0, 1.0])))
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        found = read_volume(path)
    except DataError as error:
        one_line(error, path)
        return
    header = whole_header(path)
    assert found.array.size == np.prod(header.shape)
    np.testing.assert_allclose(found.spacing, np.linalg.norm(found.affine[:3, :3], axis=0))
    if DIM <= bit // 8 < DIM + 16:  # sizes fit the file, or are of axes that are not there
        assert found.array.size == array.size
