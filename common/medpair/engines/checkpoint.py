"""Checkpoints from which a run goes on as if it had never stopped."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from medpair import __version__
from medpair.data.atomic import remove_partials
from medpair.data.card import CARD, MODEL
from medpair.data.cohort import Cohort
from medpair.data.files import DataError, load_torch, save_torch, write_json
from medpair.data.locks import hold
from medpair.engines.distributed import (
    gathered,
    is_distributed,
    is_main_rank,
    largest_over_ranks,
    main_rank_first,
    wait_for_all,
)
from medpair.engines.numerics import require_finite
from medpair.engines.restore import CHECKPOINT, keep_previous, newest_good
from medpair.engines.settings import differences
from medpair.engines.stops import earlier_stop, explained

logger = logging.getLogger(__name__)

# 2: with the training cases, and the count of bad steps
FORMAT = 2


class TrainingCheckpoint:
    """Save and restore a whole training run; a handler for trainers with ``state_objects()``.

    Leaves in ``output_dir`` a ``checkpoint.pt`` (everything needed to go on: networks, optimizers,
    averages, counters, random state) and a ``model.pt`` (what inference loads: the trainer's
    ``model_state()``), written atomically, and never with weights that are not finite. The
    checkpoint before stays beside as ``checkpoint.previous.pt``: should ``checkpoint.pt`` be
    damaged on the disk, the run goes on from there. On SIGTERM or SIGINT the running step is
    finished and saved, and the process exits with 143 or 130. ``checkpoint.pt`` is the last thing
    that an epoch leaves: an epoch it has seen has its picture and its validation. While it runs, a
    training has its folder to itself.

    Of several processes the main one writes, and all read; a signal to one stops them all.

    Args:
        output_dir: where the files go.
        interval: epochs between checkpoints; the last epoch is always saved.
        resume: go on from ``checkpoint.pt`` when it is there.
        settings: plain values that must not change between the parts of one run.

    Raises:
        DataError: when resuming with other settings (lists what differs), or when no checkpoint
            that is there can be read, or when another process trains in the same folder.
        NotFiniteError, OutOfMemoryError: what stops a trainer (``medpair.engines.stops``).
    """

    def __init__(
        self,
        output_dir: str | Path,
        interval: int = 1,
        resume: bool = True,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(resume, bool):  # the text "false" would count as true
            raise ValueError(f"resume: expected True or False, found {resume!r}")
        self.folder = Path(output_dir)
        self.interval = interval
        self.resume = resume
        self.settings = plain(dict(settings or {}))
        self.stop_signal: int | None = None
        self.saved_iteration = -1
        self._previous: dict[int, Any] = {}
        self._lock: Any = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._save_model)
        # before the next batch, when all handlers have seen the step
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._stop_if_asked)
        engine.add_event_handler(Events.COMPLETED, self._complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._leave_and_raise)

    def save(self, engine: Any) -> None:
        """Write ``model.pt`` and ``checkpoint.pt``."""
        # the model first: a run whose checkpoint says "finished" has its model
        self._save_model(engine)
        self._save_state(engine)

    def _save_model(self, engine: Any) -> None:
        model = engine.model_state()
        require_finite(model, engine)
        if is_main_rank():
            save_torch(self.folder / MODEL, model)

    def _save_state(self, engine: Any) -> None:
        """Write ``checkpoint.pt``; the one before stays beside it."""
        if is_main_rank():
            self._write_state(engine)
        self.saved_iteration = int(engine.state.iteration)

    def _write_state(self, engine: Any) -> None:
        state = {
            "format": FORMAT,
            "iteration": int(engine.state.iteration),
            "epoch_length": int(engine.state.epoch_length),
            "settings": self.settings,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "objects": {name: thing.state_dict() for name, thing in engine.state_objects().items()},
            "handlers": {name: thing.state_dict() for name, thing in remembered(engine).items()},
        }
        keep_previous(self.folder, ours=self.saved_iteration >= 0)
        save_torch(self.folder / CHECKPOINT, state)

    def _start(self, engine: Any) -> None:
        """Restore the run if there is one, and take over the folder and the stop signals."""
        found: tuple[Path, dict[str, Any]] | None = None

        def look() -> None:
            nonlocal found
            self._lock = hold(self.folder)
            remove_partials(self.folder)
            # one process looks first: it may have to put a damaged file aside
            found = newest_good(self.folder) if self.resume else None

        main_rank_first(look)
        # added here to come after all other handlers
        if not engine.has_event_handler(self._save_state, Events.EPOCH_COMPLETED):
            last = Events.EPOCH_COMPLETED(every=self.interval)
            engine.add_event_handler(last, self._save_state)
        if self.resume and not is_main_rank():
            found = newest_good(self.folder)
        if found is not None:
            self._restore(engine, *found)
        iterations = gathered(int(engine.state.iteration))
        if len(set(iterations)) > 1:
            raise DataError(
                f"{self.folder}: expected one checkpoint that all processes read, found them at "
                f"the iterations {iterations} (output_dir must be a folder that all machines share)"
            )
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask_stop)

    def _restore(self, engine: Any, path: Path, state: dict[str, Any]) -> None:
        # older ones of U-Nets have where the dataset was; what it is, its cases say
        then = {key: value for key, value in state["settings"].items() if key != "dataset_dir"}
        now = self.settings
        if "format" not in state:
            # written before the settings were complete: what it does not say cannot differ
            now = {key: value for key, value in now.items() if key in then}
            logger.warning("%s: an older checkpoint: not all settings can be compared", path)
        differing = differences(then, now)
        if int(engine.state.epoch_length) != state["epoch_length"]:
            differing.append(
                f"iterations per epoch: {state['epoch_length']} then, "
                f"{engine.state.epoch_length} now"
            )
        if differing:
            raise DataError(
                f"{path}: expected the settings that this run began with, found changes in "
                + "; ".join(differing)
                + " (--resume False starts anew, another output_dir keeps both)"
            )
        for name, thing in engine.state_objects().items():
            # a loss scaler comes and goes with the precision, which may change between the parts
            if state["objects"].get(name) or ("format" in state and "scaler" not in name):
                thing.load_state_dict(state["objects"][name])
        for name, thing in remembered(engine).items():
            if name in state.get("handlers", {}):
                thing.load_state_dict(state["handlers"][name])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"]:
            # there may be fewer devices now
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
        iteration, length = state["iteration"], state["epoch_length"]
        engine.state.iteration = self.saved_iteration = iteration
        engine.state.epoch = iteration // length
        loader = engine.data_loader
        done = (iteration % length) * (loader.batch_size or 1)
        loader.sampler.resume_at(iteration // length, done)
        stop = earlier_stop(path.parent, iteration)
        logger.info("%s: going on after iteration %d%s", path, iteration, stop)

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second one acts at once (launchers repeat theirs, and then kill)."""
        self.stop_signal = number
        logger.warning("%s: finishing this step, then saving", signal.Signals(number).name)
        if not is_distributed():
            signal.signal(number, self._previous.get(number, signal.SIG_DFL))

    def _stop_if_asked(self, engine: Any) -> None:
        number = largest_over_ranks(self.stop_signal or 0)
        if number:
            self.save(engine)
            # a launcher ends all processes when the first is gone
            wait_for_all()
            self._leave()
            logger.warning("%s: saved; the same command goes on", self.folder / CHECKPOINT)
            raise SystemExit(128 + number)

    def _complete(self, engine: Any) -> None:
        if self.saved_iteration != engine.state.iteration:
            self.save(engine)
        wait_for_all()
        self._leave()

    def _leave(self) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _leave_and_raise(self, engine: Engine, error: BaseException) -> None:
        self._leave()
        told = explained(engine, error, self.folder, self.saved_iteration)
        if told is error:
            raise error
        raise told from error


