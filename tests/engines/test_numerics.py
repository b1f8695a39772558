"""NaN and infinity in a WGAN's training: what is left out, what is counted, what stops the run."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from tests.engines.test_wgan_math import adam, make_trainer, real_batch
from torch import nn

from medpair.engines import numerics
from medpair.engines.numerics import LEAST_SCALE, BadSteps, NotFiniteError, gradient_norm
from medpair.engines.segmentation import SegmentationTrainer


def batches(count: int, bad: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        batch = real_batch(2, seed=number)
        if number in bad:
            batch["image"][0, 0, 5, 5, 5] = float("nan")
        result.append(
            {**batch, "case": [f"case_{number}", "case_0"], "index": torch.tensor([7, 8])}
        )
    return result


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    networks = {
        "generator": trainer.generator,
        "critic": trainer.critic,
        "averaged": trainer.averaged.network,
    }
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.fault(35)
def test_a_bad_batch_is_left_out_and_the_others_are_not() -> None:
    trainer = make_trainer(batches(3, bad=(2,)), optimizer=adam)
    seen: list[dict[str, torch.Tensor]] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(weights(trainer)))
    trainer.run()
    assert all(torch.isfinite(value.float()).all() for step in seen for value in step.values())
    critic = [key for key in seen[0] if key.startswith("critic")]
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in critic)
    for part in ("critic", "generator"):
        changed = [k for k in seen[0] if k.startswith(part) and not seen[1][k].equal(seen[2][k])]
        assert changed, part
    assert trainer.bad_steps.in_a_row == 0


@pytest.mark.fault(35)
def test_an_infinite_gradient_of_a_finite_loss_is_left_out() -> None:
    trainer = make_trainer(batches(3), optimizer=adam, max_bad_steps=3)
    bias = trainer.generator.head.bias
    iterations: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        bad = trainer.state.iteration == 2
        return torch.full_like(gradient, math.inf) if bad else gradient

    bias.register_hook(spoil)
    before: list[torch.Tensor] = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: before.append(bias.detach().clone())
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: iterations.append(engine.bad_steps.in_a_row),
    )
    trainer.run()
    assert iterations == [0, 1, 0]
    assert torch.equal(before[1], before[2])
    assert not torch.equal(before[2], bias)
    assert torch.isfinite(bias).all()


@pytest.mark.fault(35)
def test_bad_steps_in_a_row_stop_the_run_with_the_batches() -> None:
    trainer = make_trainer(batches(9, bad=(2, 4, 5, 6)), optimizer=adam, max_bad_steps=3)
    with pytest.raises(NotFiniteError) as caught:
        trainer.run()
    assert "iteration 6: expected finite losses and gradients, found critic_loss nan" in str(
        caught.value
    )
    assert "on case_0, case_6" in str(caught.value)
    assert "begin anew with a lower learning rate" in str(caught.value)
    steps = caught.value.report["steps"]
    assert [step["iteration"] for step in steps] == [4, 5, 6]
    assert steps[0]["case"] == ["case_4", "case_0"]
    assert steps[0]["index"] == [7, 8]
    assert steps[0]["losses"]["critic_loss"] == "nan"
    assert isinstance(steps[0]["losses"]["generator_loss"], float)


@pytest.mark.fault(36)
def test_a_collapsing_loss_scale_stops_the_run() -> None:
    """A real scaler: every scaled gradient is infinite, so it halves until nothing is left."""
    trainer = make_trainer(batches(9), optimizer=adam, max_bad_steps=1)
    trainer.critic_scaler = torch.amp.GradScaler("cpu", init_scale=4 * LEAST_SCALE)
    trainer.mixed, trainer.amp_dtype = True, torch.float16
    trainer._autocast = lambda: torch.autocast("cpu", enabled=False)  # type: ignore[method-assign]
    first = next(trainer.critic.parameters())
    first.register_hook(lambda gradient: torch.full_like(gradient, math.inf))
    before = weights(trainer)
    message = (
        r"iteration 3: expected a loss scale of at least 2\^-10, found critic_gradient 0.000488 "
        r"on case_0, case_3: .*go on with --amp_dtype bfloat16 or --amp False"
    )
    with pytest.raises(NotFiniteError, match=message) as caught:
        trainer.run()
    # an infinite gradient is the scaler's business, not a bad step
    assert trainer.bad_steps.in_a_row == 0
    after = weights(trainer)
    assert all(before[key].equal(after[key]) for key in before if key.startswith("critic"))
    scales = [step["loss_scale"]["critic_gradient"] for step in caught.value.report["steps"]]
    assert scales == [LEAST_SCALE / 2]


@pytest.mark.fault(36)
def test_a_scaler_that_finds_its_scale_is_left_alone() -> None:
    trainer = make_trainer(batches(4), optimizer=adam, max_bad_steps=1)
    # 2^140 is more than fp32 holds: the first step overflows, a later one does not
    trainer.critic_scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**126, backoff_factor=2.0**-100
    )
    trainer.run()
    assert trainer.critic_scaler.get_scale() == 2.0**26
    assert all(torch.isfinite(value.float()).all() for value in weights(trainer).values())


@pytest.mark.fault(35)
@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_the_segmenter_leaves_bad_steps_out(spoilt: str) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 1)
    data = [
        {
            "image": torch.rand(1, 1, 4, 4, 4),
            "label": torch.ones(1, 4, 4, 4).long(),
            "case": [str(n)],
        }
        for n in range(1, 4)
    ]
    if spoilt == "loss":
        data[1]["image"][:] = math.nan
    trainer = SegmentationTrainer(
        "cpu",
        1,
        data,
        network,
        torch.optim.AdamW(network.parameters(), 0.1, weight_decay=0.5),
        nn.CrossEntropyLoss(),
        max_bad_steps=2,
    )
    if spoilt == "gradient":
        network.bias.register_hook(
            lambda g: torch.full_like(g, math.nan) if trainer.state.iteration == 2 else g
        )
    seen: list[torch.Tensor] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: seen.append(network.weight.detach().clone())
    )
    trainer.run()
    # not even weight decay moves them
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.isfinite(seen[2]).all()


def test_the_count_goes_through_a_checkpoint_and_statistics_are_renewed() -> None:
    norm = nn.BatchNorm3d(2)
    steps = BadSteps(3)
    engine = SimpleNamespace(state=SimpleNamespace(iteration=5, batch=None))
    assert not steps.finite({"loss": torch.tensor(math.nan)})
    norm(torch.full((1, 2, 2, 2, 2), math.nan))
    assert not torch.isfinite(norm.running_mean).all()
    steps.finish(engine, [norm])
    assert torch.equal(norm.running_mean, torch.zeros(2))
    again = BadSteps(3)
    again.load_state_dict(steps.state_dict())
    assert again.in_a_row == 1


def test_processes_leave_out_a_step_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has found NaN: so is the mean."""
    monkeypatch.setattr(numerics, "mean_over_ranks", lambda values: (values + math.nan) / 2)
    steps = BadSteps(1)
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    assert not steps.step(torch.optim.SGD([parameter], 1.0), {"loss": torch.tensor(0.5)})
    assert parameter == 1.0
    engine = SimpleNamespace(state=SimpleNamespace(iteration=5, batch=None))
    with pytest.raises(NotFiniteError, match=r"found loss nan, .* in another process") as caught:
        steps.finish(engine)
    assert [step["in_this_process"] for step in caught.value.report["steps"]] == [False]


def test_the_gradient_norm_is_that_of_all_parameters() -> None:
    network = nn.Linear(2, 1)
    network.weight.grad = torch.tensor([[3.0, 0.0]])
    network.bias.grad = torch.tensor([4.0])
    assert gradient_norm(torch.optim.SGD(network.parameters(), 1.0)) == 5.0


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
def test_a_limit_that_makes_no_sense_is_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="max_bad_steps: expected a number of at least 1"):
        BadSteps(limit)
