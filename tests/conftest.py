"""Small datasets that tests share."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import Volume, write_volume


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small volumes are slower on more threads, and far slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Give back what bundles take over in their process: errors' end, signals, tiny numbers."""
    hook = sys.excepthook
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    sys.excepthook = hook
    torch.set_flush_denormal(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a chain's command lines here, parsed as the runner parses them; return what was run."""
    import monai.bundle
    from fire.parser import DefaultParseValue

    from medpair import chain

    ran: list[str] = []

    def run(command: list[str]) -> int:
        assert command[1:4] == ["-m", "monai.bundle", "run"]
        words = iter(command[4:])
        arguments = {key.removeprefix("--"): DefaultParseValue(next(words)) for key in words}
        kind = "train" if "train.json" in str(arguments["config_file"]) else "generate"
        ran.append(f"{kind} {Path(arguments['bundle_root']).name}")
        monai.bundle.run(logging_file=False, **arguments)
        return 0

    monkeypatch.setattr(chain, "run_to_the_end", run)
    return ran


def tiny_dataset(
    folder: str | Path,
    count: int = 4,
    size: Sequence[int] = (16, 14, 12),
    num_labels: int = 2,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    orientation: str = "RAS",
    *,
    validation: int = 1,
    tilt: float = 0.0,
    roi: bool = False,
    seed: int = 0,
) -> Path:
    """Write a small valid dataset: one ball per class in a noisy image; return its folder.

    Args:
        folder: where to write.
        count: training cases.
        size: (W, H, D) in RAS order.
        num_labels: classes, at most ``size[0] // 3``; every case has each of them.
        spacing: millimetres per RAS axis.
        orientation: axis codes in which the files are stored.
        validation: validation cases.
        tilt: degrees by which the grid is rotated about the x axis.
        roi: also write a mask of the inner box.
        seed: same seed, same files.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    cosine, sine = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    affine[:3, :3] = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) * spacing
    affine[:3, 3] = -0.5 * np.asarray(size) * spacing
    splits: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for index in range(count + validation):
        split = "training" if index < count else "validation"
        paths = entry(f"case_{index:03d}", split, roi)
        image, label = _balls(rng, size, num_labels)
        arrays = {"image": image, "label": label}
        if roi:
            arrays["roi"] = np.pad(np.ones([n - 2 for n in size], np.uint8), 1)
        for role, array in arrays.items():
            write_volume(folder / paths[role], Volume(array, affine, orientation))
        splits[split].append(paths)
    labels = {"background": 0} | {f"class_{k}": k for k in range(1, num_labels + 1)}
    write_dataset_json(folder, folder.name, labels, splits)
    return folder


def same_labels(one: np.ndarray, other: np.ndarray) -> bool:
    """Say whether labels differ by what rounding may do: one voxel in 10,000, or one at all.

    A network's scores for two classes may tie to the last bit, and then the processor's order of
    summing decides. Volumes of tests have fewer than 10,000 voxels, and untrained networks' labels
    are noise, with more ties than any real ones.
    """
    return bool((one != other).sum() <= max(1, one.size * 1e-4))


def _balls(
    rng: np.random.Generator, size: Sequence[int], num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return image (int16) and label (uint8): balls in a row along the first axis."""
    grid = np.indices(tuple(size))
    label = np.zeros(tuple(size), np.uint8)
    width = size[0] / num_labels
    radius = max(1.0, min(width, *size[1:]) / 2.5)
    centres = [
        [
            (k + 0.5) * width + rng.uniform(-0.4, 0.4),
            *(n / 2 + rng.uniform(-1, 1) for n in size[1:]),
        ]
        for k in range(num_labels)
    ]
    for k, centre in enumerate(centres, start=1):
        distance = np.linalg.norm(grid - np.reshape(centre, (3, 1, 1, 1)), axis=0)
        label[distance <= radius] = k
    image = 100.0 * label + rng.normal(200.0, 20.0, tuple(size))
    return np.rint(image).astype(np.int16), label


def randomized(network: nn.Module, std: float = 0.15, seed: int = 0) -> nn.Module:
    """Give every parameter random values, also those that begin as zero; return the network."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="session", name="tiny_dataset")
def _tiny_dataset() -> Callable[..., Path]:
    """Give the function, so that a test need not import this file."""
    return tiny_dataset
