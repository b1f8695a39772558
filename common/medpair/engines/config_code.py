"""What a configuration from elsewhere would run: MONAI evaluates it as Python.

A configuration is a program: ``$`` entries are expressions, ``_target_`` calls anything that can be
imported. Those of this package need little of that: their expressions are references, arithmetic
and single calls, their targets building blocks. What needs more is listed here, so that a person
can look at it before it runs. The list is a help to judge by and no wall: run only what you trust.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medpair.data.faults import Fault
from medpair.data.files import DataError, read_json

# Libraries that ``imports`` may name
LIBRARIES = {"torch", "monai", "sys"}  # of sys nothing but OWN_FOLDER below
# What expressions may call or read of them
TRUSTED = {
    "torch.device",
    "torch.manual_seed",
    "torch.cuda.is_available",
    "torch.cuda.device_count",
    "monai.handlers.from_engine",
}
BUILTINS = {"bool", "float", "int", "len", "list", "max", "min", "round", "str", "sum", "tuple"} | {
    "abs",
    "dict",
    "range",
    "sorted",
    "vars",
}
# Where components may come from; a name without a dot is a class of MONAI's
TARGETS = re.compile(
    r"[A-Z]\w*|medpair\.(data|diffusion|engines|inferers|metrics|networks|report)\.[\w.]+|"
    r"monai\.(data|engines|handlers|inferers|losses|metrics|networks|optimizers|transforms)\.[\w.]+|"
    r"ignite\.(handlers|metrics)\.[\w.]+|torch\.(nn|optim)\.[\w.]+|"
    r"torch\.utils\.data\.(DataLoader|distributed\.DistributedSampler)"
)
# Names of classes that run what they are given
RUNS_CODE = {
    "Lambda",
    "Lambdad",
    "TorchVision",
    "TorchVisiond",
    "TorchIO",
    "TorchIOd",
    "RandLambda",
}
REFERENCE = re.compile(r"@[\w#:]*\w")
HARMLESS = (
    *(ast.Expression, ast.Constant, ast.Load, ast.Name, ast.Attribute, ast.Subscript, ast.Slice),
    *(ast.Call, ast.keyword, ast.List, ast.Tuple, ast.Dict, ast.Starred, ast.IfExp, ast.Compare),
    *(ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
# A bundle may put its own folder on Python's path: that is where its code is packed
OWN_FOLDER = "sys.path.insert(0, @bundle_root)"


def is_bundle(path: str | Path) -> bool:
    """Return whether a path is a configuration file or a bundle's folder, and no dataset."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".json" and path.name != "dataset.json"
    return (path / "configs").is_dir() and not (path / "dataset.json").exists()


def foreign_code(path: str | Path) -> list[Fault]:
    """Return what the configurations of a bundle would run beyond what ours need.

    Nothing is run or imported.

    Args:
        path: a configuration file, or a bundle's folder: all of its ``configs``.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted((path / "configs").iterdir())
    faults: list[Fault] = []
    for file in files:
        if file.suffix in (".yaml", ".yml"):
            faults.append(Fault(str(file), "file", "JSON, which can be checked", "YAML"))
        if file.suffix != ".json":
            continue
        try:
            content = read_json(file)
        except DataError as error:
            reason = str(error).removeprefix(f"{file}: ")
            faults.append(Fault(str(file), "file", "a configuration", reason))
            continue
        for key, value in _texts("", content):
            foreign = _reason(key, value)
            if foreign is not None:
                faults.append(Fault(str(file), key, *foreign))
    return faults


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every text of a configuration with its place, such as ``train#handlers#0``."""
    stack = [(key, value)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            stack += [(f"{key}#{name}".lstrip("#"), item) for name, item in value.items()]
        elif isinstance(value, list):
            stack += [(f"{key}#{index}", item) for index, item in enumerate(value)]


def _reason(key: str, text: str) -> tuple[str, str] | None:
    """Return what was expected and found of one text, or None where it is harmless."""
    last = key.rpartition("#")[2]
    if last == "_target_":
        if TARGETS.fullmatch(text) and text.rpartition(".")[2] not in RUNS_CODE:
            return None
        return "a building block of MedPair, MONAI, Ignite or PyTorch", repr(text)
    if last == "_mode_" and text != "default":
        return "no other mode than default", repr(text)
    if text.startswith("%") and (text[1:2] in "/~" or ".." in text):
        return "a file of the bundle", repr(text)
    if text.startswith("$"):
        found = _foreign(text[1:])
        return None if found is None else ("an expression of references and single calls", found)
    return None


def _foreign(expression: str) -> str | None:
    """Return the part of an expression that is not harmless, or None."""
    if expression.strip() == OWN_FOLDER:
        return None
    imported = re.fullmatch(r"import (\w+)", expression.strip())
    if imported is not None:
        return None if imported[1] in LIBRARIES else repr(expression)
    try:
        tree = ast.parse(REFERENCE.sub("_reference", expression).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"no expression: {expression!r}"
    allowed: set[int] = set()
    for node in ast.walk(tree):
        dotted = _dotted(node)
        if dotted in TRUSTED:
            allowed |= {id(inner) for inner in ast.walk(node)}
        if id(node) in allowed:
            continue
        if not isinstance(node, HARMLESS):
            return f"{type(node).__name__.lower()} in {expression!r}"
        if isinstance(node, ast.Name) and node.id not in {*BUILTINS, "_reference"}:
            return f"{dotted} in {expression!r}"
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or "format" in node.attr):
            return f"{node.attr} in {expression!r}"
    return None


def _dotted(node: ast.AST) -> str | None:
    """Return ``a.b.c`` for the node that reads it."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = _dotted(node.value)
        return None if left is None else f"{left}.{node.attr}"
    return None
