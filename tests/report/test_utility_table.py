"""From the scores of runs to rows, Markdown and a picture, on numbers made up by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpair.report.utility_rows import by_cell, summarize_rows
from medpair.report.utility_table import notes, table_markdown, table_picture

REFERENCES = {"E2-1": [], "E2-2": ["E2-1"], "E2-3": ["E2-1"]}


def scores(values: dict[str, tuple[float, float]], roi: bool = False) -> list[dict[str, Any]]:
    """Return a run's scores: DSC of two classes for each case; the roi's are a tenth less."""
    return [
        {
            "case": case,
            "region": region,
            "class": name,
            "dsc": dsc - (0.1 if region == "roi" else 0.0),
            "bahd_mm": 10 * (1 - dsc),
            "truth_voxels": 50,
            "predicted_voxels": 0 if dsc == 0 else 50,
        }
        for case, pair in values.items()
        for region in (("volume", "roi") if roi else ("volume",))
        for name, dsc in zip(("one", "two"), pair, strict=True)
    ]


def row(protocol: str, **more: Any) -> dict[str, Any]:
    plain = {"architecture": "unet3d", "cases": None, "test": "test", "what": "in words"}
    counts = {"trained_on": {"real": 10, "synthetic": 20}, "iterations": 60}
    return {"protocol": protocol, **plain, **counts, **more}


def content(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "inputs": {
            "real": {"training": 10},
            "synthetic": {"training": 20},
            "test": {"scored": 2},
        },
        "synthetic_per_real": 2.0,
        "seeds": [0, 1],
        "budget": {"training_iterations": 60, "finetuning_iterations": 20},
        "balanced": False,
        "curve": [],
        "zero_shot": False,
        "rows": rows,
        **more,
    }


def table() -> list[dict[str, Any]]:
    """Return two protocols, two seeds, two cases."""
    first = [scores({"a": (0.4, 0.6), "b": (0.8, 0.8)}, True)] * 2
    second = [
        scores({"a": (0.6, 0.8), "b": (0.8, 0.8)}, True),
        scores({"b": (0.9, 0.7), "a": (0.4, 0.6)}, True),
    ]
    return summarize_rows([row("E2-1"), row("E2-2")], [first, second], REFERENCES)


def test_the_mean_is_each_cases_mean_over_classes() -> None:
    cells = by_cell(scores({"a": (0.4, 0.6), "b": (0.8, 1.0)}))
    assert cells["volume", "mean", "dsc"] == pytest.approx({"a": 0.5, "b": 0.9})
    assert cells["volume", "two", "bahd_mm"] == pytest.approx({"a": 4.0, "b": 0.0})


def test_seeds_are_averaged_before_cases_are_compared() -> None:
    one, two = table()
    assert one["against"] == {}
    result = two["results"]["volume"]["mean"]["dsc"]
    # case a: 0.7 and 0.5; case b: 0.8 and 0.8
    assert result["n"] == 2
    assert result["mean"] == pytest.approx(0.7)
    assert result["seed_means"] == pytest.approx([0.75, 0.65])
    assert result["seed_std"] == pytest.approx(0.1 / np.sqrt(2))
    against = two["against"]["E2-1"]["volume"]
    assert against["mean"]["dsc"]["difference"] == pytest.approx(0.05)
    assert against["one"]["dsc"]["n"] == 2
    assert (against["mean"]["dsc"]["better"], against["mean"]["dsc"]["worse"]) == (1, 0)
    assert against["mean"]["dsc"]["seed_differences"] == pytest.approx([0.1, 0.0])
    # less distance is better
    assert against["mean"]["bahd_mm"]["difference"] == pytest.approx(-0.5)
    assert (against["mean"]["bahd_mm"]["better"], against["mean"]["bahd_mm"]["worse"]) == (1, 0)
    assert set(two["results"]) == {"volume", "roi"}
    assert two["results"]["roi"]["mean"]["dsc"]["mean"] == pytest.approx(0.6)


def test_p_is_adjusted_for_the_protocols_of_one_reference_and_network() -> None:
    def run(shift: float) -> list[list[dict[str, Any]]]:
        return [scores({f"c{k}": (0.5 + shift + k / 100, 0.5) for k in range(6)})]

    # all six cases are better: p = 2 / 64 in each comparison
    both = [row("E2-1"), row("E2-2"), row("E2-3")]
    other = [{**r, "architecture": "unetr"} for r in both[:2]]
    rows = summarize_rows(both + other, [run(0), run(0.1), run(0.2), run(0), run(0.3)], REFERENCES)
    cells = [r["against"]["E2-1"]["volume"]["mean"]["dsc"] for r in rows if r["against"]]
    assert [cell["p"] for cell in cells] == pytest.approx([1 / 32] * 3)
    assert [cell["p_holm"] for cell in cells] == pytest.approx([1 / 16, 1 / 16, 1 / 32])


def test_rows_are_compared_at_the_same_number_of_cases() -> None:
    few = scores({"a": (0.2, 0.2)})
    many = scores({"a": (0.6, 0.6)})
    better = scores({"a": (0.3, 0.3)})
    rows = summarize_rows(
        [row("E2-1"), row("E2-1", cases=5), row("E2-3", cases=5), row("E2-3", cases=7)],
        [[many], [few], [better], [better]],
        REFERENCES,
    )
    assert rows[2]["against"]["E2-1"]["volume"]["mean"]["dsc"]["difference"] == pytest.approx(0.1)
    assert rows[3]["against"] == {}


def test_runs_scored_on_other_cases_are_refused() -> None:
    one, other = scores({"a": (0.1, 0.1)}), scores({"b": (0.1, 0.1)})
    with pytest.raises(ValueError, match="same cases"):
        summarize_rows([row("E2-1"), row("E2-2")], [[one], [other]], REFERENCES)
    with pytest.raises(ValueError, match="same cases"):
        summarize_rows([row("E2-1")], [[one, other]], REFERENCES)


def test_empty_predictions_are_counted() -> None:
    runs = [scores({"a": (0.0, 0.5)}), scores({"a": (0.0, 0.0)})]
    rows = summarize_rows([row("E2-1")], [runs], REFERENCES)
    assert rows[0]["empty_predictions"] == {"volume": 3}
    assert rows[0]["empty_pairs"] == {"volume": 0}


def test_classes_that_neither_has_are_no_failures() -> None:
    run = [{**line, "truth_voxels": 0} for line in scores({"a": (0.0, 0.5)})]
    (found,) = summarize_rows([row("E2-1")], [[run]], REFERENCES)
    assert found["empty_predictions"] == {"volume": 0}
    assert found["empty_pairs"] == {"volume": 1}
    said = notes(content([found]))
    assert not any("not found at all" in note for note in said)
    assert any("counts as DSC 1" in note for note in said)


def test_markdown_has_every_number_once_and_whole_tables() -> None:
    text = table_markdown(content(table()))
    assert "10 real and 20 synthetic pairs (2 synthetic per real)" in text
    assert "| E2-1: in words | 10 real + 20 synthetic | 60 | 0.650 [0.500, 0.800] |" in text
    assert "| E2-1 | +0.050 [+0.000, +0.100] | 1.000 | 1.000 | 1 / 0 |" in text
    assert "inside the region of interest" in text
    assert (
        "| unet3d | held-out real cases | E2-2 | 0.750, 0.650 | 0.071 | E2-1 | +0.100, +0.000 |"
        in text
    )
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, block


def test_notes_say_what_the_numbers_cannot() -> None:
    rows = table()
    assert any("no p can be below 0.5." in note for note in notes(content(rows)))
    assert not any("One seed" in note for note in notes(content(rows)))
    alone = notes(content(rows, seeds=[0], curve=["E2-1"]))
    assert any("One seed" in note for note in alone)
    assert any("promises too much" in note for note in alone)
    drawn = notes(content(rows, balanced=True))
    assert any("in equal parts" in note for note in drawn)


def test_picture_has_a_panel_for_each_set_and_the_curve() -> None:
    rows = table()
    one = table_picture(content(rows))
    assert table_picture(content(rows)) == one
    few = [{**r, "cases": 3, "trained_on": {"real": 3}} for r in rows]
    for r in few:
        r["protocol"] = "E2-1" if r["protocol"] == "E2-1" else "E2-3"
    whole = [{**r, "protocol": f["protocol"]} for r, f in zip(rows, few, strict=True)]
    second = [{**r, "test": "transfer"} for r in whole]
    more = table_picture(content(whole + few + second, curve=["E2-1", "E2-3"]))
    widths = [Image.open(io.BytesIO(png)).width for png in (one, more)]
    assert widths[1] > 2 * widths[0]
