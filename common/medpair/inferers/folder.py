"""A synthetic dataset folder: files that say where they come from, written once, in any order.

Every case has a sidecar ``provenance/NAME.json``, written last: a case whose sidecar exists is
whole. All cases of a folder have one origin (weights, seed, options); a run with another origin
refuses the folder. Several runs of one origin may write to a folder at the same time, whether they
share indices or not: the last to end lists all cases.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler

from medpair import __version__
from medpair.data.atomic import not_written, remove_partials
from medpair.data.cohort import Cohort
from medpair.data.dataset import SPLITS, entry, write_dataset_json
from medpair.data.files import DataError, read_json, write_json
from medpair.data.locks import one_at_a_time
from medpair.engines.distributed import gathered, is_main_rank, wait_for_all

logger = logging.getLogger(__name__)

# Intensities that span fewer whole steps than this keep fractions (scaled integers on disk).
WHOLE_STEPS = 500
PREFIX = "pair_"


def wanted_range(start_index: int, num_samples: int) -> range:
    """Return the indices of the samples that are asked for.

    Raises:
        DataError: for a number below 1, a start below 0, or what is no whole number.
    """
    for name, value, least in (("num_samples", num_samples, 1), ("start_index", start_index, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"{name}: expected a whole number of at least {least}, found {value!r}")
    return range(start_index, start_index + num_samples)


class SyntheticFolder:
    """The output folder of a generator.

    Args:
        folder: where the files go.
        cohort: the cohort that the generator was trained on.
        origin: what made the cases: equal for all cases of the folder.
        split: list of ``dataset.json`` that the cases go into.
        suffix: of the dataset's name, after the cohort's.
        images: False for a folder of label maps alone.
        names: of the cases by index; default ``pair_000000`` and so on.

    Raises:
        DataError: if the folder holds cases of another origin.
    """

    def __init__(
        self,
        folder: str | Path,
        cohort: Cohort,
        origin: dict[str, Any],
        split: str = "training",
        suffix: str = "synthetic",
        images: bool = True,
        names: Sequence[str] | None = None,
    ) -> None:
        self.root = Path(folder)
        self.cohort = cohort
        self.origin = {**origin, "medpair_version": __version__}
        self.split = split
        self.suffix = suffix
        self.images = images
        self.names = names
        self.finished: list[str] = []
        self._begun = False
        self._refuse_mixture()

    def name(self, index: int) -> str:
        """Return the case's name."""
        return f"{PREFIX}{index:06d}" if self.names is None else self.names[index]

    def paths(self, index: int) -> dict[str, str]:
        """Return the case's entry in ``dataset.json``."""
        return self._entry(self.name(index))

    def _entry(self, name: str, split: str | None = None) -> dict[str, str]:
        roles = entry(name, split or self.split)
        return roles if self.images else {"label": roles["label"]}

    def sidecar(self, index: int) -> Path:
        """Return the path of the case's sidecar."""
        return self.root / "provenance" / f"{self.name(index)}.json"

    def has(self, index: int) -> bool:
        """Return whether the case is there, whole.

        Raises:
            DataError: if it is there as a case of another split.
        """
        path = self.sidecar(index)
        if not path.exists():
            return False
        if (found := self._split_of(self.name(index))) != self.split:
            raise DataError(
                f"{path}: split: expected a case of {self.split}, found one of {found} (choose "
                "another start_index, or another output_dir)"
            )
        return True

    def _split_of(self, name: str) -> str:
        """Return the split that a case was written for, by where its label map lies."""
        others = [split for split in SPLITS if split != self.split]
        for split in (self.split, *others):
            if (self.root / entry(name, split)["label"]).exists():
                return split
        return self.split  # a network's file system may list it late

    @property
    def begun(self) -> bool:
        """Return whether this run has written a case: others may then be written side by side."""
        return self._begun

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write one case within; the first one of a run is written by one run at a time.

        Of two runs of different origin that found the folder empty, the second finds the first's
        case here, before it has written a file.

        Raises:
            DataError: if the folder holds cases of another origin by now.
        """
        if self._begun:
            yield
            return
        with one_at_a_time(self.root):
            self._refuse_mixture()
            remove_partials(self.root)
            yield
            self._begun = True

    def finish_case(self, index: int, **more: Any) -> None:
        """Write the sidecar, when everything else of the case is there."""
        write_json(self.sidecar(index), {"index": index, **more, **self.origin})
        self.finished.append(self.name(index))

    def complete(self) -> Path:
        """Write ``dataset.json`` over all cases in the folder, when all processes have finished.

        Raises:
            DataError: if another process's cases are not in the folder as this one sees it, or the
                folder holds cases of another origin by now.
        """
        finished = [name for names in gathered(self.finished) for name in names]
        if is_main_rank():
            # else a list made earlier, by another run, could replace one made later
            with one_at_a_time(self.root):
                # a run that found nothing missing has not looked since another one made it all
                self._refuse_mixture()
                remove_partials(self.root)
                self._write_dataset(finished)
        wait_for_all()
        return self.root / "dataset.json"

    def _write_dataset(self, finished: Sequence[str]) -> None:
        there = {path.name.removesuffix(".json") for path in self._sidecars()}
        # a network's file system may list a new file late, but finds it when asked for it
        for name in sorted({*finished} - there):
            if not (self.root / "provenance" / f"{name}.json").exists():
                raise DataError(
                    f"{self.root}: expected {name}, which another process has written, found none "
                    "(output_dir must be a folder that all machines share; if it is, the same "
                    "command again completes it)"
                )
        names = sorted({*there, *finished})
        cases: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
        for name in names:
            split = self._split_of(name)
            cases[split].append(self._entry(name, split))
        what = "pairs" if self.images else "label maps"
        path = write_dataset_json(
            self.root,
            f"{self.cohort.name}_{self.suffix}",
            {name: value for value, name in enumerate(self.cohort.labels)},
            {split: entries for split, entries in cases.items() if entries},
            {"0": self.cohort.channel} if self.images else {},
            self.cohort.label_group,
            description=f"synthetic {what}; origin: {self.cohort.name}",
            licence=self.cohort.licence,
            origin=self.origin,
        )
        logger.info("%s: %d %s", path, len(names), what)

    def _sidecars(self) -> list[Path]:
        try:
            files = [*(self.root / "provenance").glob("*.json")]
        except OSError as error:  # a folder that this user may not look into
            raise not_written(self.root / "provenance", error) from error
        return sorted(path for path in files if not path.name.startswith("."))

    def _refuse_mixture(self) -> None:
        """Look at one case that is already there; all of a folder have the same origin."""
        first = next(iter(self._sidecars()), None)
        if first is None:
            if (self.root / "dataset.json").exists():
                raise DataError(
                    f"{self.root}: expected an empty folder or one of generated cases, found "
                    "another dataset (choose another output_dir)"
                )
            return
        there = read_json(first)
        differing = [
            f"{key}: {there.get(key)!r} there, {value!r} now"
            for key, value in self.origin.items()
            if there.get(key) != value
        ]
        if differing:
            raise DataError(
                f"{first}: expected {'pairs' if self.images else 'label maps'} of the same origin, "
                f"found {'; '.join(differing)} (choose another output_dir)"
            )


class Writer(Protocol):
    """What knows which samples are wanted and which of them are there already."""

    def missing(self) -> list[int]:
        """Return the wanted indices that are not there yet."""
        ...


class AlignedBatches(Sampler[list[int]]):
    """Batches of indices such that an index has the same place in the same batch in every run.

    Args:
        writer: knows which samples are missing.
        batch_size: samples per batch.
        count: there are indices below this only; default without end.
        rank: number of this process, which takes every ``world_size``-th batch, missing or not:
            shares do not depend on what the others have made meanwhile.
        world_size: processes that share the batches.
        missing_only: leave out of a batch what is there already or not wanted. For samples that are
            the same to the last bit whatever is beside them; others are made with them, unwritten.
    """

    def __init__(
        self,
        writer: Writer,
        batch_size: int,
        count: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        missing_only: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        self.writer = writer
        self.batch_size = batch_size
        self.count = count
        self.rank = rank
        self.world_size = world_size
        self.missing_only = missing_only

    def _blocks(self, missing: Sequence[int]) -> list[int]:
        blocks = sorted({index // self.batch_size for index in missing})
        return [block for block in blocks if block % self.world_size == self.rank]

    def __len__(self) -> int:
        return len(self._blocks(self.writer.missing()))

    def __iter__(self) -> Iterator[list[int]]:
        missing = self.writer.missing()
        wanted = set(missing)
        for block in self._blocks(missing):
            last = (block + 1) * self.batch_size
            last = last if self.count is None else min(last, self.count)
            batch = range(block * self.batch_size, last)
            yield [index for index in batch if index in wanted or not self.missing_only]


def stored(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return intensities as they are stored: int16 where whole steps are fine enough, else float.

    Floats are written as int16 with a scale factor.
    """
    return np.rint(image).astype(np.int16) if whole_steps(low, high) else image


def whole_steps(low: float, high: float) -> bool:
    """Return whether intensities of this range are stored as whole steps, int16."""
    info = np.iinfo(np.int16)
    return high - low >= WHOLE_STEPS and info.min <= low and high <= info.max


def centred_affine(spacing: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """Return a RAS affine (4, 4) with the volume's centre at the origin."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-0.5 * s * (n - 1) for s, n in zip(spacing, size, strict=True)]
    return affine
