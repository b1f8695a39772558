"""Refining image volumes slice by slice in three views (Han et al. 2023, section 2.1).

The volume is noised once; each view denoises all of its slices under their label maps; the result
is the mean of the views. Started from pure noise it is the paper's per-view DDPM baseline.

A mean of three samples has less fine noise than each of them. ``combine="alternate"`` denoises one
volume instead, whose steps take the views in turns: what one view leaves undone between its slices
the next one sees, and a step is one evaluation, not three.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from medpair.data.card import network_of, part_of
from medpair.data.memory import Parts
from medpair.data.patches import PAD_IMAGE
from medpair.data.sampling import derive_seed
from medpair.data.slices import axis_of
from medpair.diffusion.process import Diffusion, Prediction
from medpair.diffusion.solvers import Denoiser, Solver, check_solver, sample, times
from medpair.inferers.refinement import Refinement
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser
from medpair.networks.spade import Modulation

# Fixes the meaning of (seed, index): the volume's noise, and each slice's
VOLUME_STREAM, SLICE_STREAM = 5, 6
# Slices denoised together where nothing is asked for, on a CPU (of 96 x 120 voxels, 8 take four
# fifths of the time that 32 take) and elsewhere
SLICES_ON_CPU, SLICES_ELSEWHERE = 8, 32
# Bytes of main memory that alternating views keep of the label maps of a volume; where the system
# runs out of it, it does not say so but stops the process. (A GPU says so; see ``Parts``.)
KEPT_AT_MOST = 4 * 2**30


def refiner_from_card(card: dict[str, Any]) -> SemanticDenoiser:
    """Rebuild the network that a card describes, in the layout that samples fastest."""
    network = network_of(card, "network", SemanticDenoiser)
    # channels last: on a CPU an evaluation takes two thirds of the time
    return convert_conv2d_weight_memory_format(network, torch.channels_last)


# One-hot label maps, twice as many with guidance, and what they contribute to each layer
Told = tuple[Tensor, list[Modulation] | None]


class ThreeViewRefiner:
    """Refine volumes in -1..1.

    Args:
        card: what lies beside the weights.
        seed: of the cohort to be made.
        refine_steps: of ``Refinement``, as the next and ``combine``; None: what the card says
            (``sampling``), else the paper's. If only one of the two is given, the other is the
            paper's.
        grid_steps: see above.
        solver: how they are taken away; None: ``flow`` for a flow-matching model, else
            ``ancestral``.
        guidance: weight of classifier-free guidance, ``without + w (with - without label)``; 1 is
            none, and costs half. Needs a network trained with mask dropout.
        views: which views.
        combine: see above.
        slice_batch: slices denoised together; results do not depend on it but for rounding. None:
            8 on a CPU, whose caches hold the features of few, else 32.
        cached: compute what the label maps contribute once for all steps (the same numbers).
    """

    def __init__(
        self,
        card: dict[str, Any],
        seed: int = 0,
        refine_steps: int | None = None,
        grid_steps: int | None = None,
        solver: Solver | None = None,
        guidance: float = 1.0,
        views: Sequence[str] = VIEWS,
        slice_batch: int | None = None,
        cached: bool = True,
        combine: str | None = None,
    ) -> None:
        self.diffusion = part_of(card, "diffusion", Diffusion)
        chosen = Refinement.of(card, refine_steps, grid_steps, combine)
        if slice_batch is not None and slice_batch < 1:
            raise ValueError(f"slice_batch: expected at least 1, found {slice_batch}")
        if not views or len(set(views)) != len(views) or set(views) - set(VIEWS):
            raise ValueError(f"views: expected some of {list(VIEWS)}, found {list(views)}")
        self.combine = chosen.combine
        self.seed = seed
        self.refine_steps = chosen.refine_steps
        self.grid_steps = chosen.grid_steps
        self.start = self.refine_steps / self.grid_steps
        flow = self.diffusion.objective == "flow"
        self.solver: Solver = solver or ("flow" if flow else "ancestral")
        check_solver(self.diffusion, self.solver)
        self.guidance = float(guidance)
        self.views = tuple(views)
        self.slice_batch = slice_batch
        self.cached = cached
        self.parts = Parts("slices", "--guidance 1")

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is, for its sidecar."""
        return {
            "seed": self.seed,
            "sampler": self.solver,
            "refine_steps": self.refine_steps,
            "grid_steps": self.grid_steps,
            "guidance": self.guidance,
            "views": list(self.views),
            **({"combine": self.combine} if self.combine != "mean" else {}),
        }

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module,
        label: Tensor,
        index: Tensor,
        inside: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return refined volumes.

        Args:
            inputs: (B, 1, W, H, D) in -1..1.
            network: a ``SemanticDenoiser``.
            label: (B, 1, W, H, D) class indices.
            index: (B,) whose random streams to use.
            inside: (B, 1, W, H, D) 0 where a volume is padded; default nowhere. Networks are not
                judged there: padding stays dark at every step, as in training.
            kwargs: none.
        """
        assert isinstance(network, SemanticDenoiser)
        if self.refine_steps == 0:
            return inputs
        box = torch.ones_like(inputs) if inside is None else inside
        rows = [
            self.refine(image, classes, int(number), network, kept)
            for image, classes, kept, number in zip(
                inputs[:, 0], label[:, 0], box[:, 0], index, strict=True
            )
        ]
        return torch.stack(rows)[:, None]

    def refine(
        self,
        image: Tensor,
        label: Tensor,
        index: int,
        network: SemanticDenoiser,
        inside: Tensor | None = None,
    ) -> Tensor:
        """Return one volume (W, H, D), refined."""
        kept = torch.ones_like(image) if inside is None else inside
        generator = torch.Generator().manual_seed(derive_seed(self.seed, index, VOLUME_STREAM))
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        start = torch.full((1,), self.start)
        noisy = self.diffusion.noised(image[None], start, noise[None])[0]
        # pure noise knows nothing of the input, not even the trace that alpha(1) > 0 leaves
        noisy = noise if self.start == 1.0 else noisy
        grid = times(self.diffusion.schedule, self.solver, self.refine_steps, self.start)
        if self.combine == "alternate":
            return self._alternating(noisy, label, kept > 0, generator, grid, network)
        total = torch.zeros_like(image)
        for view in self.views:
            axis = axis_of(view)
            slices, classes, box = (x.movedim(axis, 0) for x in (noisy, label, kept > 0))

            # bound here: the loop's variables move on
            def denoised(
                part: slice,
                stacks: tuple[Tensor, ...] = (slices[:, None], classes, box[:, None]),
                view: str = view,
            ) -> Tensor:
                noisy, label, kept = (stack[part] for stack in stacks)
                first = int(part.start)
                streams = [
                    torch.Generator().manual_seed(
                        derive_seed(self.seed, index, SLICE_STREAM, VIEWS.index(view), first + i)
                    )
                    for i in range(len(noisy))
                ]

                def noise() -> Tensor:
                    drawn = [torch.randn(noisy.shape[1:], generator=stream) for stream in streams]
                    return torch.stack(drawn).to(noisy)

                start = noisy.contiguous(memory_format=torch.channels_last)
                told = self._told(label, view, network)
                denoise = self._denoiser(told, kept, view, network)
                return sample(self.diffusion, denoise, start, grid, self.solver, noise)

            parts = self.parts(denoised, len(slices), slices, self._at_once(slices))
            total += torch.cat(parts)[:, 0].movedim(0, axis)
        return total / len(self.views)

    def _alternating(
        self,
        noisy: Tensor,
        label: Tensor,
        inside: Tensor,
        generator: torch.Generator,
        grid: Sequence[float],
        network: SemanticDenoiser,
    ) -> Tensor:
        """Return one volume (W, H, D), each step of which is taken in another view."""
        evaluation = count()
        # SPADE's part of a view's slices is computed at its first turn and kept for the others
        kept: dict[tuple[str, int, int], Told] = {}

        def denoise(x: Tensor, t: float) -> Prediction:
            turn = next(evaluation)
            view = self.views[turn % len(self.views)]
            comes_again = turn + len(self.views) < len(grid) - 1
            axis = axis_of(view)
            slices, classes, box = (a.movedim(axis, 0) for a in (x[0], label, inside))

            def predicted(part: slice) -> Tensor:
                key = (view, int(part.start), int(part.stop))
                if self.parts.fits is not None:  # memory is short
                    kept.clear()
                told = kept.pop(key, None) or self._told(classes[part], view, network)
                fits = x.is_cuda or _size(told, *kept.values()) <= KEPT_AT_MOST
                if comes_again and self.cached and self.parts.fits is None and fits:
                    kept[key] = told
                start = slices[part][:, None].contiguous(memory_format=torch.channels_last)
                said = self._denoiser(told, box[part][:, None], view, network)(start, t)
                return said.x0 if said.fraction is None else torch.cat([said.x0, said.fraction], 1)

            parts = self.parts(predicted, len(slices), slices, self._at_once(slices))
            x0, *fraction = torch.cat(parts).movedim(0, axis + 1)[:, None].unbind(0)
            return Prediction(x0, fraction[0] if fraction else None)

        def noise() -> Tensor:
            return torch.randn(noisy[None].shape, generator=generator).to(noisy)

        return sample(self.diffusion, denoise, noisy[None], grid, self.solver, noise)[0]

    def _at_once(self, slices: Tensor) -> int:
        """Return how many slices are denoised together."""
        if self.slice_batch is not None:
            return self.slice_batch
        return SLICES_ON_CPU if slices.device.type == "cpu" else SLICES_ELSEWHERE

    def _told(self, label: Tensor, view: str, network: SemanticDenoiser) -> Told:
        """Return what the network is told of label maps (n, H, W), a view's class indices."""
        one_hot = network.one_hot(label)
        if self.guidance != 1.0:
            one_hot = torch.cat([one_hot, torch.zeros_like(one_hot)])
        return one_hot, network.compact_modulations(one_hot, view) if self.cached else None

    def _denoiser(
        self, told: Told, inside: Tensor, view: str, network: SemanticDenoiser
    ) -> Denoiser:
        """Return what says of noisy slices (n, 1, H, W) of a view what they were.

        Args:
            told: of their label maps.
            inside: (n, 1, H, W) where they are not padded.
            view: theirs.
            network: asked.
        """
        one_hot, kept = told
        guided = self.guidance != 1.0

        def denoise(x: Tensor, t: float) -> Prediction:
            # on the CPU, where levels are looked up: noise is drawn while a GPU computes
            time = torch.full((len(x),), t)
            scaled = (time * self.diffusion.schedule.timesteps).to(x.device, non_blocking=True)
            label = one_hot if kept is None else None
            if not guided:
                output = network(x, scaled, kept, view, label)
            else:
                both = network(torch.cat([x, x]), scaled.repeat(2), kept, view, label)
                with_label, without = both.chunk(2)
                output = torch.lerp(without, with_label, self.guidance)
                if self.diffusion.learn_variance:  # the variance is the labelled one's
                    output = torch.cat([output[:, :1], with_label[:, 1:]], dim=1)
            prediction = self.diffusion.predicted(output.float(), x, time)
            x0 = torch.where(inside, prediction.x0, PAD_IMAGE)
            fraction = prediction.fraction
            if fraction is not None:
                fraction = torch.where(inside, fraction, 0.0)
            return Prediction(x0, fraction)

        return denoise


def _size(*told: Told) -> int:
    """Return how many bytes label maps and what they contribute take."""
    rows = [one_hot for one_hot, _ in told]
    rows += [part for _, kept in told for pair in kept or [] for part in pair]
    return sum(part.nbytes for part in rows)
