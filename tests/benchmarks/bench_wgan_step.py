"""Time and memory of the WGAN: the paper's networks and loop against ours, on the CPU.

    python tests/benchmarks/bench_wgan_step.py --filters 256 --repeats 7 --threads 2

measures the generator with 512 filters (twice ``--filters``) and the training step with 256. Both
sides run in one process with the same threads, turn by turn, and a ratio is the median over pairs
of neighbouring runs; memory is measured in one fresh process for each side. The defaults are small
and only show that everything works.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.inferers import SimpleInferer
from paper_wgan import (
    CRITIC_LR,
    GENERATOR_LR,
    PENALTY_WEIGHT,
    PaperCritic,
    PaperGenerator,
    PaperLoop,
    copy_weights,
    paper_adam,
    settle_spectral_norm,
)
from torch import Tensor, nn

from medpair.data.labels import LabelChannels
from medpair.data.sampling import torch_generator
from medpair.engines.averaging import recalibrate_batch_norm
from medpair.engines.wgan import LATENT, PENALTY, WGANTrainer
from medpair.networks.wgan import Critic, Generator

LATENT_SIZE = 128
SEED = 0
TOLERANCE = 1e-5
GENERATOR_GOAL, STEP_GOAL, MEMORY_GOAL = 2.0, 2.5, 0.7
MIB = 2**20


@dataclass(frozen=True)
class Task:
    """What is measured."""

    filters: int
    batch_size: int
    patch_size: tuple[int, int, int]
    repeats: int
    threads: int

    def batch(self) -> dict[str, Tensor]:
        """A batch of noise in the form of the data loader's."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (self.batch_size, 1, *self.patch_size)
        return {
            "image": torch.rand(shape, generator=generator) * 2 - 1,
            "label": (torch.rand(shape, generator=generator) > 0.9).to(torch.uint8),
            "box": torch.tensor([[[0, 0, 0], list(self.patch_size)]] * self.batch_size),
        }


class OneBatch(list[dict[str, Tensor]]):
    """A data loader of one batch; the trainer asks for its size."""

    @property
    def batch_size(self) -> int:
        return len(self[0]["image"])


class Ours:
    """Our trainer, one iteration at a time, with the paper's penalty so that losses compare."""

    def __init__(self, task: Task) -> None:
        torch.manual_seed(SEED)
        generator = Generator(task.patch_size, 1, LATENT_SIZE, task.filters)
        critic = Critic(task.patch_size, 1, task.filters)
        settle_spectral_norm(critic)
        self.batch = task.batch()
        self.trainer = WGANTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=OneBatch([self.batch]),
            generator=generator,
            critic=critic,
            generator_optimizer=paper_adam(generator, GENERATOR_LR),
            critic_optimizer=paper_adam(critic, CRITIC_LR),
            inferer=SimpleInferer(),
            label_channels=LabelChannels(1, off=0.0, on=1.0, threshold=0.4),
            penalty_weight=PENALTY_WEIGHT,
            penalty_mode="batch",
            seed=SEED,
        )

    def step(self) -> dict[str, float]:
        """Take one iteration; returns its losses."""
        self.trainer.state.iteration += 1
        return self.trainer._iteration(self.trainer, self.batch)


class Papers:
    """The paper's loop on the same batch, latents and epsilons as ``Ours``."""

    def __init__(self, task: Task) -> None:
        generator = PaperGenerator(task.patch_size, 1, LATENT_SIZE, task.filters)
        critic = PaperCritic(task.patch_size, 1, task.filters)
        self.loop = PaperLoop(
            generator,
            critic,
            paper_adam(generator, GENERATOR_LR),
            paper_adam(critic, CRITIC_LR),
        )
        batch = task.batch()
        self.real = torch.cat([batch["image"], batch["label"].float()], dim=1)
        self.iteration = 0

    def step(self) -> dict[str, float]:
        """Take one iteration; returns its losses."""
        self.iteration += 1
        size = len(self.real)
        rng = torch_generator(SEED, self.iteration, LATENT, 0)
        latent = torch.randn(size, LATENT_SIZE, generator=rng)
        rng = torch_generator(SEED, self.iteration, PENALTY, 0)
        epsilon = torch.rand(size, generator=rng)[0].item()
        # ours takes one set of fakes for both steps; the same latents give the paper's loop,
        # which draws twice, the same fakes twice
        return self.loop.step(self.real, latent, latent, epsilon)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    papers: str
    ours: str
    ratio: float
    goal: float
    at_most: bool = False

    def __str__(self) -> str:
        met = self.ratio <= self.goal if self.at_most else self.ratio >= self.goal
        goal = f"{'at most' if self.at_most else 'at least'} {self.goal:g}"
        verdict = "met" if met else "falls short"
        return (
            f"| {self.name} | {self.papers} | {self.ours} | {self.ratio:.2f} | {goal} | {verdict} |"
        )


