"""Weights that optional packages carry: found without running the packages' own code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medpair.data.files import DataError, file_sha256

EXTRA = "medpair[fid]"


@dataclass(frozen=True)
class PackageWeights:
    """A weights file inside an optional package.

    Attributes:
        package: name to import; it is never imported, since packages fetch files or import more.
        distribution: name to install.
        path: of the file, from the package's folder.
        sha256: of the only file that is accepted: numbers from other weights are other numbers.
    """

    package: str
    distribution: str
    path: str
    sha256: str

    def find(self) -> Path | None:
        """Return the file, or None where the package or the file is missing."""
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        paths = [Path(folder) / self.path for folder in folders or ()]
        return next((path for path in paths if path.is_file()), None)

    def missing(self) -> str | None:
        """Return why the weights cannot be used, or None if they can."""
        if self.find():
            return None
        return f"{self.distribution} is not installed: install {EXTRA}"

    def checked(self) -> Path:
        """Return the file after comparing its SHA-256.

        Raises:
            DataError: if it is missing or is another file.
        """
        path = self.find()
        if path is None:
            raise DataError(f"{self.path}: expected the weights, found none: {self.missing()}")
        found = file_sha256(path)
        if found != self.sha256:
            raise DataError(f"{path}: expected SHA-256 {self.sha256}, found {found}")
        return path

    def describe(self) -> dict[str, Any]:
        """Return file, SHA-256, package and its version, as plain data."""
        try:
            release = version(self.distribution)
        except PackageNotFoundError:
            release = "unknown"
        name = Path(self.path).name
        return {
            "weights": name,
            "sha256": self.sha256,
            "package": self.distribution,
            "package_version": release,
        }
