"""Integers that a float rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hvdkeras.data.columns import Column
from hvdkeras.data.raw import is_list, plain_type, ragged_values
from hvdkeras.naming import listed

logger = logging.getLogger("hvdkeras")


def is_rounded(column: Column, raw: pa.Array | np.ndarray | Sequence[Any], stored: Any) -> bool:
    """Returns whether a block of integers has some that the float which stores them does not hold.

    Args:
        column: what the model requires.
        raw: rows of the data.
        stored: the same rows as they are stored; None where they have problems.
    """
    if stored is None or column.encoded or column.is_string or np.dtype(column.dtype).kind != "f":
        return False
    if not _has_integers(raw):
        return False
    if isinstance(stored, pa.Array):
        stored = np.frombuffer(stored.buffers()[2] or b"", column.dtype)
    exact_to = 2 ** (np.finfo(column.dtype).nmant + 1)
    if not stored.size or max(stored.max(), -stored.min()) < exact_to:
        return False
    values = _numbers(raw)
    if values.dtype.kind not in "iu":
        return False
    return bool((values.astype(column.dtype).astype(values.dtype) != values).any())


def _has_integers(raw: pa.Array | np.ndarray | Sequence[Any]) -> bool:
    """Whether rows can hold integers, by their types alone: most columns have none, and are not searched."""
    if isinstance(raw, pa.Array):
        kind = plain_type(raw.type)
        while is_list(kind):
            kind = kind.value_type
        return pa.types.is_integer(kind)
    return not isinstance(raw, np.ndarray) or raw.dtype.kind in "iu"


def _numbers(raw: pa.Array | np.ndarray | Sequence[Any]) -> np.ndarray:
    if isinstance(raw, pa.Array):
        return ragged_values(raw)[0]
    return raw if isinstance(raw, np.ndarray) else np.concatenate([np.ravel(row) for row in raw])


def warn(names: Iterable[str]) -> None:
    """Warns of columns whose integers are rounded."""
    if names := sorted(names):
        logger.warning(
            "integers of %s are rounded, because the floats of the model's Input don't hold them all "
            "(float32 holds them up to %d): give the model an Input of integers, "
            "or scale or index the column",
            listed(map(repr, names)),
            2**24,
        )
