"""One fault of a dataset, and the report that lists many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one entry of one file.

    Attributes:
        file: path of the file.
        key: the entry of ``dataset.json``, the header field, or what of the voxels.
        expected: what a valid file has there.
        found: what this file has there.
        level: an error makes the dataset unusable; a warning is for a person to judge.
    """

    file: str
    key: str
    expected: str
    found: str
    level: Level = "error"

    def __str__(self) -> str:
        return one_line(f"{self.file}: {self.key}: expected {self.expected}, found {self.found}")


def one_line(text: str) -> str:
    """Return ``text`` with what is not printable escaped: names and headers are not trusted."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def numbers(values: Iterable[float] | np.ndarray) -> str:
    """Return numbers for a message: ``[1, 1, 2.5]``; the sum makes 0 of -0."""
    return "[" + ", ".join(f"{float(value) + 0.0:.6g}" for value in values) + "]"


def errors_of(faults: Iterable[Fault]) -> list[Fault]:
    """Return the faults that are errors."""
    return [fault for fault in faults if fault.level == "error"]


def format_report(folder: str | Path, faults: Sequence[Fault]) -> str:
    """Return the report of a check: one line per fault, errors first, then one summary line.

    Paths are shown relative to ``folder``, which the summary line names.
    """
    prefix = f"{folder}".rstrip("/") + "/"
    errors = errors_of(faults)
    warnings = [fault for fault in faults if fault.level != "error"]
    lines = [
        f"{fault.level}: {str(fault).removeprefix(one_line(prefix))}" for fault in errors + warnings
    ]
    counts = " and ".join(
        f"{len(group)} {word}{'' if len(group) == 1 else 's'}"
        for group, word in ((errors, "error"), (warnings, "warning"))
        if group
    )
    return "\n".join([*lines, one_line(f"{folder}: {counts or 'no fault found'}")])
