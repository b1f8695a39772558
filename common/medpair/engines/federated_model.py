"""From a federation's global weights to a ``model.pt`` and ``model.json`` that inference takes.

The server keeps the average of what the sites exchange: all networks of a trainer under their
names, ``averaged`` among them, or a single network (the segmenter). It has no data, so that what
sampling must know besides comes from the sites' cards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medpair.data.files import DataError, load_torch, read_json, save_torch, write_json
from medpair.data.sampling import torch_generator
from medpair.data.traits import symmetric_root
from medpair.engines.averaging import recalibrate_batch_norm
from medpair.engines.checkpoint import CARD, MODEL
from medpair.engines.federated import AVERAGED
from medpair.engines.wgan import CALIBRATION_BATCHES
from medpair.inferers.image_sequence import sequence_generator_from_card
from medpair.inferers.label_volume import denoiser_from_card
from medpair.inferers.pairs import generator_from_card
from medpair.inferers.three_views import refiner_from_card
from medpair.networks.segmenters import segmenter_from_card
from medpair.networks.wgan import Generator

# What tells the kinds of cards apart, the first that is there
BUILDERS = {
    "segmenter": segmenter_from_card,
    "generator": generator_from_card,
    "code": denoiser_from_card,
    "sequence": sequence_generator_from_card,
    "frame": refiner_from_card,
}
# Entries that are of a site, not of the federation
TRAITS = ("size_traits", "contrast_traits")
OF_A_SITE = ("medpair_version", "cohort", "task", "label_reference", "privacy", *TRAITS)
CALIBRATION_BATCH = 8


def write_global_model(
    weights: str | Path | Mapping[str, Any],
    cards: Sequence[str | Path],
    output_dir: str | Path,
) -> Path:
    """Write ``model.pt`` and ``model.json`` of a federation's global weights; return the first.

    BatchNorm statistics of a generator are computed anew from latent vectors, as at the end of a
    training: the mean of the sites' variances is not the variance of their mean model.

    Args:
        weights: what the server averaged, or its file, such as NVIDIA FLARE's
            ``FL_global_model.pt``.
        cards: ``model.json`` of one or all sites. Of several, sizes and ranges are pooled.
        output_dir: where the files go.

    Raises:
        DataError: if the cards disagree, or the weights are not those of the cards' network.
    """
    given = weights if isinstance(weights, Mapping) else load_torch(weights)
    source = "weights" if isinstance(weights, Mapping) else str(weights)
    card = pooled_card(cards)
    kind = next((key for key in BUILDERS if key in card), None)
    if kind is None:
        raise DataError(f"{cards[0]}: expected the card of a trained model, found {sorted(card)}")
    network = BUILDERS[kind](card)
    try:
        network.load_state_dict(sampled_weights(given))
    except RuntimeError as error:
        raise DataError(
            f"{source}: expected the weights of the network in {cards[0]}, found others: {error}"
        ) from error
    _recalibrate(network)
    folder = Path(output_dir)
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    write_json(folder / CARD, card)
    save_torch(folder / MODEL, state)
    return folder / MODEL


def sampled_weights(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averaged network's part of exchanged weights, or all, where it is one network."""
    weights = weights.get("model", weights)
    prefix = f"{AVERAGED}."
    part = {key[len(prefix) :]: w for key, w in weights.items() if key.startswith(prefix)}
    return {key: torch.as_tensor(value) for key, value in (part or weights).items()}


