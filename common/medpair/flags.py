"""Flags of the verbs, checked before a verb runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def refuse_unknown_flags(
    verbs: Mapping[str, Any], words: Sequence[str], command: str = "medpair"
) -> None:
    """Refuse a misspelt flag before the verb has run: Fire complains afterwards.

    Args:
        verbs: functions by name; a mapping in place of a function holds verbs of its own.
        words: of the command line.
        command: what comes before them.

    Raises:
        ValueError: names the flag and the one that it resembles, or the verb.
    """
    verb = words[0] if words else ""
    if verb not in verbs:
        return
    if isinstance(verbs[verb], Mapping):
        under = words[1] if len(words) > 1 else "none"
        if under not in verbs[verb] and under not in ("-h", "--help", "--"):
            raise ValueError(f"{verb}: expected one of {', '.join(verbs[verb])}, found {under}")
        refuse_unknown_flags(verbs[verb], words[1:], f"{command} {verb}")
        return
    known = list(inspect.signature(verbs[verb]).parameters)
    for word in words[1:]:
        if word == "--":
            return
        key = word[2:].partition("=")[0].replace("-", "_")
        if not word.startswith("--") or key in (*known, "help"):
            continue
        if key.startswith("no") and key[2:] in known:  # Fire's way of saying False
            continue
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean --{near[0]}?" if near else f" of {known}"
        raise ValueError(f"{word}: expected a flag of {command} {verb}, found none{hint}")


def numbers(value: Any) -> list[float]:
    """Return ``128,128,64`` or (128, 128, 64) as a list of three numbers.

    Raises:
        ValueError: if it is anything else.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        result = [float(part) for part in parts]
    except (TypeError, ValueError):
        result = []
    if len(result) != 3:
        raise ValueError(
            f"size or spacing: expected three numbers such as 128,128,64, found {value!r}"
        )
    return result


def listed(value: Any) -> list[Any]:
    """Return one value, several, or text with commas between them as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Iterable) else [value]
