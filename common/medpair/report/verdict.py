"""What the report says first: three sentences, and an answer to each of four questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medpair.report.formats import fixed, number, with_range
from medpair.report.privacy_section import membership_sentence
from medpair.report.sections import differs, name_of

# Precision and recall are read with so many clusters, a key of report.json
CLUSTERS = "10"
# Below this share of what two real halves have of each other a cohort is said not to be faithful
LOST = 0.5
# What a gain is measured against, by protocol
AGAINST = {
    "E2-1F": "as long a training on real pairs alone",
    "E2-1": "real pairs alone",
}
# Fewer volumes a side do not say that two cohorts are alike
FEW = 20
# A segmenter that agrees less with held-out real labels (Dice) is a poor judge of others
POOR_JUDGE = 0.6
# Largest p (Holm) of a gain, or a loss, that is taken for one
SIGNIFICANT = 0.05
# Trainings of each kind without which a gain is not taken for one
LEAST_SEEDS = 2
# Labels that fit this much worse than real ones (Dice) are said to be misaligned
MISALIGNED = -0.02


@dataclass(frozen=True)
class Verdict:
    """A short answer, and what it rests on.

    Attributes:
        question: of the reader.
        answer: in a word or two.
        mark: how good the news is.
        reason: one or two sentences.
        short: the same in a few words.
    """

    question: str
    answer: str
    mark: Literal["good", "warn", "bad", "unknown"]
    reason: str
    short: str


def verdicts(report: Mapping[str, Any]) -> list[Verdict]:
    """Return the answers: faithful, aligned, useful, private."""
    return [_faithful(report), _aligned(report), _useful(report), _private(report)]


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return three sentences: on likeness, on use, on sharing."""
    likeness = _faithful(report)
    aligned, useful, private = _aligned(report), _useful(report), _private(report)
    first = likeness.reason if likeness.mark != "unknown" else "Likeness was not measured."
    second = " ".join(v.reason for v in (aligned, useful) if v.mark != "unknown")
    return [
        first,
        second or "Neither the fit of labels nor the use for training a segmenter was measured.",
        private.reason,
    ]


def _faithful(report: Mapping[str, Any]) -> Verdict:
    features = (report.get("fidelity") or {}).get("features")
    question = "Faithful?"
    if not features:
        return Verdict(question, "not measured", "unknown", "Fidelity was not measured.", "")
    # the judge with the worst news speaks
    name = min(features, key=lambda key: _likeness(features[key]))
    found, prd = features[name]["mean"]["frechet"], features[name]["prd"].get(CLUSTERS)
    ratio = number(_ratio(found), 2)
    reason = (
        f"In the features of {name_of(name)} the synthetic volumes are {ratio} times as far from "
        f"the real ones (Fréchet distance {number(found['value_at_equal_n'])}) as two halves of "
        f"the real cohort are from each other ({number(found['floor'])}; {found['n_equal']} "
        "volumes a side)"
    )
    short = f"Fréchet distance {ratio} times that between real halves"
    if prd is not None:
        reason += (
            f", with precision {fixed(prd['f1_8'], 2)} and recall {fixed(prd['f8'], 2)} "
            f"({fixed(prd['floor_f1_8'], 2)} and {fixed(prd['floor_f8'], 2)} between the halves)"
        )
        short += f", precision {fixed(prd['f1_8'], 2)}, recall {fixed(prd['f8'], 2)}"
    reason += "."
    if _likeness(features[name]) < LOST:
        if differs(found):
            return Verdict(question, "no", "bad", reason, short)
        reason += " So few volumes may seem so different by chance."
        return Verdict(question, "not clear", "warn", reason, short)
    if any(differs(entry["mean"]["frechet"]) for entry in features.values()):
        return Verdict(question, "nearly", "warn", reason, short)
    if found["n_equal"] < FEW:
        reason += " With so few volumes only a great difference would show."
        return Verdict(question, "no difference seen", "warn", reason, short)
    return Verdict(question, "yes, by this measure", "good", reason, short)


def _ratio(distance: Mapping[str, Any]) -> float:
    """Return a distance as a multiple of its floor, which is 0 where all features are equal."""
    value, floor = distance["value_at_equal_n"], distance["floor"]
    return float(value / floor) if floor > 0 else 1.0 if value == 0 else 1e6


def _likeness(entry: Mapping[str, Any]) -> float:
    """Return precision or recall, whichever is worse, as a share of that of real halves.

    Of cohorts too small for them, the inverse ratio of the Frechet distance to its floor.
    """
    prd = entry["prd"].get(CLUSTERS)
    if prd is None:
        return 1 / max(_ratio(entry["mean"]["frechet"]), 1e-6)
    return float(min(prd[key] / max(prd[f"floor_{key}"], 1e-6) for key in ("f1_8", "f8")))


