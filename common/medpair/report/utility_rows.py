"""Scores of a usefulness table's runs as its rows: means, intervals, paired comparisons."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medpair.metrics.paired import average_over_seeds, holm, paired_difference, spread_over_seeds
from medpair.metrics.summary import summarize

# {measure: whether more is better}
MEASURES = {"dsc": True, "bahd_mm": False}
# region, class ("mean": each case's mean over the classes), measure
Cell = tuple[str, str, str]
Scores = dict[Cell, dict[str, float]]


def summarize_rows(
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Sequence[Sequence[Mapping[str, Any]]]],
    references: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """Return the rows with their results, and their differences from the rows they refer to.

    Args:
        rows: each with ``architecture``, ``protocol``, ``cases`` and ``test``.
        runs: for each row the scores of its seeds: the ``cases`` of each ``scores.json``.
        references: for each protocol those it is compared with, where there is a row of the same
            architecture, cases and test.

    Returns:
        The rows with ``results[region][class][measure]`` (``summarize`` of the cases, each
        averaged over the seeds, and ``spread_over_seeds``), ``empty_predictions[region]`` (classes
        missed altogether), ``empty_pairs[region]`` (neither there nor predicted) and
        ``against[protocol][region][class][measure]`` (``paired_difference``; ``p_holm``, adjusted
        for all protocols that are compared with the same one; ``seed_differences``).

    Raises:
        ValueError: if two runs were scored on different cases.
    """
    complete, averaged = [], {}
    for row, seeds in zip(rows, runs, strict=True):
        tables = [by_cell(cases) for cases in seeds]
        cells = {cell: average_over_seeds([table[cell] for table in tables]) for cell in tables[0]}
        averaged[_key(row, row["protocol"])] = cells
        results: dict[str, Any] = {}
        for cell, values in cells.items():
            spread = spread_over_seeds([table[cell] for table in tables])
            _put(results, cell, {**summarize(list(values.values())), **spread})
        lines = [line for cases in seeds for line in cases]
        empty = dict.fromkeys((line["region"] for line in lines), 0)
        neither = dict(empty)
        for line in lines:
            if line["predicted_voxels"] == 0:
                counted = empty if line["truth_voxels"] else neither
                counted[line["region"]] += 1
        found = {"results": results, "empty_predictions": empty, "empty_pairs": neither}
        complete.append({**row, **found})
    for row in complete:
        row["against"] = {
            name: _compare(averaged[_key(row, row["protocol"])], averaged[_key(row, name)])
            for name in references[row["protocol"]]
            if _key(row, name) in averaged
        }
    _adjust(complete)
    _add_seed_differences(complete)
    return complete


def by_cell(cases: Sequence[Mapping[str, Any]]) -> Scores:
    """Return {(region, class, measure): {case: score}}, the mean over the classes included."""
    scores: Scores = defaultdict(dict)
    for row in cases:
        for measure in MEASURES:
            scores[row["region"], row["class"], measure][row["case"]] = row[measure]
    for region in dict.fromkeys(region for region, _, _ in scores):
        for measure in MEASURES:
            columns = [v for (r, _, m), v in scores.items() if (r, m) == (region, measure)]
            scores[region, "mean", measure] = {
                case: float(np.mean([column[case] for column in columns])) for case in columns[0]
            }
    return dict(scores)


def _compare(values: Scores, reference: Scores) -> dict[str, Any]:
    """Return the paired differences of all cells."""
    if values.keys() != reference.keys() or any(
        values[cell].keys() != reference[cell].keys() for cell in values
    ):
        raise ValueError("scores: expected the same cases and classes in all runs, found others")
    result: dict[str, Any] = {}
    for cell, scores in values.items():
        others = [reference[cell][case] for case in scores]
        difference = paired_difference(list(scores.values()), others, MEASURES[cell[2]])
        _put(result, cell, difference)
    return result


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm``: one family is all protocols of a network against the same reference."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for name, regions in row["against"].items():
            for region, classes in regions.items():
                for label, measures in classes.items():
                    for measure, entry in measures.items():
                        families[(*_key(row, name), region, label, measure)].append(entry)
    for family in families.values():
        for entry, p in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_holm"] = p


def _add_seed_differences(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``seed_differences``: each seed's mean against that of the reference's same seed.

    p-values are about the cases, for these very networks; whether another training would come out
    alike is seen here alone.
    """
    results = {_key(row, row["protocol"]): row["results"] for row in rows}
    for row in rows:
        for name, regions in row["against"].items():
            for region, classes in regions.items():
                for label, measures in classes.items():
                    for measure, entry in measures.items():
                        own, other = (
                            table[region][label][measure]["seed_means"]
                            for table in (row["results"], results[_key(row, name)])
                        )
                        pairs = zip(own, other, strict=True)
                        entry["seed_differences"] = [a - b for a, b in pairs]


def _key(row: Mapping[str, Any], protocol: str) -> tuple[Any, ...]:
    return (row["architecture"], row["test"], row["cases"], protocol)


def _put(target: dict[str, Any], cell: Cell, value: Any) -> None:
    target.setdefault(cell[0], {}).setdefault(cell[1], {})[cell[2]] = value
