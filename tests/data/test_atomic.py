"""Partial files, locks, and disks without locks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from filelock import FileLock

from medpair.data.atomic import atomic_path, remove_partials
from medpair.data.locks import hold, one_at_a_time


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "imagesTr"):
        folder.mkdir(exist_ok=True)
        (folder / ".partial-abc-a.nii.gz").write_bytes(b"half")
        (folder / ".hidden").touch()
    with atomic_path(tmp_path / "imagesTr" / "b.nii.gz") as partial:
        partial.write_bytes(b"written now")
        assert remove_partials(tmp_path) == 2
        assert partial.exists()
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        ".hidden",
        ".hidden",
        "b.nii.gz",
    ]
    assert remove_partials(tmp_path / "none") == 0


def test_a_disk_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert hold(tmp_path) is None
    with one_at_a_time(tmp_path):
        pass
    assert len([text for text in caplog.messages if "no file locks here" in text]) == 2


def test_a_folder_is_held_by_one_process_until_it_lets_go(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    assert lock is not None
    other = FileLock(tmp_path / ".run.lock")
    with pytest.raises(TimeoutError):
        other.acquire(blocking=False)
    lock.release()
    with other.acquire(blocking=False):
        pass


def test_files_have_the_permissions_of_the_users_other_files(tmp_path: Path) -> None:
    for mask in (0o077, 0o022):
        before = os.umask(mask)
        try:
            with atomic_path(tmp_path / "a.json") as partial:
                partial.write_text("{}")
        finally:
            os.umask(before)
        assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask
