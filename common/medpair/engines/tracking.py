"""``--tracking mlflow``: MONAI's handler, made to suit any trainer and to give way to the run.

MONAI puts its ``MLFlowHandler`` into a bundle's config by itself, before anything of ours runs, so
that it cannot be replaced there, and two things of it do not suit. It takes the loss out of lists
of dictionaries alone. And it ends a training of days when the tracking server does not answer.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

logger = logging.getLogger(__name__)

EVENTS = ("start", "iteration_completed", "epoch_completed", "complete", "close")
# MLflow's own 7 retries of up to 120 s would hold up a training that its server does not
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def suit_tracking() -> None:
    """Let ``MLFlowHandler`` log every number of an output, and warn where it cannot log.

    Does nothing without mlflow, or the second time. Limits set in the environment are kept.
    """
    if find_spec("mlflow") is None:
        return
    from monai.handlers import MLFlowHandler

    if hasattr(MLFlowHandler, "medpair_gave_up"):
        return
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    MLFlowHandler.medpair_gave_up = False
    for event in EVENTS:
        setattr(MLFlowHandler, event, _patient(getattr(MLFlowHandler, event)))


def _patient(event: Callable[..., None]) -> Callable[..., None]:
    """Return a handler's method that warns once and is silent from then on, instead of raising."""

    @functools.wraps(event)
    def method(self: Any, *engines: Any) -> None:
        if self.medpair_gave_up:
            return
        if event.__name__ == "start":
            tag, plain = self.tag_name, self.output_transform
            self.output_transform = lambda output: numbers(output, tag) or plain(output)
        try:
            event(self, *engines)
        except Exception as error:  # whatever a database or a server may come up with
            self.medpair_gave_up = True
            logger.warning(
                "tracking: expected to reach %s, found %s; going on without",
                self.client.tracking_uri,
                str(error).splitlines()[0] if str(error) else type(error).__name__,
            )

    return method


def numbers(output: Any, tag: str) -> dict[str, float]:
    """Return the numbers in a trainer's output, by name; its loss is called ``tag``."""
    if not isinstance(output, dict):
        return {}
    found = {}
    for key, value in output.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (int, float)):
            found[tag if key == "loss" else str(key)] = float(value)
    return found
