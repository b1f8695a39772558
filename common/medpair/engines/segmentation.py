"""Training of a segmenter: MONAI's supervised trainer, resumable, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils.enums import CommonKeys
from torch import Tensor

from medpair import __version__
from medpair.data.files import write_json
from medpair.data.segmentation import SegmentationTask
from medpair.engines.allocator import keep_freed_memory
from medpair.engines.checkpoint import CARD
from medpair.engines.distributed import data_parallel, is_main_rank, mean_over_ranks
from medpair.engines.numerics import MAX_BAD_STEPS, BadSteps, gradient_norm


class Bfloat16Inferer(Inferer):
    """Infer in bfloat16 mixed precision on a CPU, and give the result in fp32.

    Args:
        inferer: what calls the network.
    """

    def __init__(self, inferer: Inferer) -> None:
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output (B, C, H, W, D), fp32."""
        with torch.autocast("cpu", torch.bfloat16):
            output: Tensor = self.inferer(inputs, network, *args, **kwargs)
        return output.float()


class SegmentationTrainer(SupervisedTrainer):
    """MONAI's ``SupervisedTrainer`` that can say and restore all of its state.

    Args:
        lr_scheduler: stepped after every epoch, or None.
        max_bad_steps: steps in a row whose loss or gradient is not finite, and which are left out,
            before the run stops.
        amp: among ``kwargs``: mixed precision, fp16 on CUDA, bfloat16 on a CPU.
        kwargs: of ``SupervisedTrainer``.

    Raises:
        NotFiniteError: after so many losses or gradients that are not finite, or when the loss
            scale collapses; with the cases of the batch.
    """

    # what a smaller value of saves memory
    memory_knobs = ("batch_size", "largest_patch")
    network: torch.nn.Module
    amp: bool
    inferer: Inferer

    def __init__(
        self,
        *args: Any,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        max_bad_steps: int = MAX_BAD_STEPS,
        train_handlers: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, decollate=False, **kwargs)
        self.lr_scheduler = lr_scheduler
        self.bad_steps = BadSteps(max_bad_steps)
        self.plain_network = self.network
        self.network = data_parallel(self.network)
        self.mixed = self.amp
        if self.state.device.type == "cpu":
            keep_freed_memory()
            # MONAI's autocast and loss scaling are CUDA's; bfloat16 needs no scaling
            self.amp, self.scaler = False, None
            if self.mixed:
                self.amp_dtype = torch.bfloat16
                self.inferer = Bfloat16Inferer(self.inferer)
        # before the handlers: a checkpoint holds the scheduler as the next epoch needs it
        self.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._leave_out_bad)
        self.add_event_handler(Events.ITERATION_COMPLETED, self._count_bad)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._step_scheduler)
        self._register_handlers(train_handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        objects = {
            "network": self.plain_network,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "scaler": self.scaler,
            "bad_steps": self.bad_steps,
        }
        return {name: thing for name, thing in objects.items() if thing is not None}

    def model_state(self) -> dict[str, Tensor]:
        """Return the weights to predict with."""
        state = self.plain_network.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _step_scheduler(self, engine: Engine) -> None:
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def _leave_out_bad(self, engine: Engine) -> None:
        """Take away gradients that are not finite, before MONAI's step; a scaler does it itself."""
        losses = {CommonKeys.LOSS: mean_over_ranks(self.state.output[CommonKeys.LOSS])}
        self.state.output |= losses
        if self.amp and self.scaler is not None:
            self.bad_steps.finite(losses)
        elif not self.bad_steps.finite({**losses, "gradient_norm": gradient_norm(self.optimizer)}):
            # an optimizer passes over parameters without gradients, their weight decay too
            self.optimizer.zero_grad(set_to_none=True)

    def _count_bad(self, engine: Engine) -> None:
        if self.amp and self.scaler is not None:
            self.bad_steps.scale_of(self.scaler)
        self.bad_steps.finish(self, [self.network])


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
