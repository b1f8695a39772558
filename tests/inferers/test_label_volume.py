"""MC-DPM's autoregression: windows that meet, lock-step, and samples that know only themselves.

Most tests replace the network by an oracle that knows which label every slice of the frame shall
have, and answers as a perfect denoiser would: what comes out is then known voxel by voxel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import same_labels
from torch import Tensor, nn
from torch.nn import functional

from medpair.data.cohort import Cohort, LabelledVolume
from medpair.data.files import DataError, read_json, read_volume, save_torch
from medpair.data.label_codes import LabelCode
from medpair.data.traits import Traits, traits_entry
from medpair.diffusion.process import Diffusion
from medpair.engines.checkpoint import plain
from medpair.inferers.label_growth import Growth, Window
from medpair.inferers.label_volume import (
    LabelVolumeInferer,
    denoiser_from_card,
    reference_of,
)
from medpair.inferers.label_writer import LabelVolumeWriter

FRAME = (8, 8, 32)
CLASSES = 3
WINDOW, OVERLAP = 8, 4
NETWORK = {"channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True]}


def card(
    frame: tuple[int, ...] = FRAME,
    axis: int = 2,
    encoding: str = "bits",
    diffusion: dict[str, Any] | None = None,
    sizes: tuple[tuple[int, int, int], ...] = (FRAME,),
    classes: int = CLASSES,
) -> dict[str, Any]:
    """Return the card of a model trained on one volume, half class 1 and half class 2."""
    cohort = Cohort(
        name="cohort",
        labels=tuple(f"class_{k}" for k in range(classes)),
        spacing=(1.0, 1.0, 2.0),
        sizes=sizes,
        intensity=(0.0, 1000.0),
    )
    label = np.zeros(frame, np.uint8)
    label[2:6, 2:4], label[2:6, 4:6] = 1, 2
    volume = LabelledVolume(np.zeros(frame, np.float32), label)
    kind = Diffusion(**(diffusion or {"timesteps": 100}))
    code = LabelCode(classes, encoding)  # type: ignore[arg-type]
    return plain(
        {
            "cohort": cohort.to_json(),
            "diffusion": kind.settings,
            "code": code.settings,
            "sequence": {"axis": axis, "frame": frame, "window": WINDOW, "overlap": OVERLAP},
            "label_reference": reference_of([volume], cohort, frame, axis),
            "network": {
                "window": WINDOW,
                "code_channels": code.channels,
                "output_factor": kind.output_factor,
                **NETWORK,
            },
        }
    )


class Oracle(nn.Module):
    """Answer so that x_0 is the label that each slice of the frame shall have."""

    def __init__(self, inferer: LabelVolumeInferer, truth: np.ndarray) -> None:
        super().__init__()
        self.diffusion, self.code = inferer.diffusion, inferer.code
        self.truth = torch.from_numpy(np.moveaxis(truth, inferer.axis, 0).astype(np.int64))
        self.calls: list[dict[str, Tensor]] = []

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        known: Tensor,
        position: Tensor,
        evidence: Tensor | None = None,
    ) -> Tensor:
        assert (evidence is not None) == (self.diffusion.objective == "classes")
        first = (position * len(self.truth)).round().long()
        rows = first[:, None] + torch.arange(x.shape[2])
        self.calls.append(
            {"x": x.clone(), "time": time, "known": known.bool(), "rows": rows, "first": first}
        )
        x0 = self.code.encode(self.truth[rows])
        t = time / self.diffusion.schedule.timesteps
        alpha, sigma = self.diffusion.levels(t, x)
        output = {
            "epsilon": (x - alpha * x0) / sigma,
            "v": (alpha * x - x0) / sigma,
            "x0": x0,
            "flow": (x - x0) / sigma,
            "classes": 50.0
            * functional.one_hot(self.truth[rows], self.code.num_classes).movedim(-1, 1).float(),
        }[self.diffusion.objective]
        if self.diffusion.learn_variance:
            output = torch.cat([output, torch.zeros_like(output)], dim=1)
        return output

    def rounds(self, steps: int) -> list[dict[str, Tensor]]:
        """Return the first evaluation of every round."""
        return self.calls[::steps]


def stripes(frame: tuple[int, ...] = FRAME, classes: int = CLASSES) -> np.ndarray:
    """Labels of which no two neighbours along any axis are equal."""
    x, y, z = np.indices(frame)
    return ((x + y + z) % classes).astype(np.uint8)


def untrained(content: dict[str, Any], seed: int = 0) -> nn.Module:
    """Return a network with random weights everywhere, outputs included."""
    network = denoiser_from_card(content)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return network.eval()


class AllAtOnce(LabelVolumeInferer):
    """The plain form: all windows of a round in one evaluation, and nothing beside them."""

    def _round(
        self,
        network: nn.Module,
        volumes: Sequence[Growth],
        windows: Sequence[Window],
        device: torch.device,
    ) -> np.ndarray:
        return self._denoise(network, volumes, windows, 0, device)


def generate(inferer: LabelVolumeInferer, network: nn.Module, *indices: int) -> np.ndarray:
    out = inferer(torch.tensor(indices)[:, None], network)
    assert out.shape[:2] == (len(indices), 1)
    return out[:, 0].numpy()


@pytest.mark.parametrize(
    ("diffusion", "solver", "steps"),
    [
        ({"objective": "epsilon", "schedule": "linear"}, None, None),
        ({"objective": "epsilon", "schedule": "linear"}, "ddim", 5),
        ({"objective": "epsilon", "schedule": "linear"}, "ancestral", 5),
        (
            {"objective": "epsilon", "schedule": "linear", "learn_variance": True},
            "ancestral",
            5,
        ),
        (
            {"objective": "epsilon", "schedule": "cosine", "learn_variance": True},
            "dpm_solver_pp",
            3,
        ),
        ({"objective": "v", "schedule": "cosine"}, None, 4),
        ({"objective": "classes", "schedule": "cosine"}, None, 4),
        ({"objective": "flow", "schedule": "flow"}, None, 4),
        ({"objective": "flow", "schedule": "flow"}, "dpm_solver_pp", 4),
    ],
)
@pytest.mark.parametrize("encoding", ["grey", "one_hot", "bits"])
def test_a_perfect_denoiser_gives_its_volume_back(
    diffusion: dict[str, Any], solver: Any, steps: int | None, encoding: str
) -> None:
    content = card(encoding=encoding, diffusion={"timesteps": 20, **diffusion})
    inferer = LabelVolumeInferer(content, solver=solver, steps=steps)
    truth = stripes()
    found = generate(inferer, Oracle(inferer, truth), 0, 1)
    np.testing.assert_array_equal(found[0], truth)
    np.testing.assert_array_equal(found[1], truth)
    assert inferer.sampler.solver == (
        solver or ("flow" if diffusion["objective"] == "flow" else "dpm_solver_pp")
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("height", [8, 9, 13, 30])
def test_all_slices_of_any_axis_and_height_are_generated(axis: int, height: int) -> None:
    frame = [8, 8, 8]
    frame[axis] = height
    content = card(frame=tuple(frame), axis=axis, sizes=((8, 8, 8),))
    inferer = LabelVolumeInferer(content, steps=2)
    truth = stripes(tuple(frame))
    for found in generate(inferer, Oracle(inferer, truth), *range(6)):
        np.testing.assert_array_equal(found, truth)


def test_features_are_channels_last() -> None:
    content, seen = card(), []
    network = untrained(content)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    generate(LabelVolumeInferer(content, steps=2), network, 0)
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_windows_are_given_what_is_there_and_nothing_else() -> None:
    inferer = AllAtOnce(card(), steps=2)
    truth = stripes()
    oracle = Oracle(inferer, truth)
    generate(inferer, oracle, 3)
    done = np.zeros(FRAME[2], bool)
    for number, call in enumerate(oracle.rounds(2)):
        assert (~call["known"].any(dim=1)).all() == (number == 0)
        clean = inferer.code.encode(oracle.truth[call["rows"]])
        hidden = ~call["known"][:, None, :, None, None].expand_as(clean)
        # given slices come clean, the others as noise
        assert torch.equal(call["x"][~hidden], clean[~hidden])
        assert call["x"][hidden].std() > 0.8
        before = done.copy()
        for known, rows in zip(call["known"].numpy(), call["rows"].numpy(), strict=True):
            assert rows[0] >= 0
            assert rows[-1] < FRAME[2]
            np.testing.assert_array_equal(before[rows], known)
            assert number == 0 or known.sum() >= OVERLAP
            # what is new has not been generated by another window
            assert not done[rows[~known]].any()
            done[rows] = True
    assert done.all()


def test_lock_step_takes_half_as_many_rounds_as_windows() -> None:
    frame = (8, 8, 68)
    inferer = AllAtOnce(card(frame=frame, sizes=(frame,)), steps=2)
    shares = []
    for index in range(12):
        oracle = Oracle(inferer, stripes(frame))
        inferer.evaluations = 0
        generate(inferer, oracle, index)
        rounds = oracle.rounds(2)
        assert inferer.evaluations == len(oracle.calls) == 2 * len(rounds)
        first = int(rounds[0]["first"][0])
        backward = -(-first // (WINDOW - OVERLAP))
        forward = -(-(frame[2] - first - WINDOW) // (WINDOW - OVERLAP))
        windows = sum(len(call["first"]) for call in rounds)
        assert windows == 1 + backward + forward
        assert len(rounds) == 1 + max(backward, forward)
        if 20 <= first <= 40:
            shares.append(len(rounds) / windows)
    assert shares
    assert max(shares) < 0.72
    assert min(shares) < 0.6


def test_rounds_of_a_batch_are_those_of_its_longest() -> None:
    inferer = AllAtOnce(card(), steps=2)
    alone = []
    for index in range(4):
        inferer.evaluations = 0
        generate(inferer, Oracle(inferer, stripes()), index)
        alone.append(inferer.evaluations)
    inferer.evaluations = 0
    generate(inferer, Oracle(inferer, stripes()), *range(4))
    assert inferer.evaluations == max(alone)


def test_seams_are_where_windows_meet() -> None:
    inferer = LabelVolumeInferer(card(), steps=2)
    seen = set()
    for index in range(8):
        oracle = Oracle(inferer, stripes())
        generate(inferer, oracle, index)
        expected = set()
        for call in oracle.rounds(2)[1:]:
            for known, rows in zip(call["known"].numpy(), call["rows"].numpy(), strict=True):
                (change,) = np.flatnonzero(known[1:] != known[:-1])
                expected.add(int(rows[change + 1]))
        assert inferer.records[index]["seams"] == sorted(expected)
        seen.add(tuple(sorted(expected)))
    assert len(seen) > 3


def sized(content: dict[str, Any]) -> dict[str, Any]:
    """Let the card's network be told sizes of two classes that vary together."""
    values = np.array([[1.0, 2.0], [2.0, 4.1], [3.0, 5.9], [2.5, 5.2]])
    content["network"]["sizes"] = 2
    content["size_traits"] = plain(traits_entry(Traits.fit(["class_1", "class_2"], values)))
    return content


