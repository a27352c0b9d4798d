"""What a center holds, as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Contents:
    """A copy of a center and its slots.

    Attributes:
        center: the center, shape `(n,)`, float32.
        slots: the vectors beside it, shape `(slots, n)`, float32.
    """

    center: np.ndarray
    slots: np.ndarray
