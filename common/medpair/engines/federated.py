"""Training at many sites: what MONAI's federated client (``monai.fl.client``) asks of a run.

A round: the client copies the global weights into ``trainer.network``, runs the trainer for some
epochs, and sends ``trainer.network`` back; the server averages. All networks travel, critics too,
and so do the averaged weights: an exponential average is linear in the weights, so that the mean
over the sites is again the average of the global model, and nothing has to begin anew.

What stays at the site: the optimizers, the counters, the accountant of private training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.trainer import SupervisedTrainer, Trainer
from torch import nn

from medpair.data.atomic import remove_partials
from medpair.data.dataset import as_folders, load_dataset
from medpair.data.files import DataError, save_torch
from medpair.data.intensity import CT
from medpair.data.locks import hold
from medpair.data.spellings import channels_of
from medpair.engines.checkpoint import StartFrom, TrainingCheckpoint
from medpair.engines.numerics import require_finite
from medpair.engines.restore import CHECKPOINT, newest_good

logger = logging.getLogger(__name__)

AVERAGED = "averaged"


class FederatedTrainer(SupervisedTrainer):
    """A trainer of several networks that a federated client can exchange whole.

    The client takes nothing but a ``SupervisedTrainer``. That class's one network, optimizer and
    loss are not what trains here, so its constructor is left out; what remains is the name, and
    ``network``.

    Args:
        device: where to train.
        max_epochs: passes over the data loader.
        train_data_loader: gives the batches.
        workflow: further arguments of MONAI's ``Trainer``.
    """

    averaged: Any

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        **workflow: Any,
    ) -> None:
        Trainer.__init__(self, device, max_epochs, train_data_loader, **workflow)

    def state_objects(self) -> dict[str, Any]:
        """Return everything a checkpoint must hold, by name."""
        raise NotImplementedError

    @property
    def network(self) -> nn.ModuleDict:
        """All networks by their names in a checkpoint, and the weights that are sampled from."""
        objects = self.state_objects()
        networks = {name: part for name, part in objects.items() if isinstance(part, nn.Module)}
        return nn.ModuleDict({**networks, AVERAGED: self.averaged.network})


class RoundCheckpoint(TrainingCheckpoint):
    """A ``TrainingCheckpoint`` for rounds of federated training; overlays put it in its place.

    A run goes on from ``checkpoint.pt`` when the trainer is built, once: at the start of a round
    the networks hold what the server sent. It is written at the end of each round, before the
    client sends anything. Signals are the client's. There is no ``model.pt``: the site's weights
    are not the result (``medpair.engines.federated_model`` makes it from the server's).

    Args:
        output_dir: where the file goes.
        interval: not used, a round is the interval.
        resume: go on from ``checkpoint.pt`` when it is there.
        settings: plain values that must not change between the parts of one run.
        max_epochs: epochs of the whole federation, rounds times local epochs. Learning rates fall
            and privacy budgets last until then.

    Raises:
        DataError: when resuming with other settings, or by a round over ``max_epochs``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        interval: int = 1,
        resume: bool = True,
        settings: Mapping[str, Any] | None = None,
        *,
        max_epochs: int,
    ) -> None:
        # the checkpoint of a run of another kind is refused like one with other settings
        super().__init__(output_dir, interval, resume, {**(settings or {}), "federated": True})
        self.max_epochs = max_epochs

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, all of whose parts must be there; take over the folder."""
        self._lock = hold(self.folder)
        remove_partials(self.folder)
        found = newest_good(self.folder) if self.resume else None
        if found is not None and found[0].name != CHECKPOINT:
            # the rounds since then have been sent: their steps would not be accounted for, and the
            # noise of private training would be used a second time, on other weights
            raise DataError(
                f"{self.folder / CHECKPOINT}: expected the checkpoint of the last round, found it "
                f"damaged ({found[0].name} is older than what the server has; --resume False "
                "joins anew)"
            )
        if found is not None:
            # not at the start of a round: the client has counted the epochs by then
            self._restore(engine, *found)
        engine.add_event_handler(Events.STARTED, self._begin_round)
        engine.add_event_handler(Events.COMPLETED, self.save)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._leave_and_raise)

    def save(self, engine: Any) -> None:
        """Write ``checkpoint.pt``, unless weights are not finite."""
        require_finite(engine.network.state_dict(), engine)
        self._save_state(engine)

    def _begin_round(self, engine: Any) -> None:
        if engine.state.max_epochs > self.max_epochs:
            raise DataError(
                f"max_epochs: expected the epochs of all rounds (rounds x local epochs), at least "
                f"{engine.state.max_epochs}, found {self.max_epochs}"
            )
        if isinstance(engine, FederatedTrainer):
            _keep_received_average(engine)


def _keep_received_average(engine: FederatedTrainer) -> None:
    """Let a site that joins late go on with the average that it was sent.

    The first update of an average copies the network: right in a federation's first round, when
    the two are equal.
    """
    average = engine.averaged
    parts = engine.state_objects().values()
    source = next(part for part in parts if isinstance(part, type(average.network)))
    pairs = zip(average.network.parameters(), source.parameters(), strict=True)
    if average.updates == 0 and not all(torch.equal(mean, own) for mean, own in pairs):
        # as after the first updates, which forget what was there before
        average.updates = average.updates_of_start()


class BeginFrom(StartFrom):
    """A ``StartFrom`` that loads when it is built, not when a round starts; overlays put it there.

    So the weights are there when a client is asked for those that the federation begins with, also
    in the averaged copy, and a round does not go back to them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        engine = Engine(lambda engine, batch: None)
        super().attach(engine)
        engine.fire_event(Events.STARTED)

    def attach(self, engine: Engine) -> None:
        """Do nothing: the weights are there."""


