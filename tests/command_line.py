"""The command ``medpair`` in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from medpair.cli import main


def verbs_as_called(patch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command in this process; return its exit code."""
    patch.setattr("sys.argv", ["medpair", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refusal(
    folder: Path,
    patch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> str:
    """Return the one line with which a command is refused in ``folder``, which stays empty."""
    patch.chdir(folder)
    assert verbs_as_called(patch, *words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not any(folder.iterdir())
    return error.rstrip("\n")
