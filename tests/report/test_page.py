"""The page: names of strangers are harmless, nothing is fetched, and a browser shows it."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import tiny_dataset

from medpair.data.files import read_json, write_json
from medpair.report.alignment_part import alignment_part
from medpair.report.build import Cohorts, Step, build_report
from medpair.report.features import FeatureSet
from medpair.report.fidelity_part import fidelity_part
from medpair.report.label_part import label_part
from medpair.report.page import data_uri, environment
from medpair.report.pairs import open_pairs
from medpair.report.sections import alignment_section, fidelity_section, label_section

SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT} \"quoted\" 'and' & [link](javascript:alert(1)) `x` {{{{ 7 * 7 }}}} $y_"
VOID = {"meta", "img", "br", "hr", "link", "input"}
BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
BORDERS = {"good": (29, 122, 70), "warn": (163, 90, 0), "bad": (179, 38, 30)}


class Fake:
    """Random features under a hostile name."""

    name, dimension = "fake_<i>network</i>", 3

    def describe(self):
        return {"weights": SCRIPT, "sha256": "0" * 64, "preprocessing": "none " * 30}

    def features(self, pairs):
        rng = np.random.default_rng(len(pairs))
        return {"v": FeatureSet(rng.normal(size=(len(pairs), 3)), np.arange(len(pairs)))}


def hostile_dataset(folder: Path, seed: int) -> Path:
    tiny_dataset(folder, 9, (12, 10, 10), seed=seed, validation=4)
    content = read_json(folder / "dataset.json")
    content |= {
        "name": f"{folder.name} {HOSTILE}",
        "licence": f"licence {HOSTILE}",
        "description": f"description {HOSTILE}\n# a head",
        "labels": {"background": 0, f"first {HOSTILE}": 1, "second " + "very" * 30: 2},
        "origin": {"generator": HOSTILE, HOSTILE: "x", "privacy": {"epsilon": 3.0}},
    }
    for split, count in (("training", 9), ("validation", 4)):
        for index in range(count):
            for role in ("image", "label"):
                path = Path(content[split][index][role])
                new = path.with_name(path.name.replace("case_", "<img src=x onerror=y> & \"ж'"))
                (folder / path).rename(folder / new)
                content[split][index][role] = str(new)
    write_json(folder / "dataset.json", content)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the folder of a report whose names are all hostile."""
    folder = tmp_path_factory.mktemp("page")
    real = hostile_dataset(folder / "real", 0)
    cohorts = Cohorts(
        open_pairs(real),
        open_pairs(hostile_dataset(folder / "synthetic", 1)),
        open_pairs(real, "validation"),
    )
    steps = {
        "labels": Step(lambda: label_part(cohorts.real, cohorts.synthetic), label_section),
        "fidelity": Step(
            lambda: fidelity_part(cohorts.real, cohorts.synthetic, [Fake()], {SCRIPT: HOSTILE}),
            fidelity_section,
        ),
        "alignment": Step(
            lambda: alignment_part(
                cohorts.synthetic, cohorts.holdout, lambda pair: pair.label, {"weights": SCRIPT}
            ),
            alignment_section,
        ),
    }
    build_report(folder / "out", cohorts, steps, f"medpair report '{HOSTILE}'", {"group": HOSTILE})
    return folder / "out"


