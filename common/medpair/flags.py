"""Flags of the verbs, checked before a verb runs."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

# What Fire takes for a flag, and so for no value of the flag before it
FLAG = re.compile(r"--|-[a-zA-Z]")


def refuse_unknown_flags(
    verbs: Mapping[str, Any], words: Sequence[str], command: str = "medpair"
) -> None:
    """Refuse a misspelt flag, and one with a value that it cannot have, before the verb has run.

    Fire complains of the first afterwards, and takes a flag without its value for True.

    Args:
        verbs: functions by name; a mapping in place of a function holds verbs of its own.
        words: of the command line.
        command: what comes before them.

    Raises:
        ValueError: names the flag and the one that it resembles, or what it may be, or the verb.
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
    hints = get_type_hints(verbs[verb])
    switches = [name for name, hint in hints.items() if is_switch(hint)]
    for word, after in zip(words[1:], [*words[2:], "--"], strict=False):
        if word == "--":
            return
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        given = value if equals else None if FLAG.match(after) else after
        if given is not None and (read := _strict_reader(key, hints.get(key))):
            read(given)
        elif key in known and key not in switches and given is None:
            raise ValueError(f"{word}: expected a value, found none")
        negated = key.startswith("no") and key[2:] in switches  # Fire's way of saying False
        if negated and given is not None:
            raise ValueError(f"--{key}: expected no value, found {given!r}")
        if negated or key in (*known, "help"):
            continue
        near = difflib.get_close_matches(key, known, 1)
        hint = f"; did you mean --{near[0]}?" if near else f" of {known}"
        raise ValueError(f"{word}: expected a flag of {command} {verb}, found none{hint}")


def help_alone(verbs: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """Return the verb and ``--help`` where a command line asks for help anywhere, or all its words.

    Fire runs a verb that has all it needs, and then helps with what the verb returns:
    ``medpair generate medgen3d --help`` began to generate.

    Args:
        verbs: functions by name; a mapping in place of a function holds verbs of its own.
        words: of the command line.
    """
    own = list(words[: words.index("--")] if "--" in words else words)
    if not {"--help", "-h"} & set(own):
        return list(words)
    path: list[str] = []
    level: Any = verbs
    for word in own:
        if not isinstance(level, Mapping) or word not in level:
            break
        path.append(word)
        level = level[word]
    return [*path, "--help"]


def read_by_annotations(verbs: Mapping[str, Any]) -> None:
    """Have Fire read the words of a command line as the verbs' annotations say.

    By itself it takes every word for a Python literal if it can: the folder 2024_05_01 for
    20240501, cohort#2 for cohort; and false, which is none, for a string, which counts as true.
    ``str`` and ``Path`` get the word as it was typed, and where they may be None, None; ``bool``
    gets True or False, ``int`` a whole number. Where several strings may be given, so does a word
    that is no Python list: a case may be called 0000. All others are read as before.

    Args:
        verbs: functions by name; a mapping in place of a function holds verbs of its own.
    """
    from fire import decorators

    # Fire hangs this on the function, where its help would list it as a group of commands
    decorators.FIRE_METADATA = "__fire_metadata__"
    for verb in verbs.values():
        if isinstance(verb, Mapping):
            read_by_annotations(verb)
            continue
        hints = get_type_hints(verb)
        for name, parameter in inspect.signature(verb).parameters.items():
            reader = _reader(name, hints.get(name, Any))
            if parameter.kind is parameter.VAR_POSITIONAL:
                decorators.SetParseFn(reader)(verb)  # Fire has no other way to name these
            else:
                decorators.SetParseFn(reader, name)(verb)


def truth(flag: str, word: str) -> bool:
    """Return what ``True`` or ``False`` says.

    Raises:
        ValueError: if the word is another; names the flag.
    """
    if word not in ("True", "False"):
        raise ValueError(f"--{flag}: expected True or False, found {word!r}")
    return word == "True"


def whole_number(flag: str, word: str) -> int:
    """Return the whole number that a word is.

    Raises:
        ValueError: if it is none; names the flag.
    """
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"--{flag}: expected a whole number, found {word!r}") from None


def is_switch(hint: Any) -> bool:
    """Return whether a parameter with this annotation is True or False."""
    return _kinds(hint) - {NoneType} == {bool}


def _kinds(hint: Any) -> set[Any]:
    """Return the types that an annotation allows."""
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def _strict_reader(name: str, hint: Any) -> Callable[[str], Any] | None:
    """Return what reads a parameter's word, or refuses it; None where any word will do."""
    if is_switch(hint):
        return partial(truth, name)
    kinds = _kinds(hint)
    if kinds - {NoneType} != {int}:
        return None
    if NoneType in kinds:
        return lambda word: None if word == "None" else whole_number(name, word)
    return partial(whole_number, name)


def _reader(name: str, hint: Any) -> Callable[[str], Any]:
    """Return what turns the word that was typed into a parameter's value."""
    from fire.parser import DefaultParseValue

    strict = _strict_reader(name, hint)
    if strict is not None:
        return strict
    kinds = _kinds(hint)
    several = Sequence[str] in kinds
    if not kinds <= {str, Path, NoneType, Sequence[str]}:
        return DefaultParseValue

    def read(word: str) -> Any:
        if NoneType in kinds and word == "None":
            return None
        return DefaultParseValue(word) if several and word[:1] in tuple("[('\"") else word

    return read


def folder_word(folder: str | Path) -> str:
    """Return a folder's name so that the runner of bundles takes it for a name, too.

    Its command line reads Python literals: where the name is one, the whole path is none.
    """
    from fire.parser import DefaultParseValue

    word = str(folder)
    return word if DefaultParseValue(word) == word else str(Path(word).absolute())


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
