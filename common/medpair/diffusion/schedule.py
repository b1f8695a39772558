"""Noise schedules: how much signal and how much noise there is at each time.

Everywhere in this package ``x_t = alpha(t) x_0 + sigma(t) eps`` with t from 0 (data) to 1 (noise).
Networks are told ``t * timesteps``.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Kind = Literal["linear", "cosine", "flow"]
# The paper family's T (Ho et al. 2020); betas are stated for it and rescaled for any other T
REFERENCE_TIMESTEPS = 1000
# Bisection halves the interval of t this often: down to the last bit of a float
BISECTIONS = 60


class Schedule:
    """Signal and noise at every time, continuous in t.

    Args:
        kind: ``linear`` is Ho et al. 2020 (beta from 1e-4 to 0.02 in 1000 steps), which MedGen3D's
            relatives use; ``cosine`` Nichol & Dhariwal 2021, eq. 17; ``flow`` the straight path of
            flow matching (Lipman et al. 2023): alpha = 1 - t, sigma = t.
        timesteps: T, the number of steps that ``ancestral`` sampling takes in full.

    Between the T discrete levels of ``linear`` and ``cosine``, log(alpha) is interpolated linearly.

    Raises:
        ValueError: on another kind, or T below 1.
    """

    def __init__(self, kind: Kind = "linear", timesteps: int = REFERENCE_TIMESTEPS) -> None:
        if kind not in ("linear", "cosine", "flow"):
            raise ValueError(f"schedule: expected linear, cosine or flow, found {kind!r}")
        if timesteps < 1:
            raise ValueError(f"timesteps: expected at least 1, found {timesteps}")
        self.kind = kind
        self.timesteps = timesteps
        log_alpha = 0.5 * np.log1p(-_betas(kind, timesteps)).cumsum() if kind != "flow" else []
        self.log_alpha = np.concatenate([[0.0], log_alpha])

    def level(self, t: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return alpha and sigma at t (0..1), in float64."""
        t = np.clip(np.asarray(t, dtype=np.float64), 0.0, 1.0)
        if self.kind == "flow":
            return 1.0 - t, t
        log_alpha = np.interp(t * self.timesteps, np.arange(self.timesteps + 1), self.log_alpha)
        return np.exp(log_alpha), np.sqrt(-np.expm1(2.0 * log_alpha))

    def log_snr(self, t: float) -> float:
        """Return lambda = log(alpha / sigma), half the log of the signal-to-noise ratio."""
        alpha, sigma = self.level(t)
        if sigma <= 0.0:
            return math.inf
        return math.log(alpha / sigma) if alpha > 0.0 else -math.inf

    def time_of(self, log_snr: float) -> float:
        """Return the t at which log(alpha / sigma) has this value (it falls with t)."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.log_snr(middle) > log_snr else (low, middle)
        return 0.5 * (low + high)


def _betas(kind: Kind, timesteps: int) -> np.ndarray:
    if kind == "linear":
        scale = REFERENCE_TIMESTEPS / timesteps
        betas = np.linspace(scale * 1e-4, scale * 0.02, timesteps)
    else:
        edges = np.arange(timesteps + 1) / timesteps
        signal = np.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = 1.0 - signal[1:] / signal[:-1]
    # the last step may not destroy everything: alpha must stay positive (Nichol & Dhariwal)
    return np.minimum(betas, 0.999)
