"""Each answer of the verdict, by numbers made up by hand."""

from __future__ import annotations

import pytest

from medpair.report.verdict import summary, verdicts


def distance(value, floor=1.0, low=0.8, high=1.2):
    return {
        "value_at_equal_n": value,
        "floor": floor,
        "floor_low": low,
        "floor_high": high,
        "n_equal": 30,
        "p_value": 0.01 if value > high else 0.5,
    }


def judge(value, prd=1.0, **how):
    prds = {"f8": prd, "f1_8": 0.9, "floor_f8": 0.95, "floor_f1_8": 0.95}
    found = {} if prd is None else {"10": prds, "20": prds}
    return {"mean": {"frechet": distance(value, **how)}, "prd": found}


def faithful(**features):
    return verdicts({"fidelity": {"features": features}})[0]


@pytest.mark.parametrize(
    ("features", "mark"),
    [
        ({"a": judge(1.1)}, "good"),
        ({"a": judge(1.3)}, "warn"),
        ({"a": judge(1.1), "b": judge(1.3)}, "warn"),
        # the floor of few volumes is high; precision and recall are not fooled
        ({"a": judge(1.3, prd=0.2)}, "bad"),
        # nor does one draw of few volumes, if it could be chance, say no
        ({"a": judge(2.4, prd=0.2, high=3.0)}, "warn"),
        ({"a": judge(2.4, prd=None, high=3.0)}, "warn"),
        ({"a": judge(1.1), "b": judge(2.3, prd=0.2)}, "bad"),
        # too few volumes for clusters: the distance alone
        ({"a": judge(1.1, prd=None)}, "good"),
        ({"a": judge(1.5, prd=None)}, "warn"),
        ({"a": judge(9.0, prd=None)}, "bad"),
        # copies are near: the part on privacy says so
        ({"a": judge(0.1)}, "good"),
        # a real cohort without any variety
        ({"a": judge(0.0, prd=None, floor=0.0, low=0.0, high=0.0)}, "good"),
        ({"a": judge(5.0, prd=None, floor=0.0, low=0.0, high=0.0)}, "bad"),
    ],
)
def test_faithful(features, mark):
    verdict = faithful(**features)
    assert verdict.mark == mark
    assert verdict.reason.endswith(".")
    assert verdict.short


def test_faithful_names_the_judge_with_the_worst_news():
    reason = faithful(segmenter_bottleneck=judge(1.1), inception_slices=judge(2.3, prd=0.2)).reason
    assert "Inception-v3" in reason
    assert "2.3 times as far" in reason
    assert "recall 0.20" in reason


@pytest.mark.parametrize(
    ("low", "value", "high", "answer", "mark"),
    [
        (-0.017, -0.007, 0.002, "yes", "good"),
        (0.01, 0.02, 0.03, "yes", "good"),
        (-0.3, -0.25, -0.2, "worse than real", "bad"),
        (-0.2, -0.01, 0.2, "not clear", "warn"),
        (-0.04, -0.025, -0.01, "not clear", "warn"),
    ],
)
def test_aligned(low, value, high, answer, mark):
    means = {"synthetic": {"mean": 0.85}, "holdout": {"mean": 0.86}}
    entry = {"difference": {"value": value, "low": low, "high": high}, "mean": means}
    verdict = verdicts({"alignment": entry})[1]
    assert (verdict.answer, verdict.mark) == (answer, mark)
    assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in verdict.reason


def test_a_class_that_a_cohort_lacks_is_no_good_news():
    means = {"synthetic": {"mean": 0.85}, "holdout": {"mean": 0.7}}
    difference = {"value": 0.15, "low": 0.1, "high": 0.2}
    entry = {"difference": difference, "mean": means, "compared": {"left_out": ["tumour"]}}
    verdict = verdicts({"alignment": entry})[1]
    assert (verdict.answer, verdict.mark) == ("not clear", "warn")
    assert "has too little of it: tumour." in verdict.reason
    entry["compared"] = {"left_out": []}
    assert verdicts({"alignment": entry})[1].mark == "good"


def test_alignment_without_holdout_is_not_measured():
    assert verdicts({"alignment": {"mean": {}}})[1].mark == "unknown"