def remember(engine: Engine, name: str, thing: Any) -> None:
    """Let checkpoints hold the state of a handler too: it has ``state_dict`` and its inverse."""
    engine.__dict__.setdefault("remembered", {})[name] = thing


def remembered(engine: Engine) -> dict[str, Any]:
    """Return the handlers that ``remember`` was told of."""
    things: dict[str, Any] = engine.__dict__.get("remembered", {})
    return things


class ModelCard:
    """Write ``model.json`` beside ``model.pt``: what sampling must know beside the weights.

    Args:
        output_dir: where the file goes.
        cohort: the training cohort.
        entries: what else, as plain data: the network's arguments, how labels become channels, ...
    """

    def __init__(self, output_dir: str | Path, cohort: Cohort, entries: Mapping[str, Any]) -> None:
        self.path = Path(output_dir) / CARD
        self.content = {
            "medpair_version": __version__,
            "cohort": cohort.to_json(),
            **plain(dict(entries)),
        }

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if is_main_rank():
            engine.add_event_handler(Events.STARTED, lambda: write_json(self.path, self.content))


class StartFrom:
    """Load weights before the first step (fine-tuning); layers that do not fit stay as drawn.

    Args:
        network: takes the weights.
        path: a ``model.pt``; None does nothing.

    Raises:
        DataError: if nothing in the file fits the network.
    """

    def __init__(self, network: nn.Module, path: str | Path | None) -> None:
        self.network = network
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, before the checkpoint: resuming replaces these weights."""
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Engine) -> None:
        if self.path is None:
            return
        given = load_torch(self.path)
        own = self.network.state_dict()
        fits = {
            key: value
            for key, value in given.items()
            if key in own and own[key].shape == value.shape
        }
        left = sorted(set(own) - set(fits))
        if not fits:
            raise DataError(f"{self.path}: expected weights of this network, found none that fit")
        self.network.load_state_dict({**own, **fits})
        logger.info("%s: %d tensors loaded, not loaded: %s", self.path, len(fits), left or "none")


def plain(value: Any) -> Any:
    """Return ``value`` with tuples as lists and paths as text, as it is after loading."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
