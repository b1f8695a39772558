"""What the privacy part says in words: what was found, and what could not have been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medpair.metrics.nearest import Space
from medpair.report.pairs import PairFolder
from medpair.report.privacy_whole import NEAR

# Below these a quiet report says little: see ``weaknesses``
WEAK_LIMIT, LEAST_UNSEEN = 0.1, 20
# Chance of the attack's lower end being too high, and the area it must exceed
ATTACK_LEVEL, ATTACK_MARGIN = 0.99, 0.55
# Fewer training volumes say as little of membership as so few unseen ones
LEAST_MEMBERS = 20


def copy_sentence(space: Space, copies: Mapping[str, Any], total: int) -> str:
    """Return how many of ``total`` synthetic volumes are copies, and which is the worst."""
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


def attack_sentences(space: Space, attack: Mapping[str, Any]) -> list[str]:
    """Return which attacks on membership do better than guessing, and by how much."""
    return [
        f"Training volumes can be told from unseen ones by their {space}'s {name} to the nearest "
        f"synthetic one: AUC {entry['auc']:.2f}, at least {entry['low_99']:.2f} with "
        f"{ATTACK_LEVEL:.0%} confidence (limit {ATTACK_MARGIN})."
        for name, entry in attack.items()
        if entry["low_99"] > ATTACK_MARGIN
    ]


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
