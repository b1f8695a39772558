"""Training of the two diffusion stages: a step is one loss, one update, one averaged weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from medpair.data.label_codes import LabelCode, has_label, restricted
from medpair.diffusion.process import Diffusion
from medpair.engines.allocator import keep_freed_memory
from medpair.engines.averaging import AveragedWeights
from medpair.engines.distributed import data_parallel, rank_generator
from medpair.engines.federated import FederatedTrainer
from medpair.engines.numerics import MAX_BAD_STEPS, BadSteps
from medpair.networks.diffusion_unet import ResidualBlock
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser


class Task(Protocol):
    """What a diffusion network learns from a batch."""

    def __call__(
        self, network: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return ``loss`` and its parts; randomness comes from ``generator`` alone."""
        ...


class TaskLoss(nn.Module):
    """A network with its task: one call for all of its passes, as data parallelism needs it."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss`` and its parts."""
        return self.task(self.network, batch, generator)


def recompute_activations(network: nn.Module, recompute: bool = True) -> None:
    """Let blocks of a U-Net compute their activations again for gradients, or keep them.

    The gradients are the same: a third of the memory or less, for a third more time.
    """
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            module.recompute = recompute


class MaskSequenceTask:
    """MC-DPM's training step: noise what is not given, predict, judge only that.

    With the objective ``classes`` the network gives the logits of each voxel's class from what
    surrounds it; what the voxel's own noisy code says is added in closed form; and the loss is the
    cross-entropy. With the other objectives the network must carry the noise of all m slices
    through its width, and thin structures are lost where it is too narrow.

    Args:
        diffusion: schedule and objective.
        code: how label maps become numbers.
        self_conditioning: half of the batches are told what the network says of them without being
            told (Chen et al. 2023, "Analog bits", algorithm 1): a sixth more time.
        time_power: times are u ** power for a uniform u. Labels at little noise are known from it
            alone, and nothing is learned there: below 1 fewer steps are spent on them.
        completes: K: voxels of the classes 1 to K are given, too, wherever they are, and only what
            has no label is learned, around them; 0: whatever is not in slices given is learned.
            The network is told what is given as what it said before.

    Raises:
        ValueError: if the power is not positive, or the model is none that can complete.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        code: LabelCode,
        self_conditioning: bool = False,
        time_power: float = 1.0,
        completes: int = 0,
    ) -> None:
        if not time_power > 0:
            raise ValueError(f"time_power: expected a positive number, found {time_power}")
        if completes and not (diffusion.objective == "classes" and self_conditioning):
            raise ValueError(
                "completes: expected the objective classes and self_conditioning True, found "
                f"{diffusion.objective} and {self_conditioning}"
            )
        self.diffusion = diffusion
        self.code = code
        self.self_conditioning = self_conditioning
        self.time_power = time_power
        self.completes = completes

    def __call__(
        self, network: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``batch`` has ``label`` (B, m, H, W), ``known`` (B, m), ``position`` (B,).

        And ``sizes`` (B, K) where the network is told those of the whole volume.
        """
        x0 = self.code.encode(batch["label"])
        # times stay on the CPU, where levels are looked up: a GPU is not waited for
        t = self.diffusion.draw_times(len(x0), generator, self.time_power)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        hidden = 1.0 - batch["known"][:, None, :, None, None]
        if self.completes:
            hidden = hidden * ~has_label(batch["label"][:, None], self.completes)
        # slices and voxels that are given stay clean at every time
        x = torch.lerp(x0, self.diffusion.noised(x0, t, noise), hidden)
        time = (t * self.diffusion.schedule.timesteps).to(x0.device, non_blocking=True)
        given: dict[str, Tensor] = {
            "time": time,
            "known": batch["known"],
            "position": batch["position"],
        }
        if "sizes" in batch:
            given["sizes"] = batch["sizes"]
        if self.diffusion.objective == "classes":
            levels = self.diffusion.levels(t, x)
            given["evidence"] = self.code.evidence(x, *levels, hidden)
        if self.completes:
            nothing = torch.zeros_like(given["evidence"])
            told = self.code.mean(restricted(nothing, batch["label"], self.completes))
            given["previous"] = torch.lerp(x0, told, hidden)
        if self.self_conditioning and torch.rand((), generator=generator) < 0.5:
            with torch.no_grad():
                said = self._said(network(x, **given).float(), x, t, given, batch["label"])
            # weights that autocast kept of this pass have no graph, and the next would take them
            torch.clear_autocast_cache()
            given["previous"] = torch.lerp(x0, said, hidden)
        output = network(x, **given).float()
        if self.diffusion.objective != "classes":
            return self.diffusion.loss(output, x0, noise, t, hidden)
        logits = output + given["evidence"]
        if self.completes:
            logits = restricted(logits, batch["label"], self.completes)
        loss = functional.cross_entropy(logits, batch["label"].long(), reduction="none")
        weight = hidden[:, 0].expand_as(loss)
        return {"loss": (loss * weight).sum() / weight.sum().clamp_min(1.0)}

    def _said(
        self, output: Tensor, x: Tensor, t: Tensor, given: dict[str, Tensor], label: Tensor
    ) -> Tensor:
        """Return what an output says of x_0."""
        evidence = given.get("evidence")
        if evidence is not None:
            logits = output + evidence
            if self.completes:
                logits = restricted(logits, label, self.completes)
            return self.code.mean(logits)
        return self.diffusion.predicted(output, x, t).x0.clamp(-1.0, 1.0)


