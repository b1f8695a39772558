"""Measure how often the privacy part finds planted copies, and how often it cries wolf.

Run `python tests/benchmarks/measure_privacy.py --dataset_dir hippocampus_mr`: it prints two tables.

The first: volumes of the training list, altered, are given as synthetic ones. Found means: flagged
at the limit for 100 synthetic volumes, and the volume it is a copy of is named.

The second: real pairs of both lists play training, synthetic and held-out ones, so that every alarm
is false. All splits share a grid and a mean image; of distances, none that they need is left out.
"""

import argparse
import re
import time
from dataclasses import replace
from functools import partial
from itertools import chain, product

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, rotate, shift

from medpair.data.sampling import numpy_generator
from medpair.metrics import nearest as search
from medpair.metrics.copies import copy_limit, isolation
from medpair.metrics.discrimination import auc_interval
from medpair.metrics.distance import dice
from medpair.report.pairs import open_pairs
from medpair.report.privacy import SPACES
from medpair.report.privacy_grid import frame_of, grid_cohort
from medpair.report.privacy_sentences import ATTACK_LEVEL, ATTACK_MARGIN

SYNTHETIC = 100
NEIGHBOURS = 6  # as many as `nearest` aligns unless told otherwise
# Shares of all pairs that play training, synthetic and held-out ones.
SHARES = ((0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.6, 0.3, 0.03), (0.3, 0.2, 0.1))
SMOOTH = 6.0  # standard deviation, in voxels, of the blur of a random displacement


def changed(pair, image, label=None):
    """Return the pair with its image, and its label unless it is to stay, changed."""
    kept = pair.label if label is None else label(pair.label)
    return replace(pair, image=image(pair.image).astype(np.float32), label=kept)


def move(pair, other, rng, most):
    by = partial(shift, shift=rng.integers(-int(most), int(most) + 1, size=3), order=0)
    return changed(pair, partial(by, mode="nearest"), by)


def crop(pair, other, rng, most):
    """Cut up to so many voxels off each side."""
    low, high = rng.integers(0, int(most) + 1, size=(2, 3))
    kept = tuple(map(slice, low, np.subtract(pair.image.shape, high)))
    return changed(pair, lambda v: v[kept], lambda v: v[kept])


def turn(pair, other, rng, degrees):
    image = partial(rotate, angle=degrees, reshape=False, order=1, mode="nearest")
    return changed(pair, image, partial(rotate, angle=degrees, reshape=False, order=0))


def warp(pair, other, rng, rms):
    """Deform smoothly: so many voxels root mean square inside the label, and no mean motion."""
    field = np.stack([gaussian_filter(rng.normal(size=pair.image.shape), SMOOTH) for _ in range(3)])
    inside = pair.label > 0
    field -= field[:, inside].mean(axis=1)[:, None, None, None]
    field *= rms / np.sqrt((field[:, inside] ** 2).sum(axis=0).mean())
    at = partial(map_coordinates, coordinates=np.indices(inside.shape) + field, mode="nearest")
    return changed(pair, partial(at, order=1), partial(at, order=0))


def noise(pair, other, rng, percent):
    """Add noise whose standard deviation is so many percent of the robust range."""
    scale = percent / 100 * np.subtract(*np.percentile(pair.image, [99.5, 0.5]))
    return changed(pair, lambda image: image + rng.normal(scale=scale, size=image.shape))