@pytest.fixture(scope="module")
def page(report):
    return (report / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Keep all elements, and whether they are nested as they must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_tags_are_balanced_and_names_are_text(page):
    outline = Outline(page)
    assert outline.open == []
    tags = {tag for tag, _ in outline.elements}
    assert not tags & {"script", "i", "iframe", "link", "object", "form", "base"}
    images = [attributes for tag, attributes in outline.elements if tag == "img"]
    assert len(images) == 5
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    # what was written as markup is read as it was written
    for expected in (HOSTILE, "fake <i>network</i>", f"licence {HOSTILE}", f"first {HOSTILE}"):
        assert expected in outline.text
    assert "49" not in re.findall(r"real [^\n]*javascript[^\n]*", outline.text)[0]


def test_page_is_self_contained(page):
    assert "http-equiv" in page
    for _, attributes in Outline(page).elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("srcset", "background", "data", "action")
            if name in ("src", "href"):
                assert value.startswith(("data:", "#"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    without_pictures = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?://", without_pictures)


def test_links_lead_somewhere(page):
    elements = Outline(page).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert [link.removeprefix("#") for link in links] == ids


def test_data_sheet_is_harmless(report):
    text = (report / "datasheet.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<", text)
    assert not re.search(r"(?<!\\)\[", text)
    assert not re.search(r"(?<!\\)`", text)
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert [head for head in heads if "a head" in head] == []
    assert heads[0].startswith("# Data sheet: synthetic")
    assert "epsilon 3" in text
    assert "nan" not in text
    assert "\n\n\n" not in text


def test_missing_values_are_errors_and_pictures_come_back():
    with pytest.raises(Exception, match="undefined"):
        environment().from_string("{{ nothing }}").render()
    assert data_uri(b"\x00\xff") == "data:image/png;base64,AP8="


# --- in a browser

PROBE = """<!doctype html><meta charset="utf-8"><body>
<iframe width="390" height="800" srcdoc="{page}"></iframe>
<iframe width="1100" height="800" srcdoc="{page}"></iframe>
<pre></pre><script>
onload = () => {{
  const rows = [...document.querySelectorAll("iframe")].map(frame => {{
    const inner = frame.contentDocument, body = inner.documentElement;
    const right = element => element.getBoundingClientRect().right;
    const text = [...inner.querySelectorAll("p, h1, h2, li, figcaption, pre, .wide")];
    return {{
      width: body.clientWidth, content: body.scrollWidth,
      farthest: Math.max(...text.map(right)),
      pictures: [...inner.images].map(image => image.naturalWidth),
      borders: [...inner.querySelectorAll(".verdicts li")].map(
        li => [li.className, frame.contentWindow.getComputedStyle(li).borderLeftColor]),
      font: parseFloat(frame.contentWindow.getComputedStyle(inner.body).fontSize),
    }};
  }});
  document.querySelector("pre").textContent = JSON.stringify(rows);
}};
</script>"""


def chromium(folder: Path, source: Path, *words: str) -> bytes:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", *words, source.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")
def test_layout_in_a_browser(page, tmp_path):
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(page=html.escape(page)), encoding="utf-8")
    shown = chromium(tmp_path, probe, "--dump-dom").decode()
    phone, desk = json.loads(html.unescape(re.findall(r"<pre>(\[.*\])</pre>", shown)[-1]))
    assert (phone["width"], desk["width"]) == (390, 1100)
    for found in (phone, desk):
        # nothing is wider than the screen: what is too wide scrolls in its own box
        assert found["content"] == found["width"]
        assert found["farthest"] <= found["width"]
        assert len(found["pictures"]) == 5
        assert min(found["pictures"]) > 100
        assert len(found["borders"]) == 4
        for mark, colour in found["borders"]:
            expected = BORDERS.get(mark, (138, 148, 158))
            assert colour == "rgb({}, {}, {})".format(*expected)
    assert (phone["font"], desk["font"]) == (15, 16)


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")
@pytest.mark.parametrize(("width", "height"), [(390, 3000), (1100, 2000)])
def test_screenshot_shows_the_verdict(report, page, tmp_path, width, height):
    target = tmp_path / "shot.png"
    words = (f"--window-size={width},{height}", f"--screenshot={target}")
    chromium(tmp_path, report / "report.html", *words)
    picture = np.asarray(Image.open(io.BytesIO(target.read_bytes())).convert("RGB")).astype(int)
    assert picture.shape == (height, width, 3)
    assert (picture == 255).all(axis=2).mean() < 0.97
    marks = [mark for mark in BORDERS if f'<li class="{mark}">' in page]
    assert marks
    for mark in marks:
        # six pixels wide and at least two lines high
        assert (np.abs(picture - BORDERS[mark]).max(axis=2) < 8).sum() > 6 * 30
