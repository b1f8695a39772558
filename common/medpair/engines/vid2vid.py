"""Training of the image sequence generator (Han et al. 2023; losses after vid2vid).

A sequence is drawn slice by slice, each from the generator's own past, as in use; the past carries
no gradient. Then two critics judge it: one each image under its labels at several scales, one the
course of tau + 1 images. The generator's loss::

    image critic + temporal critic + features of both critics + perceptual + alignment
    + L1 to the real slice + flow: real neighbours warped onto each other

Perceptual distance and alignment come from a small segmenter that learns beside it on real slices.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from monai.losses import PatchAdversarialLoss
from monai.utils.enums import CommonKeys
from torch import Tensor
from torch.nn import functional

from medpair.engines.allocator import keep_freed_memory
from medpair.engines.averaging import AveragedWeights
from medpair.engines.distributed import data_parallel, world_size
from medpair.engines.federated import FederatedTrainer
from medpair.engines.numerics import MAX_BAD_STEPS, BadSteps
from medpair.engines.vid2vid_parts import CriticsLoss, Sequence, SequenceDrawing
from medpair.networks.vid2vid import (
    ImageSequenceGenerator,
    MultiScaleCritic,
    SliceSegmenter,
    warp,
)


class Vid2VidTrainer(FederatedTrainer):
    """Train the generator against its critics.

    Args:
        device: where to train.
        max_epochs: passes over the data loader.
        train_data_loader: batches of ``SliceSequences``.
        generator: the network.
        image_critic: sees one image under the one-hot labels around it.
        temporal_critic: sees tau + 1 images in a row.
        segmenter: learns beside the generator.
        optimizer: of the generator.
        critic_optimizer: of both critics.
        segmenter_optimizer: of the segmenter.
        adversarial_weight: of each critic (least squares).
        feature_weight: of the critics' features (10 in video-to-video synthesis).
        perceptual_weight: of the segmenter's features.
        alignment_weight: of the segmenter's cross-entropy on drawn slices, where it is above
            that on the real ones.
        l1_weight: of the distance to the real slice. Unlike a street scene, a slice has one image
            that belongs to its labels; with it, training is stable on 20 volumes.
        flow_weight: of warped real neighbours (10).
        averaging: decay of the averaged weights.
        amp: mixed precision, bfloat16.
        channels_last: memory layout; on a CPU a tenth slower, since instance norms copy it.
        max_bad_steps: iterations in a row whose losses or gradients are not finite, and whose
            updates are left out, before the run stops.
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
        generator: ImageSequenceGenerator,
        image_critic: MultiScaleCritic,
        temporal_critic: MultiScaleCritic,
        segmenter: SliceSegmenter,
        optimizer: torch.optim.Optimizer,
        critic_optimizer: torch.optim.Optimizer,
        segmenter_optimizer: torch.optim.Optimizer,
        adversarial_weight: float = 1.0,
        feature_weight: float = 10.0,
        perceptual_weight: float = 5.0,
        alignment_weight: float = 1.0,
        l1_weight: float = 10.0,
        flow_weight: float = 10.0,
        averaging: float = 0.999,
        amp: bool = False,
        channels_last: bool = False,
        max_bad_steps: int = MAX_BAD_STEPS,
        train_handlers: list[Any] | None = None,
    ) -> None:
        for name, value in {"amp": amp, "channels_last": channels_last}.items():
            if not isinstance(value, bool):  # the text "false" would count as true
                raise ValueError(f"{name}: expected True or False, found {value!r}")
        super().__init__(device, max_epochs, train_data_loader, amp=False, decollate=False)
        if self.state.device.type == "cpu":
            keep_freed_memory()
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def placed(network: Any) -> Any:
            return network.to(self.state.device).to(memory_format=layout)

        self.generator: ImageSequenceGenerator = placed(generator)
        self.image_critic: MultiScaleCritic = placed(image_critic)
        self.temporal_critic: MultiScaleCritic = placed(temporal_critic)
        self.segmenter: SliceSegmenter = placed(segmenter)
        self.optimizer = optimizer
        self.critic_optimizer = critic_optimizer
        self.segmenter_optimizer = segmenter_optimizer
        self.adversarial = PatchAdversarialLoss(
            criterion="least_squares", no_activation_leastsq=True
        )
        self.weights = {
            "adversarial": adversarial_weight,
            "temporal": adversarial_weight,
            "features": feature_weight,
            "perceptual": perceptual_weight,
            "alignment": alignment_weight,
            "l1": l1_weight,
            "flow": flow_weight,
        }
        self.averaged = AveragedWeights(self.generator, averaging)
        self.bad_steps = BadSteps(max_bad_steps)
        # what is stepped; the same networks, shared by several processes where there are any
        self.drawing = data_parallel(SequenceDrawing(self.generator))
        self.segmenting = data_parallel(self.segmenter)
        critics = CriticsLoss([self.image_critic, self.temporal_critic], self.adversarial)
        # where no sequence has a whole past, the temporal critic has nothing to judge
        self.judging = data_parallel(critics, may_skip=True)
        self.mixed, self.amp_dtype = amp, torch.bfloat16
        self._register_handlers(train_handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        return {
            "generator": self.generator,
            "image_critic": self.image_critic,
            "temporal_critic": self.temporal_critic,
            "segmenter": self.segmenter,
            "optimizer": self.optimizer,
            "critic_optimizer": self.critic_optimizer,
            "segmenter_optimizer": self.segmenter_optimizer,
            "averaged": self.averaged,
            "bad_steps": self.bad_steps,
        }

    def model_state(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        state = self.averaged.network.state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def _iteration(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Draw a sequence; update segmenter, critics and generator, in this order."""
        for network in (self.generator, self.image_critic, self.temporal_critic, self.segmenter):
            network.train()
        with torch.autocast(self.state.device.type, self.amp_dtype, enabled=self.mixed):
            sequence = self._draw(batch)
            self._segmenter_step(sequence)
            self._critic_step(sequence)
            self._generator_step(sequence)
        numbers = self.bad_steps.finish(self)
        if not self.bad_steps.in_a_row:
            self.averaged.update(self.generator)
        return {CommonKeys.LOSS: numbers["generator"], **numbers}

    def _draw(self, batch: dict[str, Tensor]) -> Sequence:
        """Let the generator draw the batch's sequences, from the past that there is."""
        device = self.state.device
        real, inside = (batch[key].to(device)[:, :, None] for key in ("image", "inside"))
        label, available = batch["label"].to(device), batch["available"].to(device)
        position, contrast = batch["position"].to(device), batch.get("contrast")
        contrast = None if contrast is None else contrast.to(device)
        tau, seen = available.shape[1], 2 * self.generator.radius + 1
        steps = real.shape[1] - tau
        windows = torch.stack([label[:, tau + i : tau + i + seen] for i in range(steps)], dim=1)
        drawn = self.drawing(real, windows, inside, available, position, contrast)
        return Sequence(real, windows, inside, available, drawn)

    def _segmenter_step(self, sequence: Sequence) -> None:
        """Teach the segmenter on the real slices."""
        images = sequence.real[:, sequence.past :].flatten(0, 1)
        logits, _ = self.segmenting(images)
        loss = self._cross_entropy(logits, sequence)
        self._step(self.segmenter_optimizer, {"segmenter": loss})

    def _critic_step(self, sequence: Sequence) -> Tensor:
        """Teach both critics to tell drawn sequences from real ones."""
        judged = self._judged(sequence, sequence.fake().detach())
        loss = self.judging([(of_real, of_fake) for _, of_real, of_fake in judged])
        self._step(self.critic_optimizer, {"critics": loss})
        return loss

    def _generator_step(self, sequence: Sequence) -> None:
        """Update the generator; the judges stand still."""
        judges = (self.image_critic, self.temporal_critic, self.segmenter)
        for judge in judges:
            judge.requires_grad_(False)
        fake = sequence.fake()
        losses = self._critics_opinion(sequence, fake)
        losses |= self._segmenters_opinion(sequence, fake)
        real = sequence.real[:, sequence.past :]
        losses["l1"] = (fake - real).abs().mean()
        losses["flow"] = self._flow_loss(sequence)
        total = torch.stack([self.weights[key] * loss for key, loss in losses.items()]).sum()
        for judge in judges:
            judge.requires_grad_(True)
        if world_size() > 1:  # a process without any whole past has no temporal loss
            losses = {**dict.fromkeys(self.weights, torch.zeros_like(total)), **losses}
        self._step(self.optimizer, {"generator": total, **losses})

    def _step(self, optimizer: torch.optim.Optimizer, losses: dict[str, Tensor]) -> None:
        """Update by the first of the losses; the others are its parts."""
        name, loss = next(iter(losses.items()))
        # first the losses: on a CPU, the gradient of a warp by NaN ends the process
        if not self.bad_steps.finite(losses) or not loss.requires_grad:
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.bad_steps.step(optimizer, {}, name=f"{name}_gradient")

    def _judged(
        self, sequence: Sequence, fake: Tensor
    ) -> list[tuple[MultiScaleCritic, Tensor, Tensor]]:
        """Return each critic with what it sees: real and drawn, (n, C, H, W)."""
        tau, steps = sequence.past, fake.shape[1]
        real = sequence.real[:, tau:]
        labels = self.generator.labels(sequence.label.flatten(0, 1))
        single = [torch.cat([labels, images.flatten(0, 1)], dim=1) for images in (real, fake)]
        mixed = torch.cat([sequence.real[:, :tau], fake], dim=1)
        there = torch.cat([sequence.available, torch.ones_like(real[:, :, 0, 0, 0])], dim=1) > 0
        rows: list[list[Tensor]] = [[], []]
        for step in range(steps):
            whole = there[:, step : step + tau + 1].all(dim=1)
            for row, images in zip(rows, (sequence.real, mixed), strict=True):
                row.append(images[whole, step : step + tau + 1, 0])
        course_real, course_fake = (torch.cat(row) for row in rows)
        return [
            (self.image_critic, single[0], single[1]),
            (self.temporal_critic, course_real, course_fake),
        ]

    def _critics_opinion(self, sequence: Sequence, fake: Tensor) -> dict[str, Tensor]:
        """Return the adversarial losses, and the distance of the critics' features."""
        losses: dict[str, Tensor] = {}
        distances = []
        judged = self._judged(sequence, fake)
        for name, (critic, real, drawn) in zip(("adversarial", "temporal"), judged, strict=True):
            if not len(real):
                continue
            with torch.no_grad():
                _, real_features = critic(real)
            scores, features = critic(drawn)
            losses[name] = self.adversarial([s.float() for s in scores], True, False)
            distances.append(_distance(features, real_features))
        losses["features"] = torch.stack(distances).mean()
        return losses

    def _segmenters_opinion(self, sequence: Sequence, fake: Tensor) -> dict[str, Tensor]:
        """Return the perceptual distance to the real slice, and how far labels are less visible.

        The segmenter may find the labels in a drawn slice as well as in the real one: better would
        be a caricature, whose outlines are clearer than nature's.
        """
        with torch.no_grad():
            images = sequence.real[:, sequence.past :].flatten(0, 1)
            real_logits, real_features = self.segmenter(images)
            as_real = self._cross_entropy(real_logits, sequence)
        logits, features = self.segmenter(fake.flatten(0, 1))
        return {
            "perceptual": _distance(features, real_features),
            "alignment": functional.relu(self._cross_entropy(logits, sequence) - as_real),
        }

    def _cross_entropy(self, logits: Tensor, sequence: Sequence) -> Tensor:
        target = sequence.label[:, :, self.generator.radius].flatten(0, 1).long()
        inside = sequence.inside[:, sequence.past :, 0].flatten(0, 1)
        loss = functional.cross_entropy(logits.float(), target, reduction="none")
        return (loss * inside).sum() / inside.sum().clamp_min(1.0)

    def _flow_loss(self, sequence: Sequence) -> Tensor:
        """Warp each real slice's real predecessor: it should look like the slice."""
        tau = sequence.past
        there = torch.cat(
            [sequence.available[:, -1:], torch.ones_like(sequence.available[:, :1])], 1
        )
        total = count = torch.zeros((), device=sequence.real.device)
        for step, slice_ in enumerate(sequence.drawn):
            weight = there[:, min(step, 1)].view(-1, 1, 1, 1) * sequence.inside[:, tau + step]
            moved = warp(sequence.real[:, tau + step - 1], slice_.flow)
            total = total + ((moved - sequence.real[:, tau + step]).abs() * weight).sum()
            count = count + weight.sum()
        return total / count.clamp_min(1.0)


def _distance(features: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return the mean L1 distance of features, every layer counting the same."""
    pairs = zip(features, others, strict=True)
    return torch.stack([functional.l1_loss(a.float(), b.float()) for a, b in pairs]).mean()
