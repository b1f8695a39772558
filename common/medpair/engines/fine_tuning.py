"""Fine-tuning: what is carried over from given weights to a network for another cohort.

The rule, tensor by tensor (``medpair.networks.transfer`` says what belongs to what):

- A tensor of the same shape and meaning is loaded.
- Along a dimension that belongs to classes, each slice goes to the class of the same *name*
  (background to background). A foreground class without a namesake begins as the mean of the old
  foreground classes: that there is something is known, what it is will be learnt. What stands for
  no class (the image, the past) is carried over.
- Digits and grey values of a class's number (``bits``, ``grey``) mean something only together:
  they are carried over while their number is the same, a foreground class is in both label sets,
  and all such classes have kept their numbers. Else they begin as drawn.
- A dimension that is a grid of positions is resampled (linearly) to the new grid.
- Anything else begins as drawn.

Frozen parts keep their weights. BatchNorm's statistics are no weights: they are those of the batch
in training, and of the averaged weights in ``model.pt``, frozen or not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from medpair.data.files import DataError, load_torch
from medpair.networks.transfer import Anatomy, ClassAxis, GridAxis

logger = logging.getLogger(__name__)

# How often spectral norm's estimate is renewed after loading: PyTorch does as many at the start
POWER_ITERATIONS = 15


@dataclass
class Outcome:
    """What became of the tensors of a network, by name."""

    loaded: list[str] = field(default_factory=list)
    by_class: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Classes:
    """Two label sets, class names with the background first."""

    given: tuple[str, ...]
    own: tuple[str, ...]

    def namesake(self, klass: int) -> int | None:
        """Return the given class that has the name of one of our own, or None."""
        if klass == 0:
            return 0
        name = self.own[klass]
        return self.given.index(name) if name in self.given[1:] else None

    @property
    def carried(self) -> list[str]:
        """Foreground classes of both sets."""
        return [name for name in self.own[1:] if name in self.given[1:]]

    @property
    def keep_numbers(self) -> bool:
        """Whether there are such classes, and all have the same number in both."""
        return bool(self.carried) and all(
            self.own.index(name) == self.given.index(name) for name in self.carried
        )

    def sources(self, given: ClassAxis, own: ClassAxis) -> list[list[int]]:
        """Return the given indices whose mean each of our own begins with; none: as drawn."""
        places = {(slot.role, slot.klass): i for i, slot in enumerate(given.slots)}
        foreground: dict[str, list[int]] = {}
        for i, slot in enumerate(given.slots):
            if slot.klass:
                foreground.setdefault(slot.role, []).append(i)
        found: list[list[int]] = []
        for slot in own.slots:
            old = None if slot.klass is None else self.namesake(slot.klass)
            place = places.get((slot.role, old))
            if slot.word and not self.keep_numbers:
                found.append([])
            elif slot.klass is not None and old is None:
                found.append(foreground.get(slot.role, []))
            else:
                found.append([] if place is None else [place])
        return found


class CarryOver:
    """Load what fits of given weights into one network.

    Args:
        network: takes the weights.
        path: a ``model.pt``, or a ``checkpoint.pt`` with ``part``; None leaves all as drawn.
        own: what the network is made of.
        given: what the given one is made of.
        labels: its classes, background first.
        given_labels: the given one's.
        part: name of the network in a ``checkpoint.pt``.

    Raises:
        DataError: if nothing fits, or a frozen parameter would not be the given one.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str | Path | None,
        own: Anatomy,
        given: Anatomy,
        labels: Sequence[str],
        given_labels: Sequence[str],
        part: str | None = None,
    ) -> None:
        self.network = network
        self.path = path
        self.own = own
        self.given = given
        self.classes = Classes(tuple(given_labels), tuple(labels))
        self.part = part

    def load(self) -> Outcome | None:
        """Load the weights; say what became of each tensor, in the log too."""
        if self.path is None:
            logger.info("%s: no weights given, begins as drawn", self.part or "network")
            return None
        weights = load_torch(self.path)
        if self.part is not None:
            weights = weights.get("objects", {}).get(self.part, {})
        outcome = Outcome()
        state = {
            key: self._tensor(key, own, weights.get(key), outcome)
            for key, own in self.network.state_dict().items()
        }
        if not (outcome.loaded or outcome.by_class or outcome.resized):
            raise DataError(f"{self.path}: expected weights of this network, found none that fit")
        frozen = [key for key, p in self.network.named_parameters() if not p.requires_grad]
        unfit = [key for key in frozen if key in (*outcome.by_class, *outcome.rebuilt)]
        if unfit:
            raise DataError(
                f"frozen: expected parts that {self.path} fills, found {unfit[0]}, "
                f"which depends on the classes or is not in the file"
            )
        self.network.load_state_dict(state)
        _renew_spectral_norms(self.network)
        self._report(outcome, frozen)
        return outcome

    def _tensor(self, key: str, own: Tensor, given: Tensor | None, outcome: Outcome) -> Tensor:
        """Return what a tensor begins with, and note it."""
        if given is None or given.ndim != own.ndim:
            outcome.rebuilt.append(key)
            return own
        value, kept, whole = self._by_class(key, given.to(own.device, own.dtype))
        there, here = self.given.grid_axis(key), self.own.grid_axis(key)
        resized = there is not None and here is not None and there.grid != here.grid
        if resized and there is not None and here is not None:
            value = _resampled(value, there, here)
        if value.shape != own.shape or not kept.any():
            outcome.rebuilt.append(key)
            return own
        (outcome.resized if resized else outcome.loaded if whole else outcome.by_class).append(key)
        return torch.where(kept, value, own)

    def _by_class(self, key: str, given: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Sort a given tensor by our classes.

        Returns:
            The tensor with zeros where there is nothing given; a mask, broadcastable to it, of what
            there is; and whether it is the given tensor as it was.
        """
        value, whole = given, True
        kept = torch.ones([1] * given.ndim, dtype=torch.bool, device=given.device)
        axes = zip(self.given.class_axes(key), self.own.class_axes(key), strict=True)
        for there, here in axes:
            dim, count = here.dim, given.shape[there.dim]
            if count != len(there.slots):
                raise DataError(
                    f"{self.path}: {key}: expected {len(there.slots)} slices, as its card says, "
                    f"found {count}"
                )
            rows = self.classes.sources(there, here)
            value = _gathered(value, dim, rows)
            shape = [-1 if i == dim else 1 for i in range(given.ndim)]
            kept = kept & torch.tensor([bool(row) for row in rows], device=given.device).view(shape)
            whole = whole and rows == [[i] for i in range(count)]
        return value, kept, whole

    def _report(self, outcome: Outcome, frozen: list[str]) -> None:
        """Say in the log what was loaded, and which classes were."""
        where = f"{self.path}{'' if self.part is None else ': ' + self.part}"
        logger.info("%s: %d tensors loaded as they are", where, len(outcome.loaded))
        if outcome.by_class:
            carried = self.classes.carried
            new = [name for name in self.classes.own[1:] if name not in carried]
            logger.info(
                "%s: loaded by class (the same: %s; new: %s): %s",
                where,
                ", ".join(carried) or "none",
                ", ".join(new) or "none",
                ", ".join(outcome.by_class),
            )
        for what, keys in (
            ("resampled to the new size", outcome.resized),
            ("as drawn", outcome.rebuilt),
            ("frozen", frozen),
        ):
            if keys:
                logger.info("%s: %s: %s", where, what, ", ".join(keys))


def _gathered(value: Tensor, dim: int, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return along ``dim`` the mean of the slices of each row; of none, zero."""
    slices = [
        value.select(dim, row[0])
        if len(row) == 1
        else value.index_select(dim, torch.tensor(row, device=value.device)).mean(dim)
        if row
        else torch.zeros_like(value.select(dim, 0))
        for row in rows
    ]
    return torch.stack(slices, dim)


def _resampled(value: Tensor, given: GridAxis, own: GridAxis) -> Tensor:
    """Return a tensor with its grid of positions resampled linearly."""
    moved = value.movedim(given.dim, -1)
    outer = moved.shape[:-1]
    maps = moved.reshape(1, -1, *given.grid).float()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(own.grid)]
    maps = functional.interpolate(maps, own.grid, mode=mode, align_corners=False)
    if own.summed:
        maps = maps * (_count(given.grid) / _count(own.grid))
    return maps.reshape(*outer, -1).movedim(-1, given.dim).to(value.dtype)


def _count(grid: Sequence[int]) -> int:
    total = 1
    for size in grid:
        total *= size
    return total


def _renew_spectral_norms(network: nn.Module) -> None:
    """Let spectral norms find the largest singular values of the weights that were loaded."""
    training = network.training
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if parametrize.is_parametrized(module):
                for _ in range(POWER_ITERATIONS):
                    for name in module.parametrizations:  # type: ignore[union-attr]
                        getattr(module, name)  # each look is one power iteration
    network.train(training)


class FineTuning:
    """Carry weights over before the first step; attach before the checkpoint.

    Args:
        parts: one for each network.
    """

    def __init__(self, parts: Sequence[CarryOver]) -> None:
        self.parts = list(parts)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer: resuming replaces these weights."""
        critics = [part.path for part in self.parts if part.part == "critic"]
        if hasattr(engine, "private_seed") and any(critics):
            raise DataError(
                "critic_ckpt: expected None in private training, found "
                f"{critics[0]} (a critic that has seen volumes without noise)"
            )
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Engine) -> None:
        for part in self.parts:
            part.load()
