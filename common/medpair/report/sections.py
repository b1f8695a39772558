"""The parts of the report as a reader sees them: sentences, pictures, tables.

Everything here is made of the numbers in ``report.json``; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medpair.report.formats import NONE, fixed, mean_and_sd, number, share, summary, with_range

# Chance of "differs" where there is no difference
LEVEL = 0.05
NAMES = {
    "segmenter_bottleneck": "our segmenter's bottleneck",
    "inception_slices": "Inception-v3 (slices in three views)",
    "medicalnet_volumes": "MedicalNet ResNet-10 (whole volumes)",
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "ms_ssim": "MS-SSIM (similarity)",
    "st_lpips_alex": "ST-LPIPS, AlexNet (distance)",
    "volume_ml": "volume, ml",
    "surface_cm2": "surface, cm²",
    "components": "components",
    "largest_share": "share of largest component",
    "slice_overlap": "overlap of neighbouring slices",
}


@dataclass
class Table:
    """Rows of text under a head; the first column names the row, a lone cell the rows below."""

    caption: str
    head: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Section:
    """One part of the page.

    Attributes:
        key: the part's name.
        title: of the section.
        lead: sentences above everything else.
        figures: (name of the figure in the part, caption).
        tables: in order.
        notes: sentences below, such as what was left out.
    """

    key: str
    title: str
    lead: list[str] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def name_of(key: str) -> str:
    """Return the reader's name of a measure."""
    return NAMES.get(key, key.replace("_", " "))


def beside_floor(
    entry: Mapping[str, Any] | None, places: int | None = None
) -> tuple[str, str, str]:
    """Return the cells ``synthetic``, ``floor`` and ``differs`` of a ``Compared``."""
    if entry is None:
        return NONE, NONE, "too few"
    found = with_range(entry["value_at_equal_n"], entry["equal_low"], entry["equal_high"], places)
    floor = with_range(entry["floor"], entry["floor_low"], entry["floor_high"], places)
    return found, floor, "yes" if differs(entry) else "no"


def differs(entry: Mapping[str, Any]) -> bool:
    """Say whether the cohorts are further apart than chance deals them.

    By the permutation test, whose level is exact for any sample size; the range of the floor is
    none, since its draws share volumes.
    """
    further = entry["value_at_equal_n"] > entry["floor"]
    return bool(further and entry["p_value"] <= LEVEL)


def label_section(numbers: Mapping[str, Any]) -> Section:
    """Label maps and intensities."""
    distances = [m["distance"] for row in numbers["classes"] for m in row["measures"]]
    shares = [row.get("presence_distance") for row in numbers["classes"]]
    known = [entry for entry in (*distances, *shares) if entry is not None]
    section = Section("labels", "Anatomy and intensities")
    section.lead = [
        "Each class of the label maps, and the intensities in it, in both cohorts. “Differs” says "
        "that so large a distance comes about in at most 5 of 100 random deals of all volumes into "
        "two cohorts; of 20 figures without a true difference, one differs. Brackets hold the "
        "middle 95 % of random draws of one size."
    ]
    if known:
        count = sum(differs(entry) for entry in known)
        section.lead.append(f"{count} of {len(known)} figures of shape differ.")
    section.lead += [
        f"{row['name']} is in {share(row['presence_real'])} of the real and "
        f"{share(row['presence_synthetic'])} of the synthetic volumes."
        for row, entry in zip(numbers["classes"], shares, strict=True)
        if entry is not None and differs(entry)
    ]
    section.figures = [
        ("measures", "Each class and cohort: median, quartiles, range of volumes."),
        ("intensity", "Intensities in each class: mean of the volumes, and the middle 80 %."),
        ("adjacency", "Which classes touch: shares of the row's surface."),
    ]
    shapes = Table(
        "Shape of each class: mean ± spread; distance (Kolmogorov-Smirnov): 0 where volumes are "
        "spread alike, 1 where the two cohorts have no value in common",
        ("measure", "real", "synthetic", "distance", "between real halves", "differs"),
    )
    for row in numbers["classes"]:
        shapes.rows.append(
            (
                f"{row['name']}: in {share(row['presence_real'])} of the real and "
                f"{share(row['presence_synthetic'])} of the synthetic volumes",
            )
        )
        if (there := row.get("presence_distance")) is not None:
            sides = share(row["presence_real"]), share(row["presence_synthetic"])
            shapes.rows.append(("volumes that have it", *sides, *beside_floor(there, 2)))
        for entry in row["measures"]:
            name = name_of(entry["measure"])
            if entry["measure"] == "slice_overlap":
                name = f"overlap of neighbouring {numbers['slices']} slices"
            sides = mean_and_sd(entry["real"]), mean_and_sd(entry["synthetic"])
            shapes.rows.append((name, *sides, *beside_floor(entry["distance"], 2)))
    intensity = Table(
        "Intensities of each class: how far the histograms are shifted (Wasserstein distance), as "
        "a share of a volume's range",
        ("class", "distance", "between real halves", "differs"),
        [(row["name"], *beside_floor(row["distance"], 4)) for row in numbers["intensity"]],
    )
    contacts = Table(
        "Neighbours: share of a class's surface that touches other classes than in the real cohort",
        ("", "distance", "between real halves", "differs"),
        [("all classes", *beside_floor(numbers["adjacency"]["distance"], 4))],
    )
    section.tables = [shapes, intensity]
    if len(numbers["classes"]) > 1:
        section.tables.append(contacts)
    return section


