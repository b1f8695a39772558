"""Training of a segmenter: MONAI's supervised trainer, resumable, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer
from monai.utils.enums import CommonKeys
from torch import Tensor

from medpair import __version__
from medpair.data.files import write_json
from medpair.data.segmentation import SegmentationTask
from medpair.engines.allocator import keep_freed_memory
from medpair.engines.checkpoint import CARD
from medpair.engines.distributed import data_parallel, is_main_rank, mean_over_ranks


class SegmentationTrainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` that can say and restore all of its state.

    Args:
        lr_scheduler: stepped after every epoch, or None.
        kwargs: of ``SupervisedTrainer``.

    Raises:
        FloatingPointError: on a loss that is not finite, with the cases of the batch.
    """

    network: torch.nn.Module

    def __init__(
        self,
        *args: Any,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        train_handlers: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, decollate=False, **kwargs)
        self.lr_scheduler = lr_scheduler
        self.plain_network = self.network
        self.network = data_parallel(self.network)
        if self.state.device.type == "cpu":
            keep_freed_memory()
            # MONAI's autocast is CUDA's
            self.amp = False
        # before the handlers: a checkpoint holds the scheduler as the next epoch needs it
        self.add_event_handler(Events.ITERATION_COMPLETED, self._check_finite)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._step_scheduler)
        self._register_handlers(train_handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        objects = {
            "network": self.plain_network,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "scaler": self.scaler,
        }
        return {name: thing for name, thing in objects.items() if thing is not None}

    def model_state(self) -> dict[str, Tensor]:
        """Return the weights to predict with."""
        state = self.plain_network.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _step_scheduler(self, engine: Engine) -> None:
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def _check_finite(self, engine: Engine) -> None:
        mean = mean_over_ranks(self.state.output[CommonKeys.LOSS])
        self.state.output[CommonKeys.LOSS] = mean
        loss = mean.item()
        if not abs(loss) < float("inf"):
            raise FloatingPointError(
                f"iteration {self.state.iteration}: expected a finite loss, found {loss} on "
                f"{self.state.batch.get('case')}; try --amp False, or a lower learning rate"
            )


class SegmenterCard:
    """Write ``model.json`` beside ``model.pt``: classes, grid and network of a segmenter.

    Args:
        output_dir: where the file goes.
        task: classes and spacing.
        segmenter: arguments of ``medpair.networks.segmenters.segmenter``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        task: SegmentationTask,
        segmenter: dict[str, Any],
    ) -> None:
        self.path = Path(output_dir) / CARD
        self.task = task
        self.segmenter = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in segmenter.items()
        }

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.STARTED, self._write)

    def _write(self, engine: Engine) -> None:
        write_json(
            self.path,
            {
                "medpair_version": __version__,
                "task": self.task.to_json(),
                "segmenter": self.segmenter,
            },
        )
