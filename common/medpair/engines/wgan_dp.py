"""Differentially private training of the WGAN (DP-SGD on the critic, Abadi et al. 2016).

Only the critic sees real volumes. If its steps are private, so is all that is computed from it: the
generator's gradients, the averaged weights, the samples (post-processing; Xie et al. 2018 for
GANs). One critic step on a Poisson draw R of the volumes, with fakes f_1..f_m::

    g_i = mean_j grad D(f_j) - grad D(x_i)                               i in R
    G   = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2)) / (rate * records)
    critic <- clamp(Adam(critic, G), -c, c)

- Fakes do not depend on the volumes, so their mean gradient is no secret. It is taken off *before*
  clipping, so that C bounds what tells a volume from the fakes, not what all inputs have in common;
  and since only the difference is clipped, the step vanishes on average when fakes are as good as
  real volumes. Clipping the real gradient alone would shrink it against an unclipped mean of fakes.
- A volume changes the sum by at most C, whatever it holds: the critic must score each pair by
  itself (no batch norm), and nothing may mix real volumes before clipping.
- The critic stays Lipschitz by weight clipping (c, Arjovsky et al. 2017), as in the authors' DP
  code: it looks at the weights alone. A gradient penalty at points between real and fake would need
  per-sample gradients of gradients; spectral norm keeps buffers, which Opacus refuses.
- What is logged never depends on unnoised volumes: no critic loss, no Wasserstein estimate.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.nn.utils import parametrize

from medpair.data.poisson import AUGMENTATION, NOISE, SecretSeed
from medpair.data.sampling import torch_generator
from medpair.engines.distributed import is_distributed
from medpair.engines.privacy import METHOD, UNIT, PrivacyBudget
from medpair.engines.wgan import AUGMENT_FAKE, LATENT, WGANTrainer


class PrivateWGANTrainer(WGANTrainer):
    """A ``WGANTrainer`` whose critic steps are differentially private.

    Args:
        budget: noise, clipping norm and accountant.
        private_seed: of the noise; the same object as the data's.
        weight_clip: c, the largest absolute value of a critic's parameter (0.01 in the authors'
            code).
        wgan: arguments of ``WGANTrainer``. The loader gives ``PoissonBatches``; penalty settings
            are not used.

    Raises:
        ValueError: if the critic mixes samples or keeps buffers, for settings that leak
            (``match_padding``) or would change gradients (``amp``), or for several processes:
            their noise and draws would have to be accounted for together.
    """

    def __init__(
        self,
        budget: PrivacyBudget,
        private_seed: SecretSeed,
        weight_clip: float = 0.01,
        **wgan: Any,
    ) -> None:
        from opacus import GradSampleModule

        for name, default in (("match_padding", True), ("amp", False)):
            if wgan.get(name, default):
                raise ValueError(f"{name}: expected False in private training, found True")
        if not weight_clip > 0:
            raise ValueError(f"weight_clip: expected a number over 0, found {weight_clip}")
        if is_distributed():
            raise ValueError("private training: expected one process, found multi_gpu_train.json")
        check_critic(wgan["critic"])
        # at the end: a handler may restore all of the trainer's state
        handlers = wgan.pop("train_handlers", None)
        super().__init__(**wgan)
        self.budget = budget
        self.private_seed = private_seed
        self.weight_clip = weight_clip
        self.accountant = budget.new_accountant()
        for module in self.critic.modules():
            # the hooks hand out views of their outputs, which may not be overwritten
            if isinstance(module, nn.LeakyReLU):
                module.inplace = False
        self.per_sample = GradSampleModule(self.critic, loss_reduction="sum")
        self.per_sample.disable_hooks()
        self.private_optimizer = private_optimizer(self.critic_optimizer, budget)
        self._register_handlers(handlers or [])

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold: also the steps accounted for and the seed."""
        return {
            **super().state_objects(),
            "accountant": self.accountant,
            "private_seed": self.private_seed,
        }

    def epsilon(self, iterations_ahead: int = 0) -> float:
        """Return the epsilon spent, or that after some more iterations."""
        return self.budget.epsilon(self._history(iterations_ahead))

    def privacy(self, iterations_ahead: int = 0) -> dict[str, Any]:
        """Return what a model card says about privacy, now or after some more iterations."""
        history = self._history(iterations_ahead)
        return {
            "method": METHOD,
            "unit": UNIT,
            "epsilon": self.budget.epsilon(history),
            "delta": self.budget.delta,
            "noise_multiplier": self.budget.noise_multiplier,
            "clipping_norm": self.budget.clipping_norm,
            "sampling": "Poisson",
            "sampling_rate": self.budget.sample_rate,
            "steps": sum(number for _, _, number in history),
            "records": self.budget.records,
            "accountant": self.budget.mechanism,
            "opacus_version": version("opacus"),
        }

    def _history(self, iterations_ahead: int) -> list[tuple[float, float, int]]:
        ahead = iterations_ahead * self.n_critic
        step = (self.budget.noise_multiplier, self.budget.sample_rate)
        return [*self.accountant.history, *([(*step, ahead)] if ahead else [])]

    def _iteration(self, engine: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Take ``n_critic`` private critic steps and one generator step."""
        self.generator.train()
        self.critic.train()
        count, boxes = self.budget.batch_size, batch["box"]
        draws = self._draws(batch)
        for number, real in enumerate(draws):
            # as many fakes whatever the draw: their number must not tell its size
            latent = self._latent(count, self._random(LATENT, number))
            keep_graph = number == len(draws) - 1 and self.reuse_fakes
            with nullcontext() if keep_graph else torch.no_grad():
                fake = self._generate(latent, boxes)
            self._private_step(real, fake.detach(), number)
        if not self.reuse_fakes:
            fake = self._generate(self._latent(count, self._random(LATENT, len(draws))), boxes)
        self._generator_step(fake)
        numbers = self.bad_steps.finish(self, [self.generator])
        if not self.bad_steps.in_a_row:
            self.averaged.update(self.generator)
        loss = numbers["generator_loss"]
        return {CommonKeys.LOSS: loss, "generator_loss": loss}

    def _draws(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Split the pairs of an iteration into its draws, some of which may be empty."""
        image = batch["image"].to(self.state.device, non_blocking=True)
        label = batch["label"].to(self.state.device, non_blocking=True)
        real = torch.cat([image.float(), self.label_channels.encode(label)], dim=1)
        return list(real.contiguous(memory_format=self.layout).split(batch["counts"].tolist()))

    def _private_step(self, real: Tensor, fake: Tensor, number: int) -> None:
        """Update the critic once, and account for it."""
        secret, iteration = self.private_seed.value, self.state.iteration
        fake = self._augment(fake, self._random(AUGMENT_FAKE, number))
        if len(real):
            # a draw's order would tell who is missing: only a secret stream hides it
            real = self._augment(real, torch_generator(secret, AUGMENTATION, iteration, number))
        with warnings.catch_warnings():
            # the first layer's input needs no gradient, and its hook says so in every step
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            self._per_sample_gradients(real, fake)
        self.private_optimizer.rng = self.private_seed.generator(NOISE, iteration, number)
        # each volume's gradient is finite and cut, and the noise is on before the look: whether
        # the sum is finite tells nothing of one volume
        if self.private_optimizer.pre_step():
            optimizer = self.private_optimizer.original_optimizer
            self.bad_steps.step(optimizer, {}, name="noisy_critic_gradient")
        self.private_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter in self.critic.parameters():
                parameter.clamp_(-self.weight_clip, self.weight_clip)
        self.accountant.step(
            noise_multiplier=self.budget.noise_multiplier, sample_rate=self.budget.sample_rate
        )

    def _per_sample_gradients(self, real: Tensor, fake: Tensor) -> None:
        """Leave (n, ...) gradients, one for each real pair, in ``grad_sample`` of the critic."""
        parameters = list(self.critic.parameters())
        common = torch.autograd.grad(self.critic(fake).mean(), parameters)
        self.private_optimizer.zero_grad(set_to_none=True)
        if not len(real):
            for parameter in parameters:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # type: ignore[attr-defined]
            return
        self.per_sample.enable_hooks()
        try:
            self.critic(real).sum().backward()
        finally:
            self.per_sample.disable_hooks()
        for parameter, mean in zip(parameters, common, strict=True):
            parameter.grad_sample = mean - parameter.grad_sample  # type: ignore[attr-defined]
        leave_out_infinite(parameters)


def leave_out_infinite(parameters: list[nn.Parameter]) -> None:
    """Set a sample's gradient to 0 in all parameters where it is not finite in one of them.

    Clipping cannot bound it, and a sum that is not finite would show, through any noise, that the
    volume was there.
    """
    samples = [parameter.grad_sample for parameter in parameters]  # type: ignore[attr-defined]
    finite = torch.stack([torch.isfinite(s.flatten(1)).all(dim=1) for s in samples]).all(dim=0)
    for sample in samples:
        sample[~finite] = 0.0


def private_optimizer(optimizer: torch.optim.Optimizer, budget: PrivacyBudget) -> Any:
    """Return Opacus's ``DPOptimizer`` around an optimizer, its noise drawn from a NumPy ``rng``."""
    from opacus.optimizers import DPOptimizer

    class SecretNoiseOptimizer(DPOptimizer):
        rng: np.random.Generator

        def add_noise(self) -> None:
            # as Opacus's own, but for the generator (see ``SecretSeed.generator``)
            std = self.noise_multiplier * self.max_grad_norm
            for p in self.params:
                noise = torch.from_numpy(self.rng.standard_normal(p.shape, dtype=np.float32))
                p.grad = p.summed_grad.view_as(p) + std * noise.to(p.device)

    return SecretNoiseOptimizer(
        optimizer,
        noise_multiplier=budget.noise_multiplier,
        max_grad_norm=budget.clipping_norm,
        expected_batch_size=budget.batch_size,
    )


def check_critic(critic: nn.Module) -> None:
    """Raise ValueError unless a critic scores each pair by itself and keeps no buffers."""
    if any(parametrize.is_parametrized(module) for module in critic.modules()):
        raise ValueError("critic_norm: expected instance or none, found spectral norm")
    if next(critic.buffers(), None) is not None:
        raise ValueError("critic: expected no buffers (batch norm mixes samples), found some")
