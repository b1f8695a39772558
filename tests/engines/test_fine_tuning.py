"""The rule of fine-tuning, on networks of a few numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medpair.data.files import DataError
from medpair.engines.fine_tuning import CarryOver, Classes, _resampled
from medpair.engines.parameter_groups import parameter_groups
from medpair.engines.starting_weights import (
    former_critic,
    former_settings,
    sibling_checkpoint,
    starting_card,
)
from medpair.networks.transfer import Anatomy, ClassAxis, GridAxis, Slot, pair_critic
from medpair.networks.wgan import Critic


def axis(count: int, word: bool = False) -> ClassAxis:
    if word:
        return ClassAxis("weight", 0, tuple(Slot(f"bits {i}", word=True) for i in range(count)))
    return ClassAxis("weight", 0, (Slot("image"), *(Slot("label", k) for k in range(count))))


def test_classes_are_known_by_name_and_new_ones_are_the_mean_of_the_old() -> None:
    classes = Classes(("background", "a", "b"), ("nothing", "b", "c"))
    # the image, the background by its place, b by its name, c as something
    assert classes.sources(axis(3), axis(3)) == [[0], [1], [3], [2, 3]]
    assert classes.carried == ["b"]


def test_background_is_no_class_of_that_name() -> None:
    classes = Classes(("background", "a"), ("other", "background"))
    assert classes.namesake(1) is None
    assert classes.namesake(0) == 0


@pytest.mark.parametrize(
    ("given", "own", "kept"),
    [
        (("0", "a", "b"), ("0", "a", "b"), True),
        (("0", "a", "b"), ("0", "a", "b", "c"), True),
        (("0", "a", "b", "c"), ("0", "a", "b"), True),
        (("0", "a", "b", "c"), ("0", "x", "b", "y"), True),
        (("0", "a", "b"), ("0", "b", "a"), False),
        (("0", "a", "b"), ("0", "b"), False),
        (("0", "a", "b"), ("0", "x", "y"), False),
    ],
)
def test_digits_are_kept_while_every_class_keeps_its_number(
    given: tuple[str, ...], own: tuple[str, ...], kept: bool
) -> None:
    sources = Classes(given, own).sources(axis(2, word=True), axis(2, word=True))
    assert sources == ([[0], [1]] if kept else [[], []])


def test_a_grid_is_resampled_and_a_sum_keeps_its_size() -> None:
    values = torch.arange(4.0)[:, None].expand(4, 3)
    grown = _resampled(values, GridAxis("", 0, (4, 1, 1)), GridAxis("", 0, (8, 2, 1)))
    assert grown.shape == (16, 3)
    profile = grown[:, 0].view(8, 2)
    assert torch.equal(profile[:, 0], profile[:, 1])
    assert torch.allclose(profile[:, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))
    constant = torch.full((1, 24), 0.5)
    summed = _resampled(
        constant,
        GridAxis("", 1, (2, 2, 2), summed=True),
        GridAxis("", 1, (4, 2, 3), summed=True),
    )
    assert summed.shape == (1, 72)
    assert summed.sum() == pytest.approx(12.0)


def test_a_critic_of_a_larger_volume_scores_a_constant_alike(tmp_path: Path) -> None:
    """Inside, features are the same; their sum with resampled weights is nearly the same."""
    small, large = Critic((64, 64, 64), 1, 8, "none"), Critic((128, 128, 128), 1, 8, "none")
    path = tmp_path / "checkpoint.pt"
    torch.save({"settings": {}, "objects": {"critic": small.state_dict()}}, path)
    labels = ("background", "a")
    part = CarryOver(
        large,
        path,
        pair_critic((128, 128, 128), 1),
        pair_critic((64, 64, 64), 1),
        labels,
        labels,
        "critic",
    )
    outcome = part.load()
    assert outcome is not None
    assert outcome.resized == ["score.weight"]
    assert not outcome.by_class
    assert not outcome.rebuilt
    weights = [net.score.weight.view(8, -1).sum(1) for net in (small, large)]
    assert torch.allclose(*weights, atol=1e-5)


def test_spectral_norm_knows_the_loaded_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given, own = Critic((32, 32, 32), 1, 8, "spectral"), Critic((32, 32, 32), 3, 8, "spectral")
    path = tmp_path / "checkpoint.pt"
    torch.save({"settings": {}, "objects": {"critic": given.state_dict()}}, path)
    size = (32, 32, 32)
    sets = ("0", "a", "b", "c"), ("0", "a")
    CarryOver(own, path, pair_critic(size, 3), pair_critic(size, 1), *sets, "critic").load()
    weight = own.eval().features[0].weight.detach()
    assert torch.linalg.matrix_norm(weight.flatten(1), 2) == pytest.approx(1.0, abs=0.02)


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))


EARLY = Anatomy(early=(("0",), ("1",)))


def test_groups_are_early_late_and_none() -> None:
    network = small_network()
    (group,) = parameter_groups(network, EARLY, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
    late, early = parameter_groups(network, EARLY, 0.1, early_rate=0.5)
    assert (late["lr"], early["lr"]) == (0.1, 0.05)
    assert (len(late["params"]), len(early["params"])) == (2, 4)
    late, early = parameter_groups(network, EARLY, 0.1, frozen=1, early_rate=0.5)
    assert (len(late["params"]), len(early["params"])) == (2, 2)
    assert not network[0].weight.requires_grad
    network = small_network()
    (late,) = parameter_groups(network, EARLY, 0.1, frozen=["2", "0.bias"])
    assert len(late["params"]) == 3


def test_groups_restore_an_optimizer() -> None:
    network = small_network()
    optimizer = torch.optim.Adam(parameter_groups(network, EARLY, 0.1, 1, 0.5))
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    other = torch.optim.Adam(parameter_groups(small_network(), EARLY, 0.1, 1, 0.5))
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"frozen": 3}, "frozen: expected 0 to 2 parts"),
        ({"frozen": True}, "frozen: expected a number of parts"),
        ({"frozen": ["first"]}, "found 'first'"),
        ({"frozen": ["0", "1", "2"]}, "expected parts to be left to train"),
        ({"early_rate": -1.0}, "early_rate"),
    ],
)
def test_groups_that_cannot_be_are_refused(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(small_network(), EARLY, 0.1, **knobs)


def test_weights_of_which_nothing_fits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"other.weight": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="found none that fit"):
        CarryOver(small_network(), path, EARLY, EARLY, ("0", "a"), ("0", "a")).load()


def test_weights_and_card_that_disagree_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 3).state_dict(), path)
    own, given = (Anatomy(classes=(axis(k),)) for k in (2, 3))
    with pytest.raises(DataError, match=r"weight: expected 4 slices, as its card says, found 3"):
        CarryOver(nn.Linear(2, 3), path, own, given, ("0", "a"), ("0", "a", "b")).load()


def test_a_frozen_part_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    network = small_network()
    torch.save({k: v for k, v in network.state_dict().items() if k != "1.bias"}, path)
    parameter_groups(network, EARLY, 0.1, frozen=2)
    with pytest.raises(DataError, match=r"frozen: .* found 1.bias"):
        CarryOver(network, path, EARLY, EARLY, ("0", "a"), ("0", "a")).load()


def test_files_beside_the_weights(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    assert sibling_checkpoint(model) is None
    assert former_settings({"a": 1}) == {"a": 1}
    assert former_critic({"channels": 3}) == {"channels": 3}
    torch.save({"settings": {"a": 2}, "objects": {}}, tmp_path / "checkpoint.pt")
    found = sibling_checkpoint(model)
    assert former_settings({"a": 1, "b": 5}, found) == {"a": 2, "b": 5}
    torch.save({}, model)
    with pytest.raises(DataError, match=r"expected a training.s checkpoint\.pt"):
        former_settings({}, model)
    with pytest.raises(DataError, match="image_critic, found none"):
        former_critic({}, found)
    with pytest.raises(DataError, match=r"ckpt_path: .* a segmenter to start from, found none"):
        starting_card(None, "segmenter")
    with pytest.raises(DataError, match="found nothing at"):
        starting_card(tmp_path / "none.pt", "segmenter")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(DataError, match="found no such card"):
        starting_card(model, "segmenter")
