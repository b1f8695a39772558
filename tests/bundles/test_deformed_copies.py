"""Deformed copies in training: generators see them, and remember that they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
    workflow,
)

STAGES = {
    "wgan_sn_mp": SMALL_WGAN,
    "medgen3d_mcdpm": {**SMALL_MCDPM, "size_conditioning": True},
    "medgen3d_vid2vid": {**SMALL_VID2VID, "contrast_conditioning": True},
    "medgen3d_semantic_refiner": SMALL_REFINER,
}


def parts(bundle: str, dataset: str, output: Path, **settings: Any) -> dict[str, Any]:
    """Return what a training would be made of."""
    given = {"dataset_dir": dataset, "output_dir": str(output), **STAGES[bundle], **settings}
    parser = workflow(bundle, ["train"], **given).parser
    names = ["cohort", "train#dataset", *(["size_traits"] if bundle.endswith("mcdpm") else [])]
    names += ["contrast_traits"] if bundle.endswith("vid2vid") else []
    return {name: parser.get_parsed_content(name) for name in names}


def cases_of(dataset: Any) -> list[str]:
    """Return the case of each of a training's volumes."""
    if hasattr(dataset, "volumes"):
        return [volume.case for volume in dataset.volumes]
    return list(getattr(dataset, "pairs", dataset).cases)


@pytest.mark.parametrize("bundle", STAGES)
def test_copies_are_trained_on_but_are_not_the_cohort(
    bundle: str, dataset: str, tmp_path: Path
) -> None:
    plain = parts(bundle, dataset, tmp_path)
    more = parts(bundle, dataset, tmp_path, deformed_copies=2)
    cases = [cases_of(part["train#dataset"]) for part in (plain, more)]
    assert cases[1] == cases[0] + [case for case in cases[0] for _ in range(2)]
    assert plain["cohort"] == more["cohort"]
    for name in ("size_traits", "contrast_traits"):
        if name in plain:
            assert plain[name] == more[name]
    scores = {
        "medgen3d_mcdpm": lambda part: part["train#dataset"].sizes,
        "medgen3d_vid2vid": lambda part: part["train#dataset"].scores,
    }
    if bundle in scores:
        one, two = scores[bundle](plain), scores[bundle](more)
        assert len(two) == 3 * len(one) == len(cases[1])
        np.testing.assert_array_equal(two[: len(one)], one)
        assert not np.array_equal(two[len(one)], one[0])  # a copy's own
    items = [more["train#dataset"][(0, index)] for index in range(len(cases[1]))]
    first = next(key for key in items[0] if key.startswith("label"))
    shapes = {tuple(item[first].shape) for item in items}
    assert shapes == {tuple(plain["train#dataset"][(0, 0)][first].shape)}


@pytest.mark.parametrize("bundle", STAGES)
def test_a_run_remembers_its_copies(bundle: str, dataset: str, tmp_path: Path) -> None:
    given = {"dataset_dir": dataset, "output_dir": str(tmp_path), **STAGES[bundle], "max_epochs": 1}
    run(bundle, ["train"], **given, deformed_copies=1)
    settings = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["settings"]
    assert settings["deform"] == {"copies": 1, "degrees": 3.0, "millimetres": 2.5}
    with pytest.raises(RuntimeError) as caught:
        run(bundle, ["train"], **given, deformed_copies=1, turn_degrees=9.0)
    assert "deform.degrees: 3.0 then, 9.0 now" in str(first_data_error(caught.value))
    with pytest.raises(RuntimeError) as caught:
        run(bundle, ["train"], **given, deformed_copies=-1)
    assert "deformed_copies: expected a whole number of at least 0, found -1" in str(
        caught.value.__cause__ or caught.value
    )
