"""Do the synthetic labels lie where the synthetic images say? A segmenter of real pairs is asked.

The paper says that generating images from labels "guarantees accurate alignment" (Han et al. 2023).
Here it is measured: a segmenter that was trained on real pairs labels the synthetic images; how far
it agrees with the synthetic labels stands beside how far it agrees with held-out real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from medpair.metrics.class_overlap import class_dice
from medpair.metrics.summary import summarize
from medpair.report.alignment_plots import plot_agreement
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part

LEAST = 3
Predict = Callable[[Pair], np.ndarray]
Progress = Callable[[Iterable[Pair], str], Iterable[Pair]]


def agreement(
    pairs: PairFolder, predict: Predict, progress: Progress = lambda items, _: items
) -> NDArray[np.float64]:
    """Return (N, K) Dice of predicted and given labels; NaN where neither has the class."""
    rows = []
    for pair in progress(pairs, "alignment"):
        rows.append(class_dice(predict(pair), pair.label, pairs.num_labels))
    return np.array(rows, dtype=np.float64).reshape(len(pairs), pairs.num_labels)


def alignment_part(
    synthetic: PairFolder,
    holdout: PairFolder | None,
    predict: Predict,
    segmenter: dict[str, Any],
    seed: int = 0,
    progress: Progress = lambda items, _: items,
) -> Part:
    """Measure how well labels fit images, synthetic beside held-out real ones.

    Args:
        synthetic: the synthetic cohort.
        holdout: real pairs that the segmenter has not seen, of the same classes; or None.
        predict: the segmenter's labels of a pair.
        segmenter: what is known of it, for the page.
        seed: of the intervals.
        progress: wraps the reading of each cohort.
    """
    cohorts = {"synthetic": agreement(synthetic, predict, progress)}
    if holdout is not None:
        cohorts["holdout"] = agreement(holdout, predict, progress)
    names = synthetic.names
    numbers: dict[str, Any] = {"segmenter": segmenter, "classes": [], "mean": {}}
    for k, name in enumerate(names):
        row: dict[str, Any] = {"name": name}
        for cohort, values in cohorts.items():
            row[cohort] = summarize(values[np.isfinite(values[:, k]), k], seed=seed)
        numbers["classes"].append(row)
    means = {cohort: _case_means(values) for cohort, values in cohorts.items()}
    numbers["mean"] = {cohort: summarize(values, seed=seed) for cohort, values in means.items()}
    notes = []
    if holdout is None:
        notes.append(
            "Without held-out real cases it cannot be said how much of the disagreement is the "
            "segmenter's own."
        )
    elif min(len(values) for values in means.values()) < LEAST:
        notes.append(f"Fewer than {LEAST} volumes in a cohort: no difference is given.")
    else:
        numbers["difference"] = _difference(means["synthetic"], means["holdout"])
    return Part(numbers, {"agreement": plot_agreement(cohorts, names)}, notes)


def _case_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each case's mean over the classes it has; cases without any are left out."""
    kept = values[np.isfinite(values).any(axis=1)]
    return np.asarray(np.nanmean(kept, axis=1)) if len(kept) else np.zeros(0)


def _difference(synthetic: NDArray[np.float64], holdout: NDArray[np.float64]) -> dict[str, float]:
    """Return the difference of two means of independent cases, with its 95 % interval.

    Welch's: often there are fewer than ten held-out cases, for which a bootstrap is too narrow.
    """
    value = float(synthetic.mean() - holdout.mean())
    errors = [float(rows.var(ddof=1)) / len(rows) for rows in (synthetic, holdout)]
    reach = 0.0
    if (total := sum(errors)) > 0:
        parts = zip(errors, (synthetic, holdout), strict=True)
        freedom = total**2 / sum(error**2 / (len(rows) - 1) for error, rows in parts)
        reach = float(student_t.ppf(0.975, freedom)) * math.sqrt(total)
    return {"value": value, "low": value - reach, "high": value + reach}
