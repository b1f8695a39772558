"""TensorBoard, which is welcome but not needed: a run goes on without it."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Board:
    """A TensorBoard folder; when it cannot be written, one warning, and no more of it.

    Args:
        folder: where the event files go.
        purge_step: first step whose earlier entries are void, when a run goes on.
    """

    def __init__(self, folder: str | Path, purge_step: int | None = None) -> None:
        self.folder = folder
        self.writer: SummaryWriter | None = None
        _quiet_threads()
        try:
            self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Add a point to a curve."""
        self._add("add_scalar", name, value, step)

    def add_image(self, name: str, picture: Any, step: int) -> None:
        """Add a picture (H, W, 3)."""
        self._add("add_image", name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._add("close")
        self.writer = None

    def _add(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(*args, **kwargs)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.writer = None
        logger.warning("%s: no TensorBoard: cannot be written: %s", self.folder, error)


def _quiet_threads() -> None:
    """Keep the traceback of TensorBoard's own thread back: its error is reported by ``Board``."""
    previous = threading.excepthook
    if getattr(previous, "of_board", False):
        return

    def hook(args: threading.ExceptHookArgs) -> None:
        ours = type(args.thread).__module__.startswith("tensorboard")
        if not (ours and isinstance(args.exc_value, OSError)):
            previous(args)

    hook.of_board = True  # type: ignore[attr-defined]
    threading.excepthook = hook
