"""A bundle as one zip that needs nothing of this repository.

Beside ``configs`` it carries a copy of the package ``medpair``. The bundle's folder is put on
Python's path by the first line of ``initialize``, so that the configs' dotted names find it there.
"""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import medpair
from medpair.data.card import TRAINING
from medpair.data.files import DataError, atomic_path, load_torch, read_json
from medpair.sharing.manifest import manifest_of
from medpair.sharing.own_code import MANIFEST, PACKAGE, package_files

logger = logging.getLogger(__name__)

# What a bundle is made of. Anything else in its folder is left out: it may be somebody's data.
TOP_FILES = ("LICENSE", "large_files.yml", "large_files.yaml", "large_files.json")
MODELS = ("model.pt", "model.json", "model.ts", "model.onnx")
# Further weights, their card, and how they were trained; the longest ending first
WEIGHTS = (TRAINING, ".json", ".pt")
# What a training leaves to go on from: optimizers, the critic, the names of the training cases
CHECKPOINTS = "checkpoint"
CONFIG_ENDINGS = (".json", ".yaml", ".yml", ".conf")
DOC_ENDINGS = (".md", ".txt", ".png", ".jpg", ".svg", ".pdf", ".html")
REQUIRED = ("LICENSE", "configs/metadata.json", "configs/inference.json")
# The model zoo takes no larger file; those belong into large_files.yml
LARGE = 25 * 2**20
# The first moment that a zip can express
TIME = (1980, 1, 1, 0, 0, 0)


def pack_bundle(bundle: str | Path, output_dir: str | Path) -> Path:
    """Write ``NAME_vVERSION.zip``: the bundle, the package and a manifest, in one top folder.

    The same files give the same bytes, whoever packs them and whenever.

    Args:
        bundle: the bundle's folder.
        output_dir: gets the zip.

    Returns:
        The zip.

    Raises:
        DataError: if a required file is missing, the version is not in the changelog, a file is a
            link, or the weights hold anything but plain data and tensors.
    """
    root = Path(bundle).resolve()
    if not root.is_dir():
        raise DataError(f"{bundle}: expected a bundle's folder, found none")
    chosen, left = bundle_files(root)
    for name in REQUIRED:
        if name not in chosen:
            raise DataError(f"{root / name}: expected a file that every bundle has, found none")
    version = _version(root)
    for name in chosen:
        if name.startswith("models/") and name.endswith(".pt"):
            load_torch(root / name)
    package = Path(medpair.__file__).resolve().parent
    files = {name: (root / name).read_bytes() for name in chosen}
    for path in package_files(package):
        files[f"{PACKAGE}/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    for name, data in files.items():
        if len(data) > LARGE:
            logger.warning("%s: %d MB; the model zoo takes 25 at most", name, len(data) // 10**6)
    records = [name for name in chosen if name.endswith(TRAINING)]
    if records:
        logger.warning(
            "%s: holds the names of the training cases; of patients, remove it before packing",
            ", ".join(records),
        )
    if left:
        logger.info("left out, not part of a bundle: %s", ", ".join(left))
    manifest = manifest_of(root.name, version, medpair.__version__, files)
    path = Path(output_dir) / f"{root.name}_v{version}.zip"
    with atomic_path(path) as partial:
        write_zip(partial, root.name, {**files, MANIFEST: manifest.encode()})
    return path


def bundle_files(root: Path) -> tuple[list[str], list[str]]:
    """Return the files that belong to a bundle, by their path in it, and what else lies there.

    Raises:
        DataError: if one that belongs to it, or a folder of those, is a link.
    """
    chosen, left = [], []
    # what packing added to an unpacked bundle is made anew
    ours = {PACKAGE, MANIFEST, "__pycache__"}
    for top in sorted(root.iterdir()):
        if top.name in ours or top.name.startswith("."):
            continue
        if top.name in ("configs", "docs", "models"):
            if top.is_symlink():
                raise DataError(f"{top}: expected a folder, found a link")
            names = [path.relative_to(root).as_posix() for path in sorted(top.rglob("*"))]
        else:
            names = [top.name]
        for name in names:
            path = root / name
            if not _belongs(root, name):
                if path.is_file() or "/" not in name:
                    left.append(name)
            elif path.is_symlink():
                raise DataError(f"{path}: expected a file, found a link")
            elif path.is_file():
                chosen.append(name)
    return chosen, left


def _belongs(root: Path, name: str) -> bool:
    top, _, rest = name.partition("/")
    if not rest:
        return name in TOP_FILES
    if top == "models":
        return rest in MODELS or _of_named_weights(root / "models", rest)
    endings = CONFIG_ENDINGS if top == "configs" else DOC_ENDINGS
    return rest.lower().endswith(endings) and "/." not in f"/{rest}"


def _of_named_weights(models: Path, name: str) -> bool:
    """Return whether a file is NAME.pt with a card beside it, that card, or its training record."""
    weights = next((name[: -len(end)] for end in WEIGHTS if name.endswith(end)), "")
    if not weights or "/" in name or weights.startswith((".", CHECKPOINTS)):
        return False
    return all((models / f"{weights}{end}").exists() for end in (".pt", ".json"))


def _version(root: Path) -> str:
    path = root / "configs" / "metadata.json"
    metadata = read_json(path)
    version = metadata.get("version")
    if not isinstance(version, str) or version not in metadata.get("changelog", {}):
        raise DataError(
            f"{path}: changelog: expected an entry for version {version!r}, "
            f"found {list(metadata.get('changelog', {}))}"
        )
    return version


def write_zip(path: Path, top: str, files: dict[str, bytes]) -> None:
    """Write files below one folder: sorted, with fixed times and modes, no links."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{top}/{name}", TIME)
            entry.create_system = 3  # unix, wherever it is packed
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=6)
