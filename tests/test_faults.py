"""The 42 faults that a user or a machine may cause, and which tests provoke each of them.

A test names the faults that it provokes by ``@pytest.mark.fault(number, ...)``. ``python -m
tests.test_faults`` prints the table.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.bundles import test_config_faults, test_data_faults
from tests.data import test_strangers
from tests.hardness import test_full_disk, test_kill

TESTS = Path(__file__).parent

FAULTS = {
    1: "truncated volume",
    2: "empty file",
    3: "one flipped bit in a volume",
    4: "missing file in the dataset's list",
    5: "affines of image and label differ",
    6: "the same, brought to another spacing",
    7: "shapes of image and label differ",
    8: "label value that the labels do not have",
    9: "label values that are not whole",
    10: "label that no case has",
    11: "label map of background alone",
    12: "NaN or infinite voxels",
    13: "constant image",
    14: "four-dimensional image",
    15: "zero or negative voxel size",
    16: "anisotropic or oblique spacing",
    17: "volume smaller than the patch",
    18: "patch that the network cannot halve",
    19: "empty list; a case in two lists",
    20: "two cases of one name",
    21: "images and labels of unequal number",
    22: "folder of DICOM slices for a volume",
    23: "unknown knob on the command line",
    24: "key given twice, or no JSON, in a configuration",
    25: "misspelt argument in a configuration",
    26: "arbitrary code in a configuration",
    27: "hostile logging.conf",
    28: "pickled object for weights",
    29: "truncated checkpoint",
    30: "killed while saving",
    31: "SIGTERM or Ctrl-C",
    32: "disk full",
    33: "resumed with other architecture, seed or data",
    34: "resumed in the middle of an epoch",
    35: "loss or gradient that is not finite",
    36: "loss scale that shrinks to nothing",
    37: "out of memory on the accelerator",
    38: "accelerator asked for where there is none",
    39: "step count that makes noise",
    40: "damaged cache",
    41: "metrics of empty, full and one-voxel masks",
    42: "distances of one row, NaN, few rows, unequal sets",
}

MARK = "pytest.mark.fault"
CHAIN = "hardness/test_chain_kill.py"


def register() -> dict[int, list[str]]:
    """Return the tests of each fault, as ``file::name``, read from the files' source."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        # a mark of the whole file
        assigned = [node for node in module.body if isinstance(node, ast.Assign)]
        shared = [n.value for n in assigned if ast.unparse(n.targets[0]) == "pytestmark"]
        for node in module.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.relative_to(TESTS).as_posix()}::{node.name}"
                for mark in [*shared, *node.decorator_list]:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == MARK:
                        for number in mark.args:
                            found[ast.literal_eval(number)].append(name)
    return found


def table() -> str:
    """Return the register as Markdown."""
    found = register()
    lines = ["| | fault | provoked by |", "|---|---|---|"]
    for number, fault in FAULTS.items():
        tests = ", ".join(f"`{name}`" for name in found.get(number, []))
        lines.append(f"| {number} | {fault} | {tests} |")
    return "\n".join(lines)


def either(file: str, name: str) -> tuple[int, int]:
    """Return a number of a test file for ``make test`` and ``make test-long``."""
    for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value = node.value
            assert isinstance(value, ast.IfExp)
            return ast.literal_eval(value.orelse), ast.literal_eval(value.body)
    raise AssertionError(f"{file} has no {name}")


def trials() -> list[tuple[str, int, int]]:
    """Return what is tried and how often, in ``make test`` and in ``make test-long``."""
    fuzz = "data/test_fuzz_volumes.py"
    _, times = either(fuzz, "TIMES")
    examples = re.findall(r"max_examples=(\d+) \* TIMES", (TESTS / fuzz).read_text("utf-8"))
    images, labels, folders, *others = map(int, examples)
    trained, used = len(test_data_faults.SMALL), len(test_data_faults.GENERATORS)
    damages = [kind for _, kind, _ in test_data_faults.DAMAGES.values()]
    of_volumes = sum(kind in (test_data_faults.IMAGE, test_data_faults.LABEL) for kind in damages)
    kills, chain = either("hardness/test_kill.py", "KILLS"), either(CHAIN, "KILLS")
    runs = len(test_kill.BUNDLES) * len(test_kill.KINDS)
    pairs = either("hardness/test_long_run.py", "PAIRS")
    hostile = len(test_config_faults.HOSTILE) + len(test_config_faults.HOSTILE_TARGETS)
    writers = 2 * len(test_full_disk.WRITERS)

    def same(count: int) -> tuple[int, int]:
        return count, count

    return [
        ("kills (SIGKILL) of training and generation, five bundles", *(runs * n for n in kills)),
        ("kills of a whole chain of bundles", *chain),
        (
            "pairs written by one run, the folder looked at meanwhile",
            *pairs,
        ),
        ("writers on a full disk and under a limit of file size", *same(writers)),
        ("damaged datasets given to training bundles", *same(len(damages) * trained)),
        ("damaged volumes given to bundles that use weights", *same(of_volumes * used)),
        (
            "random images and grids: the same after a round trip, or refused",
            images,
            images * times,
        ),
        ("random label maps, likewise", labels, labels * times),
        ("random whole datasets, likewise", folders, folders * times),
        ("random `dataset.json`, headers with flipped bits", sum(others), sum(others) * times),
        ("absurd numbers in a `model.json`", *same(len(test_strangers.ABSURD))),
        ("hostile expressions and targets in a configuration", *same(hostile)),
    ]


def rows() -> str:
    """Return the trials as rows of the README's table."""
    return "".join(
        f"| {what} | {short:,}{f' ({long:,})' if long != short else ''} |\n"
        for what, short, long in trials()
    )


def test_the_readme_says_what_is_tried() -> None:
    assert rows() in (TESTS.parent / "README.md").read_text(encoding="utf-8")


def test_every_fault_is_provoked() -> None:
    found = register()
    missing = {number: fault for number, fault in FAULTS.items() if number not in found}
    assert not missing
    assert set(found) == set(FAULTS)
    names = {name.partition("::")[2] for tests in found.values() for name in tests}
    assert all(name.startswith("test_") for name in names)


if __name__ == "__main__":
    print(table())
    print(rows())
