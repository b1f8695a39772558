"""DICOM series, SEG and RTSTRUCT files for tests, written by other libraries than ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

PATIENT = ("SECRET^JANE", "SECRET-77")
NAMES = {"shell": 1, "box": 2}


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    modality: str = "CT",
    slope: float = 1.0,
    intercept: float = -1024.0,
    uid: str | None = None,
    frame: str | None = None,
) -> list[Path]:
    """Write stored values (columns, rows, slices) as a series; file names say nothing of places.

    Args:
        folder: for the files.
        array: stored values.
        affine: (4, 4) from (column, row, slice) to LPS.
        modality: CT or MR.
        slope, intercept: the rescaling in the headers.
        uid: of the series.
        frame: of reference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid, frame, study = uid or generate_uid(), frame or generate_uid(), generate_uid()
    columns, rows = (affine[:3, k] / np.linalg.norm(affine[:3, k]) for k in range(2))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    names = np.random.default_rng(0).permutation(array.shape[2])
    paths = []
    for k in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"IM{names[k]:04d}"
        ds = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = (
            meta.MediaStorageSOPClassUID,
            meta.MediaStorageSOPInstanceUID,
        )
        ds.PatientName, ds.PatientID = PATIENT
        ds.PatientBirthDate = ds.PatientSex = ds.AccessionNumber = ds.StudyTime = ""
        ds.StudyID, ds.StudyDate = "1", "20200101"
        ds.ReferringPhysicianName = ds.Manufacturer = ""
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, uid, frame
        ds.SeriesNumber, ds.InstanceNumber, ds.Modality = 1, k + 1, modality
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.PositionReferenceIndicator = ""
        ds.Rows, ds.Columns = array.shape[1], array.shape[0]
        ds.PixelSpacing = [decimal(spacing[1]), decimal(spacing[0])]
        ds.SliceThickness = decimal(spacing[2])
        ds.ImageOrientationPatient = [decimal(v) for v in (*columns, *rows)]
        ds.ImagePositionPatient = [decimal(v) for v in (affine @ [0, 0, k, 1])[:3]]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = decimal(slope), decimal(intercept)
        ds.PixelData = np.ascontiguousarray(array[:, :, k].T, dtype="<i2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def decimal(value: float) -> str:
    """Return a number in the 16 characters that DICOM has for it."""
    return f"{value:.10g}"[:16]


def write_seg(
    path: Path, images: list[Path], label: np.ndarray, names: Mapping[str, int], **more: Any
) -> Path:
    """Write segments by highdicom; ``label`` (columns, rows, slices), or (..., segments) masks."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    sources = [pydicom.dcmread(image) for image in images]
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]
    if label.ndim == 3:
        label = np.stack([label == value for value in names.values()], axis=-1)
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(label.transpose(2, 1, 0, 3)).astype(np.uint8),
        segmentation_type=more.pop("segmentation_type", "BINARY"),
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=7,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    segmentation.save_as(path)
    return path


def write_rtstruct(path: Path, series: Path, label: np.ndarray, names: Mapping[str, int]) -> Path:
    """Write contours by rt-utils: traced through the centres of border voxels, holes apart.

    Pixels must be square: its version 1.2.7 confuses their two spacings.
    """
    from rt_utils import RTStructBuilder

    struct = RTStructBuilder.create_new(dicom_series_path=str(series))
    for name, value in names.items():
        struct.add_roi(mask=(label == value).transpose(1, 0, 2), name=name)
    struct.save(str(path))
    return path


def write_contours(
    path: Path, image: Path, regions: Mapping[str, list[np.ndarray]]
) -> pydicom.Dataset:
    """Write an RTSTRUCT by pydicom alone and return it.

    Args:
        path: of the file.
        image: one of the series it refers to.
        regions: by name, contours (N, 3) in LPS.
    """
    header = pydicom.dcmread(image)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = RTStructureSetStorage, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    ds.PatientID, ds.StudyInstanceUID = header.PatientID, header.StudyInstanceUID
    frame, study, series = (pydicom.Dataset() for _ in range(3))
    series.SeriesInstanceUID = header.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = header.FrameOfReferenceUID
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            item = pydicom.Dataset()
            item.ContourGeometricType = "CLOSED_PLANAR"
            item.NumberOfContourPoints = len(points)
            item.ContourData = [decimal(value) for value in np.ravel(points)]
            drawn.ContourSequence.append(item)
        ds.StructureSetROISequence.append(roi)
        ds.ROIContourSequence.append(drawn)
    ds.save_as(path, enforce_file_format=True)
    return ds


def oblique(spacing: tuple[float, float, float] = (0.7, 0.8, 2.5)) -> np.ndarray:
    """Return an affine to LPS, turned about all three axes."""
    a, b, c = np.deg2rad([12.0, -25.0, 40.0])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag(spacing)
    affine[:3, 3] = [-31.5, 12.25, -118.0]
    return affine


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Return stored values and a label map: a hollow ball and a box."""
    label = np.zeros((20, 18, 9), np.uint8)
    offsets = np.indices(label.shape) - np.reshape([7, 8, 4], (3, 1, 1, 1))
    distance = np.linalg.norm(offsets * np.reshape([1, 1, 2], (3, 1, 1, 1)), axis=0)
    label[(distance < 6) & (distance > 2.5)] = 1
    label[14:18, 3:9, 2:7] = 2
    values = np.random.default_rng(0).integers(0, 2000, label.shape)
    return values.astype(np.int16), label


def dicom_folder(folder: Path) -> Path:
    """Write a CT series with a SEG object; return the folder."""
    stored, label = phantom()
    series = write_series(folder / "series", stored, oblique())
    write_seg(folder / "segments.dcm", series, label, NAMES)
    return folder
