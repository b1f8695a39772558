"""DICOM series, SEG and RTSTRUCT objects to a dataset folder.

Real files: pydicom's (a CT series of five slices reduced to 16 x 16 pixels, two series that are no
volume, an enhanced CT of two frames, a SEG of a liver), and a CT from MEDPAIR_DATA written as a
series. The others are written by pydicom, highdicom and rt-utils from phantoms.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
pytest.importorskip("highdicom", reason="the extra dicom is not installed")

from pydicom.data import get_testdata_file  # noqa: E402
from tests.sharing.dicom_files import (  # noqa: E402
    NAMES,
    PATIENT,
    oblique,
    phantom,
    write_contours,
    write_rtstruct,
    write_seg,
    write_series,
)
from tests.sharing.folders import assert_volume  # noqa: E402

from medpair.data.check import check_dataset  # noqa: E402
from medpair.data.dataset import load_dataset  # noqa: E402
from medpair.data.faults import errors_of  # noqa: E402
from medpair.data.files import DataError, Volume, read_json, read_volume  # noqa: E402
from medpair.sharing.convert_dicom import import_dicom  # noqa: E402
from medpair.sharing.convert_dicom_labels import _filled, masks  # noqa: E402
from medpair.sharing.convert_dicom_series import series_volume  # noqa: E402
from medpair.sharing.convert_volumes import from_lps, read_image  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def only_case(made: Path) -> tuple[Volume, Volume]:
    """Return image and label map of a folder with one case."""
    (case,) = load_dataset(made.parent).split("training")
    assert case.image is not None
    assert case.label is not None
    return read_image(case.image), read_image(case.label)


def real_series(number: str) -> list[Path]:
    """Return the files of one of pydicom's real series."""
    first = get_testdata_file("DICOMDIR")
    return sorted((Path(first).parent / number).iterdir())


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_oblique_series_with_its_segments(tmp_path: Path, modality: str) -> None:
    stored, label = phantom()
    affine = oblique()
    scale = (1.0, -1024.0) if modality == "CT" else (0.25, 3.0)
    series = write_series(tmp_path / "in" / "a", stored, affine, modality, *scale)
    write_seg(tmp_path / "in" / "seg.dcm", series, label, NAMES)
    made = import_dicom(tmp_path / "in", tmp_path / "out")
    image, found = only_case(made)
    values = stored * scale[0] + scale[1]
    dtype = np.int16 if modality == "CT" else np.float32
    assert_volume(image, from_lps(values.astype(dtype), affine))
    content = read_json(made)
    assert content["labels"] == {"background": 0, "box": 1, "shell": 2}
    assert content["channel_names"] == {"0": modality}
    assert_volume(found, from_lps(np.array([0, 2, 1], np.uint8)[label], affine))
    assert errors_of(check_dataset(made.parent)) == []


def test_nothing_names_the_patient(tmp_path: Path) -> None:
    stored, label = phantom()
    series = write_series(tmp_path / "SECRET" / "a", stored, oblique())
    write_seg(tmp_path / "SECRET" / "seg.dcm", series, label, NAMES)
    header = pydicom.dcmread(series[0])
    words = [*PATIENT, "SECRET", "20200101"]
    words += [str(header[key].value) for key in ("StudyInstanceUID", "SeriesInstanceUID")]
    table = tmp_path / "who.csv"
    with pytest.raises(DataError, match="expected a file outside"):
        import_dicom(tmp_path / "SECRET", tmp_path / "out", mapping=tmp_path / "out" / "who.csv")
    import_dicom(tmp_path / "SECRET", tmp_path / "out", mapping=table)
    for path in (tmp_path / "out").rglob("*"):
        text = "" if path.is_dir() else path.read_bytes().decode("latin1")
        if path.name.endswith(".gz"):
            import gzip

            text = gzip.decompress(path.read_bytes()).decode("latin1")
        for word in words:
            assert word not in str(path.relative_to(tmp_path / "out"))
            assert word not in text, path
    assert f"case_0001,{PATIENT[1]},{header.StudyInstanceUID}" in table.read_text()


