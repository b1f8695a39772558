"""``medpair pack``, ``verify`` and ``global_model``: weights that go from hand to hand.

Imports stay inside the verbs, as in ``cli.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path


def pack(bundle: str, output_dir: str = "dist") -> None:
    """Write a bundle as one zip that runs where MedPair is not installed.

    Args:
        bundle: the bundle's folder; one named so in the repository's bundles will do.
        output_dir: where NAME_vVERSION.zip goes.
    """
    from medpair.chain import find_bundles
    from medpair.data.files import file_sha256
    from medpair.sharing.pack import pack_bundle

    folder = Path(bundle) if Path(bundle).is_dir() else find_bundles() / bundle
    path = pack_bundle(folder, output_dir)
    print(f"{path}\nsha256 {file_sha256(path)}")


def verify(bundle: str) -> None:
    """Compare a packed bundle with its manifest; exit code 1 if anything differs.

    Args:
        bundle: the zip, or the folder that it was unpacked to.
    """
    from medpair.data.files import file_sha256
    from medpair.sharing.manifest import verify_bundle
    from medpair.sharing.own_code import MANIFEST

    faults = verify_bundle(bundle)
    print("\n".join(faults) or f"{bundle}: every file is as {MANIFEST} says")
    hashed = Path(bundle) / MANIFEST if Path(bundle).is_dir() else Path(bundle)
    print(f"sha256 {file_sha256(hashed)} {hashed.name}")
    if faults:
        sys.exit(1)


def global_model(weights: str, *cards: str, output_dir: str = "global") -> None:
    """Turn what a federation averaged into model.pt and model.json, for inference.

    Args:
        weights: the server's file, such as NVIDIA FLARE's FL_global_model.pt.
        cards: model.json of one or all sites; sizes and ranges of several are pooled.
        output_dir: where the two files go.
    """
    from medpair.engines.federated_model import write_global_model

    print(write_global_model(weights, cards, output_dir))