def write_initial_weights(trainer: SupervisedTrainer, path: str | Path) -> None:
    """Write the weights that a federation begins with, for a server that has no data.

    Args:
        trainer: any site's, before it has trained: untrained, or with the weights of ``ckpt_path``.
        path: the file, a plain state dict of what is exchanged.
    """
    state = trainer.network.state_dict()
    save_torch(path, {key: value.detach().cpu().clone() for key, value in state.items()})
    logger.info("%s: %d tensors", path, len(state))


def require_agreement(
    dataset_dir: str | Path | Sequence[str | Path],
    label_group: str | None = None,
    images: bool = True,
    unlabelled_classes: int = 0,
    **agreed: Any,
) -> None:
    """Refuse to join a federation whose settings are left to the site, or are not the site's.

    Sites cannot see each other's data: they agree on settings, which travel with the bundle, and
    each compares its own data with them. What is usually taken from the data (classes, spacing,
    the size of volumes) would differ from site to site, and weights would be averaged that mean
    different things.

    Args:
        dataset_dir: the site's folder, or several.
        label_group: merge of labels.
        images: False where the images are not looked at.
        unlabelled_classes: must be 0: each site would divide its backgrounds at other intensities.
        agreed: ``labels`` (class names, background first), ``spacing``, sizes by the name of their
            knob, and ``intensity``, which may be None unless the images are CT.

    Raises:
        DataError: names the knob or the file, what was expected and what was found.
    """
    if unlabelled_classes:
        raise DataError(
            "unlabelled_classes: expected 0 in a federation, whose sites would divide what has no "
            f"label at other intensities, found {unlabelled_classes}"
        )
    for name, value in agreed.items():
        if value is None and name != "intensity":
            raise DataError(f"{name}: expected a value that all sites share, found null")
    for name in sorted(agreed.keys() - {"labels", "intensity"}):
        _require_three(name, agreed[name])
    labels = list(agreed["labels"])
    for folder in as_folders(dataset_dir):
        dataset = load_dataset(folder, images)
        names = list(dataset.labels(label_group).names)
        if names[1:] != labels[1:]:
            raise DataError(
                f"{folder / 'dataset.json'}: labels: expected the federation's classes "
                f"{labels[1:]}, found {names[1:]}"
            )
        channel = str(next(iter((channels_of(dataset.content) or {}).values()), ""))
        if channel.upper() == CT and "intensity" in agreed and agreed["intensity"] is None:
            raise DataError(
                "intensity: expected the range (low, high) of CT numbers that all sites share, "
                "found null"
            )
    logger.info("federation: %s", {"label_group": label_group, **agreed})


def _require_three(name: str, value: Any) -> None:
    numbers = list(value) if isinstance(value, (list, tuple)) else []
    if len(numbers) != 3 or not all(isinstance(n, (int, float)) and n > 0 for n in numbers):
        raise DataError(f"{name}: expected three positive numbers, found {value!r}")
