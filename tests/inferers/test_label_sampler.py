"""The sampler that suits a model: its steps end where the classes are decided."""

from __future__ import annotations

import math
from typing import Any

import pytest

from medpair.data.label_codes import LabelCode
from medpair.diffusion.process import Diffusion
from medpair.inferers.label_sampler import LabelSampler, label_sampler

BITS = LabelCode(5, "bits")


@pytest.mark.parametrize(
    ("objective", "schedule", "asked", "expected"),
    [
        ("classes", "cosine", {}, LabelSampler("dpm_solver_pp", 10, (-4.0, 0.5))),
        ("classes", "cosine", {"steps": 20}, LabelSampler("dpm_solver_pp", 20, (-4.0, 0.5))),
        (
            "classes",
            "linear",
            {"steps": 20, "log_snr": [-4, 10]},
            LabelSampler("dpm_solver_pp", 20, (-4.0, 10.0)),
        ),
        ("classes", "cosine", {"solver": "ddim"}, LabelSampler("ddim", 20)),
        ("classes", "cosine", {"solver": "ancestral"}, LabelSampler("ancestral", 300)),
        ("epsilon", "linear", {}, LabelSampler("dpm_solver_pp", 20)),
        ("flow", "flow", {}, LabelSampler("flow", 20)),
    ],
)
def test_what_is_not_asked_for_suits_the_model(
    objective: Any, schedule: Any, asked: dict[str, Any], expected: LabelSampler
) -> None:
    found = label_sampler(Diffusion(objective, schedule, 300), BITS, **asked)
    assert found == expected
    assert len(found.grid(Diffusion(objective, schedule, 300))) == found.steps + 1


def test_codes_that_are_nearer_to_each_other_are_decided_later() -> None:
    """At the end of the span the noise is the same part of the distance between two codes."""
    diffusion = Diffusion("classes", "cosine")
    for encoding, distance in (("bits", 2.0), ("one_hot", math.sqrt(8)), ("grey", 0.5)):
        sampler = label_sampler(diffusion, LabelCode(5, encoding))
        alpha, sigma = diffusion.schedule.level(sampler.grid(diffusion)[-2])
        assert alpha * distance / sigma == pytest.approx(2 * math.exp(0.5), rel=1e-4)


def test_the_sidecar_says_what_made_a_sample() -> None:
    decided = label_sampler(Diffusion("classes", "cosine"), BITS)
    told = {"sampler": "dpm_solver_pp", "steps": 10, "log_snr": [-4.0, 0.5]}
    assert decided.origin() == told
    plain = label_sampler(Diffusion("v", "cosine"), BITS, steps=7)
    assert plain.origin() == {"sampler": "dpm_solver_pp", "steps": 7}


@pytest.mark.parametrize("log_snr", [[1], [1, 2, 3], 4, "low", ["a", "b"], [None, 1]])
def test_a_span_is_two_numbers(log_snr: Any) -> None:
    with pytest.raises(ValueError, match="log_snr: expected two numbers, found"):
        label_sampler(Diffusion("classes", "cosine"), BITS, log_snr=log_snr)


def test_other_solvers_have_no_span() -> None:
    expected = "log_snr: expected None for the solver 'ddim', found "
    with pytest.raises(ValueError, match=expected):
        label_sampler(Diffusion("classes", "cosine"), BITS, "ddim", log_snr=[-4, 1])
