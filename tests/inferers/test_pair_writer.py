"""Pairs are written side by side: the same files, faults told, nothing half done."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tests.conftest import tiny_dataset

from medpair.data import files
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json
from medpair.inferers.background import WAITING, Background
from medpair.inferers.folder import AlignedBatches
from medpair.inferers.pairs import PairWriter

SIZES = [(12, 9, 7), (8, 16, 5)]
PATCH = (12, 12, 8)


def writer(
    folder: Path, high: float = 900.0, count: int = 12, seed: int = 4, **more: Any
) -> PairWriter:
    weights = folder.parent / "model.pt"
    weights.write_bytes(b"weights")
    cohort = {
        "name": "a",
        "labels": ["background", "one", "two"],
        "spacing": [0.5, 0.7, 2.0],
        "sizes": SIZES,
        "intensity": [-30.0, high],
    }
    card = {"cohort": cohort, "label_channels": {"num_labels": 2}}
    return PairWriter(folder, card, weights, count, seed=seed, **more)


def made(count: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, *PATCH, generator=torch.Generator().manual_seed(0)) * 2 - 1


def write_all(target: PairWriter, pairs: torch.Tensor) -> None:
    for index, pair in enumerate(pairs):
        target({"index": index, "pred": pair})
    target.complete()


@pytest.mark.parametrize("high", [900.0, 1.0], ids=["whole steps", "scaled"])
def test_any_number_of_workers_writes_the_same_bytes(high: float, tmp_path: Path) -> None:
    contents = []
    for workers in (0, 1, 3):
        folder = tmp_path / f"w{workers}" / "out"
        folder.parent.mkdir()
        write_all(writer(folder, high, num_workers=workers), made())
        names = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append({p.relative_to(folder): p.read_bytes() for p in names})
    assert len(contents[0]) >= 3 * 12 + 1
    assert contents[0] == contents[1] == contents[2]


def test_a_second_split_stands_beside_the_first(tmp_path: Path) -> None:
    pairs = made(3)
    write_all(writer(tmp_path / "out", count=2), pairs[:2])
    late = writer(tmp_path / "out", count=1, start_index=2, split="validation")
    assert late.missing() == [2]
    late({"index": 2, "pred": pairs[2]})
    late.complete()
    for count in (2, 1):  # whoever lists the cases last
        found = read_json(tmp_path / "out" / "dataset.json")
        labels = {
            key: [e["label"] for e in found.get(key, [])] for key in ("training", "validation")
        }
        assert labels == {
            "training": ["labelsTr/pair_000000.nii.gz", "labelsTr/pair_000001.nii.gz"],
            "validation": ["labelsVl/pair_000002.nii.gz"],
        }
        load_dataset(tmp_path / "out")
        writer(tmp_path / "out", count=count).complete()
    message = r"pair_000000.json: split: expected a case of validation, found one of training"
    with pytest.raises(DataError, match=message):
        writer(tmp_path / "out", count=2, split="validation").missing()


def test_a_run_that_finds_all_made_by_another_seed_does_not_sign_it(tmp_path: Path) -> None:
    late = writer(tmp_path / "out", count=2, seed=5)  # the folder is empty yet
    write_all(writer(tmp_path / "out", count=2), made(2))
    assert not late.missing()
    before = (tmp_path / "out" / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="expected pairs of the same origin, found seed: 4 there"):
        late.complete()
    assert (tmp_path / "out" / "dataset.json").read_bytes() == before


def test_pairs_do_not_replace_another_dataset(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "mine", 1, validation=0)
    before = (dataset / "dataset.json").read_bytes()
    with pytest.raises(DataError, match="or one of generated cases, found another dataset"):
        writer(dataset, count=2)
    assert (dataset / "dataset.json").read_bytes() == before


def test_files_hold_what_was_made(tmp_path: Path) -> None:
    pairs = made()
    target = writer(tmp_path / "out", num_workers=2)
    write_all(target, pairs)
    for index, pair in enumerate(pairs.numpy()):
        size = read_json(target.folder.sidecar(index))["size"]
        # where a volume shorter than the patch lies in it: the odd voxel behind
        low = [(p - min(n, p)) // 2 for n, p in zip(size, PATCH, strict=True)]
        box = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
        image, *channels = (channel[box].astype(np.float64) for channel in pair)
        classes = np.argmax(channels, axis=0) + 1
        paths = target.folder.paths(index)
        found = nib.load(target.folder.root / paths["image"])
        assert found.get_data_dtype() == np.int16
        np.testing.assert_allclose(found.get_fdata(), image * 465 + 435, atol=0.5 + 1e-9)
        label = np.asanyarray(nib.load(target.folder.root / paths["label"]).dataobj)
        np.testing.assert_array_equal(label, np.where(np.max(channels, axis=0) > 0, classes, 0))


def test_a_fault_of_a_thread_is_told_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.gzipped

    def faulty(pieces: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise DataError("no room")
        return real(pieces)

    monkeypatch.setattr(files, "gzipped", faulty)
    target = writer(tmp_path / "out", num_workers=2)
    with pytest.raises(DataError, match="no room"):
        write_all(target, made())
    # the first pair is written before there are threads
    assert target.missing() == list(range(1, 12))
    assert not (tmp_path / "out" / "dataset.json").exists()
    monkeypatch.setattr(files, "gzipped", real)
    write_all(writer(tmp_path / "out", num_workers=2), made())
    whole = tmp_path / "whole" / "out"
    whole.parent.mkdir()
    write_all(writer(whole), made())
    names = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert all((whole / n).read_bytes() == (tmp_path / "out" / n).read_bytes() for n in names)


def test_no_more_than_a_few_calls_wait() -> None:
    background, gate, done = Background(2), threading.Event(), []
    most = 2 * (1 + WAITING)

    def work(number: int) -> None:
        assert gate.wait(60)
        done.append(number)

    def give() -> None:
        for number in range(most + 3):
            background(work, number)
            given.append(number)

    given: list[int] = []
    giver = threading.Thread(target=give)
    giver.start()
    giver.join(0.2)  # it would have given all by now, if nothing held it back
    assert len(given) <= most
    gate.set()
    giver.join()
    background.finish()
    assert sorted(done) == list(range(most + 3))


def test_faults_end_the_next_call_and_the_end() -> None:
    def fault() -> None:
        raise DataError("once")

    background = Background(1)
    background(fault)
    with pytest.raises(DataError, match="once"):
        background.finish()
    background.finish()
    background(fault)
    # as soon as it is known, and at the latest when there is no room for another
    told = []
    for _ in range(2 + WAITING):
        try:
            background(int)
        except DataError as error:
            told.append(str(error))
    assert told == ["once"]
    background.finish()


@pytest.mark.parametrize("threads", [-1, 1.5, True, "2"])
def test_numbers_of_threads_that_make_no_sense_are_refused(threads: Any) -> None:
    with pytest.raises(ValueError, match="num_workers: expected a whole number"):
        Background(threads)


class Lacks:
    """A writer that lacks these samples."""

    def __init__(self, *indices: int) -> None:
        self.indices = list(indices)

    def missing(self) -> list[int]:
        return self.indices


def test_batches_are_whole_where_a_sample_feels_those_beside_it() -> None:
    lacks = Lacks(1, 4, 9)
    assert list(AlignedBatches(lacks, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert list(AlignedBatches(lacks, 4, count=10))[-1] == [8, 9]


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_hold_the_missing_alone_where_it_does_not(processes: int) -> None:
    lacks = Lacks(1, 3, 4, 9)
    shares = [AlignedBatches(lacks, 4, None, r, processes, True) for r in range(processes)]
    batches = [batch for share in shares for batch in share]
    assert sorted(batches) == [[1, 3], [4], [9]]
    assert sum(len(share) for share in shares) == 3
