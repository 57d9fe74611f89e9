"""JSON for machines: one document on standard output, with numbers as numbers and null where nothing is known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def print_document(document: Mapping[str, Any]) -> None:
    """Prints a document in UTF-8-safe JSON: every character that is not ASCII is escaped."""
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):  # numpy's float64 is one, and JSON has neither NaN nor infinity
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return value.item() if hasattr(value, "item") else str(value)
