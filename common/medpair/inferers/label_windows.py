"""How windows of slices are denoised: always equally many at a time, whatever else is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medpair.data.card import Sampling, SliceOrder, part_of
from medpair.data.cohort import cohort_of
from medpair.data.files import DataError
from medpair.data.label_codes import LabelCode, has_label, restricted
from medpair.data.memory import Parts
from medpair.diffusion.process import Diffusion, Prediction
from medpair.diffusion.solvers import Solver, sample
from medpair.inferers.label_growth import START, Growth, Window
from medpair.inferers.label_sampler import label_sampler

# Convolutions round differently with every number of rows; a voxel that falls to the other side
# because of it changes some hundred after it, and a sample would depend on what else is made. So
# the network always gets one and the same number of windows, some of them filling. On a CPU two
# (one takes as long), which cost a tenth to a quarter of the speed of all at once.
AT_ONCE_ON_CPU = 2
# Elsewhere up to 32, and no more voxels than those have at 64 x 64 x 4 (an estimate for GPUs).
VOXELS_AT_ONCE, AT_ONCE_AT_MOST = 2**19, 32


def require_sequence(card: dict[str, Any]) -> None:
    """Refuse a card that is another bundle's.

    Raises:
        DataError: if it is.
    """
    if "sequence" not in card or "network" not in card:
        raise DataError("model.json: sequence: expected MC-DPM's settings, found none")


class WindowDenoiser:
    """Turn noise into a round's windows, under the slices that are given (Han et al. 2023).

    The arguments are those of ``LabelVolumeInferer``, which grows volumes from such windows.

    Attributes:
        evaluations: how often the network was run.
        completes: K, if voxels of the classes 1 to K are given in every slice; else 0.
        frame: (W, H, D) of what the network sees of a volume.
        corner: its first voxel in the volume.
        volume_size: (W, H, D) of the volume; beyond the frame it is background.
        parts: how many windows fit into memory, if fewer than ``windows_at_once``.

    Raises:
        DataError: if the card is another bundle's.
    """

    def __init__(
        self,
        card: dict[str, Any],
        solver: Solver | None,
        steps: int | None,
        log_snr: Sequence[float] | None,
        guidance: float,
        evidence: float | None,
        height: int | None,
    ) -> None:
        require_sequence(card)
        self.diffusion = part_of(card, "diffusion", Diffusion)
        self.code = part_of(card, "code", LabelCode)
        self.self_conditioning = bool(card["network"].get("self_conditioning", False))
        order = part_of(card, "sequence", SliceOrder)
        self.axis, self.window, self.overlap = order.axis, order.window, order.overlap
        self.completes = cohort_of(card).labelled.num_labels if order.completes else 0
        self.frame, self.corner = list(order.frame), list(order.corner)
        self.volume_size = list(order.volume_size) or list(order.frame)
        if height is not None:
            # what is never labelled at both ends remains as it is
            beyond = self.volume_size[self.axis] - self.frame[self.axis]
            if height < self.window + beyond:
                least = self.window + beyond
                raise ValueError(f"height: expected {least} slices or more, found {height}")
            self.volume_size[self.axis] = height
            self.frame[self.axis] = height - beyond
        self.height = height
        self.sampler = label_sampler(self.diffusion, self.code, solver, steps, log_snr)
        self.grid = self.sampler.grid(self.diffusion)
        self.guidance = float(guidance)
        if evidence is None:
            evidence = Sampling.of(card).evidence
        self.evidence = float(evidence)
        self.evaluations = 0
        self.parts = Parts("windows of slices", "--guidance 1")

    def grown(
        self, network: nn.Module, volumes: Sequence[Growth], device: torch.device
    ) -> Sequence[Growth]:
        """Let volumes that have only begun grow to both ends, the windows of a round together."""
        nothing = np.zeros(self.window, bool)
        windows = [
            Window(number, volume.low, nothing, volume.generators[START])
            for number, volume in enumerate(volumes)
        ]
        while windows:
            labels = self._round(network, volumes, windows, device)
            for window, label in zip(windows, labels, strict=True):
                volumes[window.volume].insert(window, label)
            windows = [
                window
                for number, volume in enumerate(volumes)
                for window in volume.extensions(number, self.window, self.overlap)
            ]
        return volumes

    def _round(
        self,
        network: nn.Module,
        volumes: Sequence[Growth],
        windows: Sequence[Window],
        device: torch.device,
    ) -> np.ndarray:
        """Return label slices (windows, m, H, W) of a round's windows, in parts of one size."""
        most = self.windows_at_once(device)

        def labels(part: slice) -> np.ndarray:
            chosen = windows[part]
            filling = (self.parts.fits or most) - len(chosen)
            before = [window.generator.get_state() for window in chosen]
            try:
                return self._denoise(network, volumes, chosen, filling, device)
            except (RuntimeError, MemoryError):  # perhaps to be done again, with the same noise
                for window, state in zip(chosen, before, strict=True):
                    window.generator.set_state(state)
                raise

        like = torch.empty(0, device=device)
        return np.concatenate(self.parts(labels, len(windows), like, most, self._window_shape()))

    def windows_at_once(self, device: torch.device) -> int:
        """Return how many windows the network gets each time; depends on nothing that is made."""
        if device.type == "cpu":
            return AT_ONCE_ON_CPU
        fit = VOXELS_AT_ONCE // math.prod(self._window_shape())
        return min(AT_ONCE_AT_MOST, max(2, fit))

    def _window_shape(self) -> list[int]:
        return [self.window, *(n for a, n in enumerate(self.frame) if a != self.axis)]

    def _denoise(
        self,
        network: nn.Module,
        volumes: Sequence[Growth],
        part: Sequence[Window],
        more: int,
        device: torch.device,
    ) -> np.ndarray:
        """Return label slices (windows, m, H, W); the last is computed ``more`` times more."""
        windows = [*part, *[part[-1]] * more]
        m = self.window
        stacked = np.stack([volumes[w.volume].label[w.first : w.first + m] for w in windows])
        label = torch.from_numpy(stacked.astype(np.int64)).to(device)
        clean = self.code.encode(label)
        known = torch.from_numpy(np.stack([w.known for w in windows])).to(device, torch.float32)
        hidden = 1.0 - known[:, None, :, None, None]
        if self.completes:
            hidden = hidden * ~has_label(label[:, None], self.completes)
        position = torch.tensor([w.first / self.frame[self.axis] for w in windows], device=device)
        told: dict[str, Tensor] = {}
        sizes = [size for w in windows if (size := volumes[w.volume].told) is not None]
        if sizes:
            branches = 1 if self.guidance == 1.0 else 2
            told["sizes"] = torch.stack(sizes).repeat(branches, 1).to(device)

        def noise() -> Tensor:
            drawn = [torch.randn(clean.shape[1:], generator=w.generator) for w in part]
            return torch.stack([*drawn, *[drawn[-1]] * more]).to(device)

        start = noise()
        of_given = noise() if self.guidance != 1.0 else None
        ones = torch.ones_like(hidden)
        said: Tensor | None = None  # of x_0, a step before
        if self.completes:
            nothing = clean.new_zeros(len(label), self.code.num_classes, *label.shape[1:])
            said = self.code.mean(restricted(nothing, label, self.completes))

        def denoise(x: Tensor, t: float) -> Prediction:
            nonlocal said
            # on the CPU, where levels are looked up: noise is drawn while a GPU computes
            time = torch.full((len(windows),), t)
            scaled = (time * self.diffusion.schedule.timesteps).to(device, non_blocking=True)
            self.evaluations += 1
            given, drawn, free, times, place = clean, hidden, hidden, scaled, position
            marked = known
            if of_given is not None:  # both branches in one batch
                noised = self.diffusion.noised(clean, time, of_given)
                given, drawn = torch.cat([clean, noised]), hidden.repeat(2, 1, 1, 1, 1)
                # in the second the given slices are there, noised like the others and not marked
                free, marked = torch.cat([hidden, ones]), torch.cat([known, 0.0 * known])
                times, place = times.repeat(2), place.repeat(2)
            x_in = torch.lerp(given, x.repeat(len(given) // len(x), 1, 1, 1, 1), drawn)
            inputs = [x_in, times, marked, place]
            if self.diffusion.objective == "classes":
                levels = self.diffusion.levels(time[:1], x)
                inputs.append(self.code.evidence(x_in, *levels, free))
            if said is not None:
                told["previous"] = torch.lerp(given, said, free)
            output, *without = network(*inputs, **told).split(len(x))
            if without:
                output = self._guided(output, without[0])
            prediction = self._predicted(output, x, time, label)
            if self.self_conditioning:
                # a branch is told its own answer: only in that are the given slices denoised too
                rest = [self._predicted(own, x_in[len(x) :], time, label).x0 for own in without]
                said = torch.cat([prediction.x0, *rest]).clamp(-1.0, 1.0)
            return prediction

        x0 = sample(self.diffusion, denoise, start, self.grid, self.sampler.solver, noise)
        limits = (label, self.completes) if self.completes else ()
        return self.code.decode(x0, *limits)[: len(part)].cpu().numpy()

    def _predicted(self, output: Tensor, x: Tensor, time: Tensor, label: Tensor) -> Prediction:
        """Return what an output says of noisy windows (B, C, m, H, W) at times (B,).

        Where label maps are given, ``label`` (B, m, H, W) restricts what it says.
        """
        if self.diffusion.objective != "classes":
            return self.diffusion.predicted(output.float(), x, time)
        own = self.code.evidence(x, *self.diffusion.levels(time, x))
        logits = output.float() + self.evidence * own
        if self.completes:
            logits = restricted(logits, label, self.completes)
        return Prediction(self.code.mean(logits))

    def _guided(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Extrapolate the prediction; a learned variance is the conditional one's."""
        guided = torch.lerp(unconditional, conditional, self.guidance)
        if not self.diffusion.learn_variance:
            return guided
        half = conditional.shape[1] // 2
        return torch.cat([guided[:, :half], conditional[:, half:]], dim=1)
