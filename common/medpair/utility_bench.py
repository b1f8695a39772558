"""The runs of a usefulness table, one after the other: their knobs, their state, their time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medpair.chain import run_bundle
from medpair.data.files import DataError, read_json, write_json
from medpair.engines.checkpoint import plain
from medpair.engines.restore import CHECKPOINT, PREVIOUS
from medpair.utility_plan import PROTOCOLS, SYNTHETIC, Job

# What an interrupted table may go on with differently; all else makes it another run.
NEUTRAL = ("device", "num_workers", "cache_rate")
PATHS = ("dataset_dir", "ckpt_path")


@dataclass
class Bench:
    """Everything that one table's runs share.

    Attributes:
        output: the table's folder.
        bundle: the segmentation bundle.
        folders: dataset folder of each cohort; ``test`` is the one that is scored on.
        splits: the split of the sets that are scored on.
        knobs: of every training, by architecture (grid included).
        finetune: further knobs of fine-tuning.
        scoring: knobs of every scoring.
        label_group: merge of labels, or None.
        seconds: how long the runs that are there took, as far as that is known.
    """

    output: Path
    bundle: Path
    folders: dict[str, Path]
    splits: dict[str, str]
    knobs: dict[str, dict[str, Any]]
    finetune: dict[str, Any]
    scoring: dict[str, Any]
    label_group: str | None
    seconds: dict[Job, float] = field(default_factory=dict)

    def folder(self, job: Job) -> Path:
        """Return where a run leaves its files."""
        own = self.output / "runs" / job.training.name
        return own if job.test is None else own / f"scores_{job.test}"

    def configs(self, job: Job) -> list[str]:
        """Return the configs of a run, later ones overriding earlier ones."""
        if job.test is not None:
            return ["inference", "evaluate"]
        preset = preset_of(job.training.architecture)
        return ["train", *preset, *(["finetune"] if job.training.finetunes else [])]

    def overrides(self, job: Job) -> dict[str, Any]:
        """Return the knobs of a run."""
        one = job.training
        group = {} if self.label_group is None else {"label_group": self.label_group}
        if job.test is not None:
            weights = self.folder(Job(one)) / "model.pt"
            place = {"ckpt_path": str(weights), "dataset_dir": str(self.folders[job.test])}
            return {**self.scoring, **group, **place, "split": self.splits[job.test]}
        roles = PROTOCOLS[one.protocol].data
        knobs = {**self.knobs[one.architecture], **group}
        if one.start is not None:
            # fine-tuning has a learning rate of its own, the bundle's or the caller's
            knobs.pop("learning_rate", None)
            knobs |= {"ckpt_path": str(self.folder(Job(one.start)) / "model.pt"), **self.finetune}
        if one.cases is not None:
            # the synthetic cohort is used whole, however few the real cases are
            knobs["max_cases"] = [None if role == SYNTHETIC else one.cases for role in roles]
        return {
            **knobs,
            "dataset_dir": [str(self.folders[role]) for role in roles],
            "seed": one.seed,
            "max_epochs": one.epochs,
            # the last weights are scored: no run looks at held-out cases while it trains
            "has_validation": False,
        }

    def asked(self, job: Job) -> dict[str, Any]:
        """Return what ``finished.json`` remembers of a run, to know it again.

        Without paths: a run's folder says what it starts from, ``inputs.json`` what its data are.
        """
        knobs = {k: v for k, v in self.overrides(job).items() if k not in {*NEUTRAL, *PATHS}}
        return plain({"configs": self.configs(job), **knobs})

    def finished(self, job: Job) -> bool:
        """Tell whether a run is there.

        Raises:
            DataError: if another one is in its place.
        """
        path = self.folder(job) / "finished.json"
        if not path.exists():
            return False
        found = read_json(path)
        asked = self.asked(job)
        earlier = {key: value for key, value in found["asked"].items() if key not in PATHS}
        if earlier != asked:
            keys = sorted(k for k in {*asked, *earlier} if asked.get(k) != earlier.get(k))
            then, now = ({key: run.get(key) for key in keys} for run in (earlier, asked))
            raise DataError(
                f"{path}: expected the run asked for now, {now}, found {then} "
                "(another output_dir keeps both)"
            )
        if found["seconds"] is not None:
            self.seconds[job] = found["seconds"]
        return True

    def run(self, job: Job) -> None:
        """Run one job to its end; ``finished.json`` is written last."""
        folder = self.folder(job)
        resumed = (folder / CHECKPOINT).exists()
        begin = time.monotonic()
        knobs = {**self.overrides(job), "output_dir": str(folder)}
        run_bundle(self.bundle, self.configs(job), knobs)
        seconds = time.monotonic() - begin
        # the rest of an interrupted training says little about a whole one
        content = {"asked": self.asked(job), "seconds": None if resumed else seconds}
        write_json(folder / "finished.json", content)
        if not resumed:
            self.seconds[job] = seconds
        # its weights are in model.pt; nothing goes on from the checkpoint any more
        for name in (CHECKPOINT, PREVIOUS):
            (folder / name).unlink(missing_ok=True)


def preset_of(architecture: str) -> list[str]:
    """Return the overlay that chooses a network; the bundle's own needs none."""
    return [] if architecture == "unet3d" else [architecture]


