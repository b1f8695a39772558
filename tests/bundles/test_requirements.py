"""Packages that a bundle says it needs, beside MONAI, PyTorch and NumPy: those that it imports."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import medpair
from medpair.data.files import read_json
from tests.bundles.conftest import BUNDLES


def imported(modules: set[str]) -> set[str]:
    """Return the packages that some of MedPair's modules cannot be imported without."""
    todo, seen, packages = set(modules), set(), set()
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        path = Path(medpair.__file__).parents[1].joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            todo |= {name for name in names if name.split(".")[0] == "medpair"}
            packages |= {"tensorboard" if "tensorboard" in name else name for name in names}
    return {name.split(".")[0] for name in packages} - set(sys.stdlib_module_names) - {"medpair"}


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLES.iterdir()))
def test_required_packages_are_those_that_are_imported(name: str) -> None:
    configs = BUNDLES / name / "configs"
    text = "".join((configs / f"{kind}.json").read_text() for kind in ("train", "inference"))
    modules = {path.rpartition(".")[0] for path in re.findall(r'"(medpair(?:\.\w+)+)"', text)}
    assert len(modules) > 5
    called = {"PIL": "pillow", "ignite": "pytorch-ignite", "cc3d": "connected-components-3d"}
    needed = {called.get(package, package) for package in imported(modules)}
    stated = read_json(configs / "metadata.json")["required_packages_version"]
    assert needed <= {"monai", "torch", "numpy", *stated}
