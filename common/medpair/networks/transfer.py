"""Which parts of each network belong to classes, to a grid, or lie nearest the data.

Fine-tuning on another cohort carries weights over by these declarations (the rule is in
``medpair.engines.fine_tuning``). Each network's function takes the arguments that the network was
built with, which its card has too, so that old and new network are described alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medpair.data.label_codes import LabelCode


@dataclass(frozen=True)
class Slot:
    """What one index along a dimension stands for.

    Attributes:
        role: the same in old and new network for what is the same.
        klass: the class that it belongs to (0 the background), or None.
        word: it is a digit or grey value of a class's number: it keeps its meaning only while
            every class keeps its number.
    """

    role: str
    klass: int | None = None
    word: bool = False


@dataclass(frozen=True)
class ClassAxis:
    """A dimension of some tensors whose indices are ``slots``, of which some belong to classes.

    Attributes:
        keys: pattern of their names in the state dict, matched as a whole.
        dim: the dimension.
        slots: one for each index.
    """

    keys: str
    dim: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class GridAxis:
    """A dimension of some tensors that is a whole grid of positions, flattened.

    Attributes:
        keys: pattern of their names in the state dict, matched as a whole.
        dim: the dimension; it holds (..., *grid).
        grid: positions per axis.
        summed: the network sums over the grid: more positions mean less weight for each.
    """

    keys: str
    dim: int
    grid: tuple[int, ...]
    summed: bool = False


@dataclass(frozen=True)
class Anatomy:
    """What fine-tuning must know of a network.

    Attributes:
        early: names (or beginnings of names, up to a dot) of the parts nearest the data, which
            have learnt what is most general; the nearest first.
        classes: dimensions that belong to classes.
        grids: dimensions that belong to the size of the volumes.
    """

    early: tuple[tuple[str, ...], ...] = ()
    classes: tuple[ClassAxis, ...] = ()
    grids: tuple[GridAxis, ...] = ()

    def class_axes(self, key: str) -> list[ClassAxis]:
        """Return the class dimensions of a tensor."""
        return [axis for axis in self.classes if re.fullmatch(axis.keys, key)]

    def grid_axis(self, key: str) -> GridAxis | None:
        """Return the grid dimension of a tensor, or None."""
        return next((axis for axis in self.grids if re.fullmatch(axis.keys, key)), None)


def _classes(role: str, count: int, first: int = 0) -> Iterator[Slot]:
    """Yield a slot for each class from ``first`` on."""
    for klass in range(first, count):
        yield Slot(role, klass)


def _of_each(slots: Sequence[Slot], names: Sequence[str]) -> tuple[Slot, ...]:
    """Return every slot once for each name, names changing fastest."""
    return tuple(
        Slot(f"{slot.role}, {name}", slot.klass, slot.word) for slot in slots for name in names
    )


def pair_generator(patch_size: Sequence[int], num_labels: int, **settings: Any) -> Anatomy:
    """Describe ``medpair.networks.wgan.Generator``.

    Nearest the data are its last blocks: they draw textures and edges, whatever the anatomy, and
    are what generators of different data share (Zhao et al. 2020, "On leveraging pretrained GANs").
    """
    steps = int(settings["num_upsamples"])
    grid = tuple(int(size) // 2**steps for size in patch_size)
    channels = (Slot("image"), *_classes("label", num_labels + 1, 1))
    return Anatomy(
        early=tuple((f"blocks.{number}",) for number in reversed(range(steps))),
        classes=(ClassAxis(r"head\.(weight|bias)", 0, channels),),
        grids=(GridAxis(r"stem\.0\.(weight|bias)", 0, grid),),
    )


def pair_critic(patch_size: Sequence[int], num_labels: int) -> Anatomy:
    """Describe ``medpair.networks.wgan.Critic``."""
    grid = tuple(-(-int(size) // 16) for size in patch_size)
    channels = (Slot("image"), *_classes("label", num_labels + 1, 1))
    return Anatomy(
        classes=(
            ClassAxis(r"features\.0\.(weight|parametrizations\.weight\.original)", 1, channels),
        ),
        grids=(GridAxis(r"score\.weight", 1, grid, summed=True),),
    )


def mask_denoiser(network: Mapping[str, Any], code: Mapping[str, Any]) -> Anatomy:
    """Describe ``medpair.networks.mcdpm.MaskSequenceDenoiser``.

    Args:
        network: its arguments.
        code: arguments of the ``LabelCode`` whose numbers it denoises.
    """
    words = LabelCode(**code)
    if words.settings["encoding"] == "one_hot":
        numbers = list(_classes("number", words.num_classes))
    else:
        of = words.channels if words.settings["encoding"] == "bits" else words.num_classes
        numbers = [
            Slot(f"{words.settings['encoding']} {i} of {of}", word=True)
            for i in range(words.channels)
        ]
    slices = [f"slice {i}" for i in range(network["window"])]
    pixels = [f"pixel {i}" for i in range(network["patch"] ** 2)]
    seen = (*_of_each(numbers, slices), *_of_each([Slot("given")], slices))
    if network["classes"]:
        outputs = list(_classes("logit", network["classes"]))
    else:
        parts = ("mean", "variance")[: network["output_factor"]]
        outputs = [slot for part in parts for slot in _of_each(numbers, [part])]
    axes = [
        ClassAxis(r"unet\.conv_in\.weight", 1, _of_each(seen, pixels)),
        ClassAxis(r"unet\.conv_out\.(weight|bias)", 0, _of_each(_of_each(outputs, slices), pixels)),
        ClassAxis(r"direct\.1\.(weight|bias)", 0, _of_each(numbers, slices)),
        ClassAxis(r"previous\.weight", 1, _of_each(_of_each(numbers, slices), pixels)),
    ]
    logits = tuple(_classes("logit", network["classes"]))
    axes.append(ClassAxis(r"neighbourhood\.conv1\.weight", 1, logits))
    axes.append(ClassAxis(r"neighbourhood\.conv_out\.(weight|bias)", 0, logits))
    if network.get("sizes"):
        sizes = tuple(_classes("size", network["sizes"] + 1, 1))
        axes.append(ClassAxis(r"sizes\.0\.weight", 1, sizes))
    return Anatomy(_encoder("unet.", network), tuple(axes))


def view_denoiser(network: Mapping[str, Any]) -> Anatomy:
    """Describe ``medpair.networks.semantic_diffusion.SemanticDenoiser`` by its arguments."""
    names = ("shared",) if network["views"] == "shared" else ("axial", "coronal", "sagittal")
    encoders = [_encoder(f"networks.{name}.", network) for name in names]
    early = tuple(sum(parts, ()) for parts in zip(*encoders, strict=True))
    slots = tuple(_classes("label", network["num_classes"]))
    return Anatomy(early, (ClassAxis(r".*\.shared\.0\.weight", 1, slots),))


def _encoder(prefix: str, network: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return the parts of a ``DiffusionUNet`` that look at its input, level by level."""
    levels, blocks = len(network["channels"]), network["num_res_blocks"]
    parts: list[tuple[str, ...]] = [(f"{prefix}conv_in",)]
    for level in range(levels):
        first = level * (blocks + 1)
        count = blocks + (level < levels - 1)
        parts.append(tuple(f"{prefix}down.{first + i}" for i in range(count)))
    return tuple(parts)


