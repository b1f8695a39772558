"""Packing and verifying: what goes in, that nothing else does, and that a change is seen."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import medpair
from medpair import cli_share
from medpair.data.files import DataError, file_sha256, read_json, save_torch, write_json
from medpair.sharing.manifest import verify_bundle
from medpair.sharing.own_code import code_digest, require_own_code, version_of
from medpair.sharing.pack import pack_bundle

PACKAGE = Path(medpair.__file__).parent


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a small bundle whose folder has seen use."""
    root = tmp_path / "work" / "tiny_bundle"
    for name, text in {
        "LICENSE": "Apache License, Version 2.0",
        "configs/inference.json": "{}",
        "configs/logging.conf": "[loggers]",
        "docs/README.md": "# Tiny",
        # none of these is part of a bundle
        "dataset/patient_007.nii.gz": "image",
        "configs/notes.py": "print()",
        "models/checkpoint.pt": "optimizer",
        "notes.txt": "private",
        ".git/config": "private",
        "docs/.README.md.swp": "private",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_json(root / "configs" / "metadata.json", {"version": "1.2.3", "changelog": {"1.2.3": ""}})
    save_torch(root / "models" / "model.pt", {"weight": torch.ones(2)})
    write_json(root / "models" / "model.json", {"cohort": {}})
    return root


def unpacked(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    (top,) = folder.iterdir()
    return top


def test_zip_holds_the_bundle_and_the_package_and_nothing_else(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = pack_bundle(bundle, tmp_path / "dist")
    assert path == tmp_path / "dist" / "tiny_bundle_v1.2.3.zip"
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        package = [name for name in names if name.startswith("tiny_bundle/medpair/")]
        for name in package:
            own = PACKAGE / name.removeprefix("tiny_bundle/medpair/")
            assert archive.read(name) == own.read_bytes()
    sources = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(package) == len(sources)
    assert "tiny_bundle/medpair/report/page.html.j2" in package
    assert sorted(set(names) - set(package)) == [
        "tiny_bundle/LICENSE",
        "tiny_bundle/configs/inference.json",
        "tiny_bundle/configs/logging.conf",
        "tiny_bundle/configs/metadata.json",
        "tiny_bundle/docs/README.md",
        "tiny_bundle/manifest.json",
        "tiny_bundle/models/model.json",
        "tiny_bundle/models/model.pt",
    ]
    assert names == sorted(names)
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    for left in ("dataset", "models/checkpoint.pt", "notes.txt", "configs/notes.py"):
        assert left in caplog.text
    assert verify_bundle(path) == []


def test_same_files_give_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    first = pack_bundle(bundle, tmp_path / "one").read_bytes()
    copy = tmp_path / "elsewhere" / "tiny_bundle"
    shutil.copytree(bundle, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    assert pack_bundle(copy, tmp_path / "two").read_bytes() == first
    # packed again from what a receiver has unpacked and used
    received = unpacked(tmp_path / "one" / "tiny_bundle_v1.2.3.zip", tmp_path / "got")
    (received / "medpair" / "__pycache__").mkdir()
    assert pack_bundle(received, tmp_path / "three").read_bytes() == first
    (copy / "LICENSE").write_text("other")
    assert pack_bundle(copy, tmp_path / "four").read_bytes() != first


def test_all_weights_with_a_card_go_along(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    models = bundle / "models"
    for name in ("vessels", "brain.v2", "checkpoint.previous"):
        save_torch(models / f"{name}.pt", {"weight": torch.ones(2)})
        write_json(models / f"{name}.json", {"cohort": {}})
    write_json(models / "vessels.training.json", {"command": ""})
    # a record or a card of nothing, weights without a card, and somebody's notes
    for name in ("lonely.pt", "gone.training.json", "gone.json", "vessels.txt", "deep/x.pt"):
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_text("x")
    path = pack_bundle(bundle, tmp_path / "dist")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/models/" in name]
    assert [name.removeprefix("tiny_bundle/models/") for name in names] == [
        "brain.v2.json",
        "brain.v2.pt",
        "model.json",
        "model.pt",
        "vessels.json",
        "vessels.pt",
        "vessels.training.json",
    ]
    for left in ("lonely.pt", "gone.json", "vessels.txt", "checkpoint.previous.json"):
        assert f"models/{left}" in caplog.text
    assert "vessels.training.json: holds the names of the training cases" in caplog.text
    assert verify_bundle(path) == []
    torch.save({"path": Path("x")}, models / "vessels.pt")
    with pytest.raises(DataError, match=r"vessels.pt: expected a checkpoint of plain tensors"):
        pack_bundle(bundle, tmp_path / "dist")


@pytest.mark.parametrize("name", ["LICENSE", "configs/metadata.json", "configs/inference.json"])
def test_what_every_bundle_has_is_asked_for(name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(DataError) as caught:
        pack_bundle(bundle, tmp_path / "dist")
    assert f"{name}: expected a file that every bundle has" in str(caught.value)
    assert not (tmp_path / "dist").exists()


def test_what_may_not_be_shared_is_refused(bundle: Path, tmp_path: Path) -> None:
    readme = bundle / "docs" / "README.md"
    readme.unlink()
    readme.symlink_to(bundle / "notes.txt")
    with pytest.raises(DataError, match=r"README\.md: expected a file, found a link"):
        pack_bundle(bundle, tmp_path / "dist")
    readme.unlink()
    (bundle / "docs").rename(tmp_path / "outside")
    (bundle / "docs").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"docs: expected a folder, found a link"):
        pack_bundle(bundle, tmp_path / "dist")
    (bundle / "docs").unlink()
    torch.save({"path": Path("x")}, bundle / "models" / "model.pt")
    with pytest.raises(DataError, match=r"model.pt: expected a checkpoint of plain tensors"):
        pack_bundle(bundle, tmp_path / "dist")
    write_json(bundle / "configs" / "metadata.json", {"version": "1.2.4", "changelog": {"1": ""}})
    with pytest.raises(DataError, match=r"changelog: expected an entry for version '1.2.4'"):
        pack_bundle(bundle, tmp_path / "dist")


def test_every_change_is_found(bundle: Path, tmp_path: Path) -> None:
    root = unpacked(pack_bundle(bundle, tmp_path / "dist"), tmp_path / "got")
    assert verify_bundle(root) == []
    # what use leaves behind, and the hub's model card, are no faults
    for name in ("models/model.ts", "README.md", "eval/schema.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    assert verify_bundle(root) == []
    (root / "LICENSE").write_text("Apache License, Version 2.1")
    (root / "medpair" / "flags.py").unlink()
    for name in ("medpair/extra.py", "configs/train.json", "torch.py"):
        (root / name).write_text("x")
    faults = verify_bundle(root)
    assert [fault.split(":")[0] for fault in faults] == [
        "LICENSE",
        "medpair/flags.py",
        "configs/train.json",
        "medpair/extra.py",
        "torch.py",
    ]
    written = read_json(root / "manifest.json")
    assert written["files"]["LICENSE"]["sha256"] in faults[0]
    (root / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match=r"manifest.json: expected files with bytes and sha256"):
        verify_bundle(root)
    (root / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"expected a packed bundle with a manifest.json"):
        verify_bundle(root)


def test_compiled_code_in_place_of_a_source_is_found(bundle: Path, tmp_path: Path) -> None:
    root = unpacked(pack_bundle(bundle, tmp_path / "dist"), tmp_path / "got")
    evil = tmp_path / "evil.py"
    evil.write_text("__version__ = 'evil'")
    cached = importlib.util.cache_from_source(str(root / "medpair" / "__init__.py"))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(evil), cached, invalidation_mode=mode)
    code = "import medpair; print(medpair.__version__)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.strip() == "evil"  # Python runs it
    (fault,) = verify_bundle(root)
    assert fault.startswith("medpair/__pycache__: expected no compiled code")
    assert fault.endswith("found 1 files (remove the folder: Python makes it anew)")


def test_verbs_print_the_hash_and_tell_by_their_exit_code(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_share.pack(str(bundle), str(tmp_path / "dist"))
    path = tmp_path / "dist" / "tiny_bundle_v1.2.3.zip"
    packed = capsys.readouterr().out
    assert packed == f"{path}\nsha256 {file_sha256(path)}\n"
    cli_share.verify(str(path))
    assert file_sha256(path) in capsys.readouterr().out
    root = unpacked(path, tmp_path / "got")
    (root / "LICENSE").unlink()
    with pytest.raises(SystemExit, match="1"):
        cli_share.verify(str(root))
    assert "LICENSE: expected a file, found none" in capsys.readouterr().out
    with pytest.raises(DataError, match="nowhere: expected a bundle's folder, found none"):
        cli_share.pack("nowhere", str(tmp_path / "dist"))


def rewritten(path: Path, target: Path, *more: tuple[str, bytes, int]) -> Path:
    """Copy a zip and add entries (name, content, unix mode)."""
    shutil.copy(path, target)
    with zipfile.ZipFile(target, "a") as archive:
        for name, content, mode in more:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, content)
    return target


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil.py", 0o100644, "expected a path inside the bundle"),
        ("tiny_bundle/../../evil.py", 0o100644, "expected a path inside the bundle"),
        ("/etc/evil", 0o100644, "expected a path inside the bundle"),
        ("C:/evil", 0o100644, "expected a path inside the bundle"),
        ("tiny_bundle\\..\\evil", 0o100644, "expected a path inside the bundle"),
        ("tiny_bundle/link", 0o120777, "expected a file, found a link"),
        ("other/file", 0o100644, "expected one top folder"),
    ],
)
def test_zips_that_would_leave_their_folder_are_refused(
    name: str, mode: int, message: str, bundle: Path, tmp_path: Path
) -> None:
    path = pack_bundle(bundle, tmp_path / "dist")
    evil = rewritten(path, tmp_path / "evil.zip", (name, b"/etc/passwd", mode))
    with pytest.raises(DataError, match=message):
        verify_bundle(evil)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips_that_differ_are_found(bundle: Path, tmp_path: Path) -> None:
    path = pack_bundle(bundle, tmp_path / "dist")
    extra = rewritten(path, tmp_path / "extra.zip", ("tiny_bundle/notes.txt", b"x", 0o100644))
    assert [fault.split(":")[0] for fault in verify_bundle(extra)] == ["notes.txt"]
    double = rewritten(path, tmp_path / "double.zip", ("tiny_bundle/LICENSE", b"x", 0o100644))
    with pytest.raises(DataError, match="expected a name once, found it twice"):
        verify_bundle(double)
    damaged = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("tiny_bundle/LICENSE").header_offset
    content = bytearray(path.read_bytes())
    content[start + 30 + len("tiny_bundle/LICENSE") + 5] ^= 0xFF
    damaged.write_bytes(content)
    (fault,) = verify_bundle(damaged)
    assert fault.startswith("LICENSE: expected SHA-256")
    damaged.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="expected a bundle's zip or folder"):
        verify_bundle(damaged)


def copy_of_package(folder: Path, version: str | None = None) -> Path:
    """Lay a packed bundle's code into a folder, maybe as another version."""
    shutil.copytree(PACKAGE, folder / "medpair", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "manifest.json").write_text("{}")
    if version is not None:
        init = folder / "medpair" / "__init__.py"
        init.write_text(init.read_text().replace(medpair.__version__, version))
    return folder


def test_another_bundles_code_is_refused(tmp_path: Path) -> None:
    same, older = copy_of_package(tmp_path / "same"), copy_of_package(tmp_path / "old", "0.0.9")
    repository = tmp_path / "repository"
    copy_of_package(repository / "common")
    inside = repository / "bundles" / "bundle"
    inside.mkdir(parents=True)
    assert code_digest(same / "medpair") == code_digest(PACKAGE)
    assert version_of(older / "medpair") == "0.0.9"
    # itself, a twin, the repository's, and an installed one
    for root, running in ((same, same), (same, PACKAGE.parent), (inside, same), (inside, tmp_path)):
        package = PACKAGE if running == tmp_path else running / "medpair"
        require_own_code(root, package)
    for root, running in ((older, same), (same, older), (inside, older), (tmp_path, older)):
        with pytest.raises(DataError) as caught:
            require_own_code(root, running / "medpair")
        message = str(caught.value)
        assert str(root) in message or str(repository) in message
        assert f"found MedPair {version_of(running / 'medpair')} in {running}" in message
    with pytest.raises(DataError, match=r"the bundle's own MedPair 0\.0\.9"):
        require_own_code(older)


class FakeHub:
    """Stands for the hub's client: keeps what would be uploaded."""

    uploaded: dict[str, Any]

    def __init__(self, token: str | None = None) -> None:
        pass

    def create_repo(self, **options: Any) -> None:
        pass

    def create_tag(self, **options: Any) -> None:
        pass

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        files = [p for p in Path(folder_path).rglob("*") if p.is_file()]
        FakeHub.uploaded = {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in files}
        return repo_id


def test_a_packed_bundle_is_what_the_hub_wants(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monai.bundle import push_to_hf_hub, scripts

    root = unpacked(pack_bundle(bundle, tmp_path / "dist"), tmp_path / "got")

    class Module:
        HfApi = FakeHub

    monkeypatch.setattr(scripts, "huggingface_hub", Module)
    push_to_hf_hub("me/tiny", root.name, str(root.parent), version="1.2.3")
    card = FakeHub.uploaded["README.md"].decode()
    assert card.startswith("---")
    assert "license: apache-2.0" in card
    assert card.endswith("# Tiny")
    listed = json.loads(FakeHub.uploaded["manifest.json"])["files"]
    assert set(listed) < set(FakeHub.uploaded)
    assert verify_bundle(root) == []
