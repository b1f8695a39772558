"""The cohorts of a usefulness table: sound, separate, the same from first run to last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair.data.check import require_valid
from medpair.data.dataset import Case, load_dataset
from medpair.data.files import DataError, file_sha256, read_json, write_json
from medpair.data.segmentation import load_items
from medpair.utility_plan import REAL, SYNTHETIC, TEST, TRANSFER


def survey(
    folders: Mapping[str, Path], splits: Mapping[str, str], label_group: str | None
) -> dict[str, dict[str, Any]]:
    """Check the cohorts; return of each its folder, classes, numbers of cases and a digest.

    Raises:
        DataError: if a folder is faulty, real and synthetic classes differ, a case to score has
            no label, or is among those that are trained on.
    """
    for role, folder in folders.items():
        needed = {splits[role]} | ({"training"} if role == TRANSFER else set())
        require_valid(folder, label_group, sorted(needed))
    load_items([folders[REAL], folders[SYNTHETIC], folders[TEST]], "training", label_group, False)
    inputs: dict[str, dict[str, Any]] = {}
    trained: set[Path] = set()
    for role, folder in folders.items():
        content = load_dataset(folder)
        own = content.split("training") if role != TEST else ()
        scored = content.split(splits[role]) if role in (TEST, TRANSFER) else ()
        trained |= {case.image.resolve() for case in own if case.image is not None}
        inputs[role] = {
            "folder": str(folder),
            "labels": list(content.labels(label_group).names[1:]),
            "split": splits[role],
            **({"training": len(own)} if own else {}),
            **({"scored": len(scored)} if scored else {}),
            "contents": contents(folder, {"training": own, "scored": scored}),
        }
    for role in (TEST, TRANSFER):
        for case in load_dataset(folders[role]).split(splits[role]) if role in folders else ():
            where = f"{folders[role] / 'dataset.json'}: {splits[role]}: {case.name}"
            if case.label is None:
                raise DataError(f"{where}: expected a label to score against, found none")
            if case.image is not None and case.image.resolve() in trained:
                raise DataError(f"{where}: expected a held-out case, found one of the training")
    return inputs


def contents(folder: Path, used: Mapping[str, Sequence[Case]]) -> str:
    """Return a digest of the classes and of the names and bytes of all files that are used.

    A corrected label map often has the size that it had.
    """
    content = load_dataset(folder).content
    files = [
        [split, role, Path(path).relative_to(folder).as_posix(), file_sha256(path)]
        for split, cases in used.items()
        for case in cases
        for role, path in case.item().items()
    ]
    text = json.dumps([content.get("labels"), content.get("label_groups"), files])
    return hashlib.sha256(text.encode()).hexdigest()


def remember(path: Path, inputs: Mapping[str, Any]) -> None:
    """Write down what the runs are made of; refuse other data in the same folder.

    Raises:
        DataError: if a cohort is not what it was when the first run began.
    """
    known = read_json(path) if path.exists() else {}
    for role, now in inputs.items():
        then = known.get(role, now)
        # earlier versions had another digest; a cohort that was moved is the same cohort
        moved = {"folder"} if then.get("contents") == now["contents"] else set()
        key = next((k for k in now if k in then and then[k] != now[k] and k not in moved), None)
        if key is not None:
            raise DataError(
                f"{path}: {role}: {key}: expected {then.get(key)!r} as when this table was begun, "
                f"found {now[key]!r} (another output_dir keeps both)"
            )
    write_json(path, {**known, **inputs})
