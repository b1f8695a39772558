"""The settings that must not change between the parts of one run, and what did change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpair.data.dataset import case_name
from medpair.data.files import file_sha256
from medpair.data.folders import MaxCases
from medpair.data.segmentation import load_items

# Names in one sentence; a cohort may have grown by hundreds
MOST_NAMES = 5


def training_cases(
    dataset_dir: Any,
    label_group: str | None = None,
    max_cases: MaxCases = None,
    seed: int = 0,
) -> dict[str, str]:
    """Return {case: what its files hold}, as one run is to see them from its beginning to its end.

    Half of a SHA-256 over image and label. Times and sizes would be quicker, but a copied dataset
    has other times, and a corrected label map may have the same size; the dataset's own check
    before training reads every file anyway, and unpacks it, which takes longer.

    Args:
        dataset_dir: a folder, or several; names of the second and later ones carry its number.
        label_group: merge of labels.
        max_cases: as in ``load_items``.
        seed: as in ``load_items``.
    """
    items = load_items(dataset_dir, "training", label_group, max_cases=max_cases, seed=seed)
    folders = list(dict.fromkeys(item["dataset_dir"] for item in items))
    found = {}
    for item in items:
        number = folders.index(item["dataset_dir"])
        # not the item's "case": checkpoints know a case of the second folder as "2:NAME"
        plain = case_name(Path(item["image"]))
        name = plain if number == 0 else f"{number + 1}:{plain}"
        files = [item[role] for role in ("image", "label") if role in item]
        found[name] = "-".join(file_sha256(path)[:16] for path in files)
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return in words what differs between two sets of settings: plain data, nested or not."""
    found = []
    for key in sorted({*then, *now}):
        one, two = then.get(key), now.get(key)
        name = f"{where}{key}"
        if one == two:
            continue
        if key == "cases" and isinstance(one, Mapping) and isinstance(two, Mapping):
            found.append(_changed_cases(one, two))
        elif isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, f"{name}.")
        else:
            found.append(f"{name}: {_cut(one)} then, {_cut(two)} now")
    return found


def _changed_cases(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    kinds = {
        "added": [case for case in now if case not in then],
        "removed": [case for case in then if case not in now],
        "changed": [case for case in now if case in then and now[case] != then[case]],
    }
    words = [
        f"{len(cases)} {kind} ({', '.join(cases[:MOST_NAMES])}"
        f"{', ...' if len(cases) > MOST_NAMES else ''})"
        for kind, cases in kinds.items()
        if cases
    ]
    return f"training cases: {', '.join(words)}"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
