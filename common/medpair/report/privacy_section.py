"""The part on privacy as a reader sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpair.report.formats import NONE, fixed, number, share, with_range
from medpair.report.sections import Section, Table

GUESSING = 0.5
# What holds where the limit is about that of the cohort it was measured on
MEASURED_LIMIT = 0.15
MEASURED = (
    "What is caught, measured on hippocampi at such a limit: exact, noisy, mirrored, shifted, "
    "turned, cropped and re-scaled copies always; copies warped by 0.5 voxels (rms) always, by "
    "0.75 mostly, by 1 voxel in two of five cases, by 1.5 never."
)
SPACES = {"image": "image", "label": "label map"}
ATTACKS = {
    "distance": "distance to the nearest synthetic volume",
    "relative": "the same, relative to the nearest training volume",
}


def privacy_section(numbers: Mapping[str, Any]) -> Section:
    """Show copies, distances and attacks."""
    section = Section("privacy", "Privacy")
    if numbers.get("alarm") is None:
        section.lead = ["There are too few real volumes to say anything of copies."]
        return section
    if numbers["alarm"]:
        section.lead = ["Alarm.", *numbers["reasons"]]
    else:
        clear = (
            "No alarm: no synthetic volume was found to be a copy of a training volume by its "
            "image or its labels"
        )
        if numbers["attack"]:
            clear += ", and no attack told training cases from unseen ones well enough for one"
        section.lead = [f"{clear}.", *numbers["weak"]]
    told = membership_sentence(numbers)
    if told and not numbers["alarm"]:
        section.lead.append(f"It is not nothing: {told}")
    section.lead.append(
        "A copy is a volume that is far nearer to one training volume than to the next ones, after "
        "rigid alignment and in any mirrored position; how near that must be is learned from real "
        "volumes among themselves. A small distance alone is no copy: blurred volumes are near to "
        "everything."
    )
    if numbers["copies"]["image"]["limit"]["ratio"] >= MEASURED_LIMIT:
        section.notes = [MEASURED]
    section.figures = [
        ("privacy_distances", "Distance to the nearest training volume, after alignment."),
        ("privacy_closest", "The five synthetic volumes most like one training volume, above it."),
    ]
    section.tables = [_copies(numbers), _closest(numbers)]
    if any("holdout" in entry for entry in numbers["distances"].values()):
        section.tables += [_distances(numbers), _attacks(numbers)]
    return section


def membership_sentence(numbers: Mapping[str, Any]) -> str | None:
    """Return what attacks on membership found, or None where all of them might be guessing."""
    attacks = [entry for space in numbers.get("attack", {}).values() for entry in space.values()]
    better = [entry for entry in attacks if entry["low"] > GUESSING]
    if not better:
        return None
    best = max(better, key=lambda entry: entry["auc"])
    return (
        f"{len(better)} of {len(attacks)} attacks told training cases from unseen ones better than "
        "guessing, the best with an area under the curve of "
        f"{with_range(best['auc'], best['low'], best['high'], 2)}."
    )


def _copies(numbers: Mapping[str, Any]) -> Table:
    table = Table(
        "Copies of training volumes (isolation: nearest distance over the usual next ones)",
        (
            "compared by",
            "copies",
            "synthetic volumes",
            "lowest isolation",
            "limit",
            "usual for real volumes",
            "near-duplicates among the synthetic",
        ),
    )
    for space, entry in numbers["copies"].items():
        lowest = min((row["isolation"] for row in entry["volumes"]), default=None)
        again = numbers["duplicates"][space]
        table.rows.append(
            (
                SPACES[space],
                str(entry["flagged"]),
                str(len(entry["volumes"])),
                NONE if lowest is None else number(float(lowest), 2),
                number(float(entry["limit"]["ratio"]), 2),
                fixed(entry["limit"]["typical"], 2),
                NONE if again is None else str(again["volumes"]),
            )
        )
    whole = numbers["whole"]
    table.rows.append(
        (
            "whole image (share of the usual distance)",
            str(whole["flagged"]),
            table.rows[0][2],
            number(whole["lowest"], 2) if whole["usual"] > 0 else NONE,
            number(whole["limit"], 2),
            "1",
            NONE,
        )
    )
    return table


def _closest(numbers: Mapping[str, Any]) -> Table:
    table = Table(
        "The closest pairs",
        ("synthetic", "training volume", "distance (1 - correlation)", "isolation"),
    )
    for row in numbers["closest"]:
        table.rows.append(
            (row["synthetic"], row["real"], fixed(row["distance"]), fixed(row["isolation"], 2))
        )
    return table


def _distances(numbers: Mapping[str, Any]) -> Table:
    table = Table(
        "Distance to the nearest training volume (median; information, not a reason for alarm)",
        (
            "compared by",
            "synthetic",
            "held-out real",
            "nearer than the 1st percentile of held-out",
            "expected by chance",
            "p",
        ),
    )
    entries = {SPACES[key]: value for key, value in numbers["distances"].items()}
    if "embedding" in numbers:
        entries["segmenter's features"] = numbers["embedding"]
    for name, entry in entries.items():
        below = entry.get("below_first_percentile")
        if below is None or "holdout" not in entry:
            continue
        table.rows.append(
            (
                name,
                number(entry["synthetic"]["median"]),
                number(entry["holdout"]["median"]),
                f"{below['count']} of {below['values']} ({share(below['share'])})",
                number(float(below["expected"]), 2),
                fixed(below["p_value"]),
            )
        )
    return table


def _attacks(numbers: Mapping[str, Any]) -> Table:
    table = Table(
        "Membership attack: telling training cases from unseen ones (AUC, 0.5 is guessing)",
        ("attacker uses", "AUC, 95 % interval", "training cases", "unseen cases"),
    )
    rows = [
        (f"{SPACES[space]}: {ATTACKS[name]}", entry)
        for space, attacks in numbers["attack"].items()
        for name, entry in attacks.items()
    ]
    if "critic" in numbers:
        rows.append(("the critic's score (only who has the critic)", numbers["critic"]))
    for name, entry in rows:
        area = with_range(entry["auc"], entry["low"], entry["high"], 2)
        table.rows.append((name, area, str(entry["members"]), str(entry["others"])))
    return table
