"""A data sheet of the synthetic cohort, to go with it wherever it is shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpair.report.privacy_section import membership_sentence
from medpair.report.verdict import verdicts


def datasheet(report: Mapping[str, Any]) -> str:
    """Return the data sheet as Markdown, from the content of ``report.json``."""
    real, synthetic = report["real"], report["synthetic"]
    lines = [f"# Data sheet: {plain(synthetic['name'])}", ""]
    lines += [
        "Synthetic medical volumes with labels, made by a network that was trained on "
        f"{real['volumes_in_split']} volumes of {plain(real['name'])}. Whether "
        "patients shine through is said under Privacy.",
        "",
        "## Contents",
        "",
        f"- {synthetic['volumes_in_split']} pairs, each an image and a label map on one grid",
        f"- classes: {', '.join(plain(name) for name in synthetic['labels'])}",
        f"- {plain(synthetic['description'])}" if synthetic["description"] else "",
        "",
        "## Origin",
        "",
        *_origin(synthetic["origin"]),
        "",
        "## Licence",
        "",
        f"- of the training data: {plain(real['licence']) or 'not stated in its dataset.json'}",
        f"- of this cohort: {plain(synthetic['licence']) or 'not stated in its dataset.json'}",
        "",
        "What a network makes of licensed volumes may fall under their licence: where it asks for "
        "naming the source or for sharing alike, do so.",
        "",
        "## Intended use",
        "",
        "Training and testing of segmentation methods, teaching, and software tests. Not for "
        "diagnosis, not for studies of disease: frequencies and extremes of anatomy in this cohort "
        "are the network's, not a population's.",
        "",
        "## What was measured",
        "",
        *(f"- **{v.question} {v.answer}.** {plain(v.reason)}" for v in verdicts(report)),
        "",
        "## Privacy",
        "",
        *_privacy(report, synthetic["origin"]),
        "",
        "## Limits",
        "",
        *_limits(report),
        "",
        f"Measured with MedPair {report['medpair_version']} on {report['created']}.",
    ]
    kept = [line for before, line in zip(["x", *lines], lines, strict=False) if line or before]
    return "\n".join(kept) + "\n"


def plain(text: Any) -> str:
    """Return text on one line, without what Markdown would take for markup or HTML."""
    flat = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        flat = flat.replace(mark, "\\" + mark)
    return flat


def _origin(origin: Any) -> list[str]:
    if not isinstance(origin, Mapping):
        return ["- not stated in its dataset.json"]
    return [
        f"- {plain(str(key).replace('_', ' '))}: {plain(value)}"
        for key, value in origin.items()
        if not isinstance(value, Mapping)
    ]


def _privacy(report: Mapping[str, Any], origin: Any) -> list[str]:
    lines = []
    privacy = report.get("privacy")
    if not privacy or privacy.get("alarm") is None:
        lines.append(
            "- too few real volumes to say anything of copies"
            if privacy
            else "- not examined: do not share before it is"
        )
    elif privacy["alarm"]:
        lines.append("- **ALARM**: do not share. " + plain(" ".join(privacy["reasons"])))
    else:
        lines.append("- no copy of a training case was found")
        lines += [f"- {plain(sentence)}" for sentence in privacy.get("weak", [])]
        if told := membership_sentence(privacy):
            lines.append(f"- {plain(told)}")
    lines += [f"- {plain(note)}" for note in report["notes"].get("privacy", [])]
    spent = origin.get("privacy") if isinstance(origin, Mapping) else None
    if isinstance(spent, Mapping) and "epsilon" in spent:
        keys = ("epsilon", "delta", "noise_multiplier", "clipping_norm")
        epsilon, delta, noise, norm = (_figure(spent.get(key)) for key in keys)
        lines.append(
            f"- differential privacy of the training: epsilon {epsilon} at delta {delta} (noise "
            f"multiplier {noise}, clipping norm {norm}), the unit being "
            f"{plain(spent.get('unit', 'not stated'))}"
        )
    else:
        lines.append("- no differential privacy of the training is stated")
    return lines


def _figure(value: Any) -> str:
    """Return a number of a foreign dataset.json, which may hold anything."""
    return f"{value:.3g}" if isinstance(value, (int, float)) else "not stated"


def _limits(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {plain(note)}"
        for name, notes in report["notes"].items()
        for note in notes
        if name != "privacy"  # these stand under Privacy
    ]
    if report["holdout"] is None:
        lines.append("- no held-out real cases were at hand: see what the report leaves out")
    return lines or ["- none beyond those above"]
