"""Generated label volumes beside real ones, where there is little to compare."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.conftest import tiny_dataset

from medpair.data.cohort import read_cohort
from medpair.data.files import Volume, read_json, read_volume, write_json, write_volume
from medpair.data.traits import size_scores, size_traits
from medpair.inferers import label_comparison
from medpair.inferers.label_comparison import compare_with_real


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "real", 4, validation=0)


def writer_of(folder: Path, real: Path, seams: list[int]) -> Any:
    """Stand in for the writer of a folder whose volumes have these seams."""
    for path in sorted(folder.glob("labelsTr/*")):
        name = path.name.removesuffix(".nii.gz")
        sidecar = {"seams": seams, "plausible": True, "attempt": 0}
        write_json(folder / "provenance" / f"{name}.json", sidecar)
    return SimpleNamespace(
        cohort=read_cohort(real)[0],
        inferer=SimpleNamespace(axis=2, traits=None, size_offsets={}, height=None),
        folder=SimpleNamespace(root=folder, split="training"),
    )


@pytest.mark.parametrize("seams", [[], [6]])
def test_volumes_of_one_window_have_no_seam_to_tell_of(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], seams: list[int]
) -> None:
    generated = tiny_dataset(tmp_path / "generated", 3, validation=0, seed=1)
    path = compare_with_real(writer_of(generated, real, seams), real)
    summary = read_json(path)
    assert summary["volumes"] == 3
    assert [row["name"] for row in summary["classes"]] == ["class_1", "class_2"]
    assert (summary["seams"] is None) == (not seams)
    line = next(line for line in capsys.readouterr().out.splitlines() if "seams" in line)
    assert line.endswith("none") == (not seams)


@pytest.mark.parametrize("offsets", [{}, {"class_1": 0.3}])
def test_sizes_that_are_missed_are_told_with_what_mends_them(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offsets: dict[str, float]
) -> None:
    # a class came out 0.7 deviations smaller than was wanted, the other as it was
    writer = wanting(real, tmp_path / "generated", 12, 0.7)
    writer.inferer.size_offsets = offsets
    missed = read_json(compare_with_real(writer, real))["sizes_missed"]
    assert missed["class_1"]["mean"] == pytest.approx(-0.7, abs=1e-5)
    assert missed["class_1"]["low"] <= missed["class_1"]["high"] < -0.6
    assert missed["class_2"]["mean"] == pytest.approx(0.0, abs=1e-5)
    told, mended = capsys.readouterr().out.splitlines()[-2:]
    assert "class_1 -0.70 [" in told
    more = offsets.get("class_1", 0.0) + 0.7
    assert mended.endswith(f"""--size_offsets "{{'class_1': {more:.1f}}}\"""")


def wanting(real: Path, folder: Path, count: int, more: float) -> Any:
    """Return the writer of volumes whose first class came out smaller than was wanted."""
    generated = tiny_dataset(folder, count, validation=0, seed=1)
    writer = writer_of(generated, real, [6])
    cohort, volumes = read_cohort(generated)
    traits = size_traits(volumes, cohort)
    scores = size_scores(volumes, cohort, traits)
    assert traits is not None
    assert scores is not None
    writer.inferer.traits = traits
    for volume, (one, two) in zip(volumes, scores, strict=True):
        path = generated / "provenance" / f"{volume.case}.json"
        sizes = {"class_1": float(one) + more, "class_2": float(two)}
        write_json(path, {**read_json(path), "sizes": sizes})
    return writer


def test_few_volumes_say_nothing_of_sizes_and_none_of_another_height(
    real: Path, tmp_path: Path
) -> None:
    few = wanting(real, tmp_path / "few", 7, 0.7)
    assert "sizes_missed" not in read_json(compare_with_real(few, real))
    short = wanting(real, tmp_path / "short", 9, 0.7)
    short.inferer.height = 8
    assert "sizes_missed" not in read_json(compare_with_real(short, real))


def test_a_volume_without_a_class_does_not_count_for_it(real: Path, tmp_path: Path) -> None:
    writer = wanting(real, tmp_path / "generated", 9, 0.7)
    path = sorted((tmp_path / "generated" / "labelsTr").iterdir())[0]
    label = read_volume(path)
    label.array[label.array == 1] = 0
    write_volume(path, label)
    missed = read_json(compare_with_real(writer, real))["sizes_missed"]
    assert missed["class_1"]["mean"] == pytest.approx(-0.7, abs=1e-5)


def test_a_network_cannot_be_told_more_than_three_deviations_beyond(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = wanting(real, tmp_path / "generated", 9, 0.7)
    writer.inferer.size_offsets = {"class_1": 3.0}
    compare_with_real(writer, real)
    assert capsys.readouterr().out.splitlines()[-1].startswith("the network is told as much")


def test_a_large_cohort_is_read_one_label_map_after_the_other(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = tiny_dataset(tmp_path / "generated", 5, validation=0, seed=1)
    made: list[weakref.ref[np.ndarray]] = []
    read = label_comparison.read_volume

    def counting(path: Path, dtype: Any) -> Volume:
        alive.append(sum(array() is not None for array in made))
        volume = read(path, dtype)
        made.append(weakref.ref(volume.array))
        return volume

    alive: list[int] = []
    monkeypatch.setattr(label_comparison, "read_volume", counting)
    compare_with_real(writer_of(generated, real, [6]), real)
    assert len(alive) == 5
    assert max(alive) == 1  # the one before is let go of when the next is there
