"""The ``dataset.json`` of a folder, checked entry by entry without stopping at the first fault."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpair.data.dataset import SPLITS, case_name, leaves
from medpair.data.faults import Fault, Level
from medpair.data.labels import LabelMap, is_whole, short_list
from medpair.data.nifti_stream import VOLUME_ENDINGS
from medpair.data.spellings import channels_of

ROLES = ("image", "label", "roi")
# A list of a million cases fits; what is larger is not a dataset.json.
MAX_JSON_BYTES = 2**28
# File systems take 255; what is made of a case has its name and more.
MAX_NAME_BYTES = 200
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 3, 8, 8, 120


@dataclass(frozen=True)
class ListedCase:
    """One entry of a split.

    Attributes:
        split: the split's name.
        index: position in the split's list.
        paths: absolute path of each role whose path is usable.
    """

    split: str
    index: int
    paths: dict[str, Path]

    def where(self, role: str) -> str:
        """Return the entry's place in ``dataset.json``, such as ``training[3].image``."""
        return f"{self.split}[{self.index}].{role}"

    @property
    def name(self) -> str | None:
        """The case's name, as in ``medpair.data.dataset``; None without a usable path."""
        image = self.paths.get("image", self.paths.get("label"))
        return None if image is None else case_name(image)


@dataclass
class Listing:
    """What could be read of a ``dataset.json``, and its faults.

    Attributes:
        root: the dataset folder.
        cases: every entry, of all splits.
        labels: the classes (merged by the group asked for); None where they are faulty.
        faults: what is wrong.
    """

    root: Path
    cases: list[ListedCase] = field(default_factory=list)
    labels: LabelMap | None = None
    faults: list[Fault] = field(default_factory=list)

    @property
    def json_path(self) -> str:
        """Path of the ``dataset.json``."""
        return str(self.root / "dataset.json")

    def add(self, key: str, expected: str, found: str, level: Level = "error") -> None:
        """Add a fault of the ``dataset.json``."""
        self.faults.append(Fault(self.json_path, key, expected, found, level))


def read_listing(
    folder: str | Path, label_group: str | None = None, splits: Sequence[str] | None = None
) -> Listing:
    """Read and check the ``dataset.json`` of a folder; opens no volume.

    Args:
        folder: the dataset folder.
        label_group: name of a merge of labels that must exist, or None.
        splits: the splits that must have cases; default: training.
    """
    listing = Listing(Path(folder))
    content = _read_content(listing)
    if content is None:
        return listing
    _check_names(listing, content)
    _check_labels(listing, content, label_group)
    for split in SPLITS:
        _check_split(listing, split, content.get(split, []), content.get("channel_names") == {})
    _check_other_lists(listing, content)
    _check_counts(listing, content, splits)
    return listing


def _read_content(listing: Listing) -> dict[str, Any] | None:
    """Parse the file; None where nothing of it can be used."""
    path = Path(listing.json_path)
    repeated: Counter[str] = Counter()

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = Counter(key for key, _ in pairs)
        repeated.update({key: count for key, count in seen.items() if count > 1})
        return dict(pairs)

    if not listing.root.is_dir():
        fault = Fault(str(listing.root), "folder", "a dataset folder", "no folder there")
        listing.faults.append(fault)
        return None
    try:
        if not path.is_file():
            listing.add("file", "a JSON file", "nothing there" if not path.exists() else "no file")
            return None
        if path.stat().st_size > MAX_JSON_BYTES:
            listing.add("file", f"at most {MAX_JSON_BYTES} bytes", f"{path.stat().st_size} bytes")
            return None
        text = path.read_text(encoding="utf-8").removeprefix("\ufeff")
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError, OSError) as error:
        listing.add("file", "valid JSON", str(error) or type(error).__name__)
        return None
    for key, count in repeated.items():
        # a JSON reader keeps the last and drops the others without a word
        listing.add(key, "each key once in an object", f"{key!r} {count} times")
    if not isinstance(content, dict):
        listing.add("file", "an object", _kind(content))
        return None
    return content


