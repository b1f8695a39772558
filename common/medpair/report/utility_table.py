"""A usefulness table for people: Markdown and a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

SETS = {"test": "held-out real cases", "transfer": "second dataset"}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")


def table_markdown(content: Mapping[str, Any]) -> str:
    """Return ``utility.json`` as Markdown."""
    inputs = content["inputs"]
    lines = [
        "# Usefulness of the synthetic cohort",
        "",
        f"{inputs['real']['training']} real and {inputs['synthetic']['training']} synthetic pairs "
        f"({content['synthetic_per_real']:.2g} synthetic per real), scored on "
        f"{inputs['test']['scored']} held-out real cases. "
        f"Seeds: {', '.join(map(str, content['seeds']))}.",
        "",
        *(f"- {note}" for note in notes(content)),
        "",
    ]
    for test, architecture, region in _sections(content):
        rows = _rows(content, test, architecture)
        where = "" if region == "volume" else ", inside the region of interest"
        lines += [f"## {architecture}, {SETS[test]}{where}", ""]
        few = [row for row in rows if row["cases"] is not None and test == "test"]
        rows = [row for row in rows if row not in few]
        if rows:
            lines += [*_main(rows, region), "", *_classes(rows, region), ""]
        if few:
            lines += ["With few real cases:", "", *_main(few, region), ""]
    if len(content["seeds"]) > 1:
        lines += ["## Between seeds", "", *_seeds(content), ""]
    return "\n".join(lines)


def notes(content: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know: budgets, intervals, tests, limits."""
    budget, inputs = content["budget"], content["inputs"]
    drawn = (
        "real and synthetic pairs in equal parts"
        if content["balanced"]
        else "each pair equally often, so that a cohort counts by its size (the knob "
        "balance_folders draws real and synthetic in equal parts)"
    )
    cases = inputs["test"]["scored"]
    seeds = len(content["seeds"])
    result = [
        f"Every training from nothing has {budget['training_iterations']} iterations, every "
        f"fine-tuning {budget['finetuning_iterations']}. E2-4 and E2-5 are fine-tuned, so they "
        "have more than E2-1; the row E2-1F has as many on real pairs alone: only what E2-4 and "
        "E2-5 gain over it is owed to synthetic pairs.",
        f"E2-3 draws {drawn}.",
        "All networks see the real cohort's grid, and the last weights are scored: no training "
        "looks at the cases that are scored.",
        f"Brackets are 95 % bootstrap intervals over the cases, each case averaged over "
        f"{seeds} seed{'s' if seeds > 1 else ''}; p is Wilcoxon's signed-rank test on the same "
        "cases, and Holm's p allows for all rows that are compared with the same one. Neither "
        "says what another centre's cases would give.",
    ]
    if seeds == 1:
        result.append(
            "One seed: p and intervals tell these very networks apart, not the cohorts. How much a "
            "row changes from training to training is not known; take three seeds or more."
        )
    elif content["curve"] or "transfer" in inputs:
        result.append("Few cases are drawn anew by each seed: the spread between seeds has both.")
    if any(sum(row["empty_predictions"].values()) for row in content["rows"]):
        result.append(
            "Some classes were not found at all: such a prediction counts as DSC 0 and, as its "
            "distance, the diagonal of the volume, which then rules the mean of bAHD."
        )
    if any(sum(row.get("empty_pairs", {}).values()) for row in content["rows"]):
        result.append(
            "Some cases lack a class, and the prediction lacks it too: that counts as DSC 1 and "
            "distance 0, and raises the means of all rows that are right in it."
        )
    if cases < 10:
        result.append(
            f"{cases} cases are few: bootstrap intervals of so few are too narrow, and no p can be "
            f"below {2 / 2**cases:.2g}."
        )
    if content["curve"]:
        result.append(
            "The synthetic cohort is the same at every number of real cases. Where its generator "
            "was trained on more real cases than a point has, that point promises too much: a "
            "generator of as few cases knows less."
        )
    if "transfer" in inputs:
        result.append(
            "Second dataset: E3-1 trains from nothing as long as E3-2 has had in all; E3-2F goes "
            "before E3-3 and E3-4 as E2-1F before E2-4 and E2-5."
        )
        if not content["zero_shot"]:
            result.append("The second dataset has other classes: E2 networks are not scored on it.")
    return result