def pooled_card(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Return one card for the cards of all sites.

    Raises:
        DataError: names the card and the entry in which it differs from the first.
    """
    if not paths:
        raise DataError("cards: expected the model.json of at least one site, found none")
    cards = [read_json(path) for path in paths]
    first = cards[0]
    for path, card in zip(paths[1:], cards[1:], strict=True):
        agreed, found = _agreed(first), _agreed(card)
        for key in sorted({*agreed, *found}):
            if agreed.get(key) != found.get(key):
                raise DataError(
                    f"{path}: {key}: expected {agreed.get(key)} as in {paths[0]}, "
                    f"found {found.get(key)}"
                )
    pooled = dict(first)
    for key, pool in (
        ("cohort", _pooled_cohorts),
        ("task", _pooled_tasks),
        ("label_reference", _pooled_references),
        ("privacy", _pooled_privacy),
    ):
        if key in first:
            pooled[key] = pool([card[key] for card in cards])
    for key in TRAITS:
        if first.get(key):
            counts = [len(card["cohort"]["sizes"]) for card in cards]
            pooled[key] = _pooled_traits([card[key] for card in cards], counts)
    return pooled


def _agreed(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that must be the same at all sites, and which others there are."""
    # trainings of older versions do not write that they say nothing of sampling
    card = {"sampling": {}, **card}
    data = card.get("cohort", card.get("task", {}))
    return {
        **{key: value for key, value in card.items() if key not in OF_A_SITE},
        **{key: data.get(key) for key in ("labels", "spacing", "label_group", "channel")},
        "entries": sorted(card),
    }


def _pooled_cohorts(cohorts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = [len(cohort["sizes"]) for cohort in cohorts]
    ranges = [cohort["intensity"] for cohort in cohorts]
    return {
        **cohorts[0],
        "name": _listed(cohort["name"] for cohort in cohorts),
        "licence": _listed(cohort["licence"] for cohort in cohorts),
        "sizes": sorted(size for cohort in cohorts for size in cohort["sizes"]),
        # of medians, the nearest to the pooled median that cards allow
        "intensity": np.average(ranges, axis=0, weights=counts).tolist(),
    }


def _pooled_tasks(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    longest = np.max([task["longest"] for task in tasks], axis=0).tolist()
    return {**tasks[0], "longest": longest}


def _pooled_references(references: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pool what cards remember of label maps (``LabelReference``): exactly as of all together."""
    volumes = [reference["volumes"] for reference in references]
    ranges = [reference["volume"] for reference in references]
    return {
        "volumes": sum(volumes),
        "presence": np.average([r["presence"] for r in references], axis=0, weights=volumes)
        .clip(0, 1)
        .tolist(),
        "volume": [_range([r for r in of_class if r]) for of_class in zip(*ranges, strict=True)],
        "largest_share": _over_sites(min, [r["largest_share"] for r in references]),
        "components": _over_sites(max, [r["components"] for r in references]),
    }


def _pooled_traits(entries: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> dict[str, Any]:
    """Pool what cards remember of traits: scores are in deviations from the own site's mean.

    So it is within sites that traits vary together, and deviations are those within.
    """

    def pooled(values: Sequence[Any]) -> np.ndarray:
        return np.average(np.asarray(values, np.float64), axis=0, weights=counts)

    covariance = pooled(
        [np.asarray(entry["root"]) @ np.asarray(entry["root"]) for entry in entries]
    )
    return {
        "names": list(entries[0]["names"]),
        "mean": pooled([entry["mean"] for entry in entries]).tolist(),
        "deviation": np.sqrt(pooled([np.square(e["deviation"]) for e in entries])).tolist(),
        "root": symmetric_root(covariance).tolist(),
    }


def _pooled_privacy(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entry of the site that spent most: volumes are of one site, whose bound holds."""
    return dict(max(entries, key=lambda entry: float(entry["epsilon"])))


def _range(ranges: Sequence[Sequence[float]]) -> list[float] | None:
    return [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None


def _over_sites(choose: Any, sites: Sequence[Sequence[Any]]) -> list[Any]:
    return [
        choose((value for value in of_class if value is not None), default=None)
        for of_class in zip(*sites, strict=True)
    ]


def _listed(names: Any) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name))


def _recalibrate(network: nn.Module) -> None:
    if isinstance(network, Generator):
        size = (CALIBRATION_BATCH, network.latent_size)
        generators = [torch_generator(0, number) for number in range(CALIBRATION_BATCHES)]
        latents = [torch.randn(size, generator=generator) for generator in generators]
        recalibrate_batch_norm(network, latents)
