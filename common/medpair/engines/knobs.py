"""Misspelt knobs: MONAI's runner takes any ``--key`` in silence, known or not.

The command line and the config files are read again, without touching MONAI: a knob must be an
entry of a config, or be referred to by one (``@knob``). Nor does it say what Fire made of a word.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair.data.dataset import as_folders
from medpair.data.files import DataError, read_json

# What belongs to the runner itself
RUNNER = {
    *("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking"),
    *("args_file", "workflow_type", "workflow_name"),
    # experiment tracking (``--tracking mlflow``)
    *("tracking_uri", "experiment_name", "run_name", "save_execute_config"),
}
# What can be run: the three of every config, and what an overlay adds for --run_id
RUNS = {"initialize", "run", "finalize", "write_initial"}
REFERENCE = re.compile(r"@(\w+)")
# Knobs that are text: folders, files, names; dataset_dir may be a list of them
TEXTS = ("bundle_root", "dataset_dir", "output_dir", "ckpt_path")
NAMES = ("label_group", "real_label_group")


def refuse_unknown_knobs(argv: Sequence[str] | None = None) -> None:
    """Refuse knobs on the command line, and entries of overlays, that nothing uses.

    Does nothing unless this process is ``python -m monai.bundle run``. Configs that are not JSON
    are not looked at.

    Args:
        argv: the command line; default this process's.

    Raises:
        DataError: names the knob, the config, and the knob that it resembles.
    """
    given = given_options(argv)
    if given is None:
        return
    if "args_file" in given:
        given = {**read_json(given["args_file"]), **given}
    if "config_file" not in given:
        return
    value = given["config_file"]
    files = as_folders(value if isinstance(value, str) else [str(path) for path in value])
    if any(path.suffix != ".json" for path in files):
        return
    configs = [read_json(path) for path in files]
    known = {*RUNS, *configs[0]} | {
        name for config in configs for name in REFERENCE.findall(str(config))
    }
    for path, config in zip(files[1:], configs[1:], strict=True):
        _check(config, known, f"{path}: ", files[0].name)
    known |= {top_of(key) for config in configs for key in config}
    _check({key: None for key in given if key not in RUNNER}, known, "--", _names(files))


def refuse_misread_texts(argv: Sequence[str] | None = None) -> None:
    """Refuse a folder, file or name that Fire reads as something else than was typed.

    It takes every word for a Python literal if it can: the folder 2024_05 for the number 202405,
    and run#2, of which the rest looks like a comment, for run.

    Args:
        argv: the command line; default this process's.

    Raises:
        DataError: names the knob, what was typed, what it was read as, and how to write it.
    """
    from fire.parser import DefaultParseValue

    given = given_options(argv) or {}
    for key in (*TEXTS, *NAMES):
        word = given.get(key)
        if word is None or word[:1] in ("'", '"'):
            continue
        found = DefaultParseValue(word)
        if found is None or found == word:
            continue
        form = f"./{word}" if key in TEXTS else f"\"'{word}'\""
        if isinstance(found, (list, tuple)) and key == "dataset_dir":
            if all(isinstance(folder, str) for folder in found):
                continue
            folders = [f"./{folder.strip()}" for folder in word.strip("[]()").split(",")]
            form = f'"{folders}"'
        raise DataError(
            f"--{key} {word}: expected text, found what the runner reads as {found!r}; "
            f"write --{key} {form}"
        )


def given_options(argv: Sequence[str] | None) -> dict[str, str] | None:
    """Return the options of ``python -m monai.bundle run``; None for any other program."""
    words = list(sys.argv if argv is None else argv)
    if Path(words[0]).parts[-3:] != ("monai", "bundle", "__main__.py") or words[1:2] != ["run"]:
        return None
    return _options(words[2:])


def _check(keys: Mapping[str, Any], known: set[str], where: str, config: str) -> None:
    for key in keys:
        top = top_of(key)
        if top in known or top.startswith("_"):
            continue
        near = difflib.get_close_matches(top, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{where}{key}: expected a knob of {config}, found no use of {top!r}{hint}")


def top_of(key: str) -> str:
    """Return the top-level entry that a key such as ``+train#trainer#amp`` belongs to."""
    return re.split("#|::", key.lstrip("+%"), maxsplit=1)[0]


def _names(files: Sequence[Path]) -> str:
    return " + ".join(path.name for path in files)


def _options(words: Sequence[str]) -> dict[str, str]:
    """Return the options as Fire takes them: ``--key value`` or ``--key=value``."""
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        if not word.startswith("--") or word == "--":
            continue
        key, equals, value = word[2:].partition("=")
        if not equals and index + 1 < len(words):
            value = words[index + 1]
        # dashes in names, not in what is nested
        found[key.replace("-", "_")] = value
    return found
