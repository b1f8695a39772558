"""The WGAN: training step, its memory, generator, pairs to the disk."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import Row, Setting, Sides, largest_difference
from pairs_to_disk import pairs_to_disk
from paper_wgan import PaperGenerator, copy_weights
from wgan_sides import LATENT_SIZE, SEED, Ours, Papers, Task, compare_losses, same_weights

from medpair.engines.averaging import recalibrate_batch_norm
from medpair.networks.wgan import Generator

LOOP = "the paper's loop"
# Of losses, in fp32: on a GPU, and on a CPU, where 2.1e-5 and 2.3e-5 were found at these sizes with
# one thread. It is the generator's channels-last layout, probably BatchNorm's statistics summed in
# fp32: with ``channels_last=False`` the first was 3e-8.
EQUAL, EQUAL_CPU = 1e-5, 5e-5
# As on the GPU of 24 GB that the paper's networks should fit on, less what CUDA itself takes
CARD_BYTES, CONTEXT_BYTES = 24 * 2**30, 2**29
STEP = {"cpu": Task(128, 2), "cuda": Task(512, 4, device="cuda")}
MEMORY = {"cpu": Task(128, 4), "cuda": Task(512, 4, device="cuda")}
LARGE = Task(1024, 4, device="cuda", bfloat16=True)


def sized(task: Task, setting: Setting) -> Task:
    """Return the task on the setting's device, and small where that is asked for."""
    task = replace(task, device=setting.device)
    return (
        replace(task, filters=16, batch_size=2, patch_size=(32, 32, 16)) if setting.small else task
    )


def step(
    task: Task, tolerance: float, ours_bfloat16: bool = False, memory: bool = False
) -> Callable[[Setting], Sides]:
    """Return what builds a row of the training step."""

    def build(setting: Setting) -> Sides:
        size = sized(task, setting)
        ours, papers = Ours(replace(size, bfloat16=ours_bfloat16)), Papers(size)
        return Sides(
            leaving_no_gradients(papers) if memory else papers.step,
            leaving_no_gradients(ours) if memory else ours.step,
            lambda: compare_losses(ours, papers, tolerance),
            precision="bfloat16" if ours_bfloat16 else "float32",
            memory=memory,
            count_flops=not memory,
        )

    return build


def leaving_no_gradients(side: Ours | Papers) -> Callable[[], None]:
    """Return a step that frees its gradients, which would else hide those of the next."""
    networks = side.trainer if isinstance(side, Ours) else side.loop

    def work() -> None:
        side.step()
        networks.generator.zero_grad()
        networks.critic.zero_grad()

    return work


def fits_a_card(setting: Setting) -> Sides:
    """Build the largest of the paper's networks; the check trains it within 24 GB."""
    task = sized(LARGE, setting)
    ours = Ours(task)
    # before the baseline takes memory
    words = within_a_card(ours) if setting.device == "cuda" else ""
    papers = Papers(task)
    same_weights(ours, papers)

    def check() -> str:
        if not words:  # where no card is: only that it trains
            assert all(math.isfinite(value) for value in ours.step().values()), "not finite"
            return "finite losses; memory is that of another device"
        assert not words.startswith("does not fit"), words
        return words

    return Sides(
        leaving_no_gradients(papers),
        leaving_no_gradients(ours),
        check,
        precision="bfloat16",
        memory=True,
        count_flops=False,
    )


def within_a_card(ours: Ours) -> str:
    """Train for some steps with no more memory than the card has, and say how much it took."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction((CARD_BYTES - CONTEXT_BYTES) / total)
    try:
        losses = [ours.step() for _ in range(3)]
    except torch.OutOfMemoryError as error:
        return f"does not fit: {str(error).splitlines()[0]}"
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    if not all(math.isfinite(value) for loss in losses for value in loss.values()):
        return "does not fit: losses are not finite"
    used = torch.cuda.max_memory_allocated() / 2**30
    held = torch.cuda.max_memory_reserved() / 2**30
    return f"trains within 24 GiB: weights, moments and all {used:.1f} GiB ({held:.1f} held)"


def forward(setting: Setting) -> Sides:
    """Build a forward pass for one pair, both sides in evaluation mode with the same weights."""
    torch.manual_seed(SEED)
    size, filters = ((32, 32, 16), 32) if setting.small else ((128, 128, 64), 512)
    ours = Generator(size, 1, LATENT_SIZE, filters, paper_init=True).to(setting.device)
    papers = PaperGenerator(size, 1, LATENT_SIZE, filters).to(setting.device)
    copy_weights(ours, papers)
    latent = torch.randn(1, LATENT_SIZE).to(setting.device)
    # as for sampling; without statistics, untrained layers would amplify rounding fivefold each
    recalibrate_batch_norm(papers, [torch.randn(2, LATENT_SIZE).to(setting.device)])
    copy_weights(papers, ours)
    ours, papers = ours.eval(), papers.eval()

    def check() -> str:
        with torch.inference_mode():
            return largest_difference(ours(latent), papers(latent), 1e-5)

    return Sides(
        torch.inference_mode()(lambda: papers(latent)),
        torch.inference_mode()(lambda: ours(latent)),
        check,
    )


# processors that multiply matrices of bfloat16; without, bfloat16 is slower than fp32 there
AMX = bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))
BFLOAT16 = {"cuda": 6.0, "cpu": 4.0} if AMX else {"cuda": 6.0}

ROWS: list[Row] = [
    Row(f"WGAN training step, {STEP['cpu']}", LOOP, {"cpu": 2.5}, step(STEP["cpu"], EQUAL_CPU)),
    Row(f"WGAN training step, {STEP['cuda']}", LOOP, {"cuda": 3.0}, step(STEP["cuda"], EQUAL)),
    *(
        Row(
            f"WGAN training step in bf16, {STEP[device]}",
            f"{LOOP} in fp32",
            {device: goal},
            step(STEP[device], 0.03, ours_bfloat16=True),
        )
        for device, goal in BFLOAT16.items()
    ),
    Row(
        f"WGAN memory of a training step, {MEMORY['cpu']}",
        LOOP,
        {"cpu": 0.7},
        step(MEMORY["cpu"], EQUAL_CPU, memory=True),
    ),
    Row(
        f"WGAN memory of a training step, {MEMORY['cuda']}",
        LOOP,
        {"cuda": 0.7},
        step(MEMORY["cuda"], EQUAL, memory=True),
    ),
    Row(
        f"WGAN memory of a training step in bf16 (c-SN-MP), {LARGE}",
        f"{LOOP} in bf16",
        {"cuda": 0.7},
        fits_a_card,
    ),
    Row(
        "WGAN generator forward, 512 filters, batch 1, 128x128x64",
        "the paper's layers",
        {"cpu": 2.0},
        forward,
    ),
    Row(
        "WGAN pairs to the disk, compact generator, 128x128x64",
        "the paper's generate loop",
        {"cpu": 2.0, "cuda": 20.0},
        pairs_to_disk,
    ),
]