@pytest.mark.parametrize("turned", [False, True])
def test_contours_come_back_voxel_for_voxel(tmp_path: Path, turned: bool) -> None:
    """Contours that rt-utils traced, with a hole, on a straight and on an oblique grid."""
    pytest.importorskip("rt_utils", reason="rt-utils is not installed")
    stored, label = phantom()
    affine = oblique((0.8, 0.8, 2.5))
    if not turned:
        affine[:3, :3] = np.diag([0.8, 0.8, 2.5])
    write_series(tmp_path / "in", stored, affine, "MR", 1.0, 0.0)
    write_rtstruct(tmp_path / "in" / "rt.dcm", tmp_path / "in", label, NAMES)
    image, found = only_case(import_dicom(tmp_path / "in", tmp_path / "out"))
    assert_volume(image, from_lps(stored, affine))
    assert_volume(found, from_lps(np.array([0, 2, 1], np.uint8)[label], affine))


def contour(points: np.ndarray, affine: np.ndarray, kind: str = "CLOSED_PLANAR") -> Any:
    """Return a contour item from voxel coordinates (N, 3)."""
    item = pydicom.Dataset()
    item.ContourGeometricType = kind
    item.ContourData = [f"{v:.8g}" for v in (points @ affine[:3, :3].T + affine[:3, 3]).ravel()]
    return item


def test_contours_in_closed_form() -> None:
    """A circle is filled to its area, voxel by voxel, on pixels that are not square."""
    affine = oblique()
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    circles = [contour(r * ring + np.array([20.2, 19.7, 3]), affine) for r in (12.5, 6.1)]
    mask = _filled(circles, affine, (40, 40, 5), "x")
    x, y = np.indices((40, 40))
    distance = np.hypot(x - 20.2, y - 19.7)
    np.testing.assert_array_equal(mask[:, :, 3], (distance < 12.5) & (distance > 6.1))
    assert not mask[:, :, [0, 1, 2, 4]].any()
    with pytest.raises(DataError, match=r"expected contours in the planes .* 0.3 slices off"):
        _filled([contour(ring + np.array([9, 9, 2.3]), affine)], affine, (40, 40, 5), "x")
    with pytest.raises(DataError, match="found OPEN_PLANAR"):
        _filled([contour(ring, affine, "OPEN_PLANAR")], affine, (40, 40, 5), "x")


def test_thin_contours_are_kept() -> None:
    """A single voxel, a line that goes there and back, and a bridge between two boxes."""
    wanted = np.zeros((12, 9), bool)
    wanted[1, 1] = wanted[3, 1:7] = wanted[5:7, 1:4] = wanted[9:11, 1:4] = wanted[7:9, 2] = True
    bridge = [[5, 1], [6, 1], [6, 2], [9, 2], [9, 1], [10, 1], [10, 3], [9, 3]]
    bridge += [[9, 2], [6, 2], [6, 3], [5, 3]]
    drawn = [[[1, 1]], [[3, 1], [3, 6]], bridge]
    items = [contour(np.array([[*p, 1] for p in points]), oblique()) for points in drawn]
    mask = _filled(items, oblique(), (12, 9, 3), "x")
    np.testing.assert_array_equal(mask[:, :, 1], wanted)
    assert mask.sum() == wanted.sum()


