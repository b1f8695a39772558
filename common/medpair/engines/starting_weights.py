"""The files that a fine-tuning starts from: whose weights they are, and what lies beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medpair.data.card import Card, card_path, part_of
from medpair.data.files import DataError, file_sha256, load_torch, read_json
from medpair.engines.checkpoint import CHECKPOINT
from medpair.networks.transfer import sequence_critic_settings

Kind = Literal[
    "pair_generator", "mask_denoiser", "sequence_generator", "view_denoiser", "segmenter"
]
# What a card of each kind is called in messages, and the entries by which it is known; the first
# that fits
KINDS: dict[str, tuple[str, set[str]]] = {
    "segmenter": ("a segmenter", {"segmenter", "task"}),
    "pair_generator": ("a generator of pairs (WGAN)", {"generator", "label_channels"}),
    "mask_denoiser": (
        "a denoiser of label sequences (MC-DPM)",
        {"network", "diffusion", "code", "sequence"},
    ),
    "view_denoiser": ("a refiner of three views", {"network", "diffusion", "frame"}),
    "sequence_generator": ("a generator of image sequences", {"network", "sequence"}),
}


def starting_card(checkpoint: str | Path | None, kind: Kind) -> Card:
    """Read the card of the weights that a fine-tuning starts from.

    Args:
        checkpoint: a ``NAME.pt``; its card ``NAME.json`` lies beside it.
        kind: whose weights they have to be.

    Raises:
        DataError: without weights or card, or if they are another network's.
    """
    wanted = KINDS[kind][0]
    if checkpoint is None:
        raise DataError(f"ckpt_path: expected the model.pt of {wanted} to start from, found none")
    if not Path(checkpoint).exists():
        raise DataError(f"ckpt_path: expected a model.pt, found nothing at {checkpoint}")
    path = card_path(checkpoint)
    content = read_json(path)
    card = Card(content if isinstance(content, dict) else {})
    card.path = path
    entries = set(card)
    found = next((key for key, (_, needed) in KINDS.items() if needed <= entries), None)
    if found != kind:
        other = "no such card" if found is None else KINDS[found][0]
        raise DataError(f"{path}: expected the card of {wanted}, found {other}")
    return card


def sibling_checkpoint(checkpoint: str | Path | None) -> str | None:
    """Return the ``checkpoint.pt`` beside a ``model.pt``, or None where there is none."""
    if checkpoint is None:
        return None
    path = Path(checkpoint).with_name(CHECKPOINT)
    return str(path) if path.exists() else None


def former_settings(
    defaults: Mapping[str, Any], checkpoint: str | Path | None = None
) -> dict[str, Any]:
    """Return settings of the run that a ``checkpoint.pt`` is of, or the defaults without one.

    In a config the checkpoint may be a component: one that gives None is not passed on at all.

    Raises:
        DataError: if it is not a training's checkpoint.
    """
    if checkpoint is None:
        return dict(defaults)
    content = load_torch(checkpoint)
    if not isinstance(content, dict) or not {"settings", "objects"} <= content.keys():
        raise DataError(f"{checkpoint}: expected a training's checkpoint.pt, found something else")
    return {key: content["settings"].get(key, value) for key, value in defaults.items()}


def former_critic(
    defaults: Mapping[str, int], checkpoint: str | Path | None = None
) -> dict[str, int]:
    """Return channels, num_layers and num_scales of the image critic that a checkpoint holds.

    Args:
        defaults: the same three numbers.
        checkpoint: a ``checkpoint.pt`` of an image sequence generator; None gives the defaults.
    """
    if checkpoint is None:
        return dict(defaults)
    content = load_torch(checkpoint)
    if not isinstance(content, dict) or "image_critic" not in content.get("objects", {}):
        raise DataError(f"{checkpoint}: expected a checkpoint.pt with an image_critic, found none")
    return sequence_critic_settings(content["objects"]["image_critic"])


def former_sampling(card: Mapping[str, Any], but: Sequence[str] = ()) -> dict[str, Any]:
    """Return how the weights of a card are sampled from, for those that are trained on from them.

    Args:
        card: theirs.
        but: entries that hold for those weights alone.
    """
    if "sampling" not in card:
        return {}
    entry: dict[str, Any] = part_of(card, "sampling", dict)
    return {key: value for key, value in entry.items() if key not in but}


def digest(path: str | Path | None) -> str | None:
    """Return the SHA-256 of a file, None for None: what a run that goes on must start from too."""
    return None if path is None else file_sha256(path)
