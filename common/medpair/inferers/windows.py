"""Prediction over sliding windows, fewer at a time where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from medpair.data.memory import Parts


class FittingWindowInferer(SlidingWindowInferer):
    """MONAI's ``SlidingWindowInferer``, whose windows are predicted in parts that fit into memory.

    Args:
        args: of ``SlidingWindowInferer``.
        kwargs: of the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts = Parts("windows")

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the prediction (B, classes, W, H, D) of volumes (B, C, W, H, D)."""

        def windows(batch: Tensor, *more: Any, **named: Any) -> Tensor:
            def predicted(part: slice) -> Tensor:
                return network(batch[part], *more, **named)

            return torch.cat(self.parts(predicted, len(batch), batch))

        return super().__call__(inputs, windows, *args, **kwargs)
