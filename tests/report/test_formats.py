"""Numbers as text."""

from __future__ import annotations

import pytest

from medpair.report.formats import NONE, fixed, mean_and_sd, number, share, summary, with_range


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NONE),
        (0.0, "0"),
        (7, "7"),
        (1.23456, "1.23"),
        (-1.23456, "-1.23"),
        (123.456, "123"),
        (12345.6, "12346"),
        (0.00123456, "0.00123"),
        (1.2e-7, "1.20e-07"),
        (3.4e9, "3.40e+09"),
    ],
)
def test_number_has_three_digits(value, text):
    assert number(value) == text


def test_number_takes_other_digits():
    assert number(2.296, 2) == "2.3"
    assert number(0.0079, 1) == "0.008"


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.500"), (-0.5, "-0.500"), (-0.0001, "0.000"), (None, NONE)]
)
def test_fixed_has_no_minus_before_zeros(value, text):
    assert fixed(value) == text


def test_range_has_the_places_of_its_largest_number():
    assert with_range(0.0022, 0.0007, 0.006) == "0.00220 [0.00070, 0.00600]"
    assert with_range(286.3, 274.9, 295.2) == "286 [275, 295]"
    assert with_range(-0.00008, -0.0024, 0.0035) == "-0.00008 [-0.00240, 0.00350]"
    assert with_range(0.0, 0.0, 0.0) == "0.000 [0.000, 0.000]"
    assert with_range(-0.007, -0.0171, 0.0024, 3) == "-0.007 [-0.017, 0.002]"
    assert with_range(1.25, None, None) == "1.25"
    assert with_range(0.25, None, None, 3) == "0.250"
    assert with_range(None, None, None) == NONE


def test_summaries():
    entry = {"n": 3, "mean": 0.8512, "low": 0.84, "high": 0.86}
    assert summary(entry) == "0.851 [0.840, 0.860]"
    assert summary({"n": 0, "mean": None, "low": None, "high": None}) == NONE
    assert summary(None) == NONE
    # two cases are their own interval
    assert summary({"n": 2, "mean": 0.85, "low": 0.8, "high": 0.9}) == "0.850"
    assert mean_and_sd({"mean": 1.6984, "sd": 0.3106}) == "1.70 ± 0.31"
    assert mean_and_sd({"mean": None, "sd": None}) == NONE
    assert share(0.987) == "99 %"
    assert share(None) == NONE