@pytest.mark.parametrize("told", [False, True])
def test_several_volumes_at_once_are_each_alone(told: bool) -> None:
    content = card()
    content["network"]["self_conditioning"] = told
    if told:
        sized(content)
    network = untrained(content)
    for options in ({}, {"solver": "ancestral"}, {"guidance": 1.5}):
        inferer = LabelVolumeInferer(content, seed=2, **{"steps": 3, **options})  # type: ignore[arg-type]
        together = generate(inferer, network, 0, 1, 2, 5)
        alone = np.concatenate([generate(inferer, network, i) for i in (0, 1, 2, 5)])
        np.testing.assert_array_equal(together, alone)  # on a CPU to the last voxel
        backwards = generate(inferer, network, 5, 2, 1, 0)[::-1]
        np.testing.assert_array_equal(together, backwards)
        plain = AllAtOnce(content, seed=2, **{"steps": 3, **options})  # type: ignore[arg-type]
        at_once = generate(plain, network, 0, 1, 2, 5)
        assert same_labels(together, at_once)
        assert len({volume.tobytes() for volume in together}) == 4
        other = LabelVolumeInferer(content, seed=3, **{"steps": 3, **options})  # type: ignore[arg-type]
        assert (generate(other, network, 0)[0] != together[0]).mean() > 0.1


