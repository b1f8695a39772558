"""Parameter groups of an optimizer: parts that learn more slowly, parts that stand still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from medpair.networks.transfer import Anatomy


def parameter_groups(
    network: nn.Module,
    anatomy: Anatomy,
    learning_rate: float,
    frozen: int | Sequence[str] = 0,
    early_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups: the early parts with a rate of their own, frozen ones left out.

    Frozen parameters no longer ask for a gradient.

    Args:
        network: whose parameters.
        anatomy: which of them are early.
        learning_rate: of the others.
        frozen: so many of the early parts, the nearest to the data first; or names of any parts,
            as they begin up to a dot.
        early_rate: factor of the learning rate for early parts.

    Raises:
        ValueError: if a part is not there, nothing is left to train, or the factor is negative.
    """
    if early_rate < 0:
        raise ValueError(f"early_rate: expected a factor of 0 or more, found {early_rate}")
    names = [name for name, _ in network.named_parameters()]
    stopped = _frozen_parts(names, anatomy, frozen)
    early = [part for stage in anatomy.early for part in stage]
    slow, rest = [], []
    for name, parameter in network.named_parameters():
        if any(_within(name, part) for part in stopped):
            parameter.requires_grad_(False)
        elif early_rate != 1.0 and any(_within(name, part) for part in early):
            slow.append(parameter)
        else:
            rest.append(parameter)
    groups = [(rest, learning_rate), (slow, learning_rate * early_rate)]
    found = [{"params": params, "lr": rate} for params, rate in groups if params]
    if not found:
        raise ValueError(f"frozen: expected parts to be left to train, found {frozen!r}")
    return found


def _frozen_parts(names: Sequence[str], anatomy: Anatomy, frozen: int | Sequence[str]) -> list[str]:
    """Return the beginnings of the names that are frozen."""
    if isinstance(frozen, bool):
        raise ValueError(f"frozen: expected a number of parts, or their names, found {frozen}")
    if isinstance(frozen, int):
        if not 0 <= frozen <= len(anatomy.early):
            raise ValueError(
                f"frozen: expected 0 to {len(anatomy.early)} parts, or their names, found {frozen}"
            )
        return [part for stage in anatomy.early[:frozen] for part in stage]
    parts = [frozen] if isinstance(frozen, str) else list(frozen)
    for part in parts:
        if not any(_within(name, part) for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"frozen: expected beginnings of parameter names ({', '.join(tops)}, ... or "
                f"{', '.join(p for stage in anatomy.early for p in stage)}), found {part!r}"
            )
    return parts


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")
