"""What was compared, by what: the tables at the end of the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpair.report.sections import Table, name_of


def methods(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of cohorts, networks and versions."""
    cohorts = Table("Cohorts", ("", "name", "list", "volumes", "licence", "folder"))
    for key, title in (("real", "real"), ("synthetic", "synthetic"), ("holdout", "held-out real")):
        entry = report[key]
        if entry is None:
            continue
        volumes = str(entry["volumes"])
        if entry["volumes_in_split"] > entry["volumes"]:
            volumes += f" drawn of {entry['volumes_in_split']}"
        cohorts.rows.append(
            (
                title,
                entry["name"],
                entry["split"],
                volumes,
                entry["licence"] or "–",
                Path(entry["folder"]).name,
            )
        )
    tables = [cohorts]
    origin = report["synthetic"]["origin"]
    if isinstance(origin, Mapping):
        rows = [(str(key).replace("_", " "), str(value)) for key, value in origin.items()]
        tables.append(Table("Origin of the synthetic cohort", ("", ""), list(rows)))
    networks = Table("Networks that judged", ("", "weights", "SHA-256", "how volumes enter"))
    for name, entry in ((report.get("fidelity") or {}).get("features") or {}).items():
        described = entry["extractor"]
        networks.rows.append(
            (
                name_of(name),
                str(described.get("weights", "")),
                str(described.get("sha256", "")),
                str(described.get("preprocessing", "")),
            )
        )
    if networks.rows:
        tables.append(networks)
    versions = [(name, str(value)) for name, value in report["versions"].items()]
    settings = [(key.replace("_", " "), str(value)) for key, value in report["settings"].items()]
    tables.append(Table("Settings and versions", ("", ""), [*settings, *versions]))
    return tables
