"""Do the synthetic labels lie where the synthetic images say? A segmenter of real pairs is asked.

The paper says that generating images from labels "guarantees accurate alignment" (Han et al. 2023).
Here it is measured: a segmenter that was trained on real pairs labels the synthetic images; how far
it agrees with the synthetic labels stands beside how far it agrees with held-out real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
        notes += _compare(cohorts["synthetic"], cohorts["holdout"], names, numbers)
    return Part(numbers, {"agreement": plot_agreement(cohorts, names)}, notes)


def _case_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each case's mean over the classes it has; cases without any are left out."""
    kept = values[np.isfinite(values).any(axis=1)]
    return np.asarray(np.nanmean(kept, axis=1)) if len(kept) else np.zeros(0)


def _compare(
    synthetic: NDArray[np.float64],
    holdout: NDArray[np.float64],
    names: Sequence[str],
    numbers: dict[str, Any],
) -> list[str]:
    """Add ``difference`` and ``compared`` to the numbers, and return what is to be said of them."""
    counts = np.stack([np.isfinite(values).sum(axis=0) for values in (synthetic, holdout)])
    both = np.flatnonzero((counts >= LEAST).all(axis=0))
    if not len(both):
        return [f"No class is in {LEAST} volumes or more of both cohorts: no difference is given."]
    numbers["difference"] = _difference(synthetic[:, both], holdout[:, both])
    # a class that neither cohort has is no loss
    left = [k for k in range(len(names)) if k not in both and counts[:, k].any()]
    numbers["compared"] = {"classes": len(both), "left_out": [names[k] for k in left]}
    if not left:
        return []
    listed = ", ".join(f"{names[k]} ({counts[0, k]} and {counts[1, k]})" for k in left)
    return [
        f"The difference is over the classes that {LEAST} volumes or more of both cohorts have. "
        f"Left out, with the numbers of synthetic and held-out volumes that have them: {listed}."
    ]


def _difference(synthetic: NDArray[np.float64], holdout: NDArray[np.float64]) -> dict[str, float]:
    """Return the difference of two cohorts' Dice, the mean over classes, with its 95 % interval.

    Classes count equally whatever share of each cohort has them: were each case's mean over its
    own classes compared, a cohort without the difficult ones would seem the better. Welch's
    interval: often there are fewer than ten held-out cases, for which a bootstrap is too narrow.

    Args:
        synthetic: (N, K) with NaN where a case has not the class; each class in some.
        holdout: (M, K) likewise.
    """
    means = [np.nanmean(values, axis=0) for values in (synthetic, holdout)]
    value = float((means[0] - means[1]).mean())
    errors, reach = [], 0.0
    for values, mean in zip((synthetic, holdout), means, strict=True):
        # what each case moves the cohort's figure by: a case's classes are not independent
        counts = np.isfinite(values).sum(axis=0)
        moved = np.nan_to_num((values - mean) / counts).mean(axis=1)
        cases = int(np.isfinite(values).any(axis=1).sum())
        errors.append((float((moved**2).sum()) * cases / (cases - 1), cases))
    if (total := sum(error for error, _ in errors)) > 0:
        freedom = total**2 / sum(error**2 / (cases - 1) for error, cases in errors)
        reach = float(student_t.ppf(0.975, freedom)) * math.sqrt(total)
    return {"value": value, "low": value - reach, "high": value + reach}