@pytest.mark.parametrize("solver", ["dpm_solver_pp", "ancestral"])
def test_on_a_cpu_two_windows_are_computed_at_a_time(solver: Any) -> None:
    """Never one: what a number of rows is rounded to is its own."""
    inferer = LabelVolumeInferer(card(), solver=solver, steps=2)
    oracle, truth = Oracle(inferer, stripes()), stripes()
    for found in generate(inferer, oracle, 0, 1, 2):
        np.testing.assert_array_equal(found, truth)
    assert {len(call["x"]) for call in oracle.calls} == {2}
    filled = oracle.calls[2]["x"]  # the third volume's first window has no other beside it
    assert torch.equal(filled[0], filled[1])
    assert not torch.equal(*oracle.calls[0]["x"])


@pytest.mark.parametrize(
    ("plane", "expected"), [((48, 48), 32), ((64, 64), 32), ((96, 128), 10), ((320, 320), 2)]
)
def test_a_gpu_too_gets_always_the_same_number_of_windows(
    plane: tuple[int, int], expected: int
) -> None:
    """Half a million voxels of windows of four slices, and no more of them than 32."""
    content = card()
    content["sequence"] |= {"frame": [*plane, 20], "window": 4, "overlap": 2}
    inferer = LabelVolumeInferer(content)
    assert inferer.windows_at_once(torch.device("cuda")) == expected
    assert inferer.windows_at_once(torch.device("cpu")) == 2


