"""Entries of a ``dataset.json`` that other tools call otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def licence_of(content: Mapping[str, Any]) -> str:
    """Return the licence, by its British or its American name; empty where none is given."""
    return str(content.get("licence") or content.get("license") or "")


def channels_of(content: Mapping[str, Any]) -> Any:
    """Return ``channel_names``, or where there are none Decathlon's ``modality`` {number: name}."""
    channels, modality = content.get("channel_names"), content.get("modality")
    return modality if channels is None and isinstance(modality, dict) else channels
