"""What a workflow was really given, from Python as from the command line: knobs, types, arguments.

``ConfigWorkflow(..., num_sampels=8)`` merges its overrides into its parser and says nothing. What
is merged is known to the parser alone: a component is handed only the entries that its arguments
refer to, resolved; an expression sees (``__local_refs``) only what was resolved before it; and a
macro (``%``) copies entries, but the copies are resolved too, so that asking for all of them would
build a second copy of every network. So the workflow that is being initialized is looked up among
the callers of this code; nothing of it is changed. Where there is none, nothing is checked.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

from medpair.data.files import DataError, read_json
from medpair.engines.knobs import REFERENCE, top_of

# Entries that MONAI adds to a config for experiment tracking
TRACKING = {key for setting in DEFAULT_EXP_MGMT_SETTINGS.values() for key in setting["configs"]}
# What a config entry that is not plain begins with: expression, reference, macro
SPECIAL = ("$", "@", "%")
OWN = "medpair."


def refuse_unknown_overrides(workflow: ConfigWorkflow | None = None) -> None:
    """Refuse entries that nothing uses, text for flags and numbers, arguments that do not exist.

    Args:
        workflow: default: the one that is being initialized by a caller; if there is none, or its
            configs are not JSON files of one folder, nothing is checked.

    Raises:
        DataError: names the entry, and the one that it resembles.
    """
    workflow = _caller() if workflow is None else workflow
    if workflow is None:
        return
    parser = workflow.parser
    config: dict[str, Any] = parser.get()
    files = _files_read(Path(workflow.config_root_path), parser)
    main = {path: content for path, content in files.items() if "initialize" in content}
    if not main:
        return
    # presets that only change values of the main config cannot be told from others
    base = {key for content in main.values() for key in content}
    named = [path for path, content in files.items() if path in main or set(content) - base]
    where = " + ".join(path.name for path in sorted(named, key=lambda path: path not in main))
    _check_entries(config, files, where)
    _check_sections(config, files, where)
    _check_types(config, files)
    for name, item in parser.ref_resolver.items.items():
        if isinstance(item, ConfigComponent):
            _check_arguments(name.replace("::", "#"), item)


def _caller() -> ConfigWorkflow | None:
    """Return the workflow whose method called this code, or None."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _files_read(folder: Path, parser: Any) -> dict[Path, dict[str, Any]]:
    """Return the config files that a parser must have read: all that they say is in it."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        if path.name == "metadata.json" or not isinstance(content, dict):
            continue
        if all(key.lstrip("+") in parser for key in content):
            found[path] = content
    return found


def _check_entries(config: dict[str, Any], files: Mapping[Path, Any], where: str) -> None:
    known = {top_of(key) for content in files.values() for key in content} | TRACKING
    known |= set(REFERENCE.findall(str(config)))
    for key in config:
        if not key.startswith("_"):
            _expect(key, known, key, f"a knob of {where}")


def _check_sections(config: dict[str, Any], files: Mapping[Path, Any], where: str) -> None:
    """Look into the sections, such as ``train``, that components stand in."""
    for section, entries in config.items():
        given = [content[section] for content in files.values() if section in content]
        parts = [part for part in given if isinstance(part, dict) and "_target_" not in part]
        if not any(
            isinstance(e, dict) and "_target_" in e for part in parts for e in part.values()
        ):
            continue
        known = {key for part in parts for key in part}
        for content in files.values():
            paths = [key.lstrip("+").replace("::", "#").split("#") for key in content]
            known |= {path[1] for path in paths if path[0] == section and len(path) > 1}
        for key in entries if isinstance(entries, dict) else ():
            _expect(key, known, f"{section}#{key}", f"an entry of {section} in {where}")


def _check_types(config: dict[str, Any], files: Mapping[Path, Any]) -> None:
    """Refuse text where a flag or a number is expected: the text "false" counts as true."""
    for content in files.values():
        for key, default in content.items():
            value = config.get(key)
            if not isinstance(value, str) or value.startswith(SPECIAL):
                continue
            is_flag = str(default).startswith("$") and str(default).endswith("== 'cuda'")
            if isinstance(default, bool) or is_flag:
                raise DataError(f"{key}: expected True or False, found the text {value!r}")
            if isinstance(default, (int, float)):
                raise DataError(f"{key}: expected a number, found the text {value!r}")


def _check_arguments(name: str, item: ConfigComponent) -> None:
    target = item.resolve_module_name()
    component = locate(target) if isinstance(target, str) else target
    known = None if component is None else accepted(component)
    if known is None:
        return
    for key in item.resolve_args():
        _expect(key, known, f"{name}#{key}", f"an argument of {str(target).rpartition('.')[2]}")


def accepted(component: Any) -> set[str] | None:
    """Return the names of the arguments that a class or function takes; None: it takes any.

    A class of this package that passes ``**kwargs`` on does so to the class that it extends.
    """
    names: set[str] = set()
    own = inspect.isclass(component) and component.__module__.startswith(OWN)
    makers = [c.__init__ for c in component.__mro__ if "__init__" in vars(c)] if own else []
    for maker in makers or [component]:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except (TypeError, ValueError):
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names - {"self"}
    return None


def _expect(key: str, known: Iterable[str], name: str, what: str) -> None:
    """Raise DataError unless ``key`` is one of the known ones."""
    names = sorted(known)
    if key in names:
        return
    near = difflib.get_close_matches(key, names, 1)
    hint = f"; did you mean {near[0]}?" if near else f" ({', '.join(names)})"
    raise DataError(f"{name}: expected {what}, found none of that name{hint}")
