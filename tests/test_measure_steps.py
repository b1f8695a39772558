"""What fewer steps cost: the samples that are measured, their table, and when two differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Setting
from label_samples import open_model, sample_lines, swapped, weights_id
from measure_steps import main
from measure_windows import main as measure_windows
from rows_labels import LEVEL, model_of
from steps_table import EnergyDistance, Features, knee, volume_distance, worse

from medpair.data.files import save_torch, write_json
from medpair.data.phantoms.cohort import write_phantom_cohort
from medpair.inferers.label_volume import LabelVolumeInferer
from medpair.metrics.label_shape import label_shape


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of noise, as a training would leave it."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    card, network, _ = model_of(Setting(small=True))
    save_torch(path, network.state_dict())
    write_json(path.with_suffix(".json"), dict(card))
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_phantom_cohort("brain", folder, 4, size=(16, 24, 16), spacing=(10.0, 9.0, 10.0))
    return folder


def run(checkpoint: Path, cohort: Path, output: Path, volumes: int, steps: str = "1,2") -> None:
    options = ["--checkpoint", str(checkpoint), "--dataset_dir", str(cohort), "--output"]
    options += [str(output), "--volumes", str(volumes), "--steps", steps, "--batch_size", "2"]
    main([*options, "--solvers", "ddim,flow", "--seeds", "3", "--threads", "1"])


def test_a_measurement_goes_on_where_it_stopped(
    checkpoint: Path, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    run(checkpoint, cohort, whole, 3)
    assert "left out" in capsys.readouterr().err  # flow is not this model's
    run(checkpoint, cohort, parts, 2)
    with parts.open("a") as file:
        file.write('{"torn": ')
    before = capsys.readouterr()
    run(checkpoint, cohort, parts, 3)
    after = capsys.readouterr()
    assert after.err.count(": 1 made") == 2, "only the third volume of both is new"
    assert before.out != after.out
    lines = [
        {(line["steps"], line["index"]): line["shape"] for line in map(json.loads, text)}
        for text in (whole.read_text().splitlines(), parts.read_text().splitlines())
    ]
    assert lines[0] == lines[1]
    assert set(lines[0]) == {(steps, index) for steps in (1, 2) for index in range(3)}
    rows = [row.split(" | ") for row in after.out.splitlines() if row.startswith("| ddim")]
    assert [(row[1], row[4]) for row in rows] == [("1", "3"), ("2", "3")]
    assert [row[10].count("[") for row in rows] == [4, 0], (
        "the most steps are what is compared with"
    )


def test_windows_are_compared_with_those_of_the_reference(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "w.jsonl")]
    options += ["--reference", "ancestral,3", "--solvers", "ddim,ancestral", "--steps", "1,3"]
    measure_windows([*options, "--windows", "2", "--threads", "1"])
    measure_windows([*options, "--windows", "3", "--threads", "1"])
    lines = [json.loads(line) for line in (tmp_path / "w.jsonl").read_text().splitlines()]
    assert len(lines) == 4 * 3
    told = capsys.readouterr().out.split("Against 3 steps of ancestral.")[2]
    rows = [row.split(" | ") for row in told.splitlines() if row.startswith("| a")]
    assert [row[:3] for row in rows] == [["| ancestral", "3", "3"], ["| ancestral", "1", "3"]]
    by_key = {(line["solver"], line["steps"], line["index"]): line for line in lines}
    one, base = ([by_key["ancestral", n, i]["statistics"][1] for i in range(3)] for n in (1, 3))
    change = 100 * (np.mean(one) / np.mean(base) - 1)
    assert rows[1][4].split(" / ")[1].startswith(f"{change:+.1f} [")


def test_a_line_says_what_a_volume_cost_and_what_it_is_like(checkpoint: Path) -> None:
    card, network = open_model(checkpoint)
    inferer = LabelVolumeInferer(card, seed=1, steps=2)
    line = sample_lines(inferer, network, [5, 6])[1]
    volume = LabelVolumeInferer(card, seed=1, steps=2)(torch.tensor([[6]]), network)[0, 0].numpy()
    expected = label_shape(volume, 4, card["cohort"]["spacing"], axis=1)
    assert line["shape"] == expected.to_json()
    assert line["windows"] in (5, 6)  # 24 slices in windows of 8, of which 4 are new
    assert 2 * line["calls"] == inferer.evaluations
    half = weights_id(network.half())
    assert line["weights"] == half, "weights in half precision are the same weights"
    network.load_state_dict({k: v + 0.01 for k, v in network.state_dict().items()})
    assert weights_id(network) != half


def shapes(rng: np.random.Generator, count: int, scale: float = 1.0) -> list[dict]:
    """Lines of boxes of two classes whose sizes vary; ``scale`` makes them thicker."""
    lines = []
    for index in range(count):
        label = np.zeros((16, 16, 16), np.uint8)
        width, height = rng.integers(4, 9, 2)
        label[2 : 2 + width, 2 : 2 + height, 2 : 2 + round(4 * scale)] = 1
        label[12:15, 3 : 3 + height, 4:9] = 2
        line = {"shape": label_shape(label, 2, (1, 1, 1)).to_json(), "adjacency": np.zeros((3, 3))}
        lines.append({**line, "seed": 0, "index": index})
    return lines


def test_volumes_of_another_kind_are_further_away() -> None:
    real = shapes(np.random.default_rng(0), 20)
    same, other = (shapes(np.random.default_rng(1), 8, scale) for scale in (1.0, 1.75))
    features = Features(real)
    distances = [
        EnergyDistance(features.of(group), features.real)(np.ones((1, 8)))[0]
        for group in (same, other)
    ]
    assert distances[1] > distances[0] + 0.2
    assert volume_distance(same, real) < volume_distance(other, real)
    assert worse(other, same, features) < 0.05
    assert worse(same, other, features) > 0.9
    assert worse(same, [dict(line) for line in same], features) > 0.5


def test_energy_distance_has_no_bias_and_counts_no_volume_with_itself() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 3))
    found = [EnergyDistance(rng.normal(size=(n, 3)), real)(np.ones((1, n)))[0] for n in [4] * 300]
    assert abs(np.mean(found)) < 0.03
    values = rng.normal(size=(3, 3))
    twice = EnergyDistance(values[[0, 0, 1, 2]], real)
    weighted = EnergyDistance(values, real)(np.array([[2.0, 1.0, 1.0]]))[0]
    # the same pairs, without that of the first volume and its copy, which is 0 apart
    pairs = 10 / 12  # of the 12 pairs of four, 2 are the copy's
    expected = twice(np.ones((1, 4)))[0]
    inner = twice.inner.sum() / 12
    assert weighted == pytest.approx(expected + inner - inner / pairs)


def test_the_knee_is_where_nothing_is_worse_any_more() -> None:
    assert knee({4: 0.01, 10: 0.2, 20: 0.03, 50: 0.4, 1000: 1.0}) == 50
    assert knee({4: 0.01, 10: 0.2, 50: 1.0}) == 10
    assert knee({10: 0.001, 50: 1.0}) == 50


def test_the_check_of_the_row_tells_a_shift_from_chance() -> None:
    rng = np.random.default_rng(0)
    paper = rng.normal(0.2, 0.02, (10, 8))
    by_chance = paper + rng.normal(0, 0.01, paper.shape)
    shifted = by_chance.copy()
    shifted[:, 2] += 0.03
    limit = LEVEL / 8
    assert swapped(by_chance, paper).min() >= limit
    assert swapped(shifted, paper).argmin() == 2
    assert swapped(shifted, paper).min() < limit
    assert swapped(paper, paper).tolist() == [1.0] * 8