def table_picture(content: Mapping[str, Any]) -> bytes:
    """Return a PNG: DSC of each protocol on each set, and the curve over real cases."""
    panels = list(dict.fromkeys(row["test"] for row in content["rows"]))
    count = len(panels) + bool(content["curve"])
    figure = Figure(figsize=(1.5 + 5.0 * count, 4.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, test in zip(axes, panels, strict=False):
        _draw_protocols(axis, content, test)
    if content["curve"]:
        _draw_curve(axes[-1], content)
    axes[0].set_ylabel("DSC, mean over classes, 95 % interval")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()


def _draw_protocols(axis: Axes, content: Mapping[str, Any], test: str) -> None:
    """Draw mean and interval of each row, networks side by side."""
    networks = list(dict.fromkeys(row["architecture"] for row in content["rows"]))
    names: list[str] = []
    for place, architecture in enumerate(networks):
        rows = _rows(content, test, architecture)
        rows = rows if test == "transfer" else [row for row in rows if row["cases"] is None]
        names = [_short(row) for row in rows]
        shift = 0.16 * (place - (len(networks) - 1) / 2)
        _bars(axis, [x + shift for x in range(len(rows))], rows, "o", place, architecture)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_title(SETS[test])
    axis.grid(axis="y", alpha=0.3)
    axis.legend()


def _draw_curve(axis: Axes, content: Mapping[str, Any]) -> None:
    """Draw DSC against the number of real cases: a colour for each protocol, a line for a network.

    Synthetic pairs alone have no number of real cases; they are a level line.
    """
    networks = list(dict.fromkeys(row["architecture"] for row in content["rows"]))
    used: set[int] = set()
    for style, architecture in zip(("-", "--", ":", "-."), networks, strict=False):
        rows = _rows(content, "test", architecture)
        for number, protocol in enumerate(content["curve"]):
            line = [row for row in rows if row["protocol"] == protocol]
            line.sort(key=lambda row: row["trained_on"]["real"])
            counts = [row["trained_on"]["real"] for row in line]
            used |= set(counts)
            # beside each other, so that intervals can be told apart
            places = [count * 1.02**number for count in counts]
            name = f"{protocol} ({line[0]['what']}), {architecture}"
            _bars(axis, places, line, f"o{style}", number, name)
        for row in (row for row in rows if row["protocol"] == "E2-2"):
            level = row["results"]["volume"]["mean"]["dsc"]["mean"]
            name = f"E2-2 (synthetic), {architecture}"
            axis.axhline(level, color="grey", linestyle=style, label=name)
    axis.set_xscale("log")
    axis.set_xticks(sorted(used), [str(n) for n in sorted(used)])
    axis.minorticks_off()
    axis.set_xlabel("real cases")
    axis.set_title("with few real cases")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _bars(
    axis: Axes,
    places: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    style: str,
    colour: int,
    name: str,
) -> None:
    cells = [row["results"]["volume"]["mean"]["dsc"] for row in rows]
    means = [cell["mean"] for cell in cells]
    # an interval of equal values may lie beside their mean by rounding
    below = [max(0.0, cell["mean"] - cell["low"]) for cell in cells]
    above = [max(0.0, cell["high"] - cell["mean"]) for cell in cells]
    shade = COLOURS[colour % len(COLOURS)]
    axis.errorbar(places, means, [below, above], fmt=style, color=shade, capsize=3, label=name)


def _main(rows: Sequence[Mapping[str, Any]], region: str) -> list[str]:
    """Return the table of means and differences of one section."""
    lines = [
        "| protocol | last trained on | iterations | DSC | bAHD mm | against | DSC difference | p "
        "| Holm's p | cases better / worse | bAHD difference mm |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell = row["results"][region]["mean"]
        pairs = " + ".join(f"{count} {role}" for role, count in row["trained_on"].items())
        start = f"| {_short(row)}: {row['what']} | {pairs} | {row['iterations']} "
        start += f"| {_interval(cell['dsc'])} | {_interval(cell['bahd_mm'], digits=2)} |"
        for name, against in row["against"].items() or [("", None)]:
            if against is None:
                lines.append(start + " | | | | | |")
                continue
            dsc, distance = (against[region]["mean"][key] for key in ("dsc", "bahd_mm"))
            lines.append(
                f"{start} {name} | {_interval(dsc, 'difference', 3, '+')} | {_p(dsc['p'])} "
                f"| {_p(dsc['p_holm'])} | {dsc['better']} / {dsc['worse']} "
                f"| {_interval(distance, 'difference', 2, '+')} |"
            )
            start = "| | | | | |"
    return lines


def _classes(rows: Sequence[Mapping[str, Any]], region: str) -> list[str]:
    """Return DSC of each class, and how many predictions were empty."""
    names = [name for name in rows[0]["results"][region] if name != "mean"]
    # what would end a cell or begin a tag
    heads = [name.replace("|", "\\|").replace("<", "\\<") for name in names]
    lines = [
        f"| DSC | {' | '.join(heads)} | empty predictions |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        cells = [_interval(row["results"][region][name]["dsc"]) for name in names]
        empty = row["empty_predictions"][region]
        lines.append(f"| {_short(row)} | {' | '.join(cells)} | {empty} |")
    return lines


def _seeds(content: Mapping[str, Any]) -> list[str]:
    """Return each seed's mean DSC; where cases are few, every seed draws others."""
    lines = [
        "| network | set | protocol | mean DSC of each seed | SD | against "
        "| difference of each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        cell = row["results"]["volume"]["mean"]["dsc"]
        means = ", ".join(f"{mean:.3f}" for mean in cell["seed_means"])
        start = f"| {row['architecture']} | {SETS[row['test']]} | {_short(row)} | {means} "
        start += f"| {cell['seed_std']:.3f} |"
        if not row["against"]:
            lines.append(f"{start} | |")
        for name, against in row["against"].items():
            found = against["volume"]["mean"]["dsc"]["seed_differences"]
            differences = ", ".join(f"{difference:+.3f}" for difference in found)
            lines.append(f"{start} {name} | {differences} |")
            start = "| | | | | |"
    return lines


def _sections(content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield set, network and region of every section."""
    seen = dict.fromkeys((row["test"], row["architecture"]) for row in content["rows"])
    for test, architecture in sorted(seen, key=lambda pair: list(SETS).index(pair[0])):
        for region in _rows(content, test, architecture)[0]["results"]:
            yield test, architecture, region


def _rows(content: Mapping[str, Any], test: str, architecture: str) -> list[dict[str, Any]]:
    """Return the rows of one set and network, whole cohorts first, then few cases ascending."""
    rows = [r for r in content["rows"] if (r["test"], r["architecture"]) == (test, architecture)]
    return sorted(rows, key=lambda row: (row["cases"] or 0, row["protocol"]))


def _short(row: Mapping[str, Any]) -> str:
    count = row["cases"]
    return row["protocol"] + ("" if count is None else f", {count} case{'s' if count > 1 else ''}")


def _interval(cell: Mapping[str, Any], key: str = "mean", digits: int = 3, sign: str = "") -> str:
    number, low, high = (f"{cell[name]:{sign}.{digits}f}" for name in (key, "low", "high"))
    return f"{number} [{low}, {high}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