def fidelity_section(numbers: Mapping[str, Any]) -> Section:
    """Distances of distributions."""
    section = Section("fidelity", "Fidelity")
    section.lead = [
        "How far the synthetic volumes, as a population, are from the real ones in the eyes of "
        "networks. A distance means nothing alone: beside it stands the distance of two random "
        "halves of the real cohort, with as many volumes on each side. Brackets hold the middle "
        "95 % of random draws."
    ]
    section.figures = [
        (
            "prd",
            "Precision (synthetic volumes look real) against recall (the variety of the real ones "
            "is covered): the nearer to the upper right corner, the better.",
        ),
        ("prd_inception", "The same for slices through Inception-v3."),
    ]
    distances = Table(
        "Distances of distributions, by the features of each network",
        (
            "",
            "synthetic",
            "between real halves",
            "ratio",
            "differs",
            "volumes a side",
            "all volumes, 95 % interval",
        ),
    )
    precision = Table(
        "Precision (as F1/8) and recall (as F8) of clustered features; 1 is best",
        (
            "features",
            "clusters",
            "precision",
            "real halves",
            "recall",
            "real halves",
            "vectors a side",
        ),
    )
    for name, entry in numbers["features"].items():
        distances.rows.append((name_of(name),))
        for key, mean in entry["mean"].items():
            ratio = mean["value_at_equal_n"] / mean["floor"] if mean["floor"] > 0 else None
            distances.rows.append(
                (
                    name_of(key),
                    *beside_floor(mean)[:2],
                    # the kernel distance's floor is near 0, and a ratio means nothing
                    number(ratio) if key == "frechet" else NONE,
                    beside_floor(mean)[2],
                    str(mean["n_equal"]),
                    with_range(mean["value"], mean["low"], mean["high"])
                    + f" ({mean['n_first']} and {mean['n_second']})",
                )
            )
        for clusters, prd in entry["prd"].items():
            precision.rows.append(
                (
                    name_of(name),
                    clusters,
                    fixed(prd["f1_8"]),
                    fixed(prd["floor_f1_8"]),
                    fixed(prd["f8"]),
                    fixed(prd["floor_f8"]),
                    str(prd["samples"]),
                )
            )
    section.tables = [table for table in (distances, precision) if table.rows]
    return section


def diversity_section(numbers: Mapping[str, Any]) -> Section:
    """Diversity within each cohort."""
    section = Section("diversity", "Diversity")
    section.lead = [
        "How much two random volumes of one cohort differ. A synthetic cohort whose volumes are "
        "more alike than the real ones (higher similarity, lower distance) repeats itself."
    ]
    table = Table("Within each cohort", ("measure", "real", "synthetic", "pairs, real / synthetic"))
    for name, entry in numbers["measures"].items():
        sides = [
            with_range(entry[c]["mean"], entry[c]["low"], entry[c]["high"], 3)
            for c in ("real", "synthetic")
        ]
        pairs = " / ".join(str(entry[c]["pairs"]) for c in ("real", "synthetic"))
        table.rows.append((name_of(name), *sides, pairs))
    section.tables = [table] if table.rows else []
    return section


def alignment_section(numbers: Mapping[str, Any]) -> Section:
    """Agreement of labels and images."""
    section = Section("alignment", "Alignment of labels and images")
    section.lead = [
        "A segmenter trained on real pairs labels the synthetic images. Where labels fit images "
        "as well as in real cases, it agrees with them as well as with held-out real ones."
    ]
    section.figures = [("agreement", "A dot is a case; a bar is the mean.")]
    table = Table(
        "Dice of the segmenter's labels with the given ones (mean, 95 % interval)",
        ("class", "synthetic", "held-out real"),
    )
    for row in numbers["classes"]:
        table.rows.append((row["name"], summary(row["synthetic"]), summary(row.get("holdout"))))
    mean = numbers["mean"]
    table.rows.append(("mean", summary(mean["synthetic"]), summary(mean.get("holdout"))))
    section.tables = [table]
    if "difference" in numbers:
        entry = numbers["difference"]
        section.lead.append(
            "Difference of the means, synthetic minus held-out real: "
            + with_range(entry["value"], entry["low"], entry["high"], 3)
            + "."
        )
    return section
