"""The report's parts, run one after the other and kept; then the page, the JSON, the data sheet."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medpair import __version__
from medpair.data.files import DataError, atomic_path, read_json, write_json, write_text
from medpair.data.spellings import licence_of
from medpair.report.datasheet import datasheet
from medpair.report.methods import methods
from medpair.report.page import render_page
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part
from medpair.report.pictures import cohort_picture
from medpair.report.sections import Section
from medpair.report.verdict import summary, verdicts

logger = logging.getLogger(__name__)

# How every whole PNG ends
PNG_END = b"IEND\xaeB`\x82"
PACKAGES = ("torch", "monai", "numpy", "scipy", "scikit-learn", "nibabel")


@dataclass(frozen=True)
class Step:
    """One part of the report.

    Attributes:
        run: does the work.
        section: how its numbers are shown.
        settings: what its result depends on beside the cohorts; a change makes it run again.
    """

    run: Callable[[], Part]
    section: Callable[[Mapping[str, Any]], Section]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohorts:
    """What is compared.

    Attributes:
        real: what the generator was trained on.
        synthetic: what it made.
        holdout: real cases it has not seen, or None.
    """

    real: PairFolder
    synthetic: PairFolder
    holdout: PairFolder | None

    def check(self) -> None:
        """Refuse cohorts of other classes than the real one's.

        Raises:
            DataError: names the folder.
        """
        for pairs in (self.synthetic, self.holdout):
            if pairs is not None and pairs.names != self.real.names:
                raise DataError(
                    f"{pairs.folder.root / 'dataset.json'}: labels: expected the real cohort's "
                    f"{list(self.real.names)}, found {list(pairs.names)}"
                )

    def state(self) -> list[Any]:
        """Return names, sizes and times of all files: equal as long as nothing was changed."""
        return [None if pairs is None else pairs.state() for pairs in self.all()]

    def all(self) -> tuple[PairFolder | None, ...]:
        """Return the three."""
        return self.real, self.synthetic, self.holdout


def with_progress(pairs: Iterable[Pair], what: str) -> Iterable[Pair]:
    """Show a bar while a cohort is read, on a terminal."""
    name = pairs.folder.name if isinstance(pairs, PairFolder) else ""
    return tqdm(pairs, f"{what}: {name}", leave=False, disable=not sys.stderr.isatty())


def build_report(
    output: Path,
    cohorts: Cohorts,
    steps: Mapping[str, Step],
    command: str,
    settings: Mapping[str, Any],
    whole_images: bool = False,
    wanted: Sequence[str] | None = None,
) -> Path:
    """Run the parts that are not there yet, and write the report.

    Args:
        output: gets ``report.html``, ``report.json``, ``datasheet.md``, and ``parts/``.
        cohorts: what is compared.
        steps: {name: part}, in the order of the page.
        command: that makes the same report again.
        settings: seed and the like, kept in ``report.json``.
        whole_images: show whole images even where they could hold a face.
        wanted: names of the parts to run; of the others those are shown that an earlier run left.
            None runs all.

    Returns:
        The path of ``report.html``.

    Raises:
        DataError: if a cohort cannot be used.
    """
    cohorts.check()
    output.mkdir(parents=True, exist_ok=True)
    state = cohorts.state()
    parts: dict[str, Part] = {}
    asked = list(steps) if wanted is None else [name for name in steps if name in wanted]
    for name, step in steps.items():
        mark = fingerprint([name, state, dict(step.settings), dict(settings), __version__])
        part = _kept(output / "parts" / name, mark)
        if part is not None:
            logger.info("%s: kept", name)
        elif name in asked:
            logger.info("%s: %d of %d", name, asked.index(name) + 1, len(asked))
            part = step.run()
            _keep(output / "parts" / name, mark, part)
        else:
            continue
        parts[name] = part
    report = {
        "medpair_version": __version__,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": command,
        "settings": dict(settings),
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        **{
            key: None if pairs is None else describe(pairs)
            for key, pairs in zip(("real", "synthetic", "holdout"), cohorts.all(), strict=True)
        },
        **{name: part.numbers for name, part in parts.items()},
        "notes": {name: part.notes for name, part in parts.items()},
    }
    write_json(output / "report.json", report)
    write_text(output / "datasheet.md", datasheet(report))
    _write_page(output, cohorts, steps, parts, report, whole_images)
    return output / "report.html"


def _write_page(
    output: Path,
    cohorts: Cohorts,
    steps: Mapping[str, Step],
    parts: Mapping[str, Part],
    report: Mapping[str, Any],
    whole_images: bool,
) -> None:
    sections = []
    for name, part in parts.items():
        section = steps[name].section(part.numbers)
        section.notes += part.notes
        sections.append(section)
    columns = [("real", cohorts.real), ("synthetic", cohorts.synthetic)]
    caption = (
        "Pairs of both cohorts: three planes, plain and with the labels laid over. Not chosen: "
        "evenly spaced in each cohort."
    )
    page = render_page(
        report,
        sections,
        {name: part.figures for name, part in parts.items()},
        summary(report),
        verdicts(report),
        methods(report),
        (cohort_picture(columns, whole=whole_images), caption),
    )
    write_text(output / "report.html", page)


def describe(pairs: PairFolder) -> dict[str, Any]:
    """Return what the report says of a cohort."""
    content = pairs.folder.content
    return {
        "name": pairs.folder.name,
        "folder": str(pairs.folder.root),
        "split": pairs.split,
        "volumes": len(pairs),
        "volumes_in_split": pairs.total,
        "labels": list(pairs.names),
        "licence": licence_of(content),
        "description": str(content.get("description", "")),
        "origin": content.get("origin"),
    }


def _kept(folder: Path, mark: str) -> Part | None:
    """Return a part that an earlier run finished, if nothing it depends on has changed."""
    path = folder / "part.json"
    try:
        content = read_json(path) if path.exists() else {}
    except DataError as error:
        logger.warning("%s: the part is built again", error)
        return None
    if not isinstance(content, dict) or content.get("fingerprint") != mark:
        return None
    pictures = {name: folder / f"{name}.png" for name in content["figures"]}
    if not all(picture.exists() for picture in pictures.values()):
        return None
    figures = {name: picture.read_bytes() for name, picture in pictures.items()}
    for name, png in figures.items():
        if not png.endswith(PNG_END):
            logger.warning("%s: cut off, the part is built again", pictures[name])
            return None
    return Part(content["numbers"], figures, content["notes"])


def _keep(folder: Path, mark: str, part: Part) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # a part counts as finished when part.json is there: pictures first, and no old part.json
    (folder / "part.json").unlink(missing_ok=True)
    for name, png in part.figures.items():
        with atomic_path(folder / f"{name}.png") as partial:
            partial.write_bytes(png)
    write_json(
        folder / "part.json",
        {
            "fingerprint": mark,
            "numbers": part.numbers,
            "notes": part.notes,
            "figures": sorted(part.figures),
        },
    )


def fingerprint(content: Sequence[Any]) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None
