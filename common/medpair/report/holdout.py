"""Which cases are held out, and whether they are: no file may be in two of the three cohorts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from medpair.data.dataset import Case, load_dataset
from medpair.data.files import DataError, file_sha256
from medpair.report.build import Cohorts


def split_of_holdout(real: Path, holdout: Path) -> str:
    """Return the list that holds the unseen cases of a folder.

    The validation list of the real cohort's own folder; of another folder the first of training,
    validation and test that has cases.

    Raises:
        DataError: if there is none.
    """
    same = real.resolve() == holdout.resolve()
    folder = load_dataset(holdout)
    for split in ("validation", "test") if same else ("training", "validation", "test"):
        if folder.cases.get(split):
            return split
    raise DataError(f"{holdout / 'dataset.json'}: expected cases to hold out, found none")


def refuse_overlap(cohorts: Cohorts) -> None:
    """Refuse cohorts that share files: nothing would be held out, or nothing made.

    Raises:
        DataError: names a shared file.
    """
    seen = {_file(case) for case in cohorts.real.folder.split("training")} - {None}
    made = {_file(case) for case in cohorts.synthetic.cases} - {None}
    for case in cohorts.synthetic.cases:
        if _file(case) in seen:
            raise DataError(
                f"{case.image}: expected synthetic volumes, found one of the real cohort's "
                "training list"
            )
    for case in () if cohorts.holdout is None else cohorts.holdout.cases:
        if _file(case) in seen | made:
            whose = "real cohort's training list" if _file(case) in seen else "synthetic cohort"
            raise DataError(f"{case.image}: expected held-out cases, found one of the {whose}")
    held = () if cohorts.holdout is None else cohorts.holdout.cases
    for ours, theirs in equal_files(
        [path for path in seen if path is not None],
        [path for case in held if (path := _file(case)) is not None],
    ):
        raise DataError(
            f"{theirs}: expected held-out cases, found a copy of {ours} of the real cohort's "
            "training list"
        )


def equal_files(ours: Iterable[Path], theirs: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """Yield pairs of files of two lists that hold the same bytes; a copied folder has many."""
    sizes: dict[int, list[Path]] = {}
    for path in sorted(ours):
        sizes.setdefault(path.stat().st_size, []).append(path)
    for path in sorted(theirs):
        like = sizes.get(path.stat().st_size, [])
        digest = file_sha256(path) if like else ""
        yield from ((one, path) for one in like if file_sha256(one) == digest)


def _file(case: Case) -> Path | None:
    return None if case.image is None else case.image.resolve()
