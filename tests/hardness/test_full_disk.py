"""A disk that fills up: one clear line, the old file kept, and the same command goes on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from medpair.data.files import (
    DataError,
    Volume,
    append_jsonl,
    load_torch,
    read_json,
    read_volume,
    save_torch,
    write_json,
    write_volume,
)
from medpair.engines.board import Board
from medpair.engines.jsonl import whole_records
from tests.hardness.conftest import BUNDLES, Reference
from tests.hardness.processes import (
    LONG,
    Processes,
    assert_all_files_load,
    assert_same_result,
    partials,
)

pytestmark = pytest.mark.fault(32)

NOISE = np.random.default_rng(0).integers(-999, 999, (16, 16, 16)).astype(np.int16)
VOLUME = Volume(NOISE, np.eye(4))
TEXT = {"text": "x" * 20_000}
TENSOR = {"w": torch.arange(4096.0)}
# each writer, its file, and how the old content is read
WRITERS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "checkpoint": ("a.pt", lambda p: save_torch(p, TENSOR), load_torch),
    "volume": ("a.nii.gz", lambda p: write_volume(p, VOLUME), lambda p: read_volume(p).array),
    "plain volume": ("a.nii", lambda p: write_volume(p, VOLUME), lambda p: read_volume(p).array),
    "json": ("a.json", lambda p: write_json(p, TEXT), read_json),
    "lines": ("a.jsonl", lambda p: append_jsonl(p, TEXT), whole_records),
}


@pytest.fixture
def limit_on_files() -> Iterator[Callable[[int], None]]:
    """Give a function that limits how long a file may become: a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal; the write fails instead
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Give a function that mounts a disk of some KiB; skip where that is not permitted."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        options = f"size={kib}k"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk is not permitted here (it needs root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for some KiB; return the file that does."""
    ballast = disk / ".ballast"
    space = os.statvfs(disk)
    size = space.f_bavail * space.f_frsize - 1024 * leave
    with open(ballast, "wb") as handle:
        handle.write(b"\0" * max(0, size))
    return ballast


def write_until_full(write: Callable[[Path], object], path: Path) -> None:
    """Write again and again: lines are appended."""
    for _ in range(30):
        write(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_may_not_grow_is_refused_and_the_old_one_kept(
    name: str, limit_on_files: Callable[[int], None], tmp_path: Path
) -> None:
    """At every length at which the write can break off."""
    file, write, read = WRITERS[name]
    path = tmp_path / file
    write(path)
    before, whole = path.read_bytes(), path.stat().st_size
    steps = 60 if LONG else 12
    start = whole if name == "lines" else 0
    for size in np.linspace(start, start + whole - 1, steps).astype(int):
        limit_on_files(int(size))
        with pytest.raises(DataError) as caught:
            write(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: expected room")
        assert "File too large" in message
        assert "\n" not in message
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    limit_on_files(start + whole)
    write(path)
    read(path)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_refused_and_the_old_file_kept(
    name: str, small_disk: Callable[[int], Path]
) -> None:
    file, write, read = WRITERS[name]
    disk = small_disk(256)
    path = disk / file
    write(path)
    before = path.read_bytes()
    for leave in (0, 4):
        ballast = fill(disk, leave)
        with pytest.raises(DataError, match=r"expected room .*found \d+ bytes free \(No space"):
            write_until_full(write, path)
        assert path.read_bytes().startswith(before)
        read(path)
        assert partials(disk) == []
        ballast.unlink()
    write(path)
    read(path)


def test_tensorboard_on_a_full_disk_warns_once_and_stops(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(256)
    board = Board(disk / "tensorboard")
    fill(disk, 0)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for step in range(40):
        board.add_scalar("loss", 1.0, step)
        board.add_image("pairs", picture, step)
    board.close()
    again = Board(disk / "more" / "tensorboard")
    again.add_scalar("loss", 1.0, 1)
    again.close()
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert 1 <= len([text for text in warnings if str(disk / "tensorboard") in text]) <= 2
    assert all("no TensorBoard" in text and "No space left" in text for text in warnings)


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
    bundle: str,
    kind: str,
    processes: Processes,
    reference: Reference,
    small_disk: Callable[[int], Path],
) -> None:
    """The disk is full at the start, then when half of the files are there, then it is not."""
    if not LONG and bundle not in ("wgan_sn_mp", "unet_segmentation"):
        pytest.skip("full disks for every bundle: make test-long")
    whole = reference(bundle, kind)
    size = sum(f.stat().st_size for f in whole.folder.rglob("*") if f.is_file())
    files = len(list(whole.folder.rglob("*")))
    disk = small_disk(3 * size // 1024 + 8 * files)
    command = whole.command.into(disk / "out ü")
    for share in (0.0, 0.35, 0.6):
        ballast = fill(disk, int(share * (size / 1024 + 4 * files)))
        code = processes.run(command)
        said = processes.said()
        if share == 0.0:
            assert code == 1, said
        if code:
            assert code == 1, said
            assert "Traceback" not in said.split("medpair: ")[-1]
            last = said.strip().splitlines()[-1]
            assert last.startswith(f"medpair: {disk}"), said
            assert "bytes free (No space left on device" in last
        assert partials(disk) == []
        assert_all_files_load(disk)
        ballast.unlink()
    processes.finish(command)
    assert_same_result(whole.folder, command.folder)


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(
    kind: str, processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    """Without the right to write, and where the folder's name is a file's."""
    whole = reference("wgan_sn_mp", kind)
    taken = tmp_path / "taken"
    taken.write_text("a file")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    attempts = [(taken, None), (closed, 65534 if os.getuid() == 0 else None)]
    # nobody must be able to reach the folder, and to read the data
    parents = [*tmp_path.parents, *whole.folder.parents] if os.getuid() == 0 else []
    for path in parents:
        if path.stat().st_mode & 0o005 != 0o005:
            if path.owner() != "root" or not str(path).startswith("/tmp/"):
                pytest.skip(f"{path}: another user cannot reach the tests' folder")
            path.chmod(0o755)
    for folder, user in attempts:
        code = processes.run(whole.command.into(folder), user=user)
        said = processes.said()
        assert code == 1, said
        last = said.strip().splitlines()[-1]
        assert last.startswith(f"medpair: {folder}/"), said
        assert "expected a folder that can be written" in last, said
    assert taken.read_text() == "a file"
    assert list(closed.iterdir()) == []
