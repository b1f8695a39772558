"""Refining in three views: what a sample depends on, and what may be computed once.

Where an oracle stands for the network, it knows the clean image of every label map, and answers as
a perfect denoiser would: what comes out is then known voxel by voxel.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.conftest import randomized
from torch import Tensor, nn

from medpair.data.sampling import torch_generator
from medpair.diffusion.process import Diffusion
from medpair.inferers.refinement import noise_level
from medpair.inferers.three_views import ThreeViewRefiner, refiner_from_card
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser
from medpair.networks.spade import Modulation

CLASSES = 3
SIZE = (8, 12, 6)
NETWORK = {
    "num_classes": CLASSES,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "hidden": 8,
}


def card(**diffusion: Any) -> dict[str, Any]:
    kind = Diffusion(**{"timesteps": 100, **diffusion})
    return {
        "diffusion": kind.settings,
        "network": {**NETWORK, "output_factor": kind.output_factor},
    }


def network_of(card: dict[str, Any], views: str = "shared") -> SemanticDenoiser:
    network = refiner_from_card({"network": {**card["network"], "views": views}})
    assert isinstance(randomized(network), SemanticDenoiser)
    return network


def refiner(card: dict[str, Any], **options: Any) -> ThreeViewRefiner:
    return ThreeViewRefiner(card, **{"refine_steps": 3, "grid_steps": 20, **options})


def volumes(batch: int = 2) -> dict[str, Tensor]:
    random = torch_generator(1)
    return {
        "inputs": torch.rand(batch, 1, *SIZE, generator=random) * 2 - 1,
        "label": torch.randint(0, CLASSES, (batch, 1, *SIZE), generator=random),
        "index": torch.arange(batch),
    }


class Oracle(SemanticDenoiser):
    """Know that class k of view number v has the intensity k / 4 + v / 10."""

    def __init__(self, diffusion: Diffusion) -> None:
        super().__init__(**NETWORK, output_factor=diffusion.output_factor)
        self.diffusion = diffusion
        self.calls: list[tuple[str, int, int]] = []

    def compact_modulations(self, one_hot: Tensor, view: str) -> list[Modulation]:
        truth = one_hot.argmax(1, keepdim=True) / 4 + VIEWS.index(view) / 10
        return [(truth, truth)]

    def forward(
        self, x: Tensor, time: Tensor, modulations: Sequence[Modulation], view: str, label: None
    ) -> Tensor:
        self.calls.append((view, len(x), round(float(time[0]))))
        alpha, sigma = self.diffusion.levels(time / self.diffusion.schedule.timesteps, x)
        output = (x - alpha * modulations[0][0]) / sigma
        return torch.cat([output, output * 0], dim=1) if self.diffusion.learn_variance else output


def test_features_are_channels_last() -> None:
    of = card()
    network, seen = network_of(of), []
    network.load_state_dict(network_of(of).state_dict())
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    refiner(of)(network=network, **volumes())
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_no_steps_return_the_input() -> None:
    data, of = volumes(), card()
    assert refiner(of, refine_steps=0)(network=network_of(of), **data) is data["inputs"]


@pytest.mark.parametrize("learn_variance", [False, True])
@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm_solver_pp"])
def test_a_perfect_denoiser_gives_the_mean_of_the_views(solver: str, learn_variance: bool) -> None:
    of = card(learn_variance=learn_variance)
    oracle, data = Oracle(Diffusion(**of["diffusion"])), volumes()
    for steps in (3, 20):
        result = refiner(of, refine_steps=steps, solver=solver)(network=oracle, **data)
        # the mean of three views that each saw every voxel under its own label
        torch.testing.assert_close(result, data["label"] / 4 + 0.1, rtol=0, atol=1e-4)
    for number, view in enumerate(VIEWS):
        one = refiner(of, views=[view], solver=solver)(network=oracle, **data)
        torch.testing.assert_close(one, data["label"] / 4 + number / 10, rtol=0, atol=1e-4)


def test_each_view_is_evaluated_once_per_step_and_batch_of_slices() -> None:
    of = card()
    oracle = Oracle(Diffusion(**of["diffusion"]))
    refiner(of, slice_batch=4)(network=oracle, **volumes(1))
    height = {"axial": SIZE[2], "coronal": SIZE[1], "sagittal": SIZE[0]}
    expected = [
        (view, min(4, height[view] - first), time)
        for view in VIEWS
        for first in range(0, height[view], 4)
        for time in (15, 10, 5)
    ]
    assert oracle.calls == expected


BOTH = pytest.mark.parametrize("combine", ["mean", "alternate"])


@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpm_solver_pp"])
def test_alternating_the_last_view_has_the_last_word(solver: str) -> None:
    of = card(learn_variance=True)
    oracle, data = Oracle(Diffusion(**of["diffusion"])), volumes()
    for steps in (3, 4, 5):
        method = refiner(of, refine_steps=steps, solver=solver, combine="alternate")
        result = method(network=oracle, **data)
        # the last step, to no noise, takes x_0 as its view says
        last = (steps - 1) % 3 / 10
        torch.testing.assert_close(result, data["label"] / 4 + last, rtol=0, atol=1e-4)


def test_alternating_a_step_is_one_evaluation() -> None:
    of = card()
    oracle = Oracle(Diffusion(**of["diffusion"]))
    refiner(of, slice_batch=4, combine="alternate")(network=oracle, **volumes(1))
    height = {"axial": SIZE[2], "coronal": SIZE[1], "sagittal": SIZE[0]}
    assert oracle.calls == [
        (view, min(4, height[view] - first), time)
        for view, time in zip(VIEWS, (15, 10, 5), strict=True)
        for first in range(0, height[view], 4)
    ]


def test_alternating_keeps_the_noise_that_a_mean_takes_away() -> None:
    """Independent Gaussian voxels: one view's samples of deviation s, their mean s / sqrt(3)."""
    of, deviation = card(), 0.1

    class Gaussian(SemanticDenoiser):
        def forward(self, x: Tensor, time: Tensor, *args: Any) -> Tensor:
            alpha, sigma = Diffusion(**of["diffusion"]).levels(time / 100, x)
            # (x - alpha E[x_0 | x]) / sigma
            return sigma * x / ((alpha * deviation) ** 2 + sigma**2)

    flat = {
        "inputs": torch.zeros(1, 1, 24, 24, 24),
        "label": torch.zeros(1, 1, 24, 24, 24, dtype=torch.long),
        "index": torch.zeros(1, dtype=torch.long),
    }
    one, mean, alternating = (
        refiner(of, refine_steps=100, grid_steps=100, **options)(
            network=Gaussian(**of["network"]), **flat
        ).std()
        for options in ({"views": ["axial"]}, {}, {"combine": "alternate"})
    )
    # a hundred steps lose a little of it themselves
    assert deviation * 0.75 < one < deviation
    assert float(mean / one) == pytest.approx(3**-0.5, rel=0.03)
    assert float(alternating / one) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("views", ["separate", "shared"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@BOTH
def test_modulations_may_be_computed_once(views: str, guidance: float, combine: str) -> None:
    of, data = card(learn_variance=True), volumes(1)
    network = network_of(of, views)
    steps = {"refine_steps": 7, "combine": combine}  # each view has more than one turn
    results = [
        refiner(of, cached=cached, guidance=guidance, **steps)(network=network, **data)
        for cached in (True, False)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-4)
    assert (results[0] - data["inputs"]).abs().max() > 0.1


def test_alternating_what_is_kept_is_used_again_and_has_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, data = card(), volumes(1)
    network = network_of(of)
    computed: list[weakref.ref[Tensor]] = []
    most = 0

    def listened(one_hot: Tensor, view: str) -> list[Modulation]:
        nonlocal most
        rows = SemanticDenoiser.compact_modulations(network, one_hot, view)
        computed.append(weakref.ref(rows[0][1]))
        most = max(most, sum(part() is not None for part in computed))
        return rows

    def refined(steps: int) -> tuple[Tensor, int, int]:
        nonlocal most
        computed.clear()
        most = 0
        method = refiner(of, refine_steps=steps, slice_batch=2, combine="alternate")
        return method(network=network, **data), len(computed), most

    monkeypatch.setattr(network, "compact_modulations", listened)
    parts = {view: side // 2 for view, side in zip(VIEWS, SIZE[::-1], strict=True)}
    assert parts["axial"] + parts["coronal"] + parts["sagittal"] == 13
    # three turns, each view's first and last: a part is gone when the next one comes
    _, count, held = refined(3)
    assert (count, held) == (13, 1)
    # the first view comes again, then all do
    assert refined(4)[1:] == (13, parts[VIEWS[0]] + 1)
    result, count, held = refined(7)
    assert (count, held) == (13, 13)
    # where they do not fit they are computed anew: the same numbers
    monkeypatch.setattr("medpair.inferers.three_views.KEPT_AT_MOST", 0)
    again, count, held = refined(7)
    assert (count, held) == (13 + 13 + parts[VIEWS[0]], 1)
    assert torch.equal(result, again)


@BOTH
def test_slices_may_be_refined_in_any_batches(combine: str) -> None:
    of, data = card(learn_variance=True), volumes(1)
    network = network_of(of)
    results = [
        refiner(of, slice_batch=count, combine=combine)(network=network, **data)
        for count in (32, 1, 5)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-5)


@BOTH
def test_a_sample_depends_on_seed_and_index_alone(combine: str) -> None:
    of, data = card(), volumes(3)
    network = network_of(of)

    def one(i: int, seed: int = 0, index: int | None = None) -> Tensor:
        rows = {key: value[i : i + 1] for key, value in data.items()}
        number = torch.tensor([i if index is None else index])
        method = refiner(of, seed=seed, combine=combine)
        return method(network=network, **{**rows, "index": number})

    together = refiner(of, combine=combine)(network=network, **data)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], one(i), rtol=0, atol=1e-6)
    assert (one(0) - one(0, index=1)).abs().max() > 0.01
    assert (one(0) - one(0, seed=1)).abs().max() > 0.01
    assert torch.equal(one(0), one(0))


def test_each_slice_has_noise_of_its_own() -> None:
    of = card()
    flat = {
        "inputs": torch.zeros(1, 1, 8, 8, 8),
        "label": torch.zeros(1, 1, 8, 8, 8, dtype=torch.long),
        "index": torch.zeros(1, dtype=torch.long),
    }

    class Nothing(SemanticDenoiser):
        """Hold that there is no noise: what comes back is what was drawn."""

        def forward(self, x: Tensor, *args: Any) -> Tensor:
            return torch.zeros_like(x)

    result = refiner(of, views=["axial"])(network=Nothing(**NETWORK), **flat)[0, 0]
    planes = result.permute(2, 0, 1).flatten(1)
    assert torch.corrcoef(planes).fill_diagonal_(0).abs().max() < 0.6
    assert planes.std() > 0.05


def test_the_mean_of_the_views() -> None:
    of, data = card(), volumes(1)
    network = network_of(of, "separate")
    each = [refiner(of, views=[view])(network=network, **data) for view in VIEWS]
    whole = refiner(of)(network=network, **data)
    torch.testing.assert_close(whole, sum(each) / 3, rtol=0, atol=1e-5)
    two = refiner(of, views=VIEWS[:2])(network=network, **data)
    torch.testing.assert_close(two, (each[0] + each[1]) / 2, rtol=0, atol=1e-5)


def test_from_pure_noise_the_input_does_not_matter() -> None:
    data = volumes(1)
    other = {**data, "inputs": -data["inputs"]}
    for of in (card(), card(objective="flow", schedule="flow")):
        network = network_of(of)
        full, few = (refiner(of, refine_steps=n, grid_steps=4) for n in (4, 2))
        assert torch.equal(full(network=network, **data), full(network=network, **other))
        assert not torch.allclose(few(network=network, **data), few(network=network, **other))


@pytest.mark.parametrize("learn_variance", [False, True])
def test_guidance_leads_from_no_label_to_the_label(learn_variance: bool) -> None:
    of, data = card(learn_variance=learn_variance), volumes(1)
    network = network_of(of)

    def refined(guidance: float, **changes: Any) -> Tensor:
        # a solver that does not use the variance, which stays the labelled one's
        method = refiner(of, guidance=guidance, solver="ddim")
        return method(network=network, **{**data, **changes})

    torch.testing.assert_close(refined(1.0 + 1e-9), refined(1.0), rtol=0, atol=1e-4)
    # no class has this number: an all-zero map
    unlabelled = refined(1.0, label=torch.full_like(data["label"], 99))
    torch.testing.assert_close(refined(0.0), unlabelled, rtol=0, atol=1e-4)
    assert (refined(0.0) - refined(1.0)).abs().max() > 1e-3
    drawn = refiner(of, guidance=2.0)(network=network, **data)
    assert drawn.isfinite().all()
    assert (drawn - refiner(of)(network=network, **data)).abs().max() > 1e-3


@pytest.mark.parametrize("learn_variance", [False, True])
@BOTH
def test_padding_stays_dark_at_every_step(learn_variance: bool, combine: str) -> None:
    of, data = card(learn_variance=learn_variance), volumes(1)
    inside = torch.zeros(1, 1, *SIZE)
    inside[..., 1:6, 2:10, 1:5] = 1
    dark = torch.where(inside > 0, data["inputs"], -1.0)
    seen: list[tuple[Tensor, float]] = []

    class Watched(SemanticDenoiser):
        def forward(self, x: Tensor, time: Tensor, *args: Any) -> Tensor:
            seen.append((x, float(time[0]) / 100))
            return super().forward(x, time, *args)

    network = randomized(Watched(**of["network"]))
    method = refiner(of, views=["axial"], refine_steps=6, combine=combine)
    result = method(dark, network, data["label"], data["index"], inside=inside)
    assert (result[inside == 0] == -1).all()
    padded = inside[0, 0].permute(2, 0, 1)[:, None] == 0
    for x, t in seen:
        alpha, sigma = method.diffusion.schedule.level(t)
        noise = (x[padded] + float(alpha)) / float(sigma)
        assert noise.mean().abs() < 0.25
        assert noise.std() == pytest.approx(1.0, abs=0.2)


def test_the_strength_of_the_noise() -> None:
    diffusion = Diffusion("epsilon", "linear", 1000)
    assert noise_level(diffusion, 10, 1000) == pytest.approx(0.04, abs=0.005)
    assert noise_level(diffusion, 10, 100) == pytest.approx(0.32, abs=0.01)
    assert noise_level(diffusion, 100, 100) == pytest.approx(1.0, abs=1e-4)
    of = {"diffusion": diffusion.settings, "network": {**NETWORK, "output_factor": 1}}
    oracle = Oracle(diffusion)
    oracle.calls.clear()
    refiner(of, refine_steps=10, grid_steps=100)(network=oracle, **volumes(1))
    assert max(time for _, _, time in oracle.calls) == 100  # of 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine_steps": 21}, r"refine_steps: expected 0 to grid_steps \(20\), found 21"),
        ({"refine_steps": -1}, "found -1"),
        ({"slice_batch": 0}, "slice_batch: expected at least 1, found 0"),
        ({"views": []}, "views: expected some of"),
        ({"views": ["axial", "axial"]}, "views: expected some of"),
        ({"views": ["top"]}, r"found \['top'\]"),
        (
            {"combine": "median"},
            r"combine: expected one of \['mean', 'alternate'\], found 'median'",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refiner(card(), **options)


def test_a_card_may_say_how_its_weights_refine() -> None:
    said = {**card(), "sampling": {"refine_steps": 2, "grid_steps": 9, "combine": "alternate"}}
    method = ThreeViewRefiner(said)
    origin = method.origin()
    assert (origin["refine_steps"], origin["grid_steps"], origin["combine"]) == (2, 9, "alternate")
    made = method(network=network_of(said), **volumes(1))
    asked = ThreeViewRefiner(card(), refine_steps=2, grid_steps=9, combine="alternate")
    assert torch.equal(made, asked(network=network_of(said), **volumes(1)))


def test_the_solver_follows_the_objective() -> None:
    assert refiner(card()).origin()["sampler"] == "ancestral"
    assert refiner(card(objective="flow", schedule="flow")).origin()["sampler"] == "flow"
    origin = refiner(card(), seed=4, views=["axial"], guidance=2).origin()
    assert origin["seed"] == 4
    assert origin["views"] == ["axial"]
    assert "combine" not in origin  # folders made before there was a choice can be gone on with
    assert refiner(card(), combine="alternate").origin()["combine"] == "alternate"
    assert (origin["guidance"], origin["refine_steps"], origin["grid_steps"]) == (2.0, 3, 20)
