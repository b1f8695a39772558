"""Numbers that stop being numbers: bad steps are skipped, counted, and stop the run with a name.

A step is bad when a loss or a gradient is NaN or infinite. Its update is left out, so that weights
and averaged weights stay finite; the next batch may well be fine. When ``max_bad_steps`` follow
each other, it is not the batch: the run stops, and says on which batches. Under fp16 an infinite
gradient is the loss scaler's ordinary business (it skips the step and halves the scale); there, a
scale that falls below 2^-10 stops the run: so small a scale rounds every useful gradient to zero,
and training would go on for ever without learning (tensorflow#48662).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medpair.data.files import DataError
from medpair.engines.distributed import mean_over_ranks

logger = logging.getLogger(__name__)

LEAST_SCALE = 2.0**-10
# Several batches in a row are not an accident; each costs but one step
MAX_BAD_STEPS = 5
# What a batch is known by, where the data give it
IDENTITY = ("case", "index")


class NotFiniteError(DataError, FloatingPointError):
    """A run that stopped on numbers; ``report`` is plain data for ``bad_batch.json``."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


class BadSteps:
    """Leave out updates that are not finite; stop after too many in a row.

    A trainer calls ``step`` in place of ``optimizer.step()`` (any number of times), then ``finish``
    once per iteration. The count belongs into the checkpoint: this has a ``state_dict``.

    Args:
        limit: bad iterations in a row that stop the run (``max_bad_steps``); 1 stops at the first.

    Attributes:
        values: losses of the iteration, as numbers.
        in_a_row: bad iterations up to now; 0 after a good one.

    Raises:
        ValueError: for a limit below 1.
    """

    def __init__(self, limit: int = MAX_BAD_STEPS) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"max_bad_steps: expected a number of at least 1, found {limit!r}")
        self.limit = limit
        self.in_a_row = 0
        self.values: dict[str, float] = {}
        self._bad: dict[str, float] = {}
        self._here = False
        self._norms: dict[str, float] = {}
        self._scales: dict[str, float] = {}
        self._history: list[dict[str, Any]] = []

    def finite(self, losses: Mapping[str, Tensor]) -> bool:
        """Take in losses (or norms), means over the processes; return whether all are finite."""
        # one transfer from the device for all; a mean with NaN is NaN in every process: one alone
        # may not leave out a step
        own = torch.stack([value.detach().float() for value in losses.values()])
        found = mean_over_ranks(own)
        numbers = dict(zip(losses, found.tolist(), strict=True))
        self.values |= numbers
        bad = {key: value for key, value in numbers.items() if not math.isfinite(value)}
        self._bad |= bad
        if bad:
            self._here |= not bool(torch.isfinite(own).all())
        return not bad

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        losses: Mapping[str, Tensor],
        scaler: torch.amp.GradScaler | None = None,
        name: str = "gradient_norm",
        norm: Tensor | None = None,
    ) -> bool:
        """Update, gradients being there, unless a loss or a gradient is not finite.

        Args:
            optimizer: of the parameters.
            losses: what the gradients come from.
            scaler: of the losses; it leaves out infinite gradients by itself.
            name: of the gradient, in messages.
            norm: of the gradient, where the caller has it.

        Returns:
            Whether there was an update; True where it is left to the scaler.
        """
        if scaler is not None and scaler.is_enabled():
            scaler.step(optimizer)
            scaler.update()
            self.finite(losses)
            self.scale_of(scaler, name)
            return True
        norm = gradient_norm(optimizer) if norm is None else norm
        good = self.finite({**losses, name: norm})
        if name not in losses:
            self._norms[name] = self.values.pop(name)
        if not good:
            optimizer.zero_grad(set_to_none=True)
            return False
        optimizer.step()
        return True

    def scale_of(self, scaler: torch.amp.GradScaler, name: str = "loss") -> None:
        """Note a scaler's scale, which ``finish`` looks at."""
        self._scales[name] = float(scaler.get_scale())

    def finish(self, engine: Any, networks: Iterable[nn.Module] = ()) -> dict[str, float]:
        """Count the iteration and return its numbers; those of a bad one may be NaN.

        Args:
            engine: the trainer.
            networks: whose BatchNorm statistics a bad batch may have spoilt.

        Raises:
            NotFiniteError: after too many bad iterations, or when a scaler has collapsed.
        """
        values, bad, norms, scales = self.values, self._bad, self._norms, self._scales
        self.values, self._bad, self._norms, self._scales = {}, {}, {}, {}
        collapsed = {key: scale for key, scale in scales.items() if scale < LEAST_SCALE}
        if not bad and not collapsed:
            self.in_a_row, self._history = 0, []
            return values
        for network in networks:
            renew_statistics(network)
        self.in_a_row += bool(bad)
        here, self._here = self._here or not bad, False
        self._history.append(
            {
                "in_this_process": here,
                "iteration": int(engine.state.iteration),
                **identity(engine.state.batch),
                "losses": readable(values),
                "gradients": readable(norms),
                "loss_scale": readable(scales),
            }
        )
        where = f"iteration {engine.state.iteration}"
        on = f" on {names(engine.state.batch)}" if identity(engine.state.batch) else ""
        on = on if here else " in another process"
        advice = _advice(engine)
        if collapsed:
            self._stop(
                f"{where}: expected a loss scale of at least 2^-10, found "
                f"{short(collapsed)}{on}: fp16 has no room for these gradients; {advice}"
            )
        if self.in_a_row >= self.limit:
            self._stop(
                f"{where}: expected finite losses and gradients, found {short(bad)}{on}, "
                f"the last of {self.in_a_row} bad steps in a row (max_bad_steps); {advice}"
            )
        logger.warning(
            "%s: %s%s: step left out (%d of %d in a row that stop the run)",
            where, short(bad), on, self.in_a_row, self.limit,
        )  # fmt: skip
        return values

    def _stop(self, message: str) -> None:
        steps = self._history[-self.limit :]
        raise NotFiniteError(message, {"max_bad_steps": self.limit, "steps": steps})

    def state_dict(self) -> dict[str, int]:
        """Return the count, so that a resumed run stops where an uninterrupted one would."""
        return {"in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over the count."""
        self.in_a_row = int(state["in_a_row"])


def precision(engine: Any) -> str:
    """Return the number format that a trainer's networks compute in."""
    if not getattr(engine, "mixed", getattr(engine, "amp", False)):
        return "float32"
    # MONAI's own trainers take what autocast does on CUDA
    kept = getattr(engine, "amp_dtype", torch.float16)
    return str(kept).removeprefix("torch.")


def _advice(engine: Any) -> str:
    anew = "begin anew with a lower learning rate (--resume False, or another output_dir)"
    if precision(engine) == "float32":
        return anew
    wide = precision(engine) == "float16" and hasattr(engine, "amp_dtype")
    return f"go on with {'--amp_dtype bfloat16 or ' if wide else ''}--amp False, or {anew}"


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the L2 norm of all gradients that an optimizer would use, as a scalar."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.get_total_norm([grad for grad in grads if grad is not None])


def renew_statistics(network: nn.Module) -> None:
    """Reset BatchNorm statistics that are no longer finite: a running mean never forgets NaN."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            if not torch.isfinite(module.running_mean + module.running_var).all():
                module.reset_running_stats()


def require_finite(state: Mapping[str, Tensor], engine: Any) -> None:
    """Refuse to save weights that are not finite: the last good checkpoint stays.

    Raises:
        NotFiniteError: names the first tensor.
    """
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NotFiniteError(
                f"iteration {engine.state.iteration}: expected finite weights, found NaN or "
                f"infinity in {key}: not saved; start again with a lower rate or --amp False",
                {"steps": [{"iteration": int(engine.state.iteration), "tensor": key}]},
            )


def identity(batch: Any) -> dict[str, Any]:
    """Return which cases and items a batch holds, as plain data; {} where it does not say."""
    if not isinstance(batch, Mapping):
        return {}
    found = {key: batch[key] for key in IDENTITY if key in batch}
    return {
        key: value.tolist() if isinstance(value, Tensor) else value for key, value in found.items()
    }


def names(batch: Any) -> str:
    """Return the cases of a batch in a few words."""
    found = identity(batch)
    key = "case" if "case" in found else "index"
    value = found.get(key, [])
    cases = sorted({str(case) for case in (value if isinstance(value, list) else [value])})
    more = f" and {len(cases) - 4} more" if len(cases) > 4 else ""
    return ", ".join(cases[:4]) + more


def readable(numbers: Mapping[str, float]) -> dict[str, float | str]:
    """Return numbers for JSON, which has no NaN: those that are none as text."""
    return {key: value if math.isfinite(value) else str(value) for key, value in numbers.items()}


def short(numbers: Mapping[str, float]) -> str:
    """Return ``name value`` pairs in a few characters."""
    return ", ".join(f"{key} {value:.3g}" for key, value in numbers.items())
