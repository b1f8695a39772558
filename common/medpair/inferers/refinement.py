"""How strongly weights refine, and how their three views meet: what a card may say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medpair.data.card import card_of_knob, part_of
from medpair.diffusion.process import Diffusion

COMBINATIONS = ("mean", "alternate")


@dataclass(frozen=True)
class Refinement:
    """How much is refined, and how views meet; what a card may say as ``sampling``.

    Attributes:
        refine_steps: how many steps of noise are added and taken away again; 0 returns the input,
            ``grid_steps`` begins at pure noise and ignores the input.
        grid_steps: how many steps there are from data to pure noise. The paper says "10 steps": of
            1000 that is noise of 0.04 standard deviations, of 100 it is 0.32 (linear schedule).
        combine: ``mean`` of the views' results (the paper), or ``alternate`` between them.

    Raises:
        ValueError: names what is none of these.
    """

    refine_steps: int = 10
    grid_steps: int = 100
    combine: str = "mean"

    def __post_init__(self) -> None:
        for key in ("refine_steps", "grid_steps"):
            if type(value := getattr(self, key)) is not int:
                raise ValueError(f"{key}: expected a whole number, found {value!r}")
        if self.grid_steps < 1:
            raise ValueError(f"grid_steps: expected at least 1, found {self.grid_steps}")
        if not 0 <= self.refine_steps <= self.grid_steps:
            raise ValueError(
                f"refine_steps: expected 0 to grid_steps ({self.grid_steps}), "
                f"found {self.refine_steps}"
            )
        if self.combine not in COMBINATIONS:
            raise ValueError(
                f"combine: expected one of {list(COMBINATIONS)}, found {self.combine!r}"
            )

    @classmethod
    def of(
        cls,
        card: Mapping[str, Any],
        refine_steps: int | None = None,
        grid_steps: int | None = None,
        combine: str | None = None,
    ) -> Refinement:
        """Return what is asked for; for the rest what a card says, else the paper's.

        The two numbers of steps are one strength of noise: where one of them is asked for, the
        other is the paper's, not the card's.
        """
        said = part_of(card, "sampling", cls) if "sampling" in card else cls()
        if refine_steps is not None or grid_steps is not None:
            asked = {"refine_steps": refine_steps, "grid_steps": grid_steps}
            given = {key: value for key, value in asked.items() if value is not None}
            said = cls(**given, combine=said.combine)
        return said if combine is None else replace(said, combine=combine)


def sampling_entry(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card says of refining, once it is known to be something.

    Raises:
        DataError: if it is no ``Refinement``.
    """
    part_of(card_of_knob("sampling", content), "sampling", Refinement)
    return dict(content)


def noise_level(diffusion: Diffusion, refine_steps: int, grid_steps: int) -> float:
    """Return the standard deviation of the noise that refining adds, on the scale of -1..1."""
    return float(np.asarray(diffusion.schedule.level(refine_steps / grid_steps)[1]))
