"""Files of JSON lines that may have been cut off in the middle of a line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from medpair.data.files import write_text

logger = logging.getLogger(__name__)


def whole_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without lines that a killed writer left torn."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:  # bad JSON or bad UTF-8
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            logger.warning("%s: line %d is torn, and dropped", path, number)
    return records


def keep_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the records back, one per line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
