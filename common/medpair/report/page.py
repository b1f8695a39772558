"""The report as one page that opens anywhere, without network and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from medpair.report.plots import PLOT_DPI
from medpair.report.sections import Section, Table
from medpair.report.verdict import Verdict


def data_uri(png: bytes) -> str:
    """Return a picture as text that an ``img`` element shows."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _width(png: bytes) -> int:
    """Return a plot's width on the page, so that all have letters of one size."""
    return round(int.from_bytes(png[16:20], "big") * 96 / PLOT_DPI)


def environment() -> Environment:
    """Return the templates: what is put in is escaped, what is missing is an error.

    Names of cases and datasets come from strangers' files and may hold markup.
    """
    return Environment(
        loader=PackageLoader("medpair", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(
    report: Mapping[str, Any],
    sections: Sequence[Section],
    figures: Mapping[str, Mapping[str, bytes]],
    summary: Sequence[str],
    verdicts: Sequence[Verdict],
    methods: Sequence[Table],
    picture: tuple[bytes, str] | None,
) -> str:
    """Return the page as HTML.

    Args:
        report: the content of ``report.json``.
        sections: in order.
        figures: {part: {figure: PNG}}.
        summary: the sentences above all tables.
        verdicts: short answers with their reasons.
        methods: tables of what was compared, by what.
        picture: pairs of both cohorts, PNG, and its caption.
    """
    shown = [
        {
            **vars(section),
            "figures": [
                (data_uri(png), _width(png), caption)
                for name, caption in section.figures
                if (png := figures.get(section.key, {}).get(name)) is not None
            ],
        }
        for section in sections
    ]
    real, synthetic = report["real"]["name"], report["synthetic"]["name"]
    if real == synthetic:  # simulated cohorts of one kind, or copies
        real, synthetic = (Path(report[key]["folder"]).name for key in ("real", "synthetic"))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            title=f"Is {synthetic} as good as {real}?",
            subtitle=_subtitle(report),
            sections=shown,
            summary=summary,
            verdicts=verdicts,
            methods=methods,
            pictures=None if picture is None else data_uri(picture[0]),
            pictures_caption="" if picture is None else picture[1],
        )
    )


def _subtitle(report: Mapping[str, Any]) -> str:
    unseen = ""
    if report["holdout"] is not None:
        unseen = f" and {_volumes(report['holdout'])} it has not seen"
    return (
        f"{_volumes(report['synthetic'])} synthetic pairs, {_volumes(report['real'])} real "
        f"ones the generator was trained on{unseen}. {report['created']}."
    )


def _volumes(cohort: Mapping[str, Any]) -> str:
    """Return how many volumes were compared, and of how many where others were left out."""
    compared, there = cohort["volumes"], cohort["volumes_in_split"]
    return str(compared) if compared == there else f"{compared} of {there}"