def alternate(
    papers: Callable[[], object], ours: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Time both, turn by turn, each going first every other time; returns seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (papers, ours)[side]()
            times[side].append(time.perf_counter() - start)
    return times


def time_row(name: str, times: tuple[list[float], list[float]], goal: float) -> Row:
    """Compare medians; the ratio is the median over pairs."""
    ratio = statistics.median(slow / fast for slow, fast in zip(*times, strict=True))
    seconds = [f"{statistics.median(side):.2f} s" for side in times]
    return Row(name, seconds[0], seconds[1], ratio, goal)


@torch.inference_mode()
def measure_generator(task: Task) -> tuple[Row, float]:
    """Time a forward pass for one pair, both sides in evaluation mode with the same weights."""
    torch.manual_seed(SEED)
    filters = 2 * task.filters
    ours = Generator(task.patch_size, 1, LATENT_SIZE, filters, paper_init=True)
    papers = PaperGenerator(task.patch_size, 1, LATENT_SIZE, filters)
    copy_weights(ours, papers)
    latent = torch.randn(1, LATENT_SIZE)
    # as for sampling; without statistics, untrained layers would amplify rounding fivefold each
    recalibrate_batch_norm(papers, [torch.randn(2, LATENT_SIZE)])
    copy_weights(papers, ours)
    difference = (ours.eval()(latent) - papers.eval()(latent)).abs().max().item()
    times = alternate(lambda: papers(latent), lambda: ours(latent), task.repeats)
    name = f"generator forward, {filters} filters, batch 1, {size_name(task)}"
    return time_row(name, times, GENERATOR_GOAL), difference


def measure_step(task: Task) -> tuple[Row, dict[str, tuple[float, float]]]:
    """Time a training step; first check that both sides compute the same one.

    The check takes its step with plain SGD, Adam's first step being the gradient's sign, which
    makes whole learning rates of rounding errors. Timing then goes on with the paper's Adam.
    """
    ours, papers = Ours(task), Papers(task)
    trainer, loop = ours.trainer, papers.loop
    copy_weights(trainer.generator, loop.generator)
    copy_weights(trainer.critic, loop.critic)
    for side in (trainer, loop):
        side.generator_optimizer = plain_sgd(side.generator, GENERATOR_LR)
        side.critic_optimizer = plain_sgd(side.critic, CRITIC_LR)
    found, expected = ours.step(), papers.step()
    losses = {name: (found[name], expected[name]) for name in expected}
    for side in (trainer, loop):
        side.generator_optimizer = paper_adam(side.generator, GENERATOR_LR)
        side.critic_optimizer = paper_adam(side.critic, CRITIC_LR)
    alternate(papers.step, ours.step, 1)  # makes room for Adam's moments
    times = alternate(papers.step, ours.step, task.repeats)
    return time_row(f"training step, {step_name(task)}", times, STEP_GOAL), losses


def plain_sgd(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=lr)


def measure_memory(task: Task) -> Row | None:
    """Compare what a step adds to each side's process; None where /proc does not tell."""
    added = []
    for side in ("papers", "ours"):
        command = [
            *(sys.executable, __file__, "--memory-of", side),
            *("--filters", str(task.filters), "--batch-size", str(task.batch_size)),
            *("--patch-size", *map(str, task.patch_size), "--threads", str(task.threads)),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        added.append(json.loads(output.splitlines()[-1]))
    if None in added:
        return None
    papers, ours = (f"{size / MIB:.0f} MiB" for size in added)
    name = f"peak memory of a step, {step_name(task)}"
    return Row(name, papers, ours, added[1] / added[0], MEMORY_GOAL, at_most=True)


def memory_of(side: str, task: Task) -> int | None:
    """Take a step in this process; returns its peak RSS less RSS before it, in bytes.

    A step goes ahead, so that kernels are loaded and Adam's moments and our averaged weights are
    there before; activations, gradients and all that is temporary count.
    """
    run = Papers(task) if side == "papers" else Ours(task)
    run.step()
    networks = run.loop if isinstance(run, Papers) else run.trainer
    networks.generator.zero_grad()
    networks.critic.zero_grad()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide what the step asks for
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    run.step()
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


def resident(field: str) -> int | None:
    """Return a field of /proc/self/status in bytes.

    Not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def size_name(task: Task) -> str:
    return "x".join(map(str, task.patch_size))


def step_name(task: Task) -> str:
    return f"{task.filters} filters, batch {task.batch_size}, {size_name(task)}"


def same(losses: dict[str, tuple[float, float]]) -> bool:
    """Tell whether each loss is the same on both sides, relative to its size if that exceeds 1."""
    return all(abs(a - b) <= TOLERANCE * max(1.0, abs(b)) for a, b in losses.values())


def main() -> int:
    """Print the table; returns 1 when both sides do not compute the same, whatever the times."""
    task, side = parse()
    torch.set_num_threads(task.threads)
    if side:
        print(json.dumps(memory_of(side, task)))
        return 0
    print(f"{task.threads} threads of {os.cpu_count()}, median of {task.repeats} pairs, fp32")
    print("| | paper | ours | ratio | goal | |\n|---|---|---|---|---|---|")
    generator, difference = measure_generator(task)
    print(generator, flush=True)
    step, losses = measure_step(task)
    print(step, flush=True)
    print(measure_memory(task) or "| peak memory of a step | | | | | not measured: needs /proc |")
    volumes_equal, losses_equal = difference <= TOLERANCE, same(losses)
    print(f"\nvolumes {verdict(volumes_equal)}: largest difference {difference:.1e}")
    print(
        f"losses {verdict(losses_equal)}, from the same weights, latents and epsilon, with "
        "penalty_mode=batch and the singular vectors of spectral normalisation exact, "
        "so that the number of critic passes does not matter:"
    )
    for name, (found, expected) in losses.items():
        print(f"  {name}: {expected:.7f} paper, {found:.7f} ours")
    return 0 if volumes_equal and losses_equal else 1


def verdict(equal: bool) -> str:
    return f"equal to {TOLERANCE:g}" if equal else f"DIFFER by more than {TOLERANCE:g}"


def parse() -> tuple[Task, str | None]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filters", type=int, default=16, help="of the step; generator: twice")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--patch-size", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--memory-of", choices=("papers", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    task = Task(
        filters=options.filters,
        batch_size=options.batch_size,
        patch_size=tuple(options.patch_size),
        repeats=options.repeats,
        threads=options.threads,
    )
    return task, options.memory_of


if __name__ == "__main__":
    sys.exit(main())
