"""The growth tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

# Keys of a cell, in the order of `place`
KEYS = ("subject", "phase", "preset", "size", "classes", "batch", "samples", "encoding")
ABSENT = "not measured"
Line = dict[str, Any]


def tables(lines: Sequence[Line], of_samples: Sequence[int], class_size: int) -> str:
    """Return all tables of what was measured, and where and when that was.

    Args:
        lines: records, as `growth.py` writes them.
        of_samples: the numbers of samples of the second table.
        class_size: edge of the volumes of the tables of classes.
    """
    text = []
    where = sorted({(line["cell"]["device"], line["cell"]["threads"]) for line in lines})
    for device, threads in where:
        own = [
            line
            for line in lines
            if (line["cell"]["device"], line["cell"]["threads"]) == (device, threads)
        ]
        machines = sorted({f"{line['machine']}, PyTorch {line['torch']}" for line in own})
        days = sorted({line["date"] for line in own})
        days = days[:1] if len(days) == 1 else [days[0], days[-1]]
        text.append(f"{'; '.join(machines)}; {device}, threads {threads}; {' to '.join(days)}.")
        found = {place(line["cell"]): line for line in own}
        bundles = {at: line for at, line in found.items() if at[0]}
        text.append(by_volume(bundles))
        text.append(by_samples(bundles, of_samples))
        text.append(by_classes(bundles, class_size))
        text.append(by_work({at[4]: line for at, line in found.items() if not at[0]}))
    return "\n\n".join(part for part in text if part) + "\n"


def place(cell: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a cell from others of one device."""
    return tuple(cell[key] for key in KEYS)


def by_volume(found: dict[tuple[Any, ...], Line]) -> str:
    """Return the table against the volume's size, two classes."""
    kinds = unique((at[0], at[2]) for at in found if at[4] == 2 and at[6] == 1)
    sizes = sorted({at[3] for at in found if at[4] == 2 and at[6] == 1})
    rows = []
    for (bundle, preset), size in ((kind, size) for kind in kinds for size in sizes):

        def told(phase: str, batch: int, at: tuple[Any, ...] = (bundle, preset, size)) -> str:
            return shown(found.get((at[0], phase, *at[1:], 2, batch, 1, "")))

        own = found.get((bundle, "train", preset, size, 2, 0, 1, ""))
        batch = f" ({own['batch']})" if own and "batch" in own else ""
        rows.append(
            [
                bundle if bundle == "unet_segmentation" else f"{bundle}, `{preset}`",
                str(size),
                *(told("train", 1), told("train", 0) + batch, told("make", 1)),
            ]
        )
    heads = ("bundle, preset", "edge", "training step, batch 1", "preset's batch", "a volume made")
    return markdown(heads, rows)


def by_samples(found: dict[tuple[Any, ...], Line], counts: Sequence[int]) -> str:
    """Return the table against the number of pairs of a tiny WGAN."""
    runs = {at[6]: line for at, line in found.items() if at[1] == "make" and at[5] == 0}
    rows = []
    for count in sorted({*runs, *(counts if runs else ())}):
        line = runs.get(count)
        if line is None or "seconds" not in line:
            rows.append([str(count), *[shown(line)] * 3])
            continue
        each = line["seconds"]
        rows.append(
            [str(count), f"{each * count:.3g} s", f"{1e3 * each:.3g} ms", size_of(line["peak"])]
        )
    return markdown(("pairs", "all", "each", "peak memory"), rows)


def by_classes(found: dict[tuple[Any, ...], Line], size: int) -> str:
    """Return the table of bundles against the number of classes, batch 1."""
    own = {at: line for at, line in found.items() if at[3] == size and at[5] == 1 and at[6] == 1}
    counts = sorted({at[4] for at in own})
    rows = []
    for bundle, preset, encoding, phase in unique((at[0], at[2], at[7], at[1]) for at in own):
        what = "a training step" if phase == "train" else "a volume made"
        name = f"{bundle}{f', `{encoding}`' if encoding else ''}: {what}"
        cells = [
            shown(own.get((bundle, phase, preset, size, count, 1, 1, encoding))) for count in counts
        ]
        rows.append([name, *cells])
    return markdown(("foreground classes", *map(str, counts)), rows) if len(counts) > 1 else ""


def by_work(found: dict[int, Line]) -> str:
    """Return the table of what is done for each class outside networks; {classes: line}."""
    counts = sorted(found)
    names = unique(name for count in counts for name in found[count].get("pieces", {}))
    rows = []
    for name in names:
        cells = [found[count].get("pieces", {}).get(name) for count in counts]
        rows.append([name, *(ABSENT if cell is None else shown(cell, "added ") for cell in cells)])
    return markdown(("foreground classes", *map(str, counts)), rows)


def shown(line: Line | None, before: str = "") -> str:
    """Return seconds, memory, and of which part they were told."""
    if line is None:
        return ABSENT
    if "limit" in line:
        return f"needs more than {line['limit_gib']:g} GiB"
    seconds = line["seconds"]
    time = f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"
    share = line.get("share", 1.0)
    part = f" (from {share:.2g} of it)" if share < 1 else ""
    return f"{time}{part}, {before}{size_of(line['peak'])}"


def size_of(memory: int | None) -> str:
    """Return bytes in MiB or GiB."""
    if memory is None:
        return "memory not told"
    return f"{memory / 2**20:.0f} MiB" if memory < 2**30 else f"{memory / 2**30:.2f} GiB"


def unique(items: Iterable[Any]) -> list[Any]:
    """Return the items in order, each once."""
    return list(dict.fromkeys(items))


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; nothing where it has no row."""
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
