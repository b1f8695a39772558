"""The privacy part: are synthetic volumes copies of training volumes, and who was a member?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from medpair.metrics.copies import LEAST_REFERENCE, copy_limit, duplicate_groups
from medpair.metrics.discrimination import auc, auc_interval, below_share_test
from medpair.metrics.nearest import (
    FLIPS,
    Space,
)
from medpair.report.pairs import PairFolder
from medpair.report.part import Part
from medpair.report.privacy_figures import closest_figure, distance_figure
from medpair.report.privacy_grid import frame_of, grid_cohort
from medpair.report.privacy_neighbours import (
    LEAST_HELD_OUT,
    LEAST_VOLUMES,
    GridCohorts,
    each_once,
    empty_labels,
    enough_to_compare,
)
from medpair.report.privacy_sentences import (
    ATTACK_LEVEL,
    attack_sentences,
    copy_sentence,
    weaknesses,
)
from medpair.report.privacy_whole import NEAR, near_limits, whole_copies

SPACES: tuple[Space, ...] = ("image", "label")
CLOSEST = 5
Progress = Callable[[str], object]


def privacy_part(
    real: PairFolder,
    synthetic: PairFolder,
    holdout: PairFolder | None,
    embed: Callable[[PairFolder], np.ndarray] | None = None,
    critic_scores: Mapping[str, np.ndarray] | None = None,
    progress: Progress = lambda what: None,
) -> Part:
    """Search copies of training volumes and attack membership.

    Nothing here is drawn at random.

    Args:
        real: the training pairs.
        synthetic: the synthetic pairs.
        holdout: real pairs that the generator has not seen, or None.
        embed: features (N, F) of a cohort.
        critic_scores: ``members`` (N,) and ``others`` (M,) of a WGAN's critic.
        progress: told what is being done.

    Returns:
        ``numbers``: ``alarm`` (None where it cannot be said), ``reasons``, and the tables.
    """
    notes: list[str] = []
    if len(real) < LEAST_VOLUMES:
        notes.append(
            f"With {len(real)} real volumes, fewer than {LEAST_VOLUMES}, nothing can be said of "
            "copies: there are no neighbours to compare a nearest volume with."
        )
        return Part({"alarm": None, "reasons": [], "real": len(real)}, notes=notes)
    seen: dict[str, int] = {}
    frame = frame_of(each_once(real, seen))
    if len(seen) < len(real):
        notes.append(
            f"{len(real) - len(seen)} of {len(real)} training volumes are there twice (equal "
            "images) and count once: a copy is told by being nearer to one volume than to others."
        )
        cases = tuple(real.cases[index] for index in seen.values())
        real = replace(real, cases=cases, total=real.total - len(real) + len(seen))
        if len(real) < LEAST_VOLUMES:
            notes.append(f"That leaves {len(real)} real volumes, too few to say anything.")
            return Part({"alarm": None, "reasons": [], "real": len(real)}, notes=notes)
    folders = {"real": real, "synthetic": synthetic}
    if holdout is not None and len(holdout) >= LEAST_HELD_OUT:
        folders["holdout"] = holdout
    else:
        notes.append(
            "Without at least two held-out real volumes, neither the distances nor a membership "
            "attack can be judged; copies are judged by the training volumes' distances alone."
        )
    grids = {}
    for name, pairs in folders.items():
        progress(f"reading {name}")
        grids[name] = grid_cohort(pairs, real.num_labels, frame)
    notes += empty_labels(grids)
    spaces = [GridCohorts(grids, space) for space in SPACES if enough_to_compare(grids, space)]
    reasons: list[str] = []
    numbers: dict[str, Any] = {
        "grid": {"shape": list(frame.shape), "spacing_mm": frame.spacing},
        "copies": {},
        "distances": {},
        "attack": {},
        "duplicates": {},
    }
    for cohorts in spaces:
        space = cohorts.space
        progress(f"{space}: nearest volumes")
        numbers["copies"][space] = copies = _copies(cohorts)
        numbers["distances"][space] = _distances(cohorts)
        numbers["duplicates"][space] = _duplicates(cohorts)
        if copies["flagged"]:
            reasons.append(copy_sentence(space, copies, len(synthetic)))
        if "holdout" in cohorts.grids:
            progress(f"{space}: membership attack")
            numbers["attack"][space] = attack = _attacks(cohorts)
            reasons += attack_sentences(space, attack)
    if embed is not None:
        progress("embedding")
        numbers["embedding"] = _embedding(embed, folders)
    if critic_scores is not None and min(map(len, critic_scores.values())) < 2:
        notes.append("An attack on the critic's score needs two held-out volumes or more.")
    elif critic_scores is not None:
        numbers["critic"] = _area(critic_scores["members"], critic_scores["others"])
        notes.append(
            "The attack on the critic's score concerns sharing the critic or the training "
            "checkpoint, not the volumes."
        )
    progress("whole images")
    numbers["whole"] = whole = whole_copies(real, synthetic, folders.get("holdout"))
    if whole["flagged"]:
        first = whole["volumes"][0]
        reasons.append(
            f"{whole['flagged']} of {len(synthetic)} synthetic images are training images as a "
            f"whole: {first['synthetic']} is {first['share']:.2f} times as far from "
            f"{first['real']} as real images usually are from their nearest (limit {NEAR})."
        )
    numbers["weak"] = weaknesses(numbers, real, synthetic, 0 if holdout is None else len(holdout))
    closest = _closest(spaces[0])
    numbers |= {"closest": closest, "alarm": bool(reasons), "reasons": reasons}
    progress("figures")
    figures = {
        "privacy_distances": distance_figure([(c.space, _series(c)) for c in spaces]),
        "privacy_closest": closest_figure(synthetic, real, closest),
    }
    return Part(numbers, figures, notes)


def _series(cohorts: GridCohorts) -> dict[str, np.ndarray]:
    names = [name for name in ("synthetic", "holdout") if name in cohorts.grids]
    series: dict[str, np.ndarray] = {name: cohorts.distance(name, "real") for name in names}
    if "holdout" not in series:
        series["training"] = cohorts.distance("real", "real")
    return series


def _copies(cohorts: GridCohorts) -> dict[str, Any]:
    names = [name for name in ("real", "holdout") if name in cohorts.grids]
    reference = np.concatenate([cohorts.isolations(name) for name in names])
    assert len(reference) >= LEAST_REFERENCE
    ours = cohorts.isolations("synthetic")
    limit = copy_limit(reference, tests=len(SPACES) * len(ours))
    usual = float(np.median(np.concatenate([cohorts.distance(n, "real") for n in names])))
    near = near_limits(usual, cohorts.neighbours("real", "real").rigid.double().numpy())
    found = cohorts.neighbours("synthetic", "real")
    rows: list[dict[str, Any]] = []
    for index, isolated in enumerate(ours):
        real, distance = int(found.index[index, 0]), float(found.rigid[index, 0])
        # of few real volumes the limit is below what even an exact copy reaches
        share = NEAR * distance / near[real]
        rows.append(
            {
                "synthetic": cohorts.names["synthetic"][index],
                "real": cohorts.names["real"][real],
                "isolation": float(isolated),
                "distance": distance,
                "share_of_usual": share,
                "flipped": ["xyz"[axis] for axis in FLIPS[int(found.flip[index, 0])]],
                "flag": bool(isolated < limit.ratio or share < NEAR),
            }
        )
    return {
        "limit": limit.to_json(),
        "flagged": sum(row["flag"] for row in rows),
        "volumes": rows,
    }


def _distances(cohorts: GridCohorts) -> dict[str, Any]:
    """Compare nearest distances; information, as blur alone makes volumes near."""
    series = _series(cohorts)
    result: dict[str, Any] = {
        name: dict(
            zip(("min", "median", "max"), np.percentile(v, [0, 50, 100]).tolist(), strict=True)
        )
        for name, v in series.items()
    }
    if "holdout" in series:
        ours, theirs = series["synthetic"], series["holdout"]
        result["below_first_percentile"] = below_share_test(ours, theirs, 1.0).to_json()
        result["mann_whitney_p"] = float(mannwhitneyu(ours, theirs, alternative="less").pvalue)
    return result


def _duplicates(cohorts: GridCohorts) -> dict[str, Any] | None:
    """Count synthetic volumes nearer to one another than half the closest real ones."""
    names = cohorts.names["synthetic"]
    if len(names) < 2:
        return None
    found = cohorts.neighbours("synthetic", "synthetic")
    limit = 0.5 * float(cohorts.distance("real", "real").min())
    groups = duplicate_groups(found.rigid.numpy(), found.index.numpy(), limit)
    return {
        "limit": limit,
        "groups": [[names[index] for index in group] for group in groups],
        "volumes": sum(map(len, groups)),
    }


def _attacks(cohorts: GridCohorts) -> dict[str, Any]:
    """Attack by the distance to the nearest synthetic volume, alone and against the usual one.

    Alone it is measured without what the *other* training volumes share: of 20 members the area
    would otherwise be 0.10 too small where nothing leaked, of 100 still 0.04. In the ratio that
    cancels.
    """
    near = {name: cohorts.distance(name, "synthetic") for name in ("real", "holdout")}
    usual = {name: cohorts.distance(name, "real") for name in near}
    ratio = {name: near[name] / np.maximum(usual[name], 1e-3) for name in near}
    apart = cohorts.distance_apart("real", "synthetic")
    return {
        "distance": _area(-apart, -near["holdout"]),
        "relative": _area(-ratio["real"], -ratio["holdout"]),
    }


def _area(members: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    low, high = auc_interval(members, others, 0.95)
    least, _ = auc_interval(members, others, ATTACK_LEVEL)
    return {
        "auc": auc(members, others),
        "low": low,
        "high": high,
        "low_99": least,
        "members": len(members),
        "others": len(others),
    }


def _embedding(
    embed: Callable[[PairFolder], np.ndarray], folders: Mapping[str, PairFolder]
) -> dict[str, Any]:
    """Compare nearest distances of standardised features; information, like other distances."""
    features = {name: np.asarray(embed(pairs), np.float64) for name, pairs in folders.items()}
    centre, scale = features["real"].mean(0), features["real"].std(0)
    scaled = {name: (v - centre) / np.where(scale > 0, scale, 1) for name, v in features.items()}
    near = {}
    for name in set(scaled) - {"real"}:
        near[name] = cdist(scaled[name], scaled["real"])
    result: dict[str, Any] = {
        name: {"min": float(table.min()), "median": float(np.median(table.min(1)))}
        for name, table in sorted(near.items())
    }
    result["nearest"] = near["synthetic"].argmin(1).tolist()
    if "holdout" in near:
        test = below_share_test(near["synthetic"].min(1), near["holdout"].min(1), 1.0)
        result["below_first_percentile"] = test.to_json()
    return result


def _closest(cohorts: GridCohorts) -> list[dict[str, Any]]:
    """Return the most isolated nearest pairs in image space, each synthetic volume once."""
    ratio = cohorts.isolations("synthetic")
    found = cohorts.neighbours("synthetic", "real")
    return [
        {
            "synthetic_index": int(index),
            "real_index": int(found.index[index, 0]),
            "synthetic": cohorts.names["synthetic"][index],
            "real": cohorts.names["real"][int(found.index[index, 0])],
            "isolation": float(ratio[index]),
            "distance": float(found.rigid[index, 0]),
        }
        for index in np.argsort(ratio, kind="stable")[:CLOSEST]
    ]