def _check_names(listing: Listing, content: dict[str, Any]) -> None:
    """Check ``name``, ``channel_names`` and ``file_ending``."""
    name = content.get("name")
    if name is None:
        listing.add("name", "the dataset's name", "none", "warning")
    elif not isinstance(name, str) or not name.strip():
        listing.add("name", "the dataset's name", _shown(name))
    channels = channels_of(content)
    key = "channel_names" if channels is content.get("channel_names") else "modality"
    if channels is None:
        listing.add(key, '{"0": name of the image channel}', "none", "warning")
    elif not isinstance(channels, dict) or len(channels) > 1:
        listing.add(key, "one channel: an image is one 3D volume", _shown(channels))
    ending = content.get("file_ending")
    if ending is None:
        listing.add("file_ending", f"one of {list(VOLUME_ENDINGS)}", "none", "warning")
    elif ending not in VOLUME_ENDINGS:
        listing.add("file_ending", f"one of {list(VOLUME_ENDINGS)}", _shown(ending))


def _check_labels(listing: Listing, content: dict[str, Any], group: str | None) -> None:
    """Check ``labels`` and ``label_groups``; set ``listing.labels`` where both are sound."""
    before = len(listing.faults)
    labels = content.get("labels")
    if not isinstance(labels, dict):
        listing.add("labels", "names with values {name: value}", _kind(labels))
        return
    wrong = {name: value for name, value in labels.items() if not is_whole(value)}
    if wrong and all(name.isdecimal() and isinstance(labels[name], str) for name in wrong):
        found = f"{{value: name}}, the other way round: {_shown(labels)}"
        listing.add("labels", "names with values {name: value}", found)
    elif wrong:
        listing.add("labels", "one whole number for each name", _shown(wrong))
    values = Counter(value for value in labels.values() if is_whole(value))
    for value in sorted(value for value, count in values.items() if count > 1):
        names = [name for name, other in labels.items() if is_whole(other) and other == value]
        listing.add("labels", "a value of its own for each name", f"{value} for {names}")
    if not wrong and (0 not in values or len(values) < 2):
        expected = "0 for the background and at least one value more"
        listing.add("labels", expected, short_list(sorted(values)))
    unnamed = [name for name in labels if not name.strip()]
    if unnamed:
        listing.add("labels", "a name for each value", f"{labels[unnamed[0]]!r} without one")
    labels_sound = len(listing.faults) == before
    if group is not None and content.get("label_group") == group:
        group = None  # a generated folder, merged already: see DatasetFolder.labels
    background = next((name for name, value in labels.items() if value == 0), "background")
    _check_groups(listing, content.get("label_groups", {}), set(values), group, background)
    if labels_sound:
        # with a faulty group, values can still be checked against the label set
        sound = len(listing.faults) == before
        listing.labels = LabelMap.from_dataset_json(content, group if sound else None)


def _check_groups(
    listing: Listing, groups: Any, known: set[int], group: str | None, background: str
) -> None:
    """Check every entry of ``label_groups`` and that ``group`` is one of them."""
    if not isinstance(groups, dict):
        listing.add("label_groups", "merges by name {group: classes}", _kind(groups))
        return
    if group is not None and group not in groups:
        listing.add("label_group", f"one of {sorted(groups)}", repr(group))
    for name, classes in groups.items():
        where = f"label_groups.{name}"
        if not isinstance(classes, dict) or not classes:
            listing.add(where, "classes {index: {name, values}}", _kind(classes))
            continue
        merged: Counter[int] = Counter()
        names = Counter([background])
        for key, entry in classes.items():
            values = entry.get("values") if isinstance(entry, dict) else None
            named = isinstance(entry, dict) and isinstance(entry.get("name"), str)
            listed = isinstance(values, list) and bool(values) and all(map(is_whole, values))
            if not (key.isdecimal() and named and listed):
                expected = 'an index with {"name": name, "values": [whole numbers]}'
                listing.add(f"{where}.{key}", expected, _shown(entry))
                continue
            merged.update(values or [])
            if 0 not in (values or []):  # a class with the background's value is the background
                names[entry["name"]] += 1
        if merged and not set(merged) - {0}:
            listing.add(where, "a class besides the background", short_list([*merged]))
        unknown = sorted(set(merged) - known)
        if unknown:
            listing.add(where, f"values in {short_list(sorted(known))}", short_list(unknown))
        twice = sorted(value for value, count in merged.items() if count > 1)
        if twice:
            listing.add(where, "each value in one class", f"{short_list(twice)} more than once")
        same = sorted(name for name, count in names.items() if count > 1 or not name.strip())
        if same:
            expected = "a name of its own for each class (values of one class in one list)"
            listing.add(where, expected, ", ".join(map(repr, same)))


