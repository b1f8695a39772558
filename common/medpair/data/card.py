"""The card beside weights: read as what a stranger wrote, then built from.

Weights may come from anywhere. Nothing of the card is used before its numbers have passed the
limits below, and a network is built no larger than the tensors in the weights file: so a card
cannot ask for more than that file holds.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode

from medpair.data.check_header import MAX_VOXELS
from medpair.data.check_spacing import LARGEST, SMALLEST
from medpair.data.faults import one_line
from medpair.data.files import DataError, load_torch, read_json

# A card of a cohort of 100,000 volumes is smaller than this.
MAX_CARD_BYTES = 2**24
# What a training calls its weights and their card
MODEL, CARD = "model.pt", "model.json"
# What shipped weights have besides: how they were trained, in NAME.training.json
TRAINING = ".training.json"
# No count, width or size of ours comes near it.
MAX_INTEGER = 10**6
# A number within these is no overflow when squared or divided by in float32.
MAX_FLOAT = 1e18
# An axis of NIfTI-1 has at most 32767 voxels.
MAX_AXIS = 2**15 - 1
MAX_DEPTH, MAX_LABELS = 12, 10_000
# Entries that are the size of a volume or a patch, at any depth
SIZES = ("patch_size", "frame", "longest", "volume_size")
# Modules that one tensor of the weights may stand for (activations and containers have none)
MODULES_PER_TENSOR = 20
# Numbers beside the weights that a network may hold (tables of positions)
SMALL = 10**7
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full}
# In which the shapes of the weights are kept for building; not an entry of the file
SHAPES = "_shapes"
T = TypeVar("T")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 3, 6, 6, 80


@dataclass(frozen=True)
class SliceOrder:
    """How a network of slices sees a volume: ``sequence`` of a card.

    Attributes:
        axis: along which slices follow each other.
        frame: (W, H, D) of training.
        window: slices at once, where there are windows.
        overlap: of neighbouring windows.
        corner: first voxel of the frame in the volume, where the frame is a part of one.
        volume_size: (W, H, D) of that volume; empty where the frame is all of it.
        completes: whether label maps are given, and what has no label is generated around them.
    """

    axis: int
    frame: Sequence[int] = ()
    window: int = 2
    overlap: int = 1
    corner: Sequence[int] = (0, 0, 0)
    volume_size: Sequence[int] = ()
    completes: bool = False

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"axis: expected 0, 1 or 2, found {self.axis!r}")
        if not isinstance(self.completes, bool):
            raise ValueError(f"completes: expected true or false, found {self.completes!r}")
        if not 1 <= self.overlap < self.window <= MAX_AXIS:
            raise ValueError(
                f"overlap, window: expected 1 <= overlap < window, "
                f"found {self.overlap}, {self.window}"
            )
        if self.volume_size and not (
            len(self.corner) == len(self.frame) == 3
            and all(
                type(c) is int and 0 <= c <= n - f
                for c, f, n in zip(self.corner, self.frame, self.volume_size, strict=True)
            )
        ):
            raise ValueError(
                "corner, frame, volume_size: expected a frame within the volume, found "
                f"{list(self.frame)} at {list(self.corner)} in {list(self.volume_size)}"
            )


@dataclass(frozen=True)
class Sampling:
    """How weights are sampled from where nothing else is asked for: ``sampling`` of a card.

    Attributes:
        evidence: weight of what a voxel's noisy code says of itself (objective ``classes``).
        size_offsets: {class: standard deviations} beyond the wanted size that the network is told.
    """

    evidence: float = 1.0
    size_offsets: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = isinstance(self.evidence, (int, float)) and not isinstance(self.evidence, bool)
        if not number or not 0 <= self.evidence <= 1:
            raise ValueError(f"evidence: expected a number from 0 to 1, found {self.evidence!r}")
        if not isinstance(self.size_offsets, Mapping):
            raise ValueError(
                "size_offsets: expected {class: standard deviations}, found "
                f"{self.size_offsets!r}"
            )

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Sampling:
        """Return what a card says, or what holds where it says nothing."""
        return part_of(card, "sampling", cls) if "sampling" in card else cls()


class Card(dict[str, Any]):
    """The content of a ``model.json``, and where it lies."""

    path: Path = Path(CARD)


def card_path(checkpoint: str | Path) -> Path:
    """Return where the card of weights lies: ``NAME.json`` beside ``NAME.pt``.

    Weights that were renamed in a folder of their own still have their ``model.json``. Where a
    ``model.pt`` lies beside them, that is its card, and no other weights'.
    """
    path = Path(checkpoint).with_suffix(".json")
    other = path.with_name(CARD)
    renamed = not path.exists() and other.exists() and not path.with_name(MODEL).exists()
    return other if renamed else path


def read_plain_card(checkpoint: str | Path) -> Card:
    """Read the card beside a checkpoint (``NAME.pt``), and the shapes of its tensors.

    Raises:
        DataError: if one of them is missing, cannot be read, or has numbers beyond all limits.
    """
    path = card_path(checkpoint)
    if not path.exists() and not Path(checkpoint).exists():
        raise DataError(
            f"{checkpoint}: expected weights with a {path.name} beside them, found no such file "
            "(--ckpt_path names them; --bundle_root, a bundle that brings its own)"
        )
    if path.is_file() and path.stat().st_size > MAX_CARD_BYTES:
        raise DataError(
            f"{path}: expected at most {MAX_CARD_BYTES} bytes, found {path.stat().st_size}"
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {_SHORT.repr(content)}")
    _check_numbers(path, "", content, 0)
    card = Card(content)
    card.path = path
    state = load_torch(checkpoint, "meta")
    if not isinstance(state, Mapping):
        raise DataError(f"{checkpoint}: expected tensors by name, found {type(state).__name__}")
    card[SHAPES] = {
        str(name): tuple(value.shape)
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    return card


def _check_numbers(path: Path, key: str, value: Any, depth: int) -> None:
    """Refuse what no card of ours has: depth, huge or unreal numbers, volumes without end."""
    if depth > MAX_DEPTH:
        raise DataError(f"{path}: {key}: expected at most {MAX_DEPTH} levels, found more")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(path, f"{key}.{name}".lstrip("."), item, depth + 1)
        if key == "cohort" and "sizes" in value:
            for size in value["sizes"] if isinstance(value["sizes"], list) else [value["sizes"]]:
                _check_size(path, "cohort.sizes", size)
    elif isinstance(value, list):
        for item in value:
            _check_numbers(path, key, item, depth + 1)
        if key.rpartition(".")[2] in SIZES:
            _check_size(path, key, value)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise _refused(path, key, f"whole numbers up to {MAX_INTEGER}", value)
    elif isinstance(value, float) and not abs(value) <= MAX_FLOAT:
        raise _refused(path, key, f"numbers up to {MAX_FLOAT:g}", value)


def _check_size(path: Path, key: str, size: Any) -> None:
    whole = isinstance(size, list) and all(type(n) is int and 1 <= n <= MAX_AXIS for n in size)
    if not whole or len(size) != 3 or math.prod(size) > MAX_VOXELS:
        raise _refused(path, key, f"three numbers of voxels, {MAX_VOXELS} voxels at most", size)


def _refused(path: Path, key: str, expected: str, found: Any) -> DataError:
    return DataError(one_line(f"{path}: {key}: expected {expected}, found {_SHORT.repr(found)}"))


def check_classes(names: Sequence[Any]) -> None:
    """Refuse what are no class names.

    Raises:
        ValueError: says what was found.
    """
    if not 2 <= len(names) <= MAX_LABELS or len(set(names)) < len(names):
        raise ValueError(
            f"labels: expected 2 to {MAX_LABELS} different names, found {_SHORT.repr(list(names))}"
        )
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"labels: expected names, found {_SHORT.repr(list(names))}")


def check_spacing(spacing: Any) -> None:
    """Refuse what is no voxel size.

    Raises:
        ValueError: says what was found.
    """
    values = spacing if isinstance(spacing, (list, tuple)) else []
    number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if len(values) != 3 or not number or not all(SMALLEST <= v <= LARGEST for v in values):
        raise ValueError(
            f"spacing: expected three numbers from {SMALLEST:g} to {LARGEST:g} mm, "
            f"found {_SHORT.repr(spacing)}"
        )


def part_of(card: Mapping[str, Any], key: str, build: Callable[..., T]) -> T:
    """Build an object from the arguments that a card has under ``key``.

    Args:
        card: of ``read_plain_card``, or any mapping.
        key: its entry.
        build: takes the entry's content as keywords.

    Raises:
        DataError: if there is no such entry, or it does not suit; names the file and the entry.
    """
    path = getattr(card, "path", Card.path)
    if key not in card:
        raise DataError(f"{path}: {key}: expected an entry of that name, found none")
    entry = card[key]
    if not isinstance(entry, Mapping):
        raise _refused(path, key, "an object", entry)
    name = getattr(build, "__qualname__", str(build))
    try:
        return build(**entry)
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        message = f"{path}: {key}: expected arguments of {name}, found others: {reason}"
        raise DataError(one_line(message)) from error


def card_of_knob(name: str, content: Any) -> Card:
    """Return a card with what a knob says as its one entry, so that faults name the knob."""
    card = Card({name: content})
    card.path = Path(f"--{name}")
    return card


def network_of(card: Mapping[str, Any], key: str, build: Callable[..., nn.Module]) -> Any:
    """Build a network as ``part_of``, no larger than its weights, and compare it with them.

    Raises:
        DataError: also if its tensors have other names or shapes than those of the weights file.
    """
    shapes = card.get(SHAPES)
    if shapes is None:
        return part_of(card, key, build)
    with _NoLarger(shapes):
        network = part_of(card, key, build)
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    differing = sorted(name for name in {*own, *shapes} if own.get(name) != shapes.get(name))
    if differing:
        path, name = getattr(card, "path", Card.path), differing[0]
        message = (
            f"{path}: {key}: expected the network whose weights lie beside it, found "
            f"{len(differing)} tensors that differ: {name[:80]} is {shapes.get(name)} in the "
            f"weights, {own.get(name)} in the network"
        )
        raise DataError(one_line(message))
    return network


class _NoLarger(TorchFunctionMode):
    """Stop the building of a network that would be far larger than weights of these shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.elements = 2 * sum(math.prod(shape) for shape in shapes.values()) + SMALL
        self.modules = MODULES_PER_TENSOR * len(shapes) + 100

    def __enter__(self) -> _NoLarger:
        self.hook = torch_module.register_module_module_registration_hook(self._registered)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.hook.remove()

    def _registered(self, *_: object) -> None:
        self.modules -= 1
        if self.modules < 0:
            raise ValueError("many more modules than the weights have")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            size = args[0] if args and isinstance(args[0], (tuple, list)) else args
            self.elements -= math.prod(n for n in size if isinstance(n, int))
            if self.elements < 0:
                raise ValueError("many more numbers than the weights have")
        return func(*args, **(kwargs or {}))