@pytest.mark.parametrize(
    ("low", "high", "p", "mark"),
    [
        (0.01, 0.03, 0.05, "good"),
        (-0.01, 0.03, 0.04, "warn"),
        (-0.03, -0.01, 0.01, "bad"),
        # a single case has an interval of no width, and a p of 1
        (0.001, 0.001, 1.0, "warn"),
        (0.0055, 0.02, 0.125, "warn"),
    ],
)
@pytest.mark.parametrize("against", ["E2-1", "E2-1F"])
def test_useful(low, high, p, mark, against):
    value = (low + high) / 2
    gain = {"what": "in words", "value": value, "low": low, "high": high, "p_holm": p}
    gain |= {"against": against, "seeds": 2}
    alone = {"dsc": 0.76, "real": 0.8, "ratio": 0.95}
    verdict = verdicts({"usefulness": {"synthetic_alone": alone, "gain": gain}})[2]
    assert verdict.mark == mark
    assert verdict.answer == "alone 0.95 of real"
    assert "0.950 of the 0.800 that real pairs give" in verdict.reason
    assert ("as long a training" in verdict.reason) == (against == "E2-1F")
    only_gain = verdicts({"usefulness": {"gain": gain}})[2]
    assert only_gain.mark == mark
    assert only_gain.answer == "see below"
    # two networks differ whatever they were trained on
    once = verdicts({"usefulness": {"gain": {**gain, "seeds": 1}}})[2]
    assert once.mark == "warn"
    assert "One training of each" in once.reason
    assert "One training of each" not in verdict.reason


def test_usefulness_of_one_kind_or_none():
    alone = {"dsc": 0.76, "real": 0.8, "ratio": 0.95}
    assert verdicts({"usefulness": {"synthetic_alone": alone}})[2].mark == "warn"
    assert verdicts({"usefulness": {"rows": []}})[2].mark == "unknown"
    assert "medpair utility" in verdicts({})[2].short


def test_private():
    alarm = {"alarm": True, "reasons": ["2 of 9 are copies."]}
    verdict = verdicts({"privacy": alarm})[3]
    assert (verdict.mark, verdict.reason) == ("bad", "Privacy alarm: 2 of 9 are copies.")
    calm = verdicts({"privacy": {"alarm": False, "reasons": []}})[3]
    assert calm.mark == "good"
    assert "no proof" in calm.reason
    verdict = verdicts({})[3]
    assert verdict.mark == "unknown"
    assert "not examined" in verdict.reason
    assert "do not share" in verdict.short
    verdict = verdicts({"privacy": {"alarm": None, "reasons": []}})[3]
    assert verdict.mark == "unknown"
    assert "too few real volumes" in verdict.reason
    # a quiet report of cohorts in which little could be seen is no green light
    weak = {
        "alarm": False,
        "reasons": [],
        "weak": ["With 4 unseen cases an attack cannot be judged."],
    }
    verdict = verdicts({"privacy": weak})[3]
    assert verdict.mark == "warn"
    assert "4 unseen cases" in verdict.reason


def test_membership_that_shows_is_no_green_light():
    guess = {"auc": 0.52, "low": 0.43, "high": 0.61}
    told = {"auc": 0.64, "low": 0.53, "high": 0.73}
    calm = {"alarm": False, "reasons": [], "weak": [], "attack": {"image": {"distance": guess}}}
    assert verdicts({"privacy": calm})[3].mark == "good"
    shows = {**calm, "attack": {"image": {"distance": guess, "relative": told}}}
    verdict = verdicts({"privacy": shows})[3]
    assert (verdict.mark, verdict.answer) == ("warn", "no alarm, but not nothing")
    assert "but 1 of 2 attacks told training cases" in verdict.reason
    assert "0.64 [0.53, 0.73]" in verdict.reason
    both = verdicts({"privacy": {**shows, "weak": ["Only 6 of 12 were compared."]}})[3]
    assert "but only 6 of 12 were compared. 1 of 2 attacks told" in both.reason


def test_few_volumes_and_poor_judges_are_said():
    few = judge(1.1)
    few["mean"]["frechet"]["n_equal"] = 4
    verdict = faithful(a=few)
    assert (verdict.mark, verdict.answer) == ("warn", "no difference seen")
    means = {"synthetic": {"mean": 0.48}, "holdout": {"mean": 0.47}}
    entry = {"mean": means, "difference": {"low": -0.01, "value": 0.01, "high": 0.03}}
    verdict = verdicts({"alignment": entry})[1]
    assert "poor judge" in verdict.reason
    assert "poor judge (Dice 0.470" in verdict.short
    # who sees nothing sees no difference
    assert (verdict.answer, verdict.mark) == ("not clear", "warn")
    entry["difference"] = {"low": -0.4, "value": -0.3, "high": -0.2}
    assert verdicts({"alignment": entry})[1].mark == "bad"


def test_summary_is_three_sentences_whatever_was_measured():
    nothing = summary({})
    assert len(nothing) == 3
    assert nothing[0] == "Likeness was not measured."
    assert nothing[1].startswith("Neither")
    report = {
        "fidelity": {"features": {"a": judge(1.1)}},
        "privacy": {"alarm": True, "reasons": ["x."]},
    }
    first, _, third = summary(report)
    assert first == verdicts(report)[0].reason
    assert third == "Privacy alarm: x."
    assert summary({"fidelity": {"features": {}}})[0] == "Likeness was not measured."
