"""The runs of a usefulness table: which network is trained on what, from what, for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medpair.data.files import DataError
from medpair.flags import listed

REAL, SYNTHETIC, TRANSFER = "real", "synthetic", "transfer"
# the sets that are scored on: held-out real cases, and those of the second dataset
TEST = "test"


@dataclass(frozen=True)
class Protocol:
    """A way of training.

    Attributes:
        what: in words.
        slug: the same in a folder's name.
        data: the cohorts it is trained on.
        start: the protocol whose weights it starts from, or None.
        references: the protocols it is compared with.
    """

    what: str
    slug: str
    data: tuple[str, ...]
    start: str | None = None
    references: tuple[str, ...] = ()


# Han et al. 2023, Tables 2 to 4; those with an F are controls. Fine-tuning is more training: E2-1F
# and E3-2F have as much of it, on real cases alone, so that what is left is the synthetic pairs'.
PROTOCOLS = {
    "E2-1": Protocol("real", "real", (REAL,)),
    "E2-1F": Protocol(
        "real, fine-tuned on real (control)", "real_then_real", (REAL,), "E2-1", ("E2-1",)
    ),
    "E2-2": Protocol("synthetic", "synthetic", (SYNTHETIC,), None, ("E2-1",)),
    "E2-3": Protocol("real and synthetic", "both", (REAL, SYNTHETIC), None, ("E2-1",)),
    "E2-4": Protocol(
        "synthetic, fine-tuned on real",
        "synthetic_then_real",
        (REAL,),
        "E2-2",
        ("E2-1", "E2-1F"),
    ),
    "E2-5": Protocol(
        "both, fine-tuned on real", "both_then_real", (REAL,), "E2-3", ("E2-1", "E2-1F")
    ),
    "E3-1": Protocol("second dataset from scratch", "scratch", (TRANSFER,)),
    "E3-2": Protocol("second dataset from E2-1", "from_E2-1", (TRANSFER,), "E2-1", ("E3-1",)),
    "E3-2F": Protocol(
        "second dataset from E2-1F (control)", "from_E2-1F", (TRANSFER,), "E2-1F", ("E3-1",)
    ),
    "E3-3": Protocol(
        "second dataset from E2-4", "from_E2-4", (TRANSFER,), "E2-4", ("E3-1", "E3-2F")
    ),
    "E3-4": Protocol(
        "second dataset from E2-5", "from_E2-5", (TRANSFER,), "E2-5", ("E3-1", "E3-2F")
    ),
}


# those that depend on the number of real cases
CURVE = tuple(name for name in PROTOCOLS if name.startswith("E2") and name != "E2-2")


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        protocol: a key of ``PROTOCOLS``.
        architecture: the network.
        seed: of the drawn cases and of the training.
        cases: how many real cases (E2) or cases of the second dataset (E3) it sees; None for all.
        epochs: its own length.
        start: the training whose weights it starts from.
    """

    protocol: str
    architecture: str
    seed: int
    cases: int | None
    epochs: int
    start: Training | None = None

    @property
    def finetunes(self) -> bool:
        """Whether it goes on from other weights."""
        return self.start is not None

    @property
    def total_epochs(self) -> int:
        """Its length with all trainings before it."""
        return self.epochs + (self.start.total_epochs if self.start else 0)

    @property
    def name(self) -> str:
        """Folder below ``runs``; says what it is."""
        count = "" if self.cases is None else f"_{self.cases}_cases"
        protocol = f"{self.protocol}_{PROTOCOLS[self.protocol].slug}{count}"
        return f"{self.architecture}/seed_{self.seed}/{protocol}"

    @property
    def title(self) -> str:
        """What it is, for people."""
        count = "" if self.cases is None else f", {self.cases} cases"
        what = PROTOCOLS[self.protocol].what
        return f"{self.protocol} ({what}{count}), {self.architecture}, seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """One call of the bundle: train (``test`` is None), or score on a set."""

    training: Training
    test: str | None = None

    @property
    def title(self) -> str:
        """What it does, for people."""
        if self.test is None:
            return f"train {self.training.title}"
        return f"score {self.training.title} on the {self.test} set"


@dataclass(frozen=True)
class Table:
    """What is asked for.

    Attributes:
        protocols: keys of ``PROTOCOLS``; what they need is added.
        architectures: networks.
        seeds: each is a column of trainings.
        real_cases: numbers of real cases of the curve.
        curve: the protocols of the curve.
        transfer_cases: numbers of cases of the second dataset, for E3.
        max_epochs: length of a training.
        finetune_epochs: length of a fine-tuning.
        zero_shot: whether E2 networks are scored on the second dataset as they are.
    """

    protocols: tuple[str, ...]
    architectures: tuple[str, ...]
    seeds: tuple[int, ...]
    real_cases: tuple[int, ...] = ()
    curve: tuple[str, ...] = ()
    transfer_cases: tuple[int, ...] = ()
    max_epochs: int = 30
    finetune_epochs: int = 10
    zero_shot: bool = False


def training(
    table: Table, protocol: str, architecture: str, seed: int, cases: int | None
) -> Training:
    """Return a training with all those before it.

    Every protocol of E2 that starts from nothing has ``max_epochs``; fine-tuning has
    ``finetune_epochs``. E3-1 starts from nothing and has both, as E3-2 has had at its end.
    """
    entry = PROTOCOLS[protocol]
    epochs = table.max_epochs if entry.start is None else table.finetune_epochs
    if protocol == "E3-1":
        epochs = table.max_epochs + table.finetune_epochs
    start = None
    if entry.start is not None:
        # second datasets are approached with all that is known; on the curve the real cases are
        # the same few before and in fine-tuning, and synthetic ones alone have no number of them
        few = cases if REAL in entry.data and REAL in PROTOCOLS[entry.start].data else None
        start = training(table, entry.start, architecture, seed, few)
    return Training(protocol, architecture, seed, cases, epochs, start)


def plan_jobs(table: Table) -> list[Job]:
    """Return every run in order: seed after seed, so that a whole small table is there early."""
    jobs: dict[Job, None] = {}

    def add(one: Training) -> None:
        if one.start is not None:
            add(one.start)
        second = TRANSFER in PROTOCOLS[one.protocol].data
        tests = [TRANSFER] if second else [TEST]
        if table.zero_shot and one.cases is None and not second:
            tests.append(TRANSFER)
        jobs.update(dict.fromkeys([Job(one), *(Job(one, test) for test in tests)]))

    for seed in table.seeds:
        for architecture in table.architectures:
            for protocol, cases in rows_of(table):
                add(training(table, protocol, architecture, seed, cases))
    return list(jobs)


def rows_of(table: Table) -> list[tuple[str, int | None]]:
    """Return protocol and number of cases of every row that is asked for, references included."""
    rows: dict[tuple[str, int | None], None] = {}

    def add(protocol: str, cases: int | None) -> None:
        for reference in PROTOCOLS[protocol].references:
            add(reference, cases)
        rows[protocol, cases] = None

    for protocol in table.protocols:
        if TRANSFER in PROTOCOLS[protocol].data:
            for cases in table.transfer_cases:
                add(protocol, cases)
        else:
            add(protocol, None)
    for cases in table.real_cases:
        for protocol in table.curve:
            add(protocol, cases)
    return list(rows)


def check_names(names: Sequence[str], allowed: Sequence[str], key: str) -> tuple[str, ...]:
    """Return the names in the order of ``allowed``, each once.

    Raises:
        DataError: if one is unknown.
    """
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise DataError(f"{key}: expected some of {list(allowed)}, found {unknown}")
    return tuple(name for name in allowed if name in names)


def whole_numbers(value: Any, key: str, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """Return whole numbers, ascending, each once.

    Raises:
        DataError: if one is no whole number or out of range.
    """
    limit = "" if most is None else f" to {most}"
    numbers = listed(value)
    for number in numbers:
        if type(number) is not int or number < least or (most is not None and number > most):
            raise DataError(f"{key}: expected whole numbers from {least}{limit}, found {number!r}")
    return tuple(sorted(set(numbers)))
