"""Which solver takes how many steps, and where, on the way from noise to label codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medpair.data.label_codes import LabelCode
from medpair.diffusion.process import Diffusion
from medpair.diffusion.solvers import LOWEST_LOG_SNR, Solver, check_solver, times

FEW_STEPS = 20
# With the objective "classes" steps late on the way change little: at a log-SNR of 0.5 two nearest
# codes, 2 apart, are 3.3 standard deviations from each other. Without them half as many steps will
# do, at 1.3 % less of the thinnest class (the bundle's README, "How many steps").
DECIDED = 0.5
FEWER_STEPS = 10


@dataclass(frozen=True)
class LabelSampler:
    """How a window's label codes are drawn.

    Attributes:
        solver: ``ancestral``, ``ddim``, ``dpm_solver_pp`` or ``flow``.
        steps: evaluations of the network.
        log_snr: where the steps of ``dpm_solver_pp`` begin and end; None: all of the schedule.
    """

    solver: Solver
    steps: int
    log_snr: tuple[float, float] | None = None

    def grid(self, diffusion: Diffusion) -> list[float]:
        """Return ``steps + 1`` falling times from 1 to 0.

        Raises:
            ValueError: if there is no step, or ``log_snr`` does not rise.
        """
        return times(diffusion.schedule, self.solver, self.steps, span=self.log_snr)

    def origin(self) -> dict[str, Any]:
        """Return the options for a sample's sidecar."""
        where = {"log_snr": list(self.log_snr)} if self.log_snr else {}
        return {"sampler": self.solver, "steps": self.steps, **where}


def label_sampler(
    diffusion: Diffusion,
    code: LabelCode,
    solver: Solver | None = None,
    steps: int | None = None,
    log_snr: Sequence[float] | None = None,
) -> LabelSampler:
    """Return the sampler that is asked for, and what suits the model where nothing is.

    Args:
        diffusion: the model's.
        code: its label code.
        solver: None takes ``flow`` for a flow-matching model and ``dpm_solver_pp`` otherwise.
        steps: None: T for ``ancestral``, else 20; 10 for ``dpm_solver_pp`` with the objective
            ``classes``.
        log_snr: None: for ``dpm_solver_pp`` with the objective ``classes`` from -4 to where classes
            are decided (0.5, for codes that are nearer to each other accordingly more), else all
            of the schedule.

    Raises:
        ValueError: if the solver does not fit the objective, or ``log_snr`` the solver.
    """
    solver = solver or ("flow" if diffusion.objective == "flow" else "dpm_solver_pp")
    check_solver(diffusion, solver)
    decides = solver == "dpm_solver_pp" and diffusion.objective == "classes"
    if steps is None:
        full = diffusion.schedule.timesteps
        steps = full if solver == "ancestral" else FEWER_STEPS if decides else FEW_STEPS
    if log_snr is not None:
        return LabelSampler(solver, steps, _two_numbers(solver, log_snr))
    decided = (LOWEST_LOG_SNR, DECIDED + code.log_scale)
    return LabelSampler(solver, steps, decided if decides else None)


def _two_numbers(solver: Solver, log_snr: Sequence[float]) -> tuple[float, float]:
    if solver != "dpm_solver_pp":
        raise ValueError(f"log_snr: expected None for the solver {solver!r}, found {log_snr!r}")
    try:
        low, high = (float(value) for value in log_snr)
    except (TypeError, ValueError) as error:
        raise ValueError(f"log_snr: expected two numbers, found {log_snr!r}") from error
    return low, high
