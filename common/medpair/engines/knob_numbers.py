"""Numbers that a knob cannot have, refused before anything is read.

PyTorch and ignite judge them too, but late and in other words: a batch size of 0 in a data loader,
a negative rate in an optimizer, no iterations at all by a warning and the exit code 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medpair.data.dataset import as_folders
from medpair.data.files import DataError, read_json
from medpair.engines.knobs import given_options

FROM_ONE = ("batch_size", "max_epochs", "val_interval", "log_interval", "iterations_per_epoch")
FROM_ZERO = ("num_workers", "seed")
RATES = ("learning_rate", "_lr", "early_rate")


def refuse_wrong_numbers(argv: Sequence[str] | None = None) -> None:
    """Refuse numbers on the command line and in config files that their knobs cannot have.

    Does nothing unless this process is ``python -m monai.bundle run``. What is no number yet
    (an expression, a reference) is left to whom it is for.

    Args:
        argv: the command line; default this process's.

    Raises:
        DataError: names the knob, what was expected and what was found.
    """
    from fire.parser import DefaultParseValue

    given = given_options(argv)
    if given is None:
        return
    if "args_file" in given:
        _check(read_json(given["args_file"]), f"{given['args_file']}: ")
    for path in as_folders(given["config_file"]) if "config_file" in given else ():
        if path.suffix == ".json":
            _check(read_json(path), f"{path}: ")
    _check({key: DefaultParseValue(word) for key, word in given.items()}, "--")


def _check(knobs: Mapping[str, Any], where: str) -> None:
    for key, value in knobs.items():
        if isinstance(value, (str, list, dict, tuple)) or (value is None and key != "seed"):
            continue
        expected = _wanted(key, value)
        if expected is not None:
            raise DataError(f"{where}{key}: expected {expected}, found {value!r}")


def _wanted(key: str, value: Any) -> str | None:
    """Return what a knob expects where ``value`` is something else."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    if key in FROM_ONE and not (whole and value >= 1):
        return "a whole number of at least 1"
    if key in FROM_ZERO and not (whole and value >= 0):
        return "a whole number of at least 0"
    if key.endswith(RATES) and not (number and value >= 0):
        return "a number of at least 0"
    if key == "averaging" and not (number and 0 <= value < 1):
        return "a number from 0 to below 1"
    return None