def run_all(bench: Bench, jobs: Sequence[Job]) -> None:
    """Run what is not there yet, one after the other, each announced with the time left."""
    # all of them first: a run that belongs to another table is refused before hours are spent
    left = [job for job in jobs if not bench.finished(job)]
    if len(left) < len(jobs):
        print(f"{bench.output}: {len(jobs) - len(left)} of {len(jobs)} runs are there", flush=True)
    for job in jobs:
        if job not in left:
            continue
        rest = time_left(left, bench.seconds)
        print(f"\n[{jobs.index(job) + 1} of {len(jobs)}] {job.title}; {rest}", flush=True)
        bench.run(job)
        left.remove(job)


def amount(job: Job) -> int:
    """Return how much there is to do: epochs of a training, 1 for a scoring."""
    return job.training.epochs if job.test is None else 1


def time_left(left: Sequence[Job], seconds: Mapping[Job, float]) -> str:
    """Say how long the runs that are left will take, judged by those that ended.

    A run is judged by those of its own kind and network, or by its kind's of any network.
    """
    total, unknown = 0.0, 0
    for job in left:
        alike = [done for done in seconds if kind(done) == kind(job)]
        alike = alike or [done for done in seconds if kind(done)[0] == kind(job)[0]]
        if not alike:
            unknown += 1
            continue
        rate = sum(seconds[done] for done in alike) / sum(amount(done) for done in alike)
        total += rate * amount(job)
    if unknown == len(left):
        return "no run has ended yet that tells how long it takes"
    more = f", and {unknown} runs of a kind not seen yet" if unknown else ""
    return f"about {duration(total)} left for {len(left)} runs{more}"


def kind(job: Job) -> tuple[Any, ...]:
    """Return what decides how long a run takes."""
    return (job.test, job.training.architecture)


def duration(seconds: float) -> str:
    """Return a time for people, such as ``2 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def plan_text(bench: Bench, jobs: Sequence[Job]) -> str:
    """Return the list of runs, each with its folder and whether it is there."""
    lines = []
    for number, job in enumerate(jobs, start=1):
        state = "there" if bench.finished(job) else "to do"
        length = f", {job.training.epochs} epochs" if job.test is None else ""
        lines.append(f"{number:4}  {state}  {job.title}{length}")
    left = [job for job in jobs if not bench.finished(job)]
    trainings = sum(job.test is None for job in left)
    end = f"{trainings} trainings and {len(left) - trainings} scorings to do"
    return "\n".join([*lines, f"{end}; {time_left(left, bench.seconds)}" if left else "all there"])
