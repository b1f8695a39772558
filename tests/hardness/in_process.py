"""The chain of bundles within one process, so that a signal meets whichever part is running."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
from fire.parser import DefaultParseValue

from medpair import chain


def run_bundles_here() -> None:
    """Let ``medpair generate`` run its bundles in this process instead of one each."""

    def run(command: list[str]) -> int:
        words = iter(command[4:])
        arguments = {key.removeprefix("--"): DefaultParseValue(next(words)) for key in words}
        meta = Path(arguments["bundle_root"]) / "configs" / "metadata.json"
        monai.bundle.run(logging_file=False, meta_file=str(meta), **arguments)
        return 0

    chain.run_to_the_end = run
