"""Integers that float32 rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from hvdkeras.data.raw import is_list, plain_type
from hvdkeras.naming import listed

logger = logging.getLogger("hvdkeras")

# From here on float32 does not hold all integers: the next one becomes this one.
LARGEST = 2**24


def is_rounded(raw: pa.Array | np.ndarray, stored: pa.Array | np.ndarray) -> bool:
    """Returns whether a block of integers has some that are too large for the float32 that stores it."""
    if not isinstance(stored, np.ndarray) or stored.dtype != np.float32 or not stored.size:
        return False
    if isinstance(raw, np.ndarray):
        of_integers = raw.dtype.kind in "iu"
    else:
        kind = plain_type(raw.type)
        while is_list(kind):
            kind = kind.value_type
        of_integers = pa.types.is_integer(kind)
    return of_integers and max(stored.max(), -stored.min()) >= LARGEST


def warn(names: Iterable[str]) -> None:
    """Warns of columns whose integers are rounded."""
    if names := sorted(names):
        logger.warning(
            "float32 holds integers exactly up to %d only, and larger ones of %s are rounded: give the model "
            "an Input of integers, or scale or index the column",
            LARGEST,
            listed(map(repr, names)),
        )
