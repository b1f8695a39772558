"""Weights inside a package: cut off or missing, they are refused by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medpair.data.files import DataError
from medpair.report.package_weights import PackageWeights


@pytest.mark.fault(40)
def test_weights_that_were_cut_off_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "carrier_of_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('never imported')")
    file = folder / "net.pt"
    file.write_bytes(b"weights" * 100)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = PackageWeights("carrier_of_weights", "carrier", "net.pt", digest)
    assert weights.checked() == file
    for left in (350, 0):
        file.write_bytes((b"weights" * 100)[:left])
        with pytest.raises(DataError, match=rf"net\.pt: expected SHA-256 {digest}, found "):
            weights.checked()
    file.unlink()
    with pytest.raises(DataError, match=r"net\.pt: expected the weights, found none: carrier is"):
        weights.checked()
