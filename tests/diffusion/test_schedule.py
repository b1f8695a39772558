"""Noise schedules against the formulas of the papers they come from."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from medpair.diffusion.schedule import Kind, Schedule

KINDS: list[Kind] = ["linear", "cosine", "flow"]


def test_linear_is_ho_et_al() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha, sigma = Schedule("linear").level(np.arange(1001) / 1000)
    signal = np.cumprod(np.concatenate([[1.0], 1.0 - betas]))
    np.testing.assert_allclose(alpha**2, signal, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1.0 - signal, rtol=1e-9, atol=1e-15)


def test_cosine_is_nichol_and_dhariwal() -> None:
    alpha, _ = Schedule("cosine", 400).level(np.arange(401) / 400)
    signal = np.cos((np.arange(401) / 400 + 0.008) / 1.008 * math.pi / 2) ** 2
    # eq. 17 up to the last step, which is cut at beta = 0.999
    np.testing.assert_allclose(alpha[:-1] ** 2, signal[:-1] / signal[0], rtol=1e-9)
    assert alpha[-1] ** 2 == pytest.approx(0.001 * alpha[-2] ** 2, rel=1e-9)


def test_flow_is_the_straight_path() -> None:
    alpha, sigma = Schedule("flow").level(np.array([0.0, 0.25, 1.0]))
    assert alpha.tolist() == [1.0, 0.75, 0.0]
    assert sigma.tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("timesteps", [10, 250, 4000])
def test_variance_is_preserved_and_the_end_does_not_depend_on_timesteps(
    kind: Kind, timesteps: int
) -> None:
    schedule = Schedule(kind, timesteps)
    t = np.linspace(0, 1, 777)
    alpha, sigma = schedule.level(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-12)
    assert (np.diff(alpha) < 0).all()
    # the same noise at the same t: betas are rescaled with the number of steps
    reference, _ = Schedule(kind).level(t)
    assert np.abs(alpha - reference).max() < (0.2 if timesteps == 10 else 0.01)
    assert alpha[-1] < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_log_snr_are_inverse(kind: Kind) -> None:
    schedule = Schedule(kind, 1000)
    for t in (0.0004, 0.001, 0.0323, 0.5, 0.77, 0.9985):
        alpha, sigma = schedule.level(t)
        assert schedule.log_snr(t) == pytest.approx(0.5 * math.log(alpha**2 / sigma**2), rel=1e-9)
        assert schedule.time_of(schedule.log_snr(t)) == pytest.approx(t, rel=1e-9)
    values = [schedule.log_snr(t) for t in np.linspace(0, 1, 50)]
    assert values[0] == math.inf
    assert all(a > b for a, b in pairwise(values))
    assert (values[-1] == -math.inf) == (kind == "flow")


def test_times_outside_are_the_ends() -> None:
    schedule = Schedule("linear", 100)
    np.testing.assert_array_equal(schedule.level(-0.1), schedule.level(0.0))
    np.testing.assert_array_equal(schedule.level(1.1), schedule.level(1.0))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule: expected linear, cosine or flow, found 'sine'"):
        Schedule("sine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timesteps: expected at least 1, found 0"):
        Schedule("linear", 0)
