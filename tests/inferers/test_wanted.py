"""Which samples are asked for, and weights that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medpair.data.cohort import read_card
from medpair.data.files import DataError
from medpair.data.phantoms.cohort import write_phantom_cohort
from medpair.inferers.folder import wanted_range


def test_a_range_of_whole_numbers() -> None:
    assert list(wanted_range(3, 2)) == [3, 4]


@pytest.mark.parametrize(
    ("start", "count", "name"),
    [
        (0, 0, "num_samples"),
        (0, -3, "num_samples"),
        (0, 2.5, "num_samples"),
        (-1, 4, "start_index"),
    ],
)
def test_no_samples_and_parts_of_one_are_refused(start: Any, count: Any, name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: expected a whole number of at least \d, found"):
        wanted_range(start, count)


def test_missing_weights_are_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nope\.pt: expected weights .*--ckpt_path .*--bundle_root"
    ):
        read_card(tmp_path / "nope.pt")


def test_a_folder_of_phantoms_holds_one_kind(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"size": (32, 32, 16), "spacing": (1.0, 1.0, 1.0)}
    write_phantom_cohort("vessels", tmp_path, 1, **sizes)
    write_phantom_cohort("vessels", tmp_path, 2, **sizes)
    with pytest.raises(DataError, match=r"phantom\.json: expected volumes made as asked for now"):
        write_phantom_cohort("vessels", tmp_path, 2, seed=1, **sizes)
