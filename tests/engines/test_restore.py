"""Damaged checkpoints, and what differs when a run is resumed."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, save_torch
from medpair.engines.checkpoint import TrainingCheckpoint
from medpair.engines.numerics import NotFiniteError
from medpair.engines.restore import CHECKPOINT, DAMAGED, PREVIOUS, newest_good, read_checkpoint
from medpair.engines.settings import differences, training_cases


def engine_at(iteration: int, value: float = 1.0) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(iteration=iteration, epoch_length=2, batch=None),
        state_objects=dict,
        model_state=lambda: {"weight": torch.tensor([value])},
        has_event_handler=lambda *_: True,
    )


def saved(folder: Path, *iterations: int, **options: Any) -> TrainingCheckpoint:
    checkpoint = TrainingCheckpoint(folder, settings={"seed": 1}, **options)
    for iteration in iterations:
        checkpoint.save(engine_at(iteration))
    return checkpoint


def found(folder: Path) -> tuple[str, int]:
    result = newest_good(folder)
    assert result is not None
    return result[0].name, result[1]["iteration"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Change one bit of a tensor."""
    data = bytearray(path.read_bytes())
    place = data.find(torch.get_rng_state().numpy().tobytes()[:64])
    assert place > 0
    data[place + 7] ^= 1
    # PyTorch itself does not notice
    path.write_bytes(data)
    torch.load(path, weights_only=True)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    save_torch(path, {"weight": torch.zeros(1)})


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.fault(29)
@pytest.mark.parametrize("damage", [truncate, flip, empty, replaced, remove])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 2, 4)
    assert found(tmp_path) == (CHECKPOINT, 4)
    damage(tmp_path / CHECKPOINT)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path) == (PREVIOUS, 2)
    assert f"falling back to {tmp_path / PREVIOUS}, iteration 2" in caplog.text
    assert str(tmp_path / CHECKPOINT) in caplog.text
    # what is damaged never takes the good one's place
    assert not (tmp_path / CHECKPOINT).exists()
    assert (tmp_path / DAMAGED).exists() == (damage is not remove)
    assert found(tmp_path) == (PREVIOUS, 2)
    again = saved(tmp_path)
    again.saved_iteration = 2
    again.save(engine_at(4))
    assert found(tmp_path) == (CHECKPOINT, 4)
    assert read_checkpoint(tmp_path / PREVIOUS)["iteration"] == 2


@pytest.mark.fault(29)
def test_where_none_is_good_both_are_named(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    truncate(tmp_path / CHECKPOINT)
    empty(tmp_path / PREVIOUS)
    with pytest.raises(DataError, match=r"checkpoint\.pt: .*; and .*previous\.pt: .*--resume"):
        newest_good(tmp_path)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(DataError, match=r"checkpoint\.pt: .*there is no checkpoint\.previous\.pt"):
        newest_good(tmp_path)
    assert newest_good(tmp_path / "nothing") is None


@pytest.mark.fault(30)
def test_two_are_kept_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    saved(tmp_path, 2, 4, 6)
    assert found(tmp_path) == (CHECKPOINT, 6)
    assert read_checkpoint(tmp_path / PREVIOUS)["iteration"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, PREVIOUS, "model.pt"}


def test_another_runs_checkpoint_is_not_fallen_back_to(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    saved(tmp_path, 2, resume=False)
    assert not (tmp_path / PREVIOUS).exists()
    assert found(tmp_path) == (CHECKPOINT, 2)


@pytest.mark.fault(35)
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(NotFiniteError, match=r"iteration 4: .*infinity in weight: not saved"):
        checkpoint.save(engine_at(4, float("nan")))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.fault(33)
def test_all_differences_are_listed() -> None:
    then = {"lr": 0.1, "net": {"width": 8, "depth": 2}, "same": [1], "gone": 1, "cases": {"a": "1"}}
    now = {"lr": 0.2, "net": {"width": 16, "depth": 2}, "same": [1], "cases": {"b": "1", "a": "2"}}
    assert differences(then, now) == [
        "training cases: 1 added (b), 1 changed (a)",
        "gone: 1 then, None now",
        "lr: 0.1 then, 0.2 now",
        "net.width: 8 then, 16 now",
    ]
    many = {"cases": {f"case_{number}": "1" for number in range(9)}}
    (line,) = differences({"cases": {}}, many)
    assert line == ("training cases: 9 added (case_0, case_1, case_2, case_3, case_4, ...)")


@pytest.mark.fault(33)
def test_cases_are_known_by_what_their_files_hold(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 3, (8, 8, 8))
    before = training_cases(folder)
    assert list(before) == ["case_000", "case_001", "case_002"]
    moved = tmp_path / "moved"
    folder.rename(moved)
    for path in moved.rglob("*.gz"):
        os.utime(path, ns=(0, 0))
    assert training_cases(moved) == before
    other = tiny_dataset(tmp_path / "other", 3, (8, 8, 8), seed=1)
    (moved / "labelsTr/case_001.nii.gz").write_bytes(
        (other / "labelsTr/case_001.nii.gz").read_bytes()
    )
    after = training_cases(moved)
    assert [case for case in before if before[case] != after[case]] == ["case_001"]
    both = training_cases([str(moved), str(other)])
    assert list(both) == [*before, *(f"2:{case}" for case in before)]


@pytest.mark.fault(33)
def test_an_older_checkpoint_is_compared_in_what_it_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 2)
    path = tmp_path / CHECKPOINT
    old = {key: value for key, value in read_checkpoint(path).items() if key != "format"}
    save_torch(path, old)
    places: list[tuple[int, int]] = []
    engine = engine_at(0)
    sampler = SimpleNamespace(resume_at=lambda *place: places.append(place))
    engine.data_loader = SimpleNamespace(batch_size=3, sampler=sampler)
    # the scaler and the count of bad steps were not yet there
    engine.state_objects = lambda: {"bad_steps": None}
    now = {"seed": 1, "averaging": 0.9}
    with caplog.at_level(logging.WARNING):
        TrainingCheckpoint(tmp_path, settings=now)._start(engine)
    assert "an older checkpoint: not all settings can be compared" in caplog.text
    assert (engine.state.iteration, places) == (2, [(1, 0)])
    with pytest.raises(DataError, match="seed: 1 then, 2 now"):
        TrainingCheckpoint(tmp_path, settings={**now, "seed": 2})._start(engine)
    save_torch(path, {**old, "format": 2})
    with pytest.raises(DataError, match=r"averaging: None then, 0\.9 now"):
        TrainingCheckpoint(tmp_path, settings=now)._start(engine)