def test_a_real_ct_series(tmp_path: Path) -> None:
    """Each slice lies where its header says, voxels are rescaled, and ITK reads the same."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    files = real_series("98892001/CT5N")
    array, affine = series_volume(files, "CT5N")
    assert array.shape == (16, 16, 5)
    placed = 0
    for path in files:
        header = pydicom.dcmread(path)
        column, row, k = np.rint(
            (np.linalg.inv(affine) @ [*map(float, header.ImagePositionPatient), 1])[:3]
        ).astype(int)
        assert (column, row) == (0, 0)
        np.testing.assert_allclose(
            (affine @ [0, 0, k, 1])[:3], header.ImagePositionPatient, atol=1e-4
        )
        # PS3.3 C.7.6.2.1.1: the pixel in column 9 and row 4
        cosines, spacing = np.array(header.ImageOrientationPatient), header.PixelSpacing
        there = np.array(header.ImagePositionPatient, dtype=float)
        there = there + 9 * spacing[1] * cosines[:3] + 4 * spacing[0] * cosines[3:]
        np.testing.assert_allclose((affine @ [9, 4, k, 1])[:3], there, atol=1e-4)
        values = header.pixel_array * header.RescaleSlope + header.RescaleIntercept
        np.testing.assert_array_equal(array[:, :, k].T, values)
        placed += 1
    assert placed == 5
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(files[0].parent)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(affine[:3, 3], image.GetOrigin(), atol=1e-4)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(affine[:3, :3], directions, atol=1e-4)
    for path in files:
        shutil.copy(path, tmp_path / path.name)
    label = np.zeros(array.shape, np.uint8)
    label[3:9, 5:12, 1:4] = 1
    # highdicom takes sources in any order, pixels in the order of the sources
    order = sorted(files, key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))
    write_seg(tmp_path / "seg.dcm", order, label, {"organ": 1})
    made = import_dicom(tmp_path, tmp_path.parent / f"{tmp_path.name}_out")
    image, found = only_case(made)
    assert_volume(image, from_lps(array, affine))
    assert_volume(found, from_lps(label, affine))
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    segmentation.FrameOfReferenceUID = "1.2.3.4"
    segmentation.save_as(tmp_path / "seg.dcm")
    with pytest.raises(DataError, match=r"expected the series' frame of reference .*found 1\.2\.3"):
        import_dicom(tmp_path, tmp_path.parent / f"{tmp_path.name}_again")


def test_a_real_enhanced_ct() -> None:
    path = get_testdata_file("eCT_Supplemental.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    array, affine = series_volume([Path(path)], "eCT")
    dataset = pydicom.dcmread(path)
    frames = dataset.PerFrameFunctionalGroupsSequence
    order = []
    shared = dataset.SharedFunctionalGroupsSequence[0]
    rescale = shared.PixelValueTransformationSequence[0]
    for frame, stored in zip(frames, dataset.pixel_array, strict=True):
        position = [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1]
        index = np.linalg.inv(affine) @ position
        np.testing.assert_allclose(index[:2], 0, atol=1e-3)
        k = round(float(index[2]))
        np.testing.assert_allclose(index[2], k, atol=1e-3)
        values = stored * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
        np.testing.assert_array_equal(array[:, :, k].T, values)
        order.append(k)
    assert sorted(order) == [0, 1]


def test_a_real_segmentation() -> None:
    """Three frames of a liver come to lie where their headers say, in a longer series."""
    path = get_testdata_file("liver.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed")
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    places = [
        [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]
    bottom = min(place[2] for place in places)
    affine = np.diag([spacing[1], spacing[0], 1.0, 1.0])
    affine[:3, 3] = [places[0][0], places[0][1], bottom - 2]
    ((name, mask),) = masks(dataset, ["Liver"], affine, (512, 512, 7), "liver")
    assert name == "Liver"
    assert mask.sum() == dataset.pixel_array.sum() > 100_000
    for place, frame in zip(places, dataset.pixel_array, strict=True):
        k = round(place[2] - bottom) + 2
        np.testing.assert_array_equal(mask[:, :, k].T, frame > 0)
    affine[0, 3] += 0.4
    with pytest.raises(DataError, match="expected the voxels of the series"):
        list(masks(dataset, ["Liver"], affine, (512, 512, 7), "liver"))
    affine[0, 3] -= 0.4
    rows = int(np.argwhere(mask)[:, 1].max())
    with pytest.raises(DataError, match=r"voxels inside the series, found .* outside"):
        list(masks(dataset, ["Liver"], affine, (512, rows, 7), "liver"))


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        ("77654033/CT2", r"slices 1.25 mm apart, found 202.5 mm between -99.48 and 103.02$"),
        ("98892003/MR700", r"expected slices of one orientation, found"),
        ("98892003/MR1", r"found 2 positions more than once, at \[0, 0\] mm$"),
    ],
)
def test_real_series_that_are_no_volume(number: str, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        series_volume(real_series(number), "series")


def test_missing_uneven_and_tilted_slices(tmp_path: Path) -> None:
    stored, _ = phantom()
    affine = oblique()
    files = write_series(tmp_path / "a", stored, affine)
    ordered = sorted(files, key=lambda path: int(pydicom.dcmread(path).InstanceNumber))
    with pytest.raises(DataError, match=r"expected slices 2.5 mm apart, found 5 mm between"):
        series_volume([*ordered[:4], *ordered[5:]], "series")
    with pytest.raises(DataError, match="expected at least two slices, found 1"):
        series_volume(ordered[:1], "series")
    tilted = affine.copy()
    tilted[:3, 2] += 0.15 * tilted[:3, 1]
    with pytest.raises(DataError, match=r"right angles to its slices, slice 8 at .*tilted gantry"):
        series_volume(write_series(tmp_path / "tilted", stored, tilted), "series")
    header = pydicom.dcmread(ordered[3])
    del header.ImagePositionPatient
    header.save_as(ordered[3])
    with pytest.raises(DataError, match="in each slice, found one without"):
        series_volume(ordered, "series")


def test_overlaps_names_and_choices(tmp_path: Path) -> None:
    stored, label = phantom()
    affine = oblique()
    series = write_series(tmp_path / "in" / "a", stored, affine)
    both = np.stack([label == 1, label > 0], axis=-1)
    write_seg(tmp_path / "in" / "seg.dcm", series, both, {"shell": 1, "body": 2})
    shell, body = int((label == 1).sum()), int((label > 0).sum())
    with pytest.raises(DataError, match=rf"found (shell and body|body and shell) in {shell} vox"):
        import_dicom(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    for first, counts in (("shell", (body - shell, shell)), ("body", (body, 0))):
        _, found = only_case(import_dicom(tmp_path / "in", tmp_path / first, priority=first))
        assert tuple((found.array == value).sum() for value in (1, 2)) == counts
    _, found = only_case(import_dicom(tmp_path / "in", tmp_path / "one", labels="body"))
    assert (found.array == 1).sum() == body
    with pytest.raises(DataError, match=r"labels: expected some of \['body', 'shell'\]"):
        import_dicom(tmp_path / "in", tmp_path / "two", labels=["liver"])
    more = {"series_description": "second reader"}
    write_seg(tmp_path / "in" / "seg2.dcm", series, label, NAMES, **more)
    with pytest.raises(DataError, match=r"one label object per series \(choose by --segm"):
        import_dicom(tmp_path / "in", tmp_path / "three")
    _, found = only_case(import_dicom(tmp_path / "in", tmp_path / "four", segmentation="second"))
    assert (found.array > 0).sum() == body
    for path in series:
        path.unlink()
    with pytest.raises(DataError) as caught:
        import_dicom(tmp_path / "in", tmp_path / "five")
    assert str(caught.value).count("expected the CT or MR series that this SEG refers to") == 2


def test_a_repaired_object_is_converted_and_the_other_case_is_kept(tmp_path: Path) -> None:
    stored, label = phantom()
    series = [write_series(tmp_path / "in" / n, stored, oblique()) for n in ("a", "b")]
    both = np.stack([label == 1, label > 0], axis=-1)
    write_seg(tmp_path / "in" / "a.dcm", series[0], label, NAMES)
    write_seg(tmp_path / "in" / "b.dcm", series[1], both, NAMES)
    with pytest.raises(DataError, match=r"b\.dcm: expected segments that do not overlap"):
        import_dicom(tmp_path / "in", tmp_path / "out")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.nii.gz")}
    assert len(written) == 2
    write_seg(tmp_path / "in" / "b.dcm", series[1], label, NAMES)
    made = import_dicom(tmp_path / "in", tmp_path / "out").parent
    assert {path: path.stat().st_mtime_ns for path in written} == written
    labels = [read_image(path).array for path in sorted(made.rglob("labelsTr/*.nii.gz"))]
    np.testing.assert_array_equal(*labels)
    assert errors_of(check_dataset(made, quick=True)) == []


# The voxels of the box that the contours of these tests go around, in slice 4
CORNERS = np.array([[2.0, 3, 4], [9, 3, 4], [9, 11, 4], [2, 11, 4]])


def box_series(folder: Path, count: int = 1) -> list[pydicom.Dataset]:
    """Write series, each with a box drawn in an RTSTRUCT ``a.dcm`` and so on; return these."""
    affine = oblique()
    points = CORNERS @ affine[:3, :3].T + affine[:3, 3]
    return [
        write_contours(
            folder / f"{name}.dcm",
            write_series(folder / name, phantom()[0], affine)[0],
            {"box": [points]},
        )
        for name in "abcdef"[:count]
    ]


def test_contours_without_points_and_objects_without_regions_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn, without, empty = box_series(tmp_path / "in", 3)
    contours = drawn.ROIContourSequence[0].ContourSequence
    contours += [pydicom.Dataset(), pydicom.Dataset()]
    contours[-1].ContourData = None
    drawn.save_as(tmp_path / "in" / "a.dcm")
    del without.StructureSetROISequence, without.ROIContourSequence
    without.save_as(tmp_path / "in" / "b.dcm")
    empty.StructureSetROISequence = []
    empty.save_as(tmp_path / "in" / "c.dcm")
    label = np.zeros(phantom()[1].shape, np.uint8)
    label[2:10, 3:12, 4] = 1
    with caplog.at_level("INFO", "medpair"):
        _, found = only_case(import_dicom(tmp_path / "in", tmp_path / "out"))
    assert_volume(found, from_lps(label, oblique()))
    for name in ("b.dcm", "c.dcm"):
        assert f"{name}: RTSTRUCT without segments; left out" in caplog.text
    assert "2 series without labels; left out" in caplog.text
    (tmp_path / "in" / "a.dcm").unlink()
    with pytest.raises(DataError, match="expected SEG or RTSTRUCT files with segments, found none"):
        import_dicom(tmp_path / "in", tmp_path / "none")


def test_a_segmentation_without_segments_is_left_out(tmp_path: Path) -> None:
    stored, label = phantom()
    for name in ("a", "b"):
        series = write_series(tmp_path / "in" / name, stored, oblique())
        write_seg(tmp_path / "in" / f"{name}.dcm", series, label, NAMES)
    damaged = pydicom.dcmread(tmp_path / "in" / "a.dcm")
    del damaged.SegmentSequence
    damaged.save_as(tmp_path / "in" / "a.dcm")
    only_case(import_dicom(tmp_path / "in", tmp_path / "out"))


def test_what_is_wrong_with_label_objects_is_listed_by_file(tmp_path: Path) -> None:
    unnumbered, unnamed, _ = box_series(tmp_path / "in", 3)
    seg = write_seg(
        tmp_path / "in" / "seg.dcm",
        write_series(tmp_path / "in" / "s", phantom()[0], oblique()),
        phantom()[1],
        NAMES,
    )
    damaged = pydicom.dcmread(seg)
    del damaged.SegmentSequence[0].SegmentNumber
    damaged.save_as(seg)
    unnumbered.StructureSetROISequence[0].ROINumber = None
    unnumbered.save_as(tmp_path / "in" / "a.dcm")
    del unnamed.StructureSetROISequence[0].ROIName
    unnamed.save_as(tmp_path / "in" / "b.dcm")
    with pytest.raises(DataError, match=r"^\S*seg\.dcm: expected a whole DICOM object, found \S"):
        import_dicom(tmp_path / "in", tmp_path / "out")
    seg.unlink()
    with pytest.raises(DataError, match=r"^\S*b\.dcm: expected a name for each segment, found one"):
        import_dicom(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # the pixels and contours are read case by case: the sound ones are written
    with pytest.raises(DataError, match=r"^\S*a\.dcm: expected a whole DICOM object, found \S"):
        import_dicom(tmp_path / "in", tmp_path / "out", labels="box")
    assert len(list((tmp_path / "out").glob("labelsTr/*.nii.gz"))) == 2


def test_half_a_point_is_refused_by_file_and_region(tmp_path: Path) -> None:
    (drawn,) = box_series(tmp_path / "in")
    drawn.ROIContourSequence[0].ContourSequence[0].ContourData = [1, 2, 3, 4]
    drawn.save_as(tmp_path / "in" / "a.dcm")
    fault = r"a\.dcm: box: ContourData: expected three coordinates .* found 4 numbers$"
    with pytest.raises(DataError, match=fault):
        import_dicom(tmp_path / "in", tmp_path / "out")


def test_fractions_are_refused(tmp_path: Path) -> None:
    stored, label = phantom()
    series = write_series(tmp_path / "in" / "a", stored, oblique())
    more = {"segmentation_type": "FRACTIONAL", "max_fractional_value": 1}
    write_seg(tmp_path / "in" / "seg.dcm", series, label, NAMES, **more)
    with pytest.raises(DataError, match="expected BINARY or LABELMAP, found FRACTIONAL"):
        import_dicom(tmp_path / "in", tmp_path / "out")


@pytest.mark.skipif("MEDPAIR_DATA" not in os.environ, reason="MEDPAIR_DATA names no folder")
def test_a_real_thorax_there_and_back(tmp_path: Path) -> None:
    """A real CT, every fourth voxel of every fourth slice, as a series with SEG or RTSTRUCT."""
    pytest.importorskip("rt_utils", reason="rt-utils is not installed")
    folder = load_dataset(Path(os.environ["MEDPAIR_DATA"]) / "thorax_ct")
    case = folder.split("training")[0]
    labels = folder.labels("seven_organs")
    whole = read_volume(case.image)
    # RAS to what scanners store: columns to the left, rows to the back
    image = whole.array[::-4, ::-4, ::4].astype(np.int16)
    label = labels.encode(read_volume(case.label).array[::-4, ::-4, ::4])
    last = whole.affine @ [whole.array.shape[0] - 1, whole.array.shape[1] - 1, 0, 1]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ whole.affine @ np.diag([-4.0, -4.0, 4.0, 1.0])
    affine[:3, 3] = last[:3] * [-1, -1, 1]
    names = {name: value for value, name in enumerate(labels.names) if value}
    order = np.array([0, *(sorted(names).index(name) + 1 for name in names)], np.uint8)
    for kind in ("SEG", "RTSTRUCT"):
        source = tmp_path / kind
        series = write_series(source, image + 1024, affine)
        if kind == "SEG":
            write_seg(source / "labels.dcm", series, label, names)
        else:
            write_rtstruct(source / "labels.dcm", source, label, names)
        made = import_dicom(source, tmp_path / f"{kind}_out")
        volume, found = only_case(made)
        assert_volume(volume, from_lps(image, affine))
        assert_volume(found, from_lps(order[label], affine))
        assert sorted(read_json(made)["labels"]) == sorted(labels.names)
        assert errors_of(check_dataset(made.parent)) == []
