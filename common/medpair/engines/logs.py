"""What a training run tells while it runs: numbers, pictures, time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm

from medpair.data.files import append_jsonl, atomic_path
from medpair.data.patches import crop_box
from medpair.engines.board import Board
from medpair.engines.checkpoint import remember
from medpair.engines.distributed import is_main_rank
from medpair.engines.jsonl import keep_records, whole_records
from medpair.report.preview import picture_of, save_png

METRICS = "metrics.jsonl"


class MetricsLog:
    """Write the trainer's output to ``metrics.jsonl`` and TensorBoard, and show a progress bar.

    Every ``interval`` iterations one line with the means since the last line, without values that
    are not finite; ``bad_steps`` counts the iterations that had such. When a run goes on from a
    checkpoint, lines after it are dropped: they will be written again. A TensorBoard folder that
    cannot be written is warned of, once.

    Args:
        output_dir: where the files go.
        interval: iterations between lines.
        keys: entries of the trainer's output to log; default all numbers.
        progress: show the bar.
    """

    def __init__(
        self,
        output_dir: str | Path,
        interval: int = 20,
        keys: Sequence[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.folder = Path(output_dir)
        self.path = self.folder / METRICS
        self.interval = interval
        self.keys = keys
        self.progress = progress
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.count = self.bad = 0
        self.board: Board | None = None
        self.bar: Any = None
        self.since = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer; attach after the checkpoint, which sets the iteration."""
        if not is_main_rank():
            return
        remember(engine, "metrics_log", self)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def state_dict(self) -> dict[str, Any]:
        """Return what is summed up since the last line."""
        counts = {"counts": dict(self.counts), "count": self.count, "bad": self.bad}
        return {"sums": dict(self.sums), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of ``state_dict``."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.count, self.bad = int(state["count"]), int(state["bad"])

    def _start(self, engine: Any) -> None:
        iteration = engine.state.iteration
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            records = whole_records(self.path)
            keep_records(self.path, [r for r in records if r.get("iteration", 0) <= iteration])
        self.board = Board(self.folder / "tensorboard", purge_step=iteration + 1)
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=engine.state.max_epochs * engine.state.epoch_length,
            initial=iteration,
            unit="step",
            disable=not self.progress,
            mininterval=0.5 if terminal else 20.0,
            dynamic_ncols=terminal,
        )
        self.since = time.monotonic()

    def _iteration(self, engine: Any) -> None:
        output = engine.state.output
        output = output[0] if isinstance(output, list) else output
        bad = False
        for key, value in output.items():
            if self.keys is not None and key not in self.keys:
                continue
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, (int, float)) and math.isfinite(value):
                name = str(key)  # MONAI's keys are enumerations, which no checkpoint may hold
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
                self.counts[name] = self.counts.get(name, 0) + 1
            elif isinstance(value, float):
                bad = True
        self.count += 1
        self.bad += bad
        self.bar.update(1)
        iteration = engine.state.iteration
        last = iteration == engine.state.max_epochs * engine.state.epoch_length
        if iteration % self.interval == 0 or last:
            self._flush(engine)

    def _flush(self, engine: Any) -> None:
        means = {key: total / self.counts.get(key, self.count) for key, total in self.sums.items()}
        now = time.monotonic()
        record: dict[str, Any] = {
            "iteration": engine.state.iteration,
            "epoch": engine.state.epoch,
            "seconds_per_iteration": (now - self.since) / self.count,
            **({"bad_steps": self.bad} if self.bad else {}),
            **means,
        }
        append_jsonl(self.path, record)
        assert self.board is not None
        for key, value in means.items():
            self.board.add_scalar(f"train/{key}", value, engine.state.iteration)
        self.bar.set_postfix({key: f"{value:.3g}" for key, value in list(means.items())[:4]})
        self.sums, self.counts, self.since = {}, {}, now
        self.count = self.bad = 0

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()


class ValidationLog:
    """Append the evaluator's metrics to ``validation.jsonl``.

    Lines of this epoch and later ones, which a run that was interrupted or begins anew has left,
    are replaced.

    Args:
        output_dir: where the file goes.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.path = Path(output_dir) / "validation.jsonl"

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that a ``ValidationHandler`` runs."""
        if is_main_rank():
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Any) -> None:
        # the handler numbers the evaluator's epochs by the trainer's
        numbers = {key: float(value) for key, value in engine.state.metrics.items()}
        # JSON has no NaN, which the Dice of an absent class is
        metrics = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        lines = whole_records(self.path) if self.path.exists() else []
        earlier = [line for line in lines if line["epoch"] < engine.state.epoch]
        keep_records(self.path, [*earlier, {"epoch": engine.state.epoch, **metrics}])


class ExamplePairs:
    """Every ``interval`` epochs, draw a few pairs from fixed latents as a picture.

    Goes to ``samples/epoch_NNNN.png`` in ``output_dir`` and to TensorBoard.

    Args:
        output_dir: where the pictures go.
        interval: epochs between pictures.
        count: pairs in a picture.
        seed: of the latents.
        sizes: sizes of the training volumes; pairs are cropped to the median, as sampling crops
            them to one of the sizes (what lies outside was never judged by the critic).
    """

    def __init__(
        self,
        output_dir: str | Path,
        interval: int = 1,
        count: int = 4,
        seed: int = 0,
        sizes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.size = None if sizes is None else [int(n) for n in np.median(sizes, axis=0)]
        self.interval = interval
        self.count = count
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a ``WGANTrainer``."""
        if is_main_rank():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._draw)

    def _draw(self, engine: Any) -> None:
        network = engine.averaged.network
        generator = torch.Generator().manual_seed(self.seed)
        latent = torch.randn(self.count, network.latent_size, generator=generator)
        with torch.no_grad():
            pair = network(latent.to(engine.state.device)).float().cpu()
        if self.size is not None:
            box = crop_box(self.size, pair.shape[2:])
            pair = pair[(slice(None), slice(None), *box)]
        label = engine.label_channels.decode(pair[:, 1:])
        rows = [(pair[i, 0].numpy(), label[i, 0].numpy(), "") for i in range(len(pair))]
        picture = picture_of(rows)
        path = self.folder / "samples" / f"epoch_{engine.state.epoch:04d}.png"
        with atomic_path(path) as partial:
            save_png(partial, picture)
        board = Board(self.folder / "tensorboard")
        board.add_image("pairs", picture, engine.state.iteration)
        board.close()
