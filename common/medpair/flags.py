"""Flags of the verbs, checked before a verb runs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any


def refuse_unknown_flags(verbs: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse a misspelt flag before the verb has run: Fire complains afterwards.

    Raises:
        ValueError: names the flag and the one that it resembles.
    """
    if not words or words[0] not in verbs:
        return
    known = list(inspect.signature(verbs[words[0]]).parameters)
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
        raise ValueError(f"{word}: expected a flag of medpair {words[0]}, found none{hint}")
