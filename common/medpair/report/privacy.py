"""The privacy part: are synthetic volumes copies of training volumes, and who was a member?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from medpair.metrics.copies import LEAST_REFERENCE, copy_limit, duplicate_groups, isolation
from medpair.metrics.discrimination import auc, auc_interval, below_share_test
from medpair.metrics.nearest import (
    FLIPS,
    Grid,
    Neighbours,
    Space,
    common_image,
    common_of_others,
    nearest,
)
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part
from medpair.report.privacy_figures import closest_figure, distance_figure
from medpair.report.privacy_grid import GridCohort, frame_of, grid_cohort
from medpair.report.privacy_whole import NEAR, near_limits, whole_copies

SPACES: tuple[Space, ...] = ("image", "label")
LEAST_VOLUMES, LEAST_HELD_OUT = 5, 2
# Below these a quiet report says little: see ``weaknesses``
WEAK_LIMIT, LEAST_UNSEEN = 0.1, 20
# Chance of the attack's lower end being too high, and the area it must exceed
ATTACK_LEVEL, ATTACK_MARGIN = 0.99, 0.55
CLOSEST = 5
# Fewer training volumes say as little of membership as so few unseen ones
LEAST_MEMBERS = 20
# Soft foreground voxels of a label map that has none
EMPTY = 1e-3
WHAT = {"real": "training", "synthetic": "synthetic", "holdout": "held-out"}
Progress = Callable[[str], object]


class _Cohorts:
    """The cohorts on the common grid in one space, and the neighbours found so far.

    Label maps without foreground are left out: they are like no other, and so would neither be
    found to be copies nor say how near others may be.

    Attributes:
        space: what is compared.
        names: of the volumes of each cohort that can be compared at all.
    """

    def __init__(self, grids: Mapping[str, GridCohort], space: Space) -> None:
        self.space = space
        self.names: dict[str, list[str]] = {}
        self.grids: dict[str, Grid] = {}
        for name, cohort in grids.items():
            kept = torch.arange(len(cohort.names))
            if space == "label":
                kept = kept[~_without_foreground(cohort)]
            if name == "holdout" and len(kept) < LEAST_HELD_OUT:
                continue
            self.names[name] = [cohort.names[index] for index in kept.tolist()]
            self.grids[name] = (cohort.images if space == "image" else cohort.labels)[kept]
        images = space == "image"
        self._common = common_image(self.grids["real"]) if images else None
        self._others = common_of_others(self.grids["real"]) if images else None
        self._found: dict[tuple[str, str], Neighbours] = {}

    def neighbours(self, one: str, two: str) -> Neighbours:
        """Return the neighbours of a cohort in another, or in itself."""
        if (one, two) not in self._found:
            others = self._others if one == "real" else None
            queries, targets = self.grids[one], self.grids[two]
            self._found[one, two] = nearest(
                queries, targets, self.space, self._common, same=one == two, others=others
            )
        return self._found[one, two]

    def distance(self, one: str, two: str) -> np.ndarray:
        """Return (N,) rigid distances to the nearest volume."""
        return self.neighbours(one, two).rigid.min(1).values.double().numpy()

    def distance_apart(self, one: str, two: str) -> np.ndarray:
        """Return the same, of training volumes without what the others of them share."""
        return self.neighbours(one, two).apart.min(1).values.double().numpy()

    def isolations(self, one: str) -> np.ndarray:
        """Return (N,) isolations of the nearest training volume."""
        return isolation(self.neighbours(one, "real").distance.numpy())


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
    frame = frame_of(_each_once(real, seen))
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
    notes += _empty_labels(grids)
    spaces = [_Cohorts(grids, space) for space in SPACES if _enough(grids, space)]
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
            reasons.append(_copy_sentence(space, copies, len(synthetic)))
        if "holdout" in cohorts.grids:
            progress(f"{space}: membership attack")
            numbers["attack"][space] = attack = _attacks(cohorts)
            reasons += _attack_sentences(space, attack)
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


def weaknesses(
    numbers: Mapping[str, Any], real: PairFolder, synthetic: PairFolder, unseen: int
) -> list[str]:
    """Return what could not be seen in these cohorts, as sentences."""
    weak = []
    drawn = [
        f"{len(pairs)} of {pairs.total} {what}"
        for pairs, what in ((real, "training"), (synthetic, "synthetic"))
        if len(pairs) < pairs.total
    ]
    if drawn:
        weak.append(
            f"Only {' and '.join(drawn)} volumes were compared; a copy among the others would not "
            "be found (--max_volumes)."
        )
    limit = numbers["copies"]["image"]["limit"]["ratio"]
    if limit < WEAK_LIMIT:
        weak.append(
            f"Of {len(real)} real volumes only nearly exact copies can be recognised (limit of "
            f"isolation {limit:.2g}; warped or mixed copies would not be)."
        )
    if "label" not in numbers["copies"]:
        weak.append(
            "Label maps were not compared: too few of them have any foreground, in a training list "
            f"of {len(real)} and among {len(synthetic)} synthetic ones."
        )
    if unseen < LEAST_UNSEEN:
        weak.append(
            f"With {unseen} unseen cases a membership attack cannot be judged; {LEAST_UNSEEN} or "
            "more are needed."
        )
    elif len(real) < LEAST_MEMBERS:
        weak.append(
            f"With {len(real)} training volumes a membership attack cannot be judged; "
            f"{LEAST_MEMBERS} or more are needed."
        )
    return weak


def _each_once(pairs: PairFolder, seen: dict[str, int]) -> Iterator[Pair]:
    """Yield pairs whose image none before has, and note their indices in ``seen``."""
    for index, pair in enumerate(pairs):
        digest = hashlib.sha256(pair.image.tobytes()).hexdigest()
        if seen.setdefault(digest, index) == index:
            yield pair


def _without_foreground(cohort: GridCohort) -> torch.Tensor:
    """Return (N,) whose label maps have no foreground in the frame."""
    return cohort.labels.values.flatten(1).sum(1) < EMPTY


def _enough(grids: Mapping[str, GridCohort], space: Space) -> bool:
    """Tell whether there are label maps to compare; images there are."""
    with_any = {name: int((~_without_foreground(grid)).sum()) for name, grid in grids.items()}
    return space == "image" or (with_any["real"] >= LEAST_VOLUMES and with_any["synthetic"] > 0)


def _empty_labels(grids: Mapping[str, GridCohort]) -> list[str]:
    """Say how many label maps have no foreground in the frame: they are like no other."""
    counts = {name: int(_without_foreground(grid).sum()) for name, grid in grids.items()}
    said = [f"{count} {WHAT[name]}" for name, count in sorted(counts.items()) if count]
    if not said:
        return []
    return [
        "Label maps without foreground are like no other, and are compared by their images alone: "
        f"{', '.join(said)} of that kind."
    ]


def _series(cohorts: _Cohorts) -> dict[str, np.ndarray]:
    names = [name for name in ("synthetic", "holdout") if name in cohorts.grids]
    series: dict[str, np.ndarray] = {name: cohorts.distance(name, "real") for name in names}
    if "holdout" not in series:
        series["training"] = cohorts.distance("real", "real")
    return series


def _copies(cohorts: _Cohorts) -> dict[str, Any]:
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


def _distances(cohorts: _Cohorts) -> dict[str, Any]:
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


def _duplicates(cohorts: _Cohorts) -> dict[str, Any] | None:
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


def _attacks(cohorts: _Cohorts) -> dict[str, Any]:
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


def _closest(cohorts: _Cohorts) -> list[dict[str, Any]]:
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


def _copy_sentence(space: Space, copies: Mapping[str, Any], total: int) -> str:
    rows = sorted((r for r in copies["volumes"] if r["flag"]), key=lambda r: r["isolation"])
    worst, limit = rows[0], copies["limit"]["ratio"]
    told = "as from its next neighbours"
    share = worst["isolation"]
    if share >= limit:  # told by the distance alone
        worst = min(rows, key=lambda r: r["share_of_usual"])
        told = "as real volumes usually are from their nearest"
        share, limit = worst["share_of_usual"], NEAR
    return (
        f"{len(rows)} of {total} synthetic volumes are copies of training volumes by their "
        f"{space}: {worst['synthetic']} is {share:.2f} times as far from {worst['real']} {told} "
        f"(limit {limit:.2f})."
    )


def _attack_sentences(space: Space, attack: Mapping[str, Any]) -> list[str]:
    return [
        f"Training volumes can be told from unseen ones by their {space}'s {name} to the nearest "
        f"synthetic one: AUC {entry['auc']:.2f}, at least {entry['low_99']:.2f} with "
        f"{ATTACK_LEVEL:.0%} confidence (limit {ATTACK_MARGIN})."
        for name, entry in attack.items()
        if entry["low_99"] > ATTACK_MARGIN
    ]