def _aligned(report: Mapping[str, Any]) -> Verdict:
    entry = report.get("alignment")
    question = "Do labels fit?"
    if not entry or "difference" not in entry:
        return Verdict(question, "not measured", "unknown", "Alignment was not measured.", "")
    difference = entry["difference"]
    found, held = entry["mean"]["synthetic"], entry["mean"]["holdout"]
    value = with_range(difference["value"], difference["low"], difference["high"], 3)
    reason = (
        f"A segmenter of real pairs agrees with the synthetic labels to a Dice of "
        f"{fixed(found['mean'])}, with held-out real labels to {fixed(held['mean'])}: difference "
        f"{value}."
    )
    short = f"Dice {value} against held-out real pairs"
    missing = (entry.get("compared") or {}).get("left_out", [])
    if missing:
        reason += f" Not compared, since a cohort has too little of it: {', '.join(missing)}."
    poor = held["mean"] < POOR_JUDGE
    if poor:
        reason += " A segmenter that agrees so little with real labels is a poor judge."
        short += f", by a poor judge (Dice {fixed(held['mean'])} with those)"
    if difference["high"] < MISALIGNED:
        return Verdict(question, "worse than real", "bad", reason, short)
    if poor or missing:
        return Verdict(question, "not clear", "warn", reason, short)
    if difference["low"] >= MISALIGNED:
        return Verdict(question, "yes", "good", reason, short)
    reason += " More cases are needed to tell whether that is worse."
    return Verdict(question, "not clear", "warn", reason, short)


def _useful(report: Mapping[str, Any]) -> Verdict:
    entry = report.get("usefulness")
    question = "Useful?"
    if not entry:
        hint = "the command medpair utility measures it"
        return Verdict(
            question, "not measured", "unknown", "Use for training was not measured.", hint
        )
    alone, gain = entry.get("synthetic_alone"), entry.get("gain")
    parts, shorts = [], []
    answer, mark = "see below", "unknown"
    if alone is not None:
        parts.append(
            f"A segmenter trained on synthetic pairs alone reaches a Dice of {fixed(alone['dsc'])} "
            f"on held-out real cases, {fixed(alone['ratio'])} of the {fixed(alone['real'])} that "
            "real pairs give."
        )
        answer, mark = f"alone {fixed(alone['ratio'], 2)} of real", "warn"
        shorts.append(f"Dice {fixed(alone['dsc'])} against {fixed(alone['real'])}")
    if gain is not None:
        value = with_range(gain["value"], gain["low"], gain["high"], 3)
        seeds = int(gain["seeds"])
        once = " One training of each was compared: another seed may say otherwise."
        parts.append(
            f"Used beside the real pairs ({gain['what']}) they change the Dice by {value}, against "
            f"{AGAINST[gain['against']]}.{once if seeds < LEAST_SEEDS else ''}"
        )
        shorts.append(
            f"added to real pairs {value}{', one training' if seeds < LEAST_SEEDS else ''}"
        )
        # an interval of few cases is too narrow: both have to say so; and cases tell two networks
        # apart, not what they were trained on
        told = gain["p_holm"] <= SIGNIFICANT and not gain["low"] <= 0 <= gain["high"]
        told = told and seeds >= LEAST_SEEDS
        mark = ("good" if gain["low"] > 0 else "bad") if told else "warn"
    return Verdict(question, answer, mark, " ".join(parts), "; ".join(shorts))  # type: ignore[arg-type]


def _private(report: Mapping[str, Any]) -> Verdict:
    entry = report.get("privacy")
    question = "May be shared?"
    if not entry or entry.get("alarm") is None:
        if entry:
            reason = "There are too few real volumes to say whether synthetic ones are copies."
            return Verdict(question, "cannot be said", "unknown", reason, "too few real volumes")
        reason = "Whether synthetic volumes are copies of training cases was not examined."
        hint = "do not share before it is: part privacy"
        return Verdict(question, "not examined", "unknown", reason, hint)
    if entry["alarm"]:
        reason = "Privacy alarm: " + " ".join(entry["reasons"])
        return Verdict(question, "no: alarm", "bad", reason, "see the part on privacy")
    weak, told = entry.get("weak", []), membership_sentence(entry)
    if reserves := [*weak, told] if told else weak:
        first = reserves[0][0].lower() + reserves[0][1:]
        reason = " ".join(["No copy of a training case was found, but", first, *reserves[1:]])
        answer = "no alarm, little seen" if weak else "no alarm, but not nothing"
        return Verdict(question, answer, "warn", reason, "see the part on privacy")
    reason = (
        "No synthetic volume was found to be a copy of a training case; that is no proof that "
        "nothing of a patient can be learned."
    )
    return Verdict(question, "nothing speaks against it", "good", reason, "no copy was found")
