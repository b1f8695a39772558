"""The privacy part: are synthetic volumes copies of training volumes, and who was a member?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

from medpair.metrics.copies import LEAST_REFERENCE, copy_limit, duplicate_groups, isolation
from medpair.metrics.discrimination import auc, auc_interval, below_share_test
from medpair.metrics.nearest import FLIPS, Neighbours, Space, common_image, nearest
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part
from medpair.report.privacy_figures import closest_figure, distance_figure
from medpair.report.privacy_grid import GridCohort, frame_of, grid_cohort
from medpair.report.privacy_whole import NEAR, whole_copies

SPACES: tuple[Space, ...] = ("image", "label")
LEAST_VOLUMES = 5
# Below these a quiet report says little: see ``weaknesses``
WEAK_LIMIT, LEAST_UNSEEN = 0.1, 20
# Chance of the attack's lower end being too high, and the area it must exceed
ATTACK_LEVEL, ATTACK_MARGIN = 0.99, 0.55
CLOSEST = 5
# Below this the mean that images are compared without is too much that of each of them: of 6 the
# area under the attack's curve is 0.08 too low (nothing leaked, 40 simulated cohorts), of 20 it is
# not told from 0.5
LEAST_MEMBERS = 20
# Soft foreground voxels of a label map that has none
EMPTY = 1e-3
WHAT = {"real": "training", "synthetic": "synthetic", "holdout": "held-out"}
Progress = Callable[[str], object]


class _Cohorts:
    """The cohorts on the common grid, and the neighbours found so far."""

    def __init__(self, grids: Mapping[str, GridCohort]) -> None:
        self.grids = grids
        self.common = common_image(grids["real"].images)
        self._found: dict[tuple[str, str, Space], Neighbours] = {}

    def neighbours(self, one: str, two: str, space: Space) -> Neighbours:
        """Return the neighbours of a cohort in another, or in itself."""
        key = (one, two, space)
        if key not in self._found:
            queries, targets = (getattr(self.grids[name], f"{space}s") for name in (one, two))
            common = self.common if space == "image" else None
            self._found[key] = nearest(queries, targets, space, common, same=one == two)
        return self._found[key]

    def distance(self, one: str, two: str, space: Space) -> np.ndarray:
        """Return (N,) rigid distances to the nearest volume."""
        return self.neighbours(one, two, space).rigid.min(1).values.double().numpy()

    def isolations(self, one: str, space: Space) -> np.ndarray:
        """Return (N,) isolations of the nearest training volume."""
        return isolation(self.neighbours(one, "real", space).distance.numpy())


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
    if holdout is not None and len(holdout) >= 2:
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
    cohorts = _Cohorts(grids)
    reasons: list[str] = []
    numbers: dict[str, Any] = {
        "grid": {"shape": list(frame.shape), "spacing_mm": frame.spacing},
        "copies": {},
        "distances": {},
        "attack": {},
        "duplicates": {},
    }
    for space in SPACES:
        progress(f"{space}: nearest volumes")
        numbers["copies"][space] = copies = _copies(cohorts, space)
        numbers["distances"][space] = _distances(cohorts, space)
        numbers["duplicates"][space] = _duplicates(cohorts, space)
        if copies["flagged"]:
            reasons.append(_copy_sentence(space, copies, len(synthetic)))
        if "holdout" in grids:
            progress(f"{space}: membership attack")
            numbers["attack"][space] = attack = _attacks(cohorts, space)
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
            f"whole: {first['synthetic']} is {first['distance'] / whole['usual']:.2f} times as far "
            f"from {first['real']} as real images usually are from their nearest."
        )
    numbers["weak"] = weaknesses(numbers, real, synthetic, 0 if holdout is None else len(holdout))
    closest = _closest(cohorts)
    numbers |= {"closest": closest, "alarm": bool(reasons), "reasons": reasons}
    progress("figures")
    figures = {
        "privacy_distances": distance_figure([(s, _series(cohorts, s)) for s in SPACES]),
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
    if unseen < LEAST_UNSEEN:
        weak.append(
            f"With {unseen} unseen cases a membership attack cannot be judged; {LEAST_UNSEEN} or "
            "more are needed."
        )
    elif len(real) < LEAST_MEMBERS:
        weak.append(
            f"With {len(real)} training volumes a membership attack by their images sees less than "
            f"there is: what all of them share is taken from themselves ({LEAST_MEMBERS} or more "
            "are needed)."
        )
    return weak


def _each_once(pairs: PairFolder, seen: dict[str, int]) -> Iterator[Pair]:
    """Yield pairs whose image none before has, and note their indices in ``seen``."""
    for index, pair in enumerate(pairs):
        digest = hashlib.sha256(pair.image.tobytes()).hexdigest()
        if seen.setdefault(digest, index) == index:
            yield pair


def _empty_labels(grids: Mapping[str, GridCohort]) -> list[str]:
    """Say how many label maps have no foreground in the frame: they are like no other."""
    counts = {
        name: int((grid.labels.values.flatten(1).sum(1) < EMPTY).sum())
        for name, grid in grids.items()
    }
    said = [f"{count} {WHAT[name]}" for name, count in sorted(counts.items()) if count]
    if not said:
        return []
    return [f"Label maps without foreground are like no other: {', '.join(said)} of that kind."]


def _series(cohorts: _Cohorts, space: Space) -> dict[str, np.ndarray]:
    names = [name for name in ("synthetic", "holdout") if name in cohorts.grids]
    series = {name: cohorts.distance(name, "real", space) for name in names}
    if "holdout" not in series:
        series["training"] = cohorts.distance("real", "real", space)
    return series


def _copies(cohorts: _Cohorts, space: Space) -> dict[str, Any]:
    names = [name for name in ("real", "holdout") if name in cohorts.grids]
    reference = np.concatenate([cohorts.isolations(name, space) for name in names])
    assert len(reference) >= LEAST_REFERENCE
    ours = cohorts.isolations("synthetic", space)
    limit = copy_limit(reference, tests=len(SPACES) * len(ours))
    usual = float(np.median(np.concatenate([cohorts.distance(n, "real", space) for n in names])))
    found = cohorts.neighbours("synthetic", "real", space)
    rows = [
        {
            "synthetic": cohorts.grids["synthetic"].names[index],
            "real": cohorts.grids["real"].names[int(found.index[index, 0])],
            "isolation": float(ours[index]),
            "distance": float(found.rigid[index, 0]),
            "flipped": ["xyz"[axis] for axis in FLIPS[int(found.flip[index, 0])]],
            # of few real volumes the limit is below what even an exact copy reaches
            "flag": bool(ours[index] < limit.ratio or found.rigid[index, 0] < NEAR * usual),
        }
        for index in range(len(ours))
    ]
    return {
        "limit": limit.to_json(),
        "flagged": sum(row["flag"] for row in rows),
        "volumes": rows,
    }


def _distances(cohorts: _Cohorts, space: Space) -> dict[str, Any]:
    """Compare nearest distances; information, as blur alone makes volumes near."""
    series = _series(cohorts, space)
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


def _duplicates(cohorts: _Cohorts, space: Space) -> dict[str, Any] | None:
    """Count synthetic volumes nearer to one another than half the closest real ones."""
    if len(cohorts.grids["synthetic"].names) < 2:
        return None
    found = cohorts.neighbours("synthetic", "synthetic", space)
    limit = 0.5 * float(cohorts.distance("real", "real", space).min())
    groups = duplicate_groups(found.rigid.numpy(), found.index.numpy(), limit)
    names = cohorts.grids["synthetic"].names
    return {
        "limit": limit,
        "groups": [[names[index] for index in group] for group in groups],
        "volumes": sum(map(len, groups)),
    }


def _attacks(cohorts: _Cohorts, space: Space) -> dict[str, Any]:
    """Attack by the distance to the nearest synthetic volume, alone and against the usual one."""
    near = {name: cohorts.distance(name, "synthetic", space) for name in ("real", "holdout")}
    usual = {name: cohorts.distance(name, "real", space) for name in near}
    ratio = {name: near[name] / np.maximum(usual[name], 1e-3) for name in near}
    return {
        "distance": _area(-near["real"], -near["holdout"]),
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
        gaps = scaled[name][:, None] - scaled["real"][None]
        near[name] = np.linalg.norm(gaps, axis=2)
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
    ratio = cohorts.isolations("synthetic", "image")
    found = cohorts.neighbours("synthetic", "real", "image")
    return [
        {
            "synthetic_index": int(index),
            "real_index": int(found.index[index, 0]),
            "synthetic": cohorts.grids["synthetic"].names[index],
            "real": cohorts.grids["real"].names[int(found.index[index, 0])],
            "isolation": float(ratio[index]),
            "distance": float(found.rigid[index, 0]),
        }
        for index in np.argsort(ratio, kind="stable")[:CLOSEST]
    ]


def _copy_sentence(space: Space, copies: Mapping[str, Any], total: int) -> str:
    rows = sorted((r for r in copies["volumes"] if r["flag"]), key=lambda r: r["isolation"])
    worst = rows[0]
    return (
        f"{len(rows)} of {total} synthetic volumes are copies of training volumes by their "
        f"{space}: {worst['synthetic']} is {worst['isolation']:.2f} times as far from "
        f"{worst['real']} as from its next neighbours (limit {copies['limit']['ratio']:.2f})."
    )


def _attack_sentences(space: Space, attack: Mapping[str, Any]) -> list[str]:
    return [
        f"Training volumes can be told from unseen ones by their {space}'s {name} to the nearest "
        f"synthetic one: AUC {entry['auc']:.2f}, at least {entry['low_99']:.2f} with "
        f"{ATTACK_LEVEL:.0%} confidence (limit {ATTACK_MARGIN})."
        for name, entry in attack.items()
        if entry["low_99"] > ATTACK_MARGIN
    ]
