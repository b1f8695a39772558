"""MC-DPM's training step: what the network is told, and what it is judged by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medpair.data.label_codes import LabelCode
from medpair.diffusion.process import Diffusion
from medpair.engines.diffusion import MaskSequenceTask
from medpair.networks.mcdpm import MaskSequenceDenoiser

CLASSES = 5
KINDS = [("classes", "cosine"), ("epsilon", "linear"), ("v", "cosine"), ("flow", "flow")]


class Recorder(nn.Module):
    """Answer zero and remember what was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 1, 1))
        self.calls: list[dict[str, Any]] = []

    def forward(self, x: Tensor, **given: Tensor) -> Tensor:
        self.calls.append({"x": x, "graded": torch.is_grad_enabled(), **given})
        return self.weight.expand(len(x), -1, *x.shape[2:])


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    known = torch.zeros(3, 4)
    known[1, :2] = 1
    known[2, 2:] = 1
    return {
        "label": torch.randint(CLASSES, (3, 4, 8, 8), generator=generator),
        "known": known,
        "position": torch.tensor([0.0, 0.3, 0.6]),
    }


def task(objective: Any, schedule: Any, **settings: Any) -> tuple[MaskSequenceTask, Recorder]:
    code = LabelCode(CLASSES, "bits")
    channels = CLASSES if objective == "classes" else code.channels
    return MaskSequenceTask(Diffusion(objective, schedule), code, **settings), Recorder(channels)


@pytest.mark.parametrize(("objective", "schedule"), KINDS)
def test_half_of_the_batches_are_told_what_was_said(objective: str, schedule: str) -> None:
    step, network = task(objective, schedule, self_conditioning=True)
    generator = torch.Generator().manual_seed(1)
    given, told = batch(), 0
    clean = step.code.encode(given["label"])
    known = given["known"][:, None, :, None, None].bool()
    for _ in range(40):
        network.calls.clear()
        step(network, given, generator)["loss"].backward()
        *first, last = network.calls
        assert last["graded"]
        if "previous" not in last:
            assert not first
            continue
        told += 1
        # said without a gradient, of the same noisy input, and without having been told
        assert len(first) == 1
        assert not first[0]["graded"]
        assert "previous" not in first[0]
        assert torch.equal(first[0]["x"], last["x"])
        said = last["previous"]
        assert said.shape == clean.shape
        assert said.abs().max() <= 1.0 + 1e-6
        # what is given clean is said clean
        torch.testing.assert_close(torch.where(known, said, 0.0), torch.where(known, clean, 0.0))
    assert 12 <= told <= 28


def test_what_a_voxel_says_of_itself_is_bayes_rule() -> None:
    """A network that knows nothing: what was said is each voxel's own posterior mean."""
    step, network = task("classes", "cosine", self_conditioning=True)
    given = batch()
    given["known"] = torch.zeros(3, 4)
    generator = torch.Generator().manual_seed(1)
    while not network.calls or "previous" not in network.calls[-1]:
        step(network, given, generator)
    call = network.calls[-1]
    t = call["time"] / step.diffusion.schedule.timesteps
    alpha, sigma = step.diffusion.levels(t, call["x"])
    words = step.code.words
    distance = (call["x"][:, None] - alpha[:, None] * words[None, :, :, None, None, None]).square()
    log = (-0.5 * distance.sum(dim=2) / sigma.square()).double()
    mean = torch.einsum("bk...,kc->bc...", log.softmax(dim=1), words.double())
    torch.testing.assert_close(call["previous"].double(), mean, atol=1e-4, rtol=0)


def test_mixed_precision_tells_what_was_said_and_reaches_every_weight() -> None:
    """Half precision is the default on a GPU: codes stay exact, no gradient is lost on the way."""
    step, _ = task("classes", "cosine", self_conditioning=True)
    torch.manual_seed(0)
    network = MaskSequenceDenoiser(
        4, 3, 1, (8, 16), 1, (False, True), classes=CLASSES, self_conditioning=True
    )
    for parameter in network.parameters():  # a new network's last layers are zero
        nn.init.normal_(parameter, std=0.1)
    generator, told = torch.Generator().manual_seed(1), 0
    while told < 2:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(network, batch(), generator)["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        without = {name for name, p in network.named_parameters() if p.grad is None}
        told += not without
        assert without <= {"previous.weight"}


def test_without_it_every_step_is_one_pass() -> None:
    step, network = task("classes", "cosine")
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        step(network, batch(), generator)
    assert len(network.calls) == 10
    assert all("previous" not in call for call in network.calls)


def test_a_network_that_knows_nothing_pays_each_voxels_own_uncertainty() -> None:
    step, network = task("classes", "cosine")
    given = batch()
    found = step(network, given, torch.Generator().manual_seed(2))["loss"]
    call = network.calls[0]
    hidden = 1.0 - given["known"][:, None, :, None, None]
    logits = call["evidence"] * hidden
    each = functional.cross_entropy(logits, given["label"], reduction="none")
    mask = hidden[:, 0].expand_as(each).bool()
    torch.testing.assert_close(found, each[mask].mean())


def test_completing_gives_every_labelled_voxel_and_judges_the_others() -> None:
    """Of five classes 1 and 2 have a label; 3 and 4 are learned around them."""
    step, network = task("classes", "cosine", self_conditioning=True, completes=2)
    given = batch()
    clean = step.code.encode(given["label"])
    labelled = (given["label"] > 0) & (given["label"] <= 2)
    certain = labelled | given["known"][:, :, None, None].bool()
    # before anything is said: the words of what has no label, equally likely
    nothing = step.code.words[[0, 3, 4]].mean(dim=0).view(1, -1, 1, 1, 1)
    generator, passes = torch.Generator().manual_seed(1), set()
    for _ in range(10):
        network.calls.clear()
        found = step(network, given, generator)["loss"]
        passes.add(len(network.calls))
        for call in network.calls:
            for value in (call["x"], call["previous"]):
                where = certain[:, None].expand_as(value)
                assert torch.equal(value[where], clean[where])
        told = network.calls[0]["previous"]
        expected = torch.where(certain[:, None], clean, nothing)
        torch.testing.assert_close(told, expected, atol=1e-6, rtol=0)
        logits = network.calls[-1]["evidence"].clone()
        logits[:, 1:3] = -torch.inf
        each = functional.cross_entropy(
            torch.where(certain[:, None], 0.0, logits), given["label"], reduction="none"
        )
        torch.testing.assert_close(found, each[~certain].mean())
    assert passes == {1, 2}


def test_completing_needs_classes_and_self_conditioning() -> None:
    with pytest.raises(ValueError, match="completes: expected the objective classes and"):
        task("classes", "cosine", completes=2)
    with pytest.raises(ValueError, match="found v and True"):
        task("v", "cosine", self_conditioning=True, completes=2)


def test_a_power_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="time_power: expected a positive number, found 0"):
        task("classes", "cosine", time_power=0)


def test_sizes_are_told_in_every_pass() -> None:
    step, network = task("classes", "cosine", self_conditioning=True)
    given = {**batch(), "sizes": torch.randn(3, 4)}
    generator = torch.Generator().manual_seed(1)
    while not network.calls or "previous" not in network.calls[-1]:
        step(network, given, generator)
    assert all(torch.equal(call["sizes"], given["sizes"]) for call in network.calls)
    network.calls.clear()
    step(network, batch(), generator)
    assert "sizes" not in network.calls[0]
