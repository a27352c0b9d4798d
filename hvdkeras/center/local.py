"""A center in plain NumPy, for one process without MPI: to try and test an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hvdkeras.center.contents import Contents
from hvdkeras.center.vectors import apply_rule, check_operands, destination, first_slots, vector


class LocalCenter:
    """A center that one worker exchanges with, with the verbs of the real ones::

        center = LocalCenter(vector)
        local, state = trainer.exchange(local, center, trainer.begin(center.pull()), steps)

    Several workers of an asynchronous algorithm may share one center: each calls the verbs in its turn. The
    center does not know which worker calls, so it can't count staleness.

    Args:
        initial: vector of shape `(n,)`, float32, that the center starts from.
        slots: number of vectors beside the center, which start with zeros; or their first values, shape
            `(slots, n)`, float32.

    Attributes:
        size: number of ranks that share the center: 1.
    """

    size = 1

    def __init__(self, initial: np.ndarray, slots: int | np.ndarray = 0):
        vector("initial", initial)
        self._held = np.vstack([initial, first_slots(slots, initial.size)])

    def pull(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns a copy of the center, shape `(n,)`, in `out` if given."""
        out = destination(out, self._held.shape[1])
        np.copyto(out, self._held[0])
        return out

    def contents(self) -> Contents:
        """Returns a copy of the center and its slots."""
        return Contents(self._held[0].copy(), self._held[1:].copy())

    def push(self, update: np.ndarray) -> None:
        """Adds `update`, shape `(n,)`, to the center."""
        self._held[0] += vector("update", update, self._held.shape[1])

    def exchange(
        self,
        rule: Callable[..., Sequence[np.ndarray]],
        local: np.ndarray,
        *vectors: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Applies `rule` to the local vector and the center.

        Args:
            rule: rule(local, center, *slots, *vectors) -> (kept, push, *slot_pushes), see `hvdkeras.center`.
            local: the worker's vector, shape `(n,)`. It is not changed, unless it is `out` too.
            *vectors: more vectors of shape `(n,)` for the rule.
            out: where the kept vector goes; a new array by default.

        Returns:
            The vector that the worker keeps, shape `(n,)`.
        """
        length = self._held.shape[1]
        check_operands(local, vectors, length)
        out = destination(out, length)
        apply_rule(rule, (local, *vectors), self._held, slice(0, length), out)
        return out

    def staleness(self) -> int:
        """Returns 0: no other rank pushes to this center."""
        return 0
