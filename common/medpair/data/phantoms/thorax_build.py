"""What differs between the people whose thorax is simulated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["Build", "draw_build"]


@dataclass(frozen=True)
class Build:
    """What differs between people: factors (about 1), lengths (mm) and angles (radians)."""

    fat: float  # mm under the skin
    muscle: float  # mm more or less of chest wall
    breast: float  # factor, 0 for none
    heart: float
    heart_turn: np.ndarray = field(repr=False)  # (3,)
    heart_shift: np.ndarray = field(repr=False)  # (3,) mm
    domes: tuple[float, float]  # mm that the left and the right dome of the diaphragm are higher
    kyphosis: float
    scoliosis: tuple[float, float]  # mm, phase
    carina: float  # mm, height
    trachea: float
    oesophagus: float
    oesophagus_bow: tuple[float, float]  # mm, phase
    aorta: float
    unfolding: float  # mm that the arch of the aorta has moved up and left
    apices: float  # factor of the width of the upper chest
    mediastinum: float
    organs: np.ndarray = field(repr=False)  # (3, 3) mm shift of liver, stomach, spleen


def draw_build(rng: np.random.Generator) -> Build:
    """Draw a person."""
    breath = float(rng.normal(0, 8))
    return Build(
        fat=float(rng.uniform(5, 26)),
        muscle=float(rng.uniform(-4, 4)),
        breast=float(rng.uniform(0.6, 1.15)) if rng.random() < 0.5 else 0.0,
        heart=float(np.clip(rng.normal(1.0, 0.09), 0.8, 1.22)),
        heart_turn=rng.normal(0, np.deg2rad([8, 8, 10])),
        heart_shift=np.clip(rng.normal(0, 1, 3), -1.7, 1.7) * [4, 3, 4],
        domes=(breath + float(rng.normal(0, 5)), breath + float(rng.normal(0, 5))),
        kyphosis=float(rng.uniform(0.5, 1.5)),
        scoliosis=(float(rng.normal(0, 4)), float(rng.uniform(0, 2 * np.pi))),
        carina=float(np.clip(rng.normal(28, 7), 10, 46)),
        trachea=float(np.clip(rng.normal(1.0, 0.1), 0.8, 1.25)),
        oesophagus=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35)),
        oesophagus_bow=(float(rng.normal(0, 3)), float(rng.uniform(0, 2 * np.pi))),
        aorta=float(np.clip(rng.normal(1.0, 0.1), 0.8, 1.3)),
        unfolding=float(abs(rng.normal(0, 6))),
        apices=float(np.clip(rng.normal(1.0, 0.08), 0.82, 1.15)),
        mediastinum=float(np.clip(rng.normal(1.0, 0.12), 0.75, 1.35)),
        organs=rng.normal(0, 7, (3, 3)),
    )
