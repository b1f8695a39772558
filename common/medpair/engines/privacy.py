"""What differentially private training spends, and where it says so.

The accounting is Opacus's (optional extra ``medpair[dp]``), of the Poisson-sampled Gaussian
mechanism: by Renyi divergences (Mironov et al. 2019) or by the numerically composed privacy loss
(Gopi et al. 2021), which is tighter.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from medpair.data.cohort import Cohort
from medpair.data.files import DataError, read_json, write_json
from medpair.data.intensity import CT
from medpair.engines.checkpoint import ModelCard
from medpair.engines.distributed import is_main_rank
from medpair.engines.logs import MetricsLog

# Opacus's own orders end at 63, too soon for an epsilon well below 1; those just over 1 take long
# and matter only where there is hardly any noise
ORDERS = [1.25, 1.5, 1.75, *(x / 5 for x in range(10, 20)), *(x / 2 for x in range(8, 24))]
ORDERS += [*range(12, 33), 40, 48, 64, 96, 128, 256]
METHOD = (
    "DP-SGD on the critic's steps; the generator sees real volumes only through the critic "
    "(post-processing)"
)
UNIT = (
    "one volume with its label, present or absent; several volumes of one patient are several units"
)


def require_opacus() -> None:
    """Raise DataError unless Opacus is installed."""
    if find_spec("opacus") is None:
        raise DataError(
            "opacus: expected it installed for differentially private training "
            "(pip install 'medpair[dp]'), found none"
        )


class PrivacyBudget:
    """How much noise goes into each step, and what epsilon that makes.

    Args:
        records: training volumes.
        batch_size: expected volumes per step; each is taken with probability
            ``batch_size / records``.
        steps: noisy steps of the whole run.
        clipping_norm: largest L2 norm of one volume's gradient; the noise's standard deviation is
            ``noise_multiplier * clipping_norm``.
        target_epsilon: budget of the whole run, from which the noise is computed.
        noise_multiplier: the noise itself; where it is given, ``target_epsilon`` is not used.
        delta: probability with which the bound may fail; default ``1 / (10 * records)``.
        accountant: ``rdp`` or ``prv``.

    Raises:
        DataError: if Opacus is not installed.
        ValueError: unless ``target_epsilon`` or ``noise_multiplier`` is given, and all numbers are
            positive.
    """

    def __init__(
        self,
        records: int,
        batch_size: int,
        steps: int,
        clipping_norm: float = 1.0,
        target_epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float | None = None,
        accountant: str = "rdp",
    ) -> None:
        require_opacus()
        if target_epsilon is None and noise_multiplier is None:
            raise ValueError("target_epsilon: expected a number, or a noise_multiplier, found None")
        if accountant not in ("rdp", "prv"):
            raise ValueError(f"accountant: expected rdp or prv, found {accountant!r}")
        self.records = records
        self.batch_size = batch_size
        self.sample_rate = batch_size / records
        self.steps = steps
        self.clipping_norm = clipping_norm
        self.delta = 1 / (10 * records) if delta is None else delta
        self.mechanism = accountant
        given = {
            "clipping_norm": clipping_norm,
            "target_epsilon": target_epsilon,
            "noise_multiplier": noise_multiplier,
            "delta": self.delta,
        }
        for name, value in given.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a number over 0, found {value}")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"batch_size: expected 1 to {records} volumes, found {batch_size}")
        if noise_multiplier is not None:
            self.noise_multiplier = float(noise_multiplier)
        elif target_epsilon is not None:
            self.noise_multiplier = self._noise_for(float(target_epsilon))

    def new_accountant(self) -> Any:
        """Return an Opacus accountant that has seen no step."""
        from opacus.accountants import create_accountant

        return create_accountant(mechanism=self.mechanism)

    def epsilon(self, history: Sequence[tuple[float, float, int]]) -> float:
        """Return the epsilon at ``delta`` of steps (noise multiplier, sampling rate, number)."""
        if sum(number for _, _, number in history) == 0:
            return 0.0
        accountant = self.new_accountant()
        accountant.history = list(history)
        with warnings.catch_warnings():
            # the best order lies at an end only where epsilon is far from what one would use
            warnings.filterwarnings("ignore", message="Optimal order")
            # the conversion from Renyi divergences can fall below what is possible
            return max(0.0, float(accountant.get_epsilon(self.delta, alphas=ORDERS)))

    def _noise_for(self, target: float) -> float:
        from opacus.accountants.utils import get_noise_multiplier

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order")
            return float(
                get_noise_multiplier(
                    target_epsilon=target,
                    target_delta=self.delta,
                    sample_rate=self.sample_rate,
                    steps=self.steps,
                    accountant=self.mechanism,
                    epsilon_tolerance=0.001 * target,
                    alphas=ORDERS,
                )
            )


class PrivacyLog(MetricsLog):
    """A ``MetricsLog`` whose lines end with the epsilon spent up to that iteration."""

    def _flush(self, engine: Any) -> None:
        # the others are means since the last line; a mean would report too little
        self.sums["epsilon"] = engine.epsilon() * self.count
        super()._flush(engine)


class PrivacyCard(ModelCard):
    """A ``ModelCard`` with an entry ``privacy``, and without what only the volumes could tell.

    Sizes and intensity range of the training volumes are replaced by values that do not depend on
    them. The epsilon is that of the end of the epoch in progress: weights saved in the middle of
    it have spent no more than their card says.

    Args:
        output_dir: where the file goes.
        cohort: the training cohort.
        entries: what else, as plain data.
        sizes: sizes (W, H, D) that generated pairs are cropped to; from anything but the cohort.
        intensity: range (low, high) that generated images are written in. CT keeps the cohort's.
        spacing: the ``spacing`` knob: None says that the cohort's median was taken.
        ckpt_path: weights that training started from, or None.
    """

    def __init__(
        self,
        output_dir: str | Path,
        cohort: Cohort,
        entries: Mapping[str, Any],
        sizes: Sequence[Sequence[int]],
        intensity: Sequence[float],
        spacing: Sequence[float] | None = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        public = replace(cohort, sizes=tuple((int(w), int(h), int(d)) for w, h, d in sizes))
        outside = [
            "the number of training volumes",
            "patch_size, if it was taken from the largest volumes (compact.json)",
            "settings that were chosen by looking at earlier runs on the same volumes",
        ]
        if spacing is None:
            outside.append("spacing: the median of the training volumes")
        if cohort.channel.upper() == CT:
            outside.append("the intensity range, which all CT volumes were scaled by")
        else:
            public = replace(public, intensity=(float(intensity[0]), float(intensity[1])))
        if ckpt_path is not None:
            outside.append(f"the weights that training started from ({Path(ckpt_path).name})")
        super().__init__(output_dir, public, entries)
        self.outside = outside

    def attach(self, engine: Engine) -> None:
        """Register with a ``PrivateWGANTrainer``, after the checkpoint."""
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED):
            engine.add_event_handler(event, self._write)

    def _write(self, engine: Any) -> None:
        state = engine.state
        ahead = max(0, state.epoch * state.epoch_length - state.iteration)
        privacy = {**engine.privacy(ahead), "outside_the_guarantee": self.outside}
        if state.iteration:
            # a run that goes on from before the model.pt that lies here: that has spent more
            earlier = read_json(self.path).get("privacy", {}) if self.path.exists() else {}
            if earlier.get("steps", 0) > privacy["steps"]:
                privacy = earlier
        elif is_main_rank():
            # the weights of another run have spent another epsilon
            self.path.with_name("model.pt").unlink(missing_ok=True)
        write_json(self.path, {**self.content, "privacy": privacy})
