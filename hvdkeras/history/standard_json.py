"""JSON that any parser reads: its numbers are finite.

NaN and the infinities are written as `{"float": "nan"}`, `{"float": "inf"}` and `{"float": "-inf"}`.
"""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Returns dicts, lists, tuples, numbers and strings as JSON; tuples become lists."""
    return json.dumps(_finite(value), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Returns what `dumps` was given.

    Raises:
        ValueError: if `text` is not JSON.
    """
    return _with_floats(json.loads(text))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _with_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"float"} and isinstance(value["float"], str):
            return float(value["float"])
        return {name: _with_floats(item) for name, item in value.items()}
    return value
