"""What ``medpair utility`` found, as a part of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpair.data.dataset import DatasetFolder
from medpair.data.files import DataError, read_json
from medpair.report.formats import NONE, summary, with_range
from medpair.report.part import Part
from medpair.report.sections import Section, Table
from medpair.report.utility_table import notes
from medpair.utility_inputs import contents

REGION, MEAN = "volume", "mean"
# Protocols that add synthetic pairs to all real ones, the papers' best first
ADDED = ("E2-4", "E2-5", "E2-3")
# What each gain is measured against: as much training on real pairs alone
CONTROL = "E2-1F"


def usefulness_part(folder: Path, cohorts: Mapping[str, DatasetFolder] | None = None) -> Part:
    """Return what the report says of a usefulness table.

    Args:
        folder: of ``medpair utility``.
        cohorts: those of the report, by their role in the table.

    Raises:
        DataError: if it has no ``utility.json``, or the table is of other cohorts.
    """
    content = read_json(folder / "utility.json")
    if not isinstance(content, dict) or "rows" not in content:
        raise DataError(f"{folder / 'utility.json'}: rows: expected a usefulness table, found none")
    try:
        rows = [_row(row) for row in content["rows"]]
        remarks = notes(content)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{folder / 'utility.json'}: rows: expected a usefulness table, found one that cannot "
            f"be read ({type(error).__name__}: {error})"
        ) from error
    numbers: dict[str, Any] = {"folder": str(folder), "rows": rows}
    first = [row for row in rows if row["cases"] is None and row["test"] == "test"]
    by_protocol = {row["protocol"]: row for row in reversed(first)}
    real, alone = by_protocol.get("E2-1"), by_protocol.get("E2-2")
    if real is not None and alone is not None:
        numbers["synthetic_alone"] = {
            "dsc": alone["dsc"]["mean"],
            "real": real["dsc"]["mean"],
            "ratio": alone["dsc"]["mean"] / max(real["dsc"]["mean"], 1e-9),
        }
    for protocol in ADDED:
        row = by_protocol.get(protocol)
        rival = next((name for name in (CONTROL, "E2-1") if row and name in row["against"]), None)
        if row is not None and rival is not None:
            gain = {
                "what": row["what"],
                "protocol": protocol,
                "against": rival,
                "seeds": min(row["seeds"], by_protocol.get(rival, row)["seeds"]),
            }
            numbers["gain"] = gain | row["against"][rival]
            break
    picture = folder / "utility.png"
    figures = {"table": picture.read_bytes()} if picture.exists() else {}
    told = {require_same_cohort(folder, content, *cohort) for cohort in (cohorts or {}).items()}
    unknown = (
        "The usefulness table does not say which files it was made of: not compared with them."
    )
    more = [unknown] if False in told else []
    return Part(numbers, figures, [*remarks, *more])


def require_same_cohort(
    folder: Path, content: Mapping[str, Any], role: str, cohort: DatasetFolder
) -> bool:
    """Return whether a table says of which files it was made, if they are a cohort's.

    Raises:
        DataError: if they are others.
    """
    made_of = content.get("inputs", {}).get(role, {}).get("contents")
    if made_of is None:  # a table of an earlier version
        return False
    if made_of != contents(cohort.root, {"training": cohort.split("training"), "scored": ()}):
        raise DataError(
            f"{folder / 'utility.json'}: inputs.{role}: expected a table of {cohort.root}, found "
            "one of other files (make it anew, or leave out --utility)"
        )
    return True


def usefulness_section(numbers: Mapping[str, Any]) -> Section:
    """Show the table of protocols."""
    section = Section("usefulness", "Usefulness for training a segmenter")
    section.lead = [
        "Segmenters trained by the papers' protocols, scored on real cases that neither they nor "
        "the generator have seen."
    ]
    section.figures = [("table", "Dice of each protocol on held-out real cases.")]
    table = Table(
        "Dice, mean over classes and cases, 95 % interval; bAHD is the balanced average Hausdorff "
        "distance; p is corrected for the number of protocols (Holm)",
        ("trained on", "protocol", "network", "Dice", "bAHD, mm", "against E2-1", "against E2-1F"),
    )
    for row in numbers["rows"]:
        cases = "" if row["cases"] is None else f", {row['cases']} real cases"
        table.rows.append(
            (
                row["what"] + cases,
                row["protocol"],
                row["architecture"],
                summary(row["dsc"]),
                summary(row["bahd_mm"]),
                *(_difference(row["against"].get(name)) for name in ("E2-1", CONTROL)),
            )
        )
    section.tables = [table]
    return section


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = row["results"][REGION][MEAN]
    against = {}
    for name, regions in row["against"].items():
        entry = regions[REGION][MEAN]["dsc"]
        against[name] = {key: entry[key] for key in ("low", "high", "p", "p_holm")}
        against[name]["value"] = entry["difference"]
    return {
        **{key: row[key] for key in ("protocol", "what", "architecture", "cases", "test")},
        "seeds": len(row["seeds"]),
        "dsc": cells["dsc"],
        "bahd_mm": cells["bahd_mm"],
        "against": against,
    }


def _difference(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return NONE
    value = with_range(entry["value"], entry["low"], entry["high"], 3)
    p = entry["p_holm"]
    return f"{value}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