class DiffusionTrainer(FederatedTrainer):
    """Train a denoiser.

    Args:
        device: where to train.
        max_epochs: passes over the data loader.
        train_data_loader: batches of tensors.
        network: the denoiser.
        optimizer: of its parameters.
        task: what it learns.
        averaging: decay of the averaged weights that are sampled from (0.9999 in the relatives
            of the paper, for hundreds of thousands of steps).
        clip_gradient: largest norm of a step's gradient.
        warmup: steps over which the learning rate rises from nothing.
        amp: mixed precision, bfloat16: it needs no loss scaling.
        channels_last: memory layout; faster for 2D convolutions on a CPU and on tensor cores.
        recompute: keep no activations inside of blocks, see ``recompute_activations``.
        seed: of times and noise.
        max_bad_steps: steps in a row whose loss or gradient is not finite, and which are left out,
            before the run stops.
        train_handlers: ignite handlers.

    Raises:
        NotFiniteError: after so many losses or gradients that are not finite.
    """

    # what a smaller value of saves memory
    memory_knobs = ("batch_size", "volume_size")

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        task: Task,
        averaging: float = 0.999,
        clip_gradient: float = 1.0,
        warmup: int = 100,
        amp: bool = False,
        channels_last: bool = True,
        recompute: bool = False,
        seed: int = 0,
        max_bad_steps: int = MAX_BAD_STEPS,
        train_handlers: list[Any] | None = None,
    ) -> None:
        switches = {"amp": amp, "channels_last": channels_last, "recompute": recompute}
        for name, value in switches.items():
            if not isinstance(value, bool):  # the text "false" would count as true
                raise ValueError(f"{name}: expected True or False, found {value!r}")
        super().__init__(device, max_epochs, train_data_loader, amp=False, decollate=False)
        if self.state.device.type == "cpu":
            keep_freed_memory()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.denoiser = network.to(self.state.device)
        # convolutions in three dimensions keep theirs: a module of both refuses one layout for all
        convert_conv2d_weight_memory_format(self.denoiser, layout)
        recompute_activations(self.denoiser, recompute)
        self.optimizer = optimizer
        self.averaged = AveragedWeights(self.denoiser, averaging)
        # with self-conditioning each process tosses its own coin for the layer that hears it
        tossed = getattr(task, "self_conditioning", False)
        self.learning = data_parallel(TaskLoss(self.denoiser, task), may_skip=tossed)
        self.clip_gradient = clip_gradient
        self.warmup = warmup
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.mixed, self.amp_dtype = amp, torch.bfloat16
        self.seed = seed
        self.bad_steps = BadSteps(max_bad_steps)
        self._register_handlers(train_handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        return {
            "network": self.denoiser,
            "optimizer": self.optimizer,
            "averaged": self.averaged,
            "bad_steps": self.bad_steps,
        }

    def model_state(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        state = self.averaged.network.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _iteration(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Take one step."""
        self.denoiser.train()
        iteration = self.state.iteration
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            group["lr"] = rate * min(1.0, iteration / max(1, self.warmup))
        batch = {
            key: value.to(self.state.device, non_blocking=True)
            for key, value in batch.items()
            if isinstance(value, Tensor)
        }
        generator = rank_generator(self.seed, iteration)
        with torch.autocast(self.state.device.type, self.amp_dtype, enabled=self.mixed):
            losses = self.learning(batch, generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.clip_gradient)
        self.bad_steps.step(self.optimizer, {**losses, "gradient_norm": norm}, norm=norm)
        numbers = self.bad_steps.finish(self, [self.denoiser])
        if not self.bad_steps.in_a_row:
            self.averaged.update(self.denoiser)
        return {CommonKeys.LOSS: numbers["loss"], **numbers}


class SemanticTask:
    """The refiner's training step: a slice of each view, noised, denoised under its label map.

    Args:
        diffusion: schedule and objective.
        mask_dropout: share of slices whose label map is withheld, for guidance (0.2 in SDM's second
            phase of training).
        low_noise: share of times drawn from the range that refining uses, below ``low_noise_time``;
            the others from all times (0: as the paper). Refining 10 of 100 steps never sees the
            rest.
        low_noise_time: end of that range, as a fraction of all times.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        mask_dropout: float = 0.0,
        low_noise: float = 0.0,
        low_noise_time: float = 0.15,
    ) -> None:
        for name, share in {"mask_dropout": mask_dropout, "low_noise": low_noise}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a share of 0 to 1, found {share}")
        self.diffusion = diffusion
        self.mask_dropout = mask_dropout
        self.low_noise = low_noise
        self.low_noise_time = low_noise_time

    def __call__(
        self, network: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``batch`` has ``image_V`` (B, 1, H, W), ``label_V``, ``inside_V`` for each view V."""
        assert isinstance(network, SemanticDenoiser)
        sums: dict[str, Tensor] = {}
        for view in VIEWS:
            x0, inside = batch[f"image_{view}"], batch[f"inside_{view}"]
            one_hot = network.one_hot(batch[f"label_{view}"])
            kept = torch.rand(len(x0), generator=generator) >= self.mask_dropout
            one_hot = one_hot * kept.to(one_hot)[:, None, None, None]
            t = self._times(len(x0), generator)
            noise = torch.randn(x0.shape, generator=generator).to(x0.device)
            x = self.diffusion.noised(x0, t, noise)
            time = (t * self.diffusion.schedule.timesteps).to(x0.device, non_blocking=True)
            output = network(x, time, None, view, one_hot)
            for key, loss in self.diffusion.loss(output.float(), x0, noise, t, inside).items():
                sums[key] = sums.get(key, 0.0) + loss / len(VIEWS)
        return sums

    def _times(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw times; some of them are moved into the range of refining, order kept."""
        t = self.diffusion.draw_times(count, generator)
        low = torch.rand(count, generator=generator) < self.low_noise
        steps = self.diffusion.schedule.timesteps
        moved = t * self.low_noise_time
        if self.diffusion.objective != "flow":  # whole levels only, from the first
            moved = ((moved * steps).round().clamp_min(1)) / steps
        return torch.where(low, moved, t)
