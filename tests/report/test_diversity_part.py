"""Similarity of volumes within a cohort."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.report.cohorts import MemoryPairs, cohort

from medpair.report.diversity_part import diversity_part
from medpair.report.pairs import Pair
from medpair.report.sections import diversity_section


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).mean())


def test_copies_of_one_volume_are_alike():
    real = cohort(6, 0)
    copies = MemoryPairs([real[0]] * 6)
    part = diversity_part(real, copies, {"learned": apart}, {})
    found = part.numbers["measures"]
    assert found["ms_ssim"]["kind"] == "similarity"
    assert found["ms_ssim"]["synthetic"]["mean"] == pytest.approx(1)
    assert found["ms_ssim"]["real"]["high"] < 0.95
    assert found["learned"]["kind"] == "distance"
    assert found["learned"]["synthetic"]["mean"] == 0
    assert found["learned"]["real"]["low"] > 0.05
    assert found["learned"]["real"]["pairs"] == 15
    assert part.numbers["frame"] == [28, 18, 16]
    assert part.notes == []
    json.dumps(part.numbers, allow_nan=False)
    assert diversity_part(real, copies, {"learned": apart}, {}).numbers == part.numbers
    rows = {row[0]: row[1:] for row in diversity_section(part.numbers).tables[0].rows}
    assert rows["MS-SSIM (similarity)"][1].startswith("1.000 [1.000")


def test_same_distribution_is_as_diverse():
    found = diversity_part(cohort(12, 0), cohort(12, 1), {}, {}).numbers["measures"]["ms_ssim"]
    assert found["real"]["low"] < found["synthetic"]["high"]
    assert found["synthetic"]["low"] < found["real"]["high"]


def test_other_sizes_are_brought_to_the_frame_of_the_real():
    real = cohort(4, 0)
    small = [Pair(p.name, p.image[3:-3, 1:, :-2], p.label, p.spacing) for p in cohort(4, 1)]
    part = diversity_part(real, MemoryPairs(small), {"shape": lambda a, b: a.size - b.size}, {})
    assert part.numbers["measures"]["shape"]["synthetic"]["mean"] == 0


def test_thin_volumes_have_no_ms_ssim():
    thin = [Pair(p.name, p.image[..., :4], p.label[..., :4], p.spacing) for p in cohort(4, 0)]
    pairs = MemoryPairs(thin)
    part = diversity_part(pairs, pairs, {"learned": apart}, {"LPIPS": "it is not installed"})
    assert list(part.numbers["measures"]) == ["learned"]
    assert part.notes[0] == "LPIPS is left out: it is not installed."
    assert "MS-SSIM is left out" in part.notes[1]
    assert "7 voxels" in part.notes[1]


def test_few_volumes_and_constant_images():
    part = diversity_part(cohort(2, 0), cohort(9, 1), {}, {})
    assert part.numbers["measures"] == {}
    assert "Fewer than 3 volumes" in part.notes[0]
    assert diversity_section(part.numbers).tables == []
    flat = [Pair("f", np.full_like(p.image, 7), p.label, p.spacing) for p in cohort(3, 0)]
    found = diversity_part(cohort(3, 0), MemoryPairs(flat), {}, {}).numbers["measures"]["ms_ssim"]
    assert found["synthetic"]["mean"] == pytest.approx(1)
