"""Which MedPair a bundle runs: a packed bundle carries its own, and Python imports only one."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

import medpair
from medpair.data.files import DataError

PACKAGE = "medpair"
MANIFEST = "manifest.json"


def package_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a package in sorted order, without what Python and editors leave."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield path


def code_digest(folder: str | Path) -> str:
    """Return one SHA-256 for the names and contents of all files of a package."""
    digest = hashlib.sha256()
    root = Path(folder)
    for path in package_files(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def version_of(folder: str | Path) -> str:
    """Return the version that a copy of MedPair states, without importing it."""
    tree = ast.parse((Path(folder) / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    return "unknown"


def require_own_code(bundle_root: str | Path, running: str | Path | None = None) -> None:
    """Refuse to run a bundle with the code of another one that this process has loaded before.

    A bundle's own code is the ``medpair`` in its folder if it is packed, and the ``common/medpair``
    above it in a repository; a bundle with neither runs whatever is installed. Copies of the same
    content are one.

    Args:
        bundle_root: the bundle's folder.
        running: folder of the package that runs; default this one's.

    Raises:
        DataError: names both copies and their versions.
    """
    root = Path(bundle_root).resolve()
    here = Path(medpair.__file__ if running is None else Path(running) / "__init__.py").resolve()
    loaded = here.parent
    packed, repository = root / PACKAGE, root.parent.parent / "common" / PACKAGE
    # an installed copy may differ from a working tree: only a packed bundle's is a stranger there
    stranger = loaded.parent != root and (loaded.parent / MANIFEST).is_file()
    if (packed / "__init__.py").is_file():
        own, what = packed, f"the bundle's own MedPair {version_of(packed)}"
    elif stranger and (repository / "__init__.py").is_file():
        own, what = repository, f"the repository's MedPair {version_of(repository)}"
    elif stranger:
        own, what = None, "an installed MedPair, since the bundle carries none,"
    else:
        return
    if own is not None and (own == loaded or code_digest(own) == code_digest(loaded)):
        return
    raise DataError(
        f"{root if own is None else own}: expected {what} to run, found MedPair "
        f"{version_of(loaded)} in {loaded}, which this process loaded before; "
        "run each bundle in a process of its own"
    )