def _check_split(listing: Listing, split: str, entries: Any, only_labels: bool) -> None:
    """Check the entries of one split and add those with a usable path."""
    if not isinstance(entries, list):
        listing.add(split, "a list of cases", _kind(entries))
        return
    for index, entry in enumerate(entries):
        where = f"{split}[{index}]"
        # Decathlon's test lists hold bare image paths
        entry = {"image": entry} if isinstance(entry, str) else entry
        bare = only_labels and isinstance(entry, dict) and entry.get("label") is not None
        if not isinstance(entry, dict) or (entry.get("image") is None and not bare):
            listing.add(where, '{"image": path, "label": path}', _shown(entry))
            continue
        if entry.get("label") is None and split != "test":
            listing.add(f"{where}.label", "a label beside the image", "none")
        paths = dict(_paths(listing, where, entry))
        if paths:
            listing.cases.append(ListedCase(split, index, paths))


def _check_other_lists(listing: Listing, content: dict[str, Any]) -> None:
    """Warn of lists of cases that nothing reads: their names may be misspelt."""
    for key, entries in content.items():
        if key in SPLITS or not isinstance(entries, list):
            continue
        count = sum(isinstance(e, dict) and bool({"image", "label"} & e.keys()) for e in entries)
        if count:
            found = f"{count} case{'' if count == 1 else 's'} in a list that is not read"
            listing.add(key, f"lists of cases named {', '.join(SPLITS)}", found, "warning")


def _paths(listing: Listing, where: str, entry: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield role and path of what stays inside the folder; refuse the rest."""
    for role in ROLES:
        value = entry.get(role)
        if value is None:
            continue
        expected = "a path inside the dataset folder"
        if not isinstance(value, str) or not value:
            listing.add(f"{where}.{role}", expected, _shown(value))
            continue
        outside = leaves(listing.root, value)
        if outside is not None:
            listing.add(f"{where}.{role}", expected, outside)
        elif case_name(Path(value))[:1] in ("", "."):  # hidden, and so would be what is made of it
            listing.add(f"{where}.{role}", "a file with a name before its ending", repr(value))
        elif len(Path(value).name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
            expected = f"a file name of at most {MAX_NAME_BYTES} bytes"
            listing.add(f"{where}.{role}", expected, _shown(value))
        else:
            yield role, listing.root / value


def _check_counts(listing: Listing, content: dict[str, Any], splits: Sequence[str] | None) -> None:
    """Check that there are cases, where they are needed, and as many as announced."""
    counts = {
        split: len(content[split]) if isinstance(content.get(split), list) else 0
        for split in SPLITS
    }
    if not any(counts.values()):
        listing.add("training", "cases", "none in any split")
        return
    for split in splits or ("training",):
        if not counts[split]:
            listing.add(split, "cases", "none")
    announced = content.get("numTraining")
    if announced is not None and announced != counts["training"]:
        expected = f"{counts['training']}, the number of training cases"
        listing.add("numTraining", expected, _shown(announced), "warning")


def _kind(value: Any) -> str:
    """Return what kind of JSON value this is, for messages."""
    return "none" if value is None else f"{type(value).__name__} {_shown(value)}"


def _shown(value: Any) -> str:
    """Return a JSON value for a message, cut short where it is long or deep."""
    return _SHORT.repr(value)
