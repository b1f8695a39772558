"""Training of the WGAN family of Subramaniam et al. 2022 (section 2.3; WGAN-GP, GP-SN, SN-MP).

Each iteration takes ``n_critic`` critic steps, each on fresh fakes, then one generator step::

    critic:     E[D(fake)] - E[D(real)] + weight * E[(|grad D(x)| - 1)^2],  x between real and fake
    generator: -E[D(fake)]

What differs from the paper's code, and why: fakes are detached in the penalty (there, the penalty
is also propagated through the generator and the result thrown away); the penalty is per sample
(there, one norm over the whole batch, so that its strength depends on the batch size) and in fp32
(the square of a half-precision gradient norm overflows); the generator step uses the fakes of the
last critic step instead of drawing new ones. ``penalty_mode`` and ``reuse_fakes`` switch back.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medpair.data.labels import LabelChannels
from medpair.data.patches import PAD_IMAGE
from medpair.data.sampling import torch_generator
from medpair.engines.allocator import keep_freed_memory
from medpair.engines.augment import CriticAugmentation
from medpair.engines.averaging import AveragedWeights, recalibrate_batch_norm
from medpair.engines.distributed import data_parallel, rank_generator
from medpair.engines.federated import FederatedTrainer
from medpair.engines.numerics import MAX_BAD_STEPS, BadSteps
from medpair.networks.wgan import Generator

PenaltyMode = Literal["per_sample", "batch"]
# Streams of random numbers within one iteration
LATENT, PENALTY, AUGMENT_REAL, AUGMENT_FAKE, AUGMENT_GENERATOR = range(5)
# Latents for BatchNorm's statistics: 16 batches put their error below that of one training batch
CALIBRATION_BATCHES = 16


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, epsilon: Tensor, mode: PenaltyMode = "per_sample"
) -> Tensor:
    """Return E[(|grad D| - 1)^2] at points between real and fake (Gulrajani et al. 2017, eq. 3).

    Args:
        critic: maps (B, C, H, W, D) to (B, 1).
        real: (B, C, H, W, D).
        fake: (B, C, H, W, D); detached here.
        epsilon: (B,) position between fake (0) and real (1). ``batch`` uses its first value.
        mode: ``per_sample`` takes each sample's gradient norm; ``batch`` one norm over the whole
            batch, as the code of Subramaniam et al. does.
    """
    if mode == "batch":
        epsilon = epsilon[:1].expand(len(real))
    between = torch.lerp(fake.detach().float(), real.float(), epsilon.view(-1, 1, 1, 1, 1))
    between.requires_grad_(True)
    score = critic(between)
    (gradient,) = torch.autograd.grad(score.sum(), between, create_graph=True)
    norm = gradient.norm(2) if mode == "batch" else gradient.flatten(1).norm(2, dim=1)
    return (norm - 1).square().mean()


class CriticLoss(nn.Module):
    """The critic with its loss: one call for all of its passes, as data parallelism needs it.

    Args:
        critic: scores pairs.
        penalty_weight: weight of the gradient penalty.
        penalty_mode: see ``gradient_penalty``.
    """

    def __init__(self, critic: nn.Module, penalty_weight: float, penalty_mode: PenaltyMode) -> None:
        super().__init__()
        self.critic = critic
        self.penalty_weight = penalty_weight
        self.penalty_mode: PenaltyMode = penalty_mode

    def forward(
        self, real: Tensor, fake: Tensor, epsilon: Tensor, autocast: torch.autocast
    ) -> dict[str, Tensor]:
        """Return the loss, its penalty and the Wasserstein estimate for (B, C, H, W, D) pairs."""
        # outside autocast, in fp32; first, so that a spectral norm kept for the step is fp32 too
        penalty = gradient_penalty(self.critic, real, fake, epsilon, self.penalty_mode)
        with autocast:
            score_real, score_fake = self.critic(torch.cat([real, fake])).chunk(2)
        distance = score_real.float().mean() - score_fake.float().mean()
        loss = self.penalty_weight * penalty - distance
        return {"critic_loss": loss, "gradient_penalty": penalty, "wasserstein": distance}


class WGANTrainer(FederatedTrainer):
    """Train a generator of paired volumes against a Wasserstein critic.

    Args:
        device: where to train.
        max_epochs: passes over the data loader.
        train_data_loader: batches with ``image`` (B, 1, H, W, D), ``label``, ``box`` (see
            ``PatchDataset``). A batch is split among the ``n_critic`` critic steps, and should
            hold ``n_critic`` times as many pairs as one step is to see.
        generator: network, latent vectors to (B, 1 + num_labels, H, W, D).
        critic: network, pairs to scores.
        generator_optimizer: Adam in the paper, lr 2e-4, betas (0, 0.9).
        critic_optimizer: Adam in the paper, lr 4e-4, betas (0, 0.9).
        inferer: calls the generator: ``inferer(latent, generator)``.
        label_channels: how label maps become channels.
        n_critic: critic steps per generator step (1 in the paper).
        penalty_weight: weight of the gradient penalty (10).
        penalty_mode: ``per_sample`` or ``batch`` (the paper's code).
        reuse_fakes: take the last critic step's fakes for the generator step.
        match_padding: pad the fakes where their real counterparts are padded before the critic
            sees them, so that the generator need not learn the frame around small volumes.
        augmentation: of what the critic sees.
        averaging: decay of the averaged weights that are sampled from.
        critic_warmup: first iterations in which the critic alone learns.
        amp: mixed precision.
        amp_dtype: ``float16`` (with loss scaling, as in the paper) or ``bfloat16``.
        channels_last: memory layout of networks and batches; faster except with instance norm.
        seed: of latents, penalty and augmentation.
        max_bad_steps: iterations in a row whose losses or gradients are not finite, and whose
            updates are left out, before the run stops.
        train_handlers: ignite handlers.

    Raises:
        NotFiniteError: after so many losses or gradients that are not finite, or when the loss
            scale collapses.
    """

    # what a smaller value of saves memory
    memory_knobs = ("batch_size", "patch_size")

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        generator: Generator,
        critic: nn.Module,
        generator_optimizer: torch.optim.Optimizer,
        critic_optimizer: torch.optim.Optimizer,
        inferer: Any,
        label_channels: LabelChannels,
        n_critic: int = 1,
        penalty_weight: float = 10.0,
        penalty_mode: PenaltyMode = "per_sample",
        reuse_fakes: bool = True,
        match_padding: bool = True,
        augmentation: CriticAugmentation | None = None,
        averaging: float = 0.999,
        critic_warmup: int = 0,
        amp: bool = False,
        amp_dtype: Literal["float16", "bfloat16"] = "float16",
        channels_last: bool = False,
        seed: int = 0,
        max_bad_steps: int = MAX_BAD_STEPS,
        train_handlers: list[Any] | None = None,
    ) -> None:
        if penalty_mode not in ("per_sample", "batch"):
            raise ValueError(f"penalty_mode: expected per_sample or batch, found {penalty_mode!r}")
        if amp_dtype not in ("float16", "bfloat16"):
            raise ValueError(f"amp_dtype: expected float16 or bfloat16, found {amp_dtype!r}")
        flags = {
            "amp": amp,
            "reuse_fakes": reuse_fakes,
            "match_padding": match_padding,
            "channels_last": channels_last,
        }
        for name, value in flags.items():  # the text "false" would count as true
            if not isinstance(value, bool):
                raise ValueError(f"{name}: expected True or False, found {value!r}")
        if n_critic < 1:
            raise ValueError(f"n_critic: expected at least 1, found {n_critic}")
        # MONAI's own scaler is for one optimizer; two are made here
        super().__init__(device, max_epochs, train_data_loader, amp=False, decollate=False)
        if self.state.device.type == "cpu":
            batch_size = getattr(train_data_loader, "batch_size", None) or 1
            keep_freed_memory(batch_size // n_critic * generator.largest_activation())
        self.layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.generator = self._placed(generator)
        self.critic = self._placed(critic)
        self.generator_optimizer = generator_optimizer
        self.critic_optimizer = critic_optimizer
        self.inferer = inferer
        self.label_channels = label_channels
        self.n_critic = n_critic
        self.reuse_fakes = reuse_fakes
        self.match_padding = match_padding
        self.augmentation = augmentation or CriticAugmentation()
        self.critic_warmup = critic_warmup
        self.latent_size = generator.latent_size
        self.averaged = AveragedWeights(generator, averaging)
        # what is stepped; the same networks, shared by several processes where there are any
        self.drawing = data_parallel(self.generator)
        self.judging = data_parallel(CriticLoss(self.critic, penalty_weight, penalty_mode))
        self.mixed = amp
        self.amp_dtype = getattr(torch, amp_dtype)
        self.seed = seed
        self.bad_steps = BadSteps(max_bad_steps)
        scaled = amp and amp_dtype == "float16" and self.state.device.type == "cuda"
        kind = self.state.device.type
        self.generator_scaler = torch.amp.GradScaler(kind, enabled=scaled)
        self.critic_scaler = torch.amp.GradScaler(kind, enabled=scaled)
        off = label_channels.off
        fill = [PAD_IMAGE] + [off] * label_channels.num_labels
        self.fill = torch.tensor(fill, device=self.state.device)
        self._register_handlers(train_handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        return {
            "generator": self.generator,
            "critic": self.critic,
            "generator_optimizer": self.generator_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "generator_scaler": self.generator_scaler,
            "critic_scaler": self.critic_scaler,
            "averaged": self.averaged,
            "bad_steps": self.bad_steps,
        }

    def model_state(self) -> dict[str, Tensor]:
        """Return the weights to sample from: averaged, with BatchNorm statistics of their own."""
        network = self.averaged.network
        batch_size = getattr(self.data_loader, "batch_size", None) or 4
        batches = [
            self._latent(batch_size, torch_generator(self.seed, 0, number))
            for number in range(CALIBRATION_BATCHES)
        ]
        recalibrate_batch_norm(network, batches)
        return {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}

    def _iteration(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Take ``n_critic`` critic steps and one generator step."""
        self.generator.train()
        self.critic.train()
        chunks = self._chunks(batch)
        for number, (real, boxes) in enumerate(chunks):
            last = number == len(chunks) - 1
            latent = self._latent(len(real), self._random(LATENT, number))
            keep_graph = last and self.reuse_fakes
            with nullcontext() if keep_graph else torch.no_grad():
                fake = self._generate(latent, boxes)
            self._critic_step(real, fake.detach(), number)
        if not self.reuse_fakes:
            latent = self._latent(len(real), self._random(LATENT, self.n_critic))
            fake = self._generate(latent, boxes)
        self._generator_step(fake)
        numbers = self.bad_steps.finish(self, [self.generator, self.critic])
        if not self.bad_steps.in_a_row:
            self.averaged.update(self.generator)
        return {CommonKeys.LOSS: numbers["critic_loss"], **numbers}

    def _chunks(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Split a batch of real pairs into one part for each critic step."""
        image = batch["image"].to(self.state.device, non_blocking=True)
        label = batch["label"].to(self.state.device, non_blocking=True)
        real = torch.cat([image.float(), self.label_channels.encode(label)], dim=1)
        real = real.contiguous(memory_format=self.layout)
        parts = max(1, min(self.n_critic, len(real)))
        boxes = batch["box"]
        return list(zip(real.tensor_split(parts), boxes.tensor_split(parts), strict=True))

    def _critic_step(self, real: Tensor, fake: Tensor, number: int) -> None:
        """Update the critic once."""
        real = self._augment(real, self._random(AUGMENT_REAL, number))
        fake = self._augment(fake, self._random(AUGMENT_FAKE, number))
        epsilon = torch.rand(len(real), generator=self._random(PENALTY, number))
        epsilon = epsilon.to(real.device, non_blocking=True)
        # one spectral normalisation serves the whole step
        with parametrize.cached():
            losses = self.judging(real, fake, epsilon, self._autocast())
            self.critic_optimizer.zero_grad(set_to_none=True)
            self.critic_scaler.scale(losses["critic_loss"]).backward()
        self.bad_steps.step(self.critic_optimizer, losses, self.critic_scaler, "critic_gradient")

    def _generator_step(self, fake: Tensor) -> None:
        """Update the generator once, but for the warm-up, on fakes that carry its graph."""
        fake = self._augment(fake, self._random(AUGMENT_GENERATOR, 0))
        self.critic.requires_grad_(False)
        with parametrize.cached():
            for layer in self.critic.modules():  # spectral norms in fp32, as in the critic's step
                if parametrize.is_parametrized(layer, "weight"):
                    _ = layer.weight
            with self._autocast():
                loss = -self.critic(fake).float().mean()
        losses, scaler = {"generator_loss": loss}, self.generator_scaler
        if self.state.iteration > self.critic_warmup:
            self.generator_optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            self.bad_steps.step(self.generator_optimizer, losses, scaler, "generator_gradient")
        else:
            self.bad_steps.finite(losses)
        self.critic.requires_grad_(True)

    def _generate(self, latent: Tensor, boxes: Tensor) -> Tensor:
        """Return fakes, padded like their real counterparts when ``match_padding``."""
        with self._autocast():
            fake = self.inferer(latent, self.drawing)
        fake = fake.float()
        if not self.match_padding:
            return fake
        inside = torch.zeros_like(fake[:, :1])
        for mask, (low, high) in zip(inside, boxes.tolist(), strict=True):
            mask[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
        return torch.lerp(self.fill.view(1, -1, 1, 1, 1).to(fake).expand_as(fake), fake, inside)

    def _augment(self, pair: Tensor, generator: torch.Generator) -> Tensor:
        pair = self.augmentation(pair, self.fill, generator)
        return pair.contiguous(memory_format=self.layout)

    def _latent(self, count: int, generator: torch.Generator) -> Tensor:
        latent = torch.randn(count, self.latent_size, generator=generator)
        return latent.to(self.state.device, non_blocking=True)

    def _placed(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, then give its kernels the layout."""
        return network.to(self.state.device).to(memory_format=self.layout)  # type: ignore[call-overload]

    def _random(self, stream: int, number: int) -> torch.Generator:
        """Random numbers of this iteration: a function of counters, so that resuming is exact."""
        return rank_generator(self.seed, self.state.iteration, stream, number)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, self.amp_dtype, enabled=self.mixed)