def sequence_generator(network: Mapping[str, Any]) -> Anatomy:
    """Describe ``medpair.networks.vid2vid.ImageSequenceGenerator`` by its arguments."""
    labels = _slices_of_classes(network["radius"], network["num_classes"])
    if network["positions"]:
        labels = (*labels, Slot("position"))
    if network.get("contrast"):
        labels = (*labels, Slot("contrast"))
    past = [Slot(f"{what} {i}") for what in ("past", "available") for i in range(network["past"])]
    return Anatomy(
        early=tuple((f"encoder.{level}",) for level in range(len(network["channels"]))),
        classes=(
            ClassAxis(r"encoder\.0\.0\.weight", 1, (*labels, *past)),
            ClassAxis(r"draw\.\d+\.spade\d\.shared\.0\.weight", 1, labels),
        ),
    )


def sequence_critic(radius: int, num_classes: int) -> Anatomy:
    """Describe the critic of single images: a ``MultiScaleCritic`` of labels and image."""
    slots = (*_slices_of_classes(radius, num_classes), Slot("image"))
    return Anatomy(classes=(ClassAxis(r"critics\.\d+\.initial_conv\.conv\.weight", 1, slots),))


def _slices_of_classes(radius: int, num_classes: int) -> tuple[Slot, ...]:
    """Return the slots of the one-hot label slices around one image."""
    slices = range(2 * radius + 1)
    return tuple(slot for i in slices for slot in _classes(f"slice {i}", num_classes))


def slice_segmenter(num_classes: int) -> Anatomy:
    """Describe ``medpair.networks.vid2vid.SliceSegmenter``."""
    slots = tuple(_classes("logit", num_classes))
    return Anatomy(classes=(ClassAxis(r"head\.(weight|bias)", 0, slots),))


def segmenter(settings: Mapping[str, Any]) -> Anatomy:
    """Describe a network of ``medpair.networks.segmenters.segmenter`` by its arguments."""
    architecture = settings["architecture"]
    slots = tuple(_classes("logit", settings["num_classes"]))
    last = (ClassAxis(r"out\.conv\.conv\.(weight|bias)", 0, slots),)
    if architecture == "unetr":
        grid = tuple(int(size) // 16 for size in settings["patch_size"])
        place = GridAxis(r"vit\.patch_embedding\.position_embeddings", 1, grid)
        stages = ("vit.patch_embedding", *(f"vit.blocks.{number}" for number in range(12)))
        return Anatomy(tuple((name,) for name in stages), last, (place,))
    if architecture == "swin_unetr":
        layers = [(f"swinViT.layers{i}", f"swinViT.layers{i}c") for i in range(1, 5)]
        return Anatomy((("swinViT.patch_embed",), *layers), last)
    # MONAI's U-Net: ``model`` is (down, inner, up), the inner one's ``submodule`` likewise
    model = "network.model" if architecture == "unet2d" else "model"
    depth = len(settings["channels"]) - 1
    inner = [model + ".1.submodule" * level for level in range(depth)]
    name = re.escape(model)
    return Anatomy(
        early=(*((f"{prefix}.0",) for prefix in inner), (f"{inner[-1]}.1.submodule",)),
        classes=(
            ClassAxis(rf"{name}\.2\.0\.conv\.weight", 1, slots),
            ClassAxis(rf"{name}\.2\.0\.conv\.bias", 0, slots),
            ClassAxis(rf"{name}\.2\.1\.conv\.unit0\.conv\.(weight|bias)", 0, slots),
            ClassAxis(rf"{name}\.2\.1\.conv\.unit0\.conv\.weight", 1, slots),
        ),
    )


def sequence_critic_settings(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return channels, num_layers and num_scales of a ``MultiScaleCritic`` from its weights."""
    inner = [key for key in state if re.fullmatch(r"critics\.0\.\d+\.conv\.weight", key)]
    return {
        "channels": len(state["critics.0.initial_conv.conv.weight"]),
        "num_layers": len(inner),
        "num_scales": len({key.split(".")[1] for key in state}),
    }
