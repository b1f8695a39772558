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

MISSPELT = re.compile(r"unexpected keyword argument '(\w+)'")
MISSING = re.compile(r"missing (?:\d+|a) required (?:\S+ )?arguments?: (.*)")
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
        return _misfit(name, [word for word in keywords.split(",") if word], str(cause))
    return None


def _misfit(name: str, keywords: list[str], said: str) -> str | None:
    """Return which keywords do not fit a component's signature; None if ``said`` is of else."""
    misspelt, missing = MISSPELT.search(said), MISSING.search(said)
    if misspelt is None and missing is None:
        return None
    known = _parameters(locate(name))
    lacking = [] if missing is None else re.findall(r"'(\w+)'", missing[1])
    free = any(item.kind is item.VAR_KEYWORD for item in known.values())
    unknown = [word for word in keywords if word not in known]
    if free:  # what is passed on cannot be judged, unless it stands for what is lacking
        unknown = [word for word in unknown if difflib.get_close_matches(word, lacking, 1)]
    if misspelt is not None and misspelt[1] not in unknown:
        unknown.append(misspelt[1])
    near = [difflib.get_close_matches(word, [*known, *lacking], 1) for word in unknown]
    hints = [f"; did you mean {match[0]}?" for match in near if match]
    found = [*(f"{word!r}" for word in unknown), *(f"no {word!r}" for word in lacking)]
    arguments = ", ".join(_shown(item) for item in known.values())
    return (
        f"{name}: expected the arguments ({arguments}), found {', '.join(found)}"
        f"{hints[0] if hints else ''}"
    )


def _parameters(component: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a component, with those of the classes that it passes them on to."""
    found: dict[str, inspect.Parameter] = {}
    calls = [component]
    if inspect.isclass(component):
        calls = [vars(part)["__init__"] for part in component.__mro__ if "__init__" in vars(part)]
    for call in calls:
        try:
            own = dict(inspect.signature(call).parameters)
        except (TypeError, ValueError):  # built in
            break
        own.pop("self", None)
        found = {name: item for name, item in found.items() if item.kind is not item.VAR_KEYWORD}
        found = {**found, **{name: own[name] for name in own if name not in found}}
        if not any(item.kind is item.VAR_KEYWORD for item in own.values()):
            break
    return {name: item for name, item in found.items() if item.kind is not item.VAR_POSITIONAL}


def _shown(item: inspect.Parameter) -> str:
    stars = "**" if item.kind is item.VAR_KEYWORD else ""
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