def mix(pair, other, rng, percent):
    """Keep so many percent of the grey values, the rest from the middle of another image."""
    blend, image = pair.unit(), other.unit()
    rest = np.full_like(blend, np.median(image))
    sizes = np.minimum(blend.shape, image.shape)
    starts = [(np.asarray(volume.shape) - sizes) // 2 for volume in (blend, image)]
    ours, theirs = (tuple(map(slice, start, start + sizes)) for start in starts)
    rest[ours] = image[theirs]
    return replace(pair, image=(percent * blend + (100 - percent) * rest) / 100)


STEPS = {
    "exact": lambda pair, other, rng, _: pair,
    "flip": lambda pair, other, rng, _: changed(pair, *[lambda v: v[::-1].copy()] * 2),
    "gamma": lambda pair, _, rng, power: replace(pair, image=((pair.unit() + 1) / 2) ** power),
    "blur": lambda pair, _, rng, sigma: changed(pair, partial(gaussian_filter, sigma=sigma)),
    **{"shift": move, "crop": crop, "rotate": turn, "warp": warp, "noise": noise, "mix": mix},
}
KINDS = (
    "exact,flip,flip+shift3,crop4,rotate8,noise10,noise20,gamma0.6,gamma1.6,blur1,blur1.5,"
    "mix75,mix60,warp0.5,warp0.75,warp1,warp1.5,warp2,flip+warp0.75+noise10"
)


def altered(pair, other, rng, kind):
    """Apply the steps of a kind, each a name and an amount."""
    for step in kind.split("+"):
        name, amount = re.fullmatch(r"([a-z]+)([\d.]*)", step).groups()
        pair = STEPS[name](pair, other, rng, float(amount or 0))
    return pair


def detection_table(pairs, grids, frame, kinds, copies, seed):
    """Print the share of planted copies that is found, for each kind."""
    real = {space: grid[torch.arange(len(pairs))] for space, grid in grids.items()}

    def searched(grid, space, same=False):
        common = search.common_image(real["image"]) if space == "image" else None
        found = search.nearest(grid, real[space], space, common, same=same)
        return found.index[:, 0].numpy(), isolation(found.distance.numpy())

    limits = {}
    for space in SPACES:
        held = grids[space][torch.arange(len(pairs), len(grids[space]))]
        cohorts = ((real[space], True), (held, False))
        reference = np.concatenate([searched(grid, space, same)[1] for grid, same in cohorts])
        limits[space] = copy_limit(reference, tests=len(SPACES) * SYNTHETIC).ratio
    sources = numpy_generator(seed, 0).permutation(len(pairs))[:copies]
    shown = {space: round(limit, 3) for space, limit in limits.items()}
    print(f"{len(sources)} copies of a kind; limits for {SYNTHETIC} synthetic volumes: {shown}\n")
    print("| kind of copy | by image | by label | by either | Dice with the original label |")
    print("|---|---|---|---|---|", flush=True)
    for kind in kinds:
        planted, overlaps = [], []
        for source in map(int, sources):
            pair, other = pairs[source], pairs[(source + 7) % len(pairs)]
            planted.append(altered(pair, other, numpy_generator(seed, 1, source), kind))
            if kind.startswith("warp"):
                overlaps.append(dice(planted[-1].label > 0, pair.label > 0))
        cohort = grid_cohort(planted, pairs.num_labels, frame)
        flags = []
        for space in SPACES:
            index, ratio = searched(getattr(cohort, f"{space}s"), space)
            flags.append((ratio < limits[space]) & (index == sources))
        rates = " | ".join(f"{row.mean():.2f}" for row in (*flags, np.logical_or(*flags)))
        overlap = f"{np.mean(overlaps):.2f}" if overlaps else "-"
        print(f"| {kind} | {rates} | {overlap} |", flush=True)


def parted(groups, shares, rng):
    """Return training, synthetic and held-out pairs; no group is in two parts."""
    order = rng.permutation(groups.max() + 1)
    laid = np.argsort(order[groups], kind="stable")
    cuts = np.rint(np.cumsum(shares) * len(groups)).astype(int)
    train, synthetic, holdout = np.split(laid[: cuts[2]], cuts[:2])
    synthetic = synthetic[~np.isin(groups[synthetic], groups[train])]
    before = groups[np.concatenate([train, synthetic])]
    return train, synthetic, holdout[~np.isin(groups[holdout], before)]


class Measured:
    """Distances of all volumes to the shortlists that splits ask for, measured once."""

    def __init__(self, grid, space):
        blank = torch.zeros_like(grid.values[:1])
        self.common = search.common_image(grid) if space == "image" else blank
        scores, self.flip = search.coarse_correlations(grid, grid, self.common).max(0)
        self.scores, self.grid, self.space = scores.fill_diagonal_(-2), grid, space
        self.distance, self.rigid = torch.full_like(scores, torch.nan), scores * torch.nan

    def measure(self, splits):
        asked = torch.zeros(self.scores.shape, dtype=torch.bool)
        for targets in chain(*(split[:2] for split in splits)):
            asked.scatter_(1, self.shortlist(targets), True)
        asked &= self.rigid.isnan()
        for number, axes in enumerate(search.FLIPS):
            mirrored = self.grid.flipped(axes)
            for part in (asked & (self.flip == number)).nonzero().split(search.BATCH):
                one, two = part.T
                self.rigid[one, two], self.distance[one, two], _ = search.aligned_distances(
                    mirrored[one], self.grid[two], self.space, self.common
                )

    def shortlist(self, targets):
        """Return (N, K) the targets that look nearest before they are aligned."""
        members = torch.from_numpy(targets)
        return members[self.scores[:, members].topk(NEIGHBOURS, dim=1).indices]

    def sorted(self, table, targets):
        """Return (N, K) distances to the shortlist, ascending."""
        return table.gather(1, self.shortlist(targets)).sort(1).values.double().numpy()


def alarms(measured, train, synthetic, holdout):
    """Return whether volumes are flagged, and whether the attack succeeds, in one space."""
    ratio = isolation(measured.sorted(measured.distance, train))
    reference = ratio[np.concatenate([train, holdout])]
    limit = copy_limit(reference, tests=len(SPACES) * len(synthetic)).ratio
    near, usual = (measured.sorted(measured.rigid, part)[:, 0] for part in (synthetic, train))
    scores = (-near, -near / np.maximum(usual, 1e-3))
    low = max(auc_interval(one[train], one[holdout], ATTACK_LEVEL)[0] for one in scores)
    return bool((ratio[synthetic] < limit).any()), low > ATTACK_MARGIN


def alarm_table(names, grids, splits, seed):
    """Print how often an honest split raises an alarm."""
    ways = {"at random": np.arange(len(names))}
    numbers = [re.findall(r"\d+", name)[-1:] for name in names]
    if all(numbers):
        twos = [(int(number) + 1) // 2 for (number,) in numbers]
        ways["by consecutive names"] = np.unique(twos, return_inverse=True)[1]
    measured = [Measured(grids[space], space) for space in SPACES]
    print(f"\n{len(names)} real volumes, {splits} splits a row.\n")
    columns = "split | copy by image | by label | by either | attack | any alarm"
    print(f"| training / synthetic / held out | {columns} |\n|{'---|' * 7}", flush=True)
    for number, (way, shares) in enumerate(product(ways, SHARES)):
        draws = [numpy_generator(seed, 2, number, split) for split in range(splits)]
        rows = [parted(ways[way], shares, rng) for rng in draws]
        for one in measured:
            one.measure(rows)
        found = np.array([[alarms(one, *row) for one in measured] for row in rows])
        copied, attacked = found[..., 0], found[..., 1].any(1)
        either = copied.any(1)
        columns = (*copied.T, either, attacked, either | attacked)
        rates = " | ".join(f"{column.mean():.3f}" for column in columns)
        sizes = " / ".join(f"{np.mean([len(row[k]) for row in rows]):.0f}" for k in range(3))
        print(f"| {sizes} | {way} | {rates} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--label_group", help="merge of the labels")
    parser.add_argument("--copies", type=int, default=30, help="copies of each kind")
    parser.add_argument("--splits", type=int, default=300, help="honest splits of each row")
    parser.add_argument("--kinds", default=KINDS, help="of copies, steps joined by +")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := set(re.findall(r"[a-z]+", args.kinds)) - set(STEPS):
        parser.error(f"--kinds: expected steps among {', '.join(STEPS)}, found {sorted(unknown)}")
    start = time.process_time()
    real = open_pairs(args.dataset_dir, "training", args.label_group)
    holdout = open_pairs(args.dataset_dir, "validation", args.label_group)
    frame = frame_of(real)
    cohort = grid_cohort(chain(real, holdout), real.num_labels, frame)
    grids = {"image": cohort.images, "label": cohort.labels}
    detection_table(real, grids, frame, args.kinds.split(","), args.copies, args.seed)
    alarm_table(cohort.names, grids, args.splits, args.seed)
    print(f"\n{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