@pytest.mark.parametrize("options", [{}, {"solver": "ancestral"}, {"guidance": 1.5}])
def test_many_windows_at_a_time_are_filled_up(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: five of them, for one volume, for three and for eight."""
    content = card()
    network = untrained(content)
    inferer = LabelVolumeInferer(content, seed=2, steps=3, **options)
    two = generate(inferer, network, *range(8))
    monkeypatch.setattr(inferer, "windows_at_once", lambda device: 5)
    rows: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    five = generate(inferer, network, *range(8))
    np.testing.assert_array_equal(five[:3], generate(inferer, network, 0, 1, 2))
    np.testing.assert_array_equal(five[3:4], generate(inferer, network, 3))
    assert set(rows) == {5 if inferer.guidance == 1 else 10}
    assert same_labels(two, five)


@pytest.mark.fault(37)
@pytest.mark.parametrize("solver", ["dpm_solver_pp", "ancestral"])
def test_memory_lost_between_two_steps_costs_no_noise(
    solver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second round, after a step: the windows are done again, fewer at a time, as before."""
    content = card()
    network = untrained(content)
    inferer = LabelVolumeInferer(content, seed=2, solver=solver, steps=3)
    monkeypatch.setattr(inferer, "windows_at_once", lambda device: 4)
    whole = generate(inferer, network, 0, 1, 2)
    rows: list[int] = []

    def refuse(_: Any, inputs: Any) -> None:
        rows.append(len(inputs[0]))
        if len(rows) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    network.register_forward_pre_hook(refuse)
    assert same_labels(generate(inferer, network, 0, 1, 2), whole)
    assert rows[:5] == [4] * 5
    assert set(rows[5:]) == {2}
    assert inferer.parts.fits == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_draws_nearly_the_same(dtype: torch.dtype) -> None:
    """What was said a step before is told on, whatever the precision of the network."""
    content = card(classes=5, diffusion={"objective": "classes", "schedule": "cosine"})
    content["network"] |= {"classes": 5, "self_conditioning": True}
    network = untrained(content)
    inferer = LabelVolumeInferer(content, seed=2, steps=3)
    exact = generate(inferer, network, 0)
    with torch.autocast("cpu", dtype):
        mixed = generate(inferer, network, 0)
    assert (mixed != exact).mean() < 0.05


@pytest.mark.parametrize("encoding", ["grey", "one_hot", "bits"])
def test_only_classes_of_the_label_set_appear(encoding: str) -> None:
    content = card(encoding=encoding, classes=5)
    volume = generate(LabelVolumeInferer(content, steps=3), untrained(content), 0)
    assert volume.dtype == np.uint8
    assert set(np.unique(volume)) <= set(range(5))
    # an untrained network's noise has all of them
    assert len(np.unique(volume)) == 5


class Shares(nn.Module):
    """Predict x_0 = (share of slices marked as given) x scale, and remember what was asked."""

    def __init__(self, diffusion: Diffusion, scale: float) -> None:
        super().__init__()
        self.diffusion, self.scale = diffusion, scale
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, known: Tensor, position: Tensor) -> Tensor:
        self.calls.append((x, known))
        self.times.append(time / self.diffusion.schedule.timesteps)
        value = self.scale * known.mean(dim=1) - 0.3
        return value[:, None, None, None, None].expand(x.shape)


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    content = card(encoding="grey", classes=5, diffusion={"objective": "x0", "timesteps": 20})
    for weight in (0.0, 1.0, 2.0):
        inferer = AllAtOnce(content, steps=2, guidance=weight)
        network = Shares(inferer.diffusion, 1.0)
        volume = generate(inferer, network, 3)[0]
        starts = inferer.records[3]["seams"]
        # a window with four of eight slices given: -0.3 + w (0.5 - 0.3 + 0.3)
        expected = inferer.code.decode(torch.tensor([[-0.3 + weight * 0.5]])).item()
        nothing = inferer.code.decode(torch.tensor([[-0.3]])).item()
        assert np.unique(volume[:, :, starts[0] : starts[-1]]).size <= 2
        regular = [s for s in starts if WINDOW - OVERLAP <= s <= FRAME[2] - (WINDOW - OVERLAP)]
        forward = [s for s in regular if s > starts[len(starts) // 2]]
        assert len(forward) > 1
        for start in forward[1:]:
            assert np.unique(volume[:, :, start]).tolist() == [expected]
        assert nothing in np.unique(volume)
        doubled = [len(known) for _, known in network.calls]
        marked = [known.any(dim=1) for _, known in network.calls]
        if weight == 1.0:
            assert doubled[0] == 1
            assert all(m.all() for m in marked[2:])
            continue
        # the second half of a batch is the unconditional branch: nothing given, nothing marked
        assert doubled[0] == 2
        for (x, known), any_known in zip(network.calls[2:], marked[2:], strict=True):
            half = len(x) // 2
            assert any_known[:half].all()
            assert not any_known[half:].any()
            given = known[:half].bool()
            clean, noised = (part.movedim(2, 1) for part in x.split(half))
            assert torch.equal(clean[~given], noised[~given])
            assert not torch.equal(clean[given], noised[given])
        # what is given is noised there by as much as the rest, by one noise for all of its steps
        calls = list(zip(network.calls, network.times, strict=True))[2:]
        for one, two in zip(calls[::2], calls[1::2], strict=True):
            of_steps = []
            for (x, known), t in (one, two):
                half = len(x) // 2
                alpha, sigma = inferer.diffusion.levels(t[half:], x)
                given = known[:half].bool()
                eps = ((x[half:] - alpha * x[:half]) / sigma).movedim(2, 1)[given]
                of_steps.append(eps)
            torch.testing.assert_close(*of_steps, rtol=0, atol=1e-4)
            assert abs(float(of_steps[0].std()) - 1.0) < 0.3


def test_guidance_of_one_is_no_guidance() -> None:
    content = card(diffusion={"timesteps": 20, "learn_variance": True})
    inferer = LabelVolumeInferer(content, guidance=1.0)
    conditional, unconditional = torch.randn(2, 3, 4, 8, 2, 2).unbind(0)
    assert torch.equal(inferer._guided(conditional, unconditional), conditional)
    # any weight changes the mean alone: the variance is the conditional one's
    inferer.guidance = 2.0
    guided = inferer._guided(conditional, unconditional)
    torch.testing.assert_close(guided[:, :2], 2 * conditional[:, :2] - unconditional[:, :2])
    assert torch.equal(guided[:, 2:], conditional[:, 2:])
    # where nothing is given there is nothing to guide: one window that is the whole volume
    frame = (8, 8, WINDOW)
    content = card(frame=frame, sizes=(frame,))
    network = untrained(content)
    volumes = [
        generate(LabelVolumeInferer(content, steps=4, guidance=weight), network, 0, 1)
        for weight in (1.0, 3.0)
    ]
    assert (volumes[0] != volumes[1]).mean() < 1e-3


class Listener(nn.Module):
    """Predict x_0 = a constant that rises with every call, and remember what was said before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        known: Tensor,
        position: Tensor,
        previous: Tensor | None = None,
    ) -> Tensor:
        answer = 0.01 * len(self.calls)
        self.calls.append({"x": x, "known": known.bool(), "previous": previous, "said": answer})
        return torch.full_like(x, answer)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_window_is_told_what_was_said_of_it_a_step_before(guidance: float) -> None:
    content = card(encoding="grey", diffusion={"objective": "x0", "timesteps": 20})
    content["network"]["self_conditioning"] = True
    network = Listener()
    generate(LabelVolumeInferer(content, steps=3, guidance=guidance), network, 0)
    assert len(network.calls) > 6
    for number, call in enumerate(network.calls):
        if number % 3 == 0:  # a new window: nothing was said of it
            assert call["previous"] is None
            continue
        given = call["known"][:, None, :, None, None].expand_as(call["x"])
        assert given.any() or number < 3
        # what is given is told clean, in the unconditional branch nothing is
        torch.testing.assert_close(call["previous"][given], call["x"][given])
        said = torch.full_like(call["x"], network.calls[number - 1]["said"])
        torch.testing.assert_close(call["previous"][~given], said[~given])
    # a network that has not learned it is not told
    content["network"]["self_conditioning"] = False
    network = Listener()
    generate(LabelVolumeInferer(content, steps=3, guidance=guidance), network, 0)
    assert all(call["previous"] is None for call in network.calls)


class TwoMinds(Listener):
    """Say another thing of each row, and of every call."""

    def forward(self, x: Tensor, *more: Any, **told: Any) -> Tensor:
        super().forward(x, *more, **told)
        rows = torch.linspace(-0.1, 0.1, len(x)).reshape(-1, 1, 1, 1, 1)
        answer = (rows + 0.01 * len(self.calls)).expand_as(x)
        self.calls[-1]["said"] = answer
        return answer


def test_without_the_given_slices_a_window_is_told_what_was_said_without() -> None:
    content = card(encoding="grey", diffusion={"objective": "x0", "timesteps": 20})
    content["network"]["self_conditioning"] = True
    network = TwoMinds()
    generate(LabelVolumeInferer(content, steps=3, guidance=2.0), network, 0)
    for before, call in itertools.pairwise(network.calls):
        if call["previous"] is None:
            continue
        told, without = call["previous"].chunk(2)
        said, said_without = before["said"].chunk(2)
        torch.testing.assert_close(without, said_without)
        given = call["known"][: len(told), None, :, None, None].expand_as(told)
        guided = 2.0 * said - said_without
        torch.testing.assert_close(told[~given], guided[~given])


def test_height_is_what_was_asked_for(tmp_path: Any) -> None:
    content = card(sizes=((8, 8, 32), (8, 7, 20)))
    save_torch(tmp_path / "model.pt", {})
    for height in (WINDOW, 21, 48):
        inferer = LabelVolumeInferer(content, steps=2, height=height)
        truth = np.zeros((8, 8, height), np.uint8)
        truth[2:6, 2:6, height // 2 - 3 : height // 2 + 3] = 1
        volume = generate(inferer, Oracle(inferer, truth), 0)[0]
        np.testing.assert_array_equal(volume, truth)
        folder = tmp_path / str(height)
        writer = LabelVolumeWriter(folder, content, tmp_path / "model.pt", inferer, 1)
        writer({"index": 0, "pred": torch.from_numpy(volume)[None]})
        written = read_volume(folder / writer.folder.paths(0)["label"], np.uint8)
        assert written.array.shape[2] == height
        assert (written.array == 1).sum() == (truth == 1).sum()
    with pytest.raises(ValueError, match="height: expected 8 slices or more, found 7"):
        LabelVolumeInferer(content, height=7)


def boxed(axis: int = 2) -> tuple[dict[str, Any], np.ndarray]:
    """A card whose network sees the middle of a volume, and labels that are nowhere else."""
    content = card(axis=axis, sizes=((10, 12, 40),))
    corner, size = [1, 3, 4], [10, 12, 40]
    content["sequence"] |= {"corner": corner, "volume_size": size}
    whole = np.zeros(size, np.uint8)
    whole[1:9, 3:11, 4:36] = stripes()
    return content, whole


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_beyond_the_frame_a_volume_is_background(axis: int) -> None:
    content, whole = boxed(axis)
    inferer = LabelVolumeInferer(content, steps=2)
    volume = generate(inferer, Oracle(inferer, stripes()), 0)[0]
    np.testing.assert_array_equal(volume, whole)
    first = inferer.corner[axis]
    for seam in inferer.records[0]["seams"]:  # as slices of the volume
        assert first < seam < first + FRAME[axis]


def test_height_of_a_volume_with_background_at_its_ends(tmp_path: Any) -> None:
    content, _ = boxed()
    save_torch(tmp_path / "model.pt", {})
    inferer = LabelVolumeInferer(content, steps=2, height=30)
    assert inferer.volume_size == [10, 12, 30]
    assert inferer.frame == [8, 8, 22]
    truth = stripes((8, 8, 22))
    volume = generate(inferer, Oracle(inferer, truth), 0)[0]
    np.testing.assert_array_equal(volume[1:9, 3:11, 4:26], truth)
    assert volume.sum() == truth.sum()
    writer = LabelVolumeWriter(tmp_path / "out", content, tmp_path / "model.pt", inferer, 1)
    writer({"pred": torch.from_numpy(volume)[None], "index": 0})
    assert read_volume(tmp_path / "out" / writer.folder.paths(0)["label"]).array.shape[2] == 30
    with pytest.raises(ValueError, match="height: expected 16 slices or more, found 15"):
        LabelVolumeInferer(content, height=15)


@pytest.mark.parametrize(
    "entry",
    [
        {"corner": [3, 3, 4], "volume_size": [10, 12, 40]},  # 3 + 8 is beyond 10
        {"corner": [-1, 3, 4], "volume_size": [10, 12, 40]},
        {"corner": [1.0, 3, 4], "volume_size": [10, 12, 40]},
        {"corner": [1, 3], "volume_size": [10, 12, 40]},
        {"corner": "abc", "volume_size": [10, 12, 40]},
    ],
)
def test_a_frame_that_is_no_part_of_its_volume_is_refused(entry: dict[str, Any]) -> None:
    content = card()
    content["sequence"] |= entry
    with pytest.raises(DataError, match=r"sequence: .*expected a frame within the volume"):
        LabelVolumeInferer(content)


def test_an_untrained_network_uses_up_its_attempts(caplog: pytest.LogCaptureFixture) -> None:
    content = card()
    network = untrained(content)
    inferer = LabelVolumeInferer(content, steps=2, reject=True, attempts=3)
    volumes = generate(inferer, network, 0, 1)
    for index in (0, 1):
        record = inferer.records[index]
        assert record["attempt"] == 2
        assert record["plausible"] is False
        assert len(record["rejected"]) == 3
        assert all(any("class_" in reason for reason in tried) for tried in record["rejected"])
        assert f"label volume {index} is implausible" in caplog.text
    # what is kept is the last attempt, and attempts differ
    device = torch.device("cpu")
    tries = [inferer.grow(network, [0, 1], attempt, device) for attempt in range(3)]
    for number in (0, 1):
        grown = [np.moveaxis(attempt[number].label, 0, 2) for attempt in tries]
        assert same_labels(volumes[number], grown[2])
        assert (grown[0] != grown[2]).mean() > 0.1


def test_without_rejection_there_is_one_attempt_and_a_verdict() -> None:
    content = card()
    inferer = LabelVolumeInferer(content, steps=2, attempts=3)
    generate(inferer, untrained(content), 0)
    record = inferer.records[0]
    assert (record["attempt"], record["plausible"], len(record["rejected"])) == (0, False, 1)
    good = np.zeros(FRAME, np.uint8)
    good[2:6, 2:4], good[2:6, 4:6] = 1, 2
    generate(inferer, Oracle(inferer, good), 0)
    record = inferer.records[0]
    assert (record["attempt"], record["plausible"], record["rejected"]) == (0, True, [])


class Improving(nn.Module):
    """Bad volumes at first, a good one once ``after`` first windows were asked for."""

    def __init__(self, bad: Oracle, good: Oracle, after: int) -> None:
        super().__init__()
        self.bad, self.good, self.left = bad, good, after

    def forward(self, x: Tensor, time: Tensor, known: Tensor, position: Tensor) -> Tensor:
        if float(time[0]) == self.bad.diffusion.schedule.timesteps and not known.any():
            self.left -= 1
        return (self.bad if self.left >= 0 else self.good)(x, time, known, position)


def test_a_rejected_volume_is_replaced_by_the_next_attempt() -> None:
    inferer = AllAtOnce(card(), steps=2, reject=True, attempts=5)
    good = np.zeros(FRAME, np.uint8)
    good[2:6, 2:4], good[2:6, 4:6] = 1, 2
    lost = good.copy()
    lost[good == 2] = 0
    network = Improving(Oracle(inferer, lost), Oracle(inferer, good), after=2)
    np.testing.assert_array_equal(generate(inferer, network, 4)[0], good)
    record = inferer.records[4]
    assert (record["attempt"], record["plausible"], len(record["rejected"])) == (2, True, 2)
    assert all(len(tried) == 1 and tried[0].startswith("class_2") for tried in record["rejected"])
    # only what was implausible is made anew
    assert len(network.good.rounds(2)[0]["first"]) == 1


def writer_of(folder: Any, content: dict[str, Any], **options: Any) -> LabelVolumeWriter:
    weights = folder.parent / "model.pt"
    if not weights.exists():
        save_torch(weights, {})
    inferer = LabelVolumeInferer(content, **{"steps": 2, **options})
    return LabelVolumeWriter(folder, content, weights, inferer, 4)


def test_written_files_have_a_size_of_the_cohort_and_seams_of_the_file(tmp_path: Any) -> None:
    sizes = ((7, 8, 20), (8, 8, 26))
    content = card(sizes=sizes)
    writer = writer_of(tmp_path / "out", content)
    inferer = writer.inferer
    truth = np.zeros(FRAME, np.uint8)
    truth[3:6, 3:6, 10:18] = 1
    oracle = Oracle(inferer, truth)
    for index, volume in enumerate(generate(inferer, oracle, *range(4))):
        writer({"index": index, "pred": torch.from_numpy(volume)[None]})
    assert writer.missing() == []
    found = set()
    for index in range(4):
        written = read_volume(tmp_path / "out" / writer.folder.paths(index)["label"], np.uint8)
        size = written.array.shape
        found.add(size)
        assert written.spacing == (1.0, 1.0, 2.0)
        assert (written.array == 1).sum() == 3 * 3 * 8
        record = read_json(writer.folder.sidecar(index))
        assert (record["size"], record["axis"]) == (list(size), 2)
        offset = (FRAME[2] - size[2]) // 2
        seams = {seam + offset for seam in record["seams"]}
        assert seams == {
            s for s in inferer.records[index]["seams"] if offset < s < offset + size[2]
        }
    assert found <= set(sizes)


def test_a_size_is_drawn_as_often_as_the_cohort_has_it(tmp_path: Any) -> None:
    writer = writer_of(tmp_path / "out", card(sizes=(*[(7, 8, 20)] * 9, (8, 8, 26))))
    framed = np.zeros(FRAME, np.uint8)
    framed[3:6, 3:6, 10:18] = 1
    rare = sum(writer._size(index, framed) == (8, 8, 26) for index in range(400))
    assert rare / 400 == pytest.approx(0.1, abs=0.05)


def test_no_label_is_cut_off(tmp_path: Any) -> None:
    writer = writer_of(tmp_path / "out", card(sizes=((7, 8, 20),)))
    truth = np.zeros(FRAME, np.uint8)
    truth[3:6, 3:6, 1:18] = 1
    volume = generate(writer.inferer, Oracle(writer.inferer, truth), 0)
    writer({"index": 0, "pred": torch.from_numpy(volume)})
    written = read_volume(tmp_path / "out" / writer.folder.paths(0)["label"], np.uint8)
    np.testing.assert_array_equal(written.array, truth)


@pytest.mark.parametrize(("specks", "size"), [(1, (7, 8, 20)), (2, FRAME)])
def test_specks_beyond_the_size_are_no_reason_for_another(
    specks: int, size: tuple[int, ...], tmp_path: Any
) -> None:
    """Up to a thousandth of the label: beyond, no image generator has ever seen an image."""
    writer = writer_of(tmp_path / "out", card(sizes=((7, 8, 20),)))
    truth = np.zeros(FRAME, np.uint8)
    truth[0:7, 0:8, 7:26] = 1
    truth[7, 7, : 2 * specks : 2] = 2
    volume = generate(writer.inferer, Oracle(writer.inferer, truth), 0)
    writer({"index": 0, "pred": torch.from_numpy(volume)})
    written = read_volume(tmp_path / "out" / writer.folder.paths(0)["label"], np.uint8)
    assert written.array.shape == size
    assert (written.array == 1).sum() == 7 * 8 * 19


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"steps": 3}, "steps: 2 there, 3 now"),
        ({"solver": "ddim"}, "sampler: 'dpm_solver_pp' there, 'ddim' now"),
        ({"guidance": 2.0}, "guidance: 1.0 there, 2.0 now"),
        ({"height": 24}, r"frame: \[8, 8, 32\] there, \[8, 8, 24\] now"),
        ({"reject": True}, "reject: False there, True now"),
    ],
)
def test_a_folder_of_labels_made_otherwise_is_refused(
    options: dict[str, Any], key: str, tmp_path: Any
) -> None:
    content = card()
    writer = writer_of(tmp_path / "out", content)
    volume = generate(writer.inferer, Oracle(writer.inferer, stripes()), 0)
    writer({"index": 0, "pred": torch.from_numpy(volume)})
    writer_of(tmp_path / "out", content)
    with pytest.raises(DataError, match=f"expected label maps of the same origin, found {key}"):
        writer_of(tmp_path / "out", content, **options)


def test_other_attempts_are_another_origin_where_volumes_are_rejected(tmp_path: Any) -> None:
    content = card()
    writer = writer_of(tmp_path / "out", content, reject=True, attempts=2)
    volume = generate(writer.inferer, Oracle(writer.inferer, stripes()), 0)
    writer({"index": 0, "pred": torch.from_numpy(volume)})
    with pytest.raises(DataError, match="attempts: 2 there, 3 now"):
        writer_of(tmp_path / "out", content, reject=True, attempts=3)


def test_weights_may_say_how_they_are_sampled_from() -> None:
    model = card(diffusion={"timesteps": 100, "objective": "classes", "schedule": "cosine"})
    assert LabelVolumeInferer(model).evidence == 1
    model["sampling"] = {"evidence": 0.85}
    assert LabelVolumeInferer(model).origin()["evidence"] == 0.85
    assert LabelVolumeInferer(model, evidence=0.5).evidence == 0.5
    for wrong in ({"evidence": "much"}, {"evidence": 2}, {"evidence": True}, {"steps": 3}, [0.85]):
        model["sampling"] = wrong
        with pytest.raises(DataError, match=r"model\.json: sampling: expected"):
            LabelVolumeInferer(model)


def test_what_makes_no_sense_is_refused() -> None:
    content = card()
    for options, message in [
        ({"reject": "false"}, "reject: expected True or False, found 'false'"),
        ({"attempts": 0}, "attempts: expected at least 1, found 0"),
        ({"steps": 0}, "steps: expected at least 1, found 0"),
        ({"solver": "euler"}, "found 'euler'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LabelVolumeInferer(content, **options)  # type: ignore[arg-type]
    for build in (denoiser_from_card, LabelVolumeInferer):
        with pytest.raises(DataError, match=r"model\.json: sequence: expected MC-DPM's settings"):
            build({"generator": {}})


class Sizes(nn.Module):
    """Predict nothing and remember which sizes were told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(
        self, x: Tensor, time: Tensor, known: Tensor, position: Tensor, sizes: Tensor
    ) -> Tensor:
        self.told.append(sizes)
        return torch.zeros_like(x)


def test_a_network_that_makes_less_than_it_is_told_is_told_more() -> None:
    content = sized(card(diffusion={"objective": "x0", "timesteps": 20}))
    told, recorded = {}, {}
    for name, options in (
        ("none", {}),
        ("more", {"size_offsets": {"class_2": 0.9}}),
        ("far", {"sizes": {"class_2": 2.5}, "size_offsets": {"class_2": 0.9}}),
    ):
        inferer = LabelVolumeInferer(content, steps=2, **options)
        network = Sizes()
        generate(inferer, network, 0)
        told[name] = network.told[0][0].numpy()
        recorded[name] = inferer.records[0]["sizes"]
    np.testing.assert_allclose(told["more"] - told["none"], [0, 0.9], atol=1e-6)
    assert recorded["more"] == recorded["none"]  # what is wanted stays what was wanted
    assert recorded["far"]["class_2"] == 2.5
    assert told["far"][1] == 3  # what no training volume had is not told
    assert inferer.origin()["size_offsets"] == {"class_2": 0.9}
    assert "size_offsets" not in LabelVolumeInferer(content).origin()


def test_a_card_may_say_what_its_network_is_told_beyond_the_wanted_sizes() -> None:
    content = sized(card(diffusion={"objective": "x0", "timesteps": 20}))
    content["sampling"] = {"size_offsets": {"class_1": 0.5}}
    assert LabelVolumeInferer(content).size_offsets == {"class_1": 0.5}
    assert LabelVolumeInferer(content, size_offsets={}).size_offsets == {}
    with pytest.raises(ValueError, match=r"size_offsets: expected \{class"):
        LabelVolumeInferer(content, size_offsets=0)  # type: ignore[arg-type]
    for wrong in ({"liver": 0.5}, {"class_1": 5}, {"class_1": "more"}, {"class_1": True}, [0.5]):
        with pytest.raises(ValueError, match="size_offsets: "):
            LabelVolumeInferer(content, size_offsets=wrong)  # type: ignore[arg-type]
        content["sampling"] = {"size_offsets": wrong}
        with pytest.raises(DataError, match=r"model\.json: sampling: .*size_offsets: "):
            LabelVolumeInferer(content)
    plain = card(diffusion={"objective": "x0", "timesteps": 20})
    with pytest.raises(ValueError, match="size_offsets: expected None for weights trained without"):
        LabelVolumeInferer(plain, size_offsets={"class_1": 0.5})


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_all_windows_of_a_volume_are_told_its_sizes(guidance: float) -> None:
    content = sized(card(diffusion={"objective": "x0", "timesteps": 20}))
    inferer = AllAtOnce(content, steps=2, guidance=guidance)
    own = {}
    for index in range(3):
        network = Sizes()
        generate(inferer, network, index)
        told = torch.cat(network.told)
        assert (told == told[0]).all()
        own[index] = told[0]
        recorded = inferer.records[index]["sizes"]
        assert list(recorded) == ["class_1", "class_2"]
        np.testing.assert_allclose(list(recorded.values()), told[0], atol=1e-3)
    assert len({tuple(sizes.tolist()) for sizes in own.values()}) == 3
    network = Sizes()
    generate(inferer, network, 0, 1, 2)
    first = network.told[0].reshape(-1, 3, 2)
    assert all(torch.equal(branch, torch.stack(list(own.values()))) for branch in first)


def test_wanted_sizes_are_told_and_recorded() -> None:
    content = sized(card(diffusion={"objective": "x0", "timesteps": 20}))
    inferer = LabelVolumeInferer(content, steps=2, sizes={"class_1": 2.5})
    drawn = []
    for index in range(30):
        network = Sizes()
        generate(inferer, network, index)
        drawn.append(network.told[0][0].numpy())
    assert {float(sizes[0]) for sizes in drawn} == {2.5}
    # the other class goes along: they vary together
    assert np.mean([sizes[1] for sizes in drawn]) > 2.0
    assert inferer.origin()["wanted_sizes"] == {"class_1": 2.5}
    assert "wanted_sizes" not in LabelVolumeInferer(content).origin()
    with pytest.raises(ValueError, match=r"sizes: expected classes among .* found 'liver'"):
        LabelVolumeInferer(content, sizes={"liver": 1.0})
    with pytest.raises(ValueError, match="sizes: expected None for weights trained without"):
        LabelVolumeInferer(card(), sizes={"class_1": 1.0})
    content["cohort"]["labels"] = ["class_0", "class_2", "class_1"]
    with pytest.raises(DataError, match=r"size_traits: expected those of the classes \['class_2'"):
        LabelVolumeInferer(content)
    del content["size_traits"]
    with pytest.raises(DataError, match="size_traits: expected an entry of that name"):
        LabelVolumeInferer(content)
