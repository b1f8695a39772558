"""Traits: what is fitted is what is drawn, and what is wanted decides the rest by regression."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from medpair.data.cohort import Cohort, LabelledVolume
from medpair.data.traits import (
    LARGEST_SCORE,
    Traits,
    class_means,
    class_sizes,
    contrast_traits,
    size_scores,
    size_traits,
    traits_entry,
    wanted_scores,
)

COVARIANCE = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 1.0]])


def fitted(count: int = 4000, seed: int = 0) -> Traits:
    rng = np.random.default_rng(seed)
    values = rng.multivariate_normal([2.0, -1.0, 0.5], 0.04 * COVARIANCE, count)
    return Traits.fit(["a", "b", "c"], values)


def drawn(traits: Traits, count: int = 4000, **options: Any) -> np.ndarray:
    generators = (torch.Generator().manual_seed(i) for i in range(count))
    return torch.stack([traits.draw(g, **options) for g in generators]).numpy()


def test_what_is_drawn_varies_as_what_was_fitted() -> None:
    traits = fitted()
    np.testing.assert_allclose(traits.mean, [2.0, -1.0, 0.5], atol=0.02)
    np.testing.assert_allclose(traits.deviation, 0.2, rtol=0.05)
    scores = drawn(traits)
    np.testing.assert_allclose(scores.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(np.cov(scores.T), COVARIANCE, atol=0.07)


def values_of(traits: Traits, scores: np.ndarray) -> np.ndarray:
    return np.array(traits.mean) + np.array(traits.deviation) * scores


def test_scores_are_deviations_from_the_mean() -> None:
    traits = fitted()
    scores = np.array([[1.5, -2.0, 0.0], [0.1, 0.2, 0.3]], np.float32)
    np.testing.assert_allclose(traits.scores(values_of(traits, scores)), scores, atol=1e-4)
    far = traits.scores(values_of(traits, np.array([9.0, -9.0, 0.0])))
    np.testing.assert_allclose(far, [LARGEST_SCORE, -LARGEST_SCORE, 0], atol=1e-4)
    assert abs(drawn(traits, 100)).max() <= LARGEST_SCORE


def test_what_is_wanted_moves_the_rest_by_regression() -> None:
    traits = fitted()
    scores = drawn(traits, wanted={"a": 2.0})
    assert (scores[:, 0] == 2.0).all()
    # b's mean given a is 0.8 a, its variance 1 - 0.8 ** 2; c knows nothing of a
    np.testing.assert_allclose(scores.mean(0), [2.0, 1.6, 0.0], atol=0.07)
    np.testing.assert_allclose(scores.var(0), [0.0, 0.36, 1.0], atol=0.06)
    both = drawn(traits, 10, wanted={"c": -1.0, "a": 1.0, "b": 0.5})
    np.testing.assert_allclose(both, np.tile([1.0, 0.5, -1.0], (10, 1)))


def test_fewer_volumes_than_traits_stay_among_themselves() -> None:
    """Two volumes: everything drawn lies on the line through both."""
    one, two = np.arange(5.0), np.array([1.0, 0.5, 2.5, 3.5, 3.0])
    traits = Traits.fit(list("abcde"), np.stack([one, two]))
    shift = values_of(traits, drawn(traits, 50)) - (one + two) / 2
    along = two - one
    scale = shift @ along / (along @ along)
    np.testing.assert_allclose(shift, scale[:, None] * along, atol=1e-3)
    assert np.ptp(scale) > 0.5


def test_one_volume_and_equal_volumes_have_no_scores_to_blow_up() -> None:
    for values in (np.array([[1.0, 2.0]]), np.tile([1.0, 2.0], (4, 1))):
        traits = Traits.fit(["a", "b"], values)
        given = values_of(traits, drawn(traits, 20))
        np.testing.assert_allclose(given, np.tile([1.0, 2.0], (20, 1)))
        assert traits.draw(torch.Generator(), {"a": 1.0}).tolist() == [1.0, 0.0]


def test_a_volume_without_a_trait_is_average_in_it() -> None:
    values = np.array([[1.0, 5.0], [3.0, np.nan], [2.0, 7.0]])
    traits = Traits.fit(["a", "b"], values)
    assert traits.mean == (2.0, 6.0)
    assert traits.deviation[1] == pytest.approx(np.sqrt(2), abs=1e-5)
    assert traits.scores(values)[1, 1] == 0.0
    nothing = Traits.fit(["a"], np.array([[np.nan], [np.nan]]))
    assert nothing.mean == (0.0,)
    assert np.isfinite(drawn(nothing, 3)).all()


def test_a_card_keeps_all_of_it() -> None:
    traits = fitted(50)
    entry = json.loads(json.dumps(traits_entry(traits)))
    assert Traits.from_json(**entry) == traits
    assert traits_entry(None) is None
    for wrong, message in ((float("nan"), "expected finite numbers"), ("x", "could not convert")):
        with pytest.raises(ValueError, match=message):
            Traits.from_json(**{**entry, "mean": [0.0, wrong, 1.0]})
    entry["root"] = entry["root"][:2]
    with pytest.raises(ValueError, match=r"as many of everything, found \[2, 3\]"):
        Traits.from_json(**entry)


def test_sizes_are_volumes_and_contrast_is_means() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[:2], label[2, 0] = 1, 2
    np.testing.assert_allclose(np.exp(class_sizes(label, 3, 2.0)), [66, 10, 2])
    image = np.where(label == 1, 0.5, -1.0).astype(np.float32)
    np.testing.assert_allclose(class_means(image, label, 3), [0.5, -1.0, np.nan])


def test_a_cohorts_traits() -> None:
    cohort = Cohort("cohort", ("background", "a"), (1.0, 2.0, 1.0), ((4, 4, 4),), (0.0, 1.0))
    volumes = []
    for width in (1, 2, 3):
        label = np.zeros((4, 4, 4), np.uint8)
        label[:width] = 1
        volumes.append(LabelledVolume(0.1 * width * label.astype(np.float32), label))
    sizes = size_traits(volumes, cohort)
    assert sizes is not None
    assert sizes.names == ("a",)
    assert sizes.mean[0] == pytest.approx(np.log([34, 66, 98]).mean(), abs=1e-5)
    scores = size_scores(volumes, cohort, sizes)
    assert scores is not None
    assert scores.shape == (3, 1)
    assert scores.mean() == pytest.approx(0, abs=1e-5)
    assert scores.std(ddof=1) == pytest.approx(1, abs=1e-4)
    contrast = contrast_traits(volumes, cohort)
    assert contrast is not None
    assert contrast.names == ("a",)  # the background would name the patient
    np.testing.assert_allclose(contrast.mean, [0.2], atol=1e-6)
    np.testing.assert_allclose(contrast.deviation, [0.1], atol=1e-6)
    assert size_traits(volumes, cohort, wanted=False) is None
    assert size_scores(volumes, cohort, None) is None
    assert contrast_traits(volumes, cohort, wanted=False) is None


def test_what_cannot_be_wanted_is_refused_by_name() -> None:
    traits = fitted(50)
    assert wanted_scores(traits, None, "sizes", "size_conditioning") == {}
    assert wanted_scores(None, {}, "sizes", "size_conditioning") == {}
    assert wanted_scores(traits, {"b": 2}, "sizes", "size_conditioning") == {"b": 2.0}
    for given, wanted, message in (
        (None, {"a": 1}, "sizes: expected None for weights trained without size_conditioning"),
        (traits, {"d": 1}, r"sizes: expected classes among \['a', 'b', 'c'\], found 'd'"),
        (traits, {"a": 4}, "sizes: a: expected -3 to 3 standard deviations, found 4"),
        (traits, {"a": float("nan")}, "sizes: a: expected -3 to 3 .* found nan"),
        (traits, {"a": "big"}, "sizes: a: expected -3 to 3 .* found 'big'"),
        (traits, {"a": True}, "sizes: a: expected -3 to 3 .* found True"),
        (traits, ["a"], r"sizes: expected \{class: .*\}, found \['a'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            wanted_scores(given, wanted, "sizes", "size_conditioning")  # type: ignore[arg-type]
