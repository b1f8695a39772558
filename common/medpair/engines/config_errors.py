"""Wrong arguments in a configuration, told in one line.

MONAI says "Failed to instantiate component ... set _mode_=debug" and leaves what was wrong to the
chain of causes, forty lines above.
"""

from __future__ import annotations

import difflib
import inspect
import linecache
import re
from pydoc import locate
from typing import Any

import medpair

FAILED = re.compile(r"Failed to instantiate component '([^']+)' with keywords: (.*)")


def argument_refusal(error: BaseException) -> str | None:
    """Return what was wrong with the arguments of a component, or None if that was not it.

    Two things are told: arguments that a component does not have, or that it lacks, with its
    signature; and a ``ValueError`` that this package raised over a value.

    Args:
        error: as it ended the process.
    """
    name, keywords, cause = "", "", None
    current: BaseException | None = error
    while current is not None:
        if type(current) is ValueError and _raised_by_us(current):
            return f"{name}: {current}" if name else str(current)
        failed = FAILED.match(str(current))
        if failed is not None:
            # the innermost component is the one whose arguments are wrong
            (name, keywords), cause = failed.groups(), current.__cause__
        current = current.__cause__ or current.__context__
    if isinstance(cause, TypeError):
        return _misfit(name, [word for word in keywords.split(",") if word])
    return None


def _misfit(name: str, keywords: list[str]) -> str | None:
    """Return which keywords do not fit a component's signature, or None if all do."""
    try:
        signature = inspect.signature(locate(name))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built in, or not to be found
        return None
    known = signature.parameters
    free = any(item.kind is item.VAR_KEYWORD for item in known.values())
    unknown = [] if free else [word for word in keywords if word not in known]
    lacking = [
        item.name
        for item in known.values()
        if item.default is item.empty
        and item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
        and item.name not in keywords
    ]
    if not unknown and not lacking:
        return None
    near = [difflib.get_close_matches(word, known, 1) for word in unknown]
    hints = [f"; did you mean {match[0]}?" for match in near if match]
    found = [*(f"{word!r}" for word in unknown), *(f"no {word!r}" for word in lacking)]
    arguments = ", ".join(_shown(item) for item in known.values())
    return (
        f"{name}: expected the arguments ({arguments}), found {', '.join(found)}"
        f"{hints[0] if hints else ''}"
    )


def _shown(item: inspect.Parameter) -> str:
    stars = "*" * (item.kind is item.VAR_POSITIONAL) + "**" * (item.kind is item.VAR_KEYWORD)
    return f"{stars}{item.name}" + ("" if item.default is item.empty else f"={item.default!r}")


def _raised_by_us(error: BaseException) -> bool:
    """Return whether an error was raised on purpose, by a ``raise`` of this package."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    file = trace.tb_frame.f_code.co_filename
    line = linecache.getline(file, trace.tb_lineno)
    return file.startswith(medpair.__path__[0]) and line.lstrip().startswith("raise ")
