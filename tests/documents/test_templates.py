"""Every bundle's document has the same sections in one order; no document links to nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if path.is_dir())
DOCUMENTS = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(bundle / "docs" / "README.md" for bundle in BUNDLES),
)
# the model zoo's template: what its users look for, and where
SECTIONS = (
    "Model overview",
    "Data",
    "Training and its cost",
    "Commands",
    "Performance",
    "When a run goes wrong",
    "Limits",
    "Licence",
    "References",
)
# each with a command; a bundle may have more of them, behind these
COMMANDS = (
    "Train",
    "Resume",
    "Fine-tune",
    "Several GPUs or machines",
    "Evaluate",
    "Inference",
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```(?:bash|text)\n(?:.*\n)*?(?:python|torchrun|medpair) ", re.MULTILINE)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")


def headings(text: str) -> list[tuple[int, str]]:
    """Return depth and title of every heading outside code."""
    found = re.findall(r"^(#+) (.+)$", FENCE.sub("", text), re.MULTILINE)
    return [(len(marks), title.strip()) for marks, title in found]


def section(text: str, title: str, depth: int) -> str:
    """Return what stands under a heading, down to the next one as high or higher."""
    blank = FENCE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)  # same offsets, no '#'
    begin = re.search(rf"^{'#' * depth} {re.escape(title)}$", blank, re.MULTILINE)
    assert begin, f"expected a heading {title!r} of depth {depth}, found none"
    end = re.compile(rf"^#{{1,{depth}}} ", re.MULTILINE).search(blank, begin.end())
    return text[begin.end() : end.start() if end else None]


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to headings: lower case, no marks, spaces as hyphens."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for _, title in headings(text)}


def broken_links(document: Path) -> list[str]:
    """Return what a document links to that is not there: files, pictures, headings."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for picture, target in LINK.findall(FENCE.sub("", text)):
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (document.parent / name).resolve() if name else document
        missing = not path.exists() or (picture and not path.is_file())
        if missing or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_sections_of_a_bundle(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = headings(text)
    assert [depth for depth, _ in found].count(1) == 1
    assert found[0][0] == 1
    assert tuple(title for depth, title in found if depth == 2) == SECTIONS
    assert all(section(text, title, 2).strip() for title in SECTIONS)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_commands_of_a_bundle(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    commands = section(text, "Commands", 2)
    titles = tuple(title for depth, title in headings(commands) if depth == 3)
    assert titles[: len(COMMANDS)] == COMMANDS
    without = [title for title in COMMANDS if not COMMAND.search(section(commands, title, 3))]
    assert without == [], "sections without a command"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_licence_says_whose_weights(bundle: Path) -> None:
    """The weights that are there have their licence named; where there are none, it says so."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    licence = section(text, "Licence", 2)
    has_weights = (bundle / "models" / "model.pt").is_file()
    assert ("data_license.txt" in licence) == has_weights
    assert ("no weights" in licence) != has_weights


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document(document: Path) -> None:
    assert broken_links(document) == []


def test_pictures_beside_a_document_are_shown() -> None:
    """A picture that no document shows is weight for nothing in every packed bundle."""
    shown = {
        (document.parent / target).resolve()
        for document in DOCUMENTS
        for picture, target in LINK.findall(document.read_text(encoding="utf-8"))
        if picture
    }
    pictures = [*ROOT.glob("docs/*.png"), *ROOT.glob("bundles/*/docs/*.png")]
    assert sorted(path.name for path in pictures if path.resolve() not in shown) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A title: `x`, y\n\n```bash\n# no heading\n```\n")
    document = tmp_path / "document.md"
    document.write_text(
        "# Here\n\n[a](other.md) [b](other.md#a-title-x-y) [c](#here) [d](https://example.org)\n"
        "[e](missing.md) ![f](missing.png) [g](other.md#no-heading) [h](#there)\n"
        "![i](.)\n```text\n[j](in_code.md)\n```\n"
    )
    assert broken_links(document) == [
        "missing.md",
        "missing.png",
        "other.md#no-heading",
        "#there",
        ".",
    ]


def test_sections_end_where_the_next_begin() -> None:
    text = (
        "# T\n\n## A\n\n```bash\n## no heading\nls\n```\n\n### a\n\none\n\n### b\n\ntwo\n\n## B\n"
    )
    assert headings(text) == [(1, "T"), (2, "A"), (3, "a"), (3, "b"), (2, "B")]
    assert "two" in section(text, "A", 2)
    assert section(text, "a", 3).strip() == "one"
    assert not COMMAND.search(section(text, "A", 2))
