"""The exchange of the rows that are not at rest, after every communication window."""

from __future__ import annotations

import numpy as np

from hvdkeras.algorithm import Algorithm, State
from hvdkeras.callbacks.exchange import Exchange
from hvdkeras.callbacks.position import Position
from hvdkeras.center.tables import TableCenter
from hvdkeras.models.tables import Selection
from hvdkeras.models.touched import RowWeights


class RowExchange(Exchange):
    """As `Exchange`, with compact vectors: the rows of tables that are not at rest, and all other weights.

    Args:
        algorithm: what is called; its exchange settles.
        center: the center variable.
        weights: the rank's trainable weights.
        position: how far the rank is.
        state: as of `Exchange`.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        center: TableCenter,
        weights: RowWeights,
        position: Position,
        state: State,
    ) -> None:
        super().__init__(algorithm, center, weights, position, state)
        self._own: dict[str, np.ndarray] = {}

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        selection = self._selection()
        size = selection.layout.size
        state = {name: selection.gathered(v) if is_whole(v, size) else v for name, v in self.state.items()}
        local, state = self._algorithm.exchange(
            self._weights.read(selection), self._center.at(selection), state, self._position.window_steps
        )
        self._weights.write(selection, local)
        self.state = {name: self._whole(name, value, selection) for name, value in state.items()}

    def distance(self) -> float:
        """Returns how far the rank's weights are from the center; those at rest are equal to it."""
        selection = self._selection()
        center = self._center.at(selection).values()
        return float(np.linalg.norm(self._weights.read(selection) - center))

    def _selection(self) -> Selection:
        """The rows that this rank or another one has changed since the exchange before."""
        chosen = []
        for number, touched in enumerate(self._weights.touched):
            rows = touched.rows()
            if rows is not None:
                rows = np.flatnonzero(rows | self._center.changed(number))
            is_few = rows is not None and rows.size <= self._center.row_limit(number)
            chosen.append(rows if is_few else None)
        return Selection(self._center.layout, chosen)

    def _whole(self, name: str, value: object, selection: Selection) -> object:
        """The state of the whole vector, of which an exchange has changed the selected elements."""
        if selection.is_whole or not is_whole(value, selection.size):
            self._own.pop(name, None)
            return value
        # TensorFlow's variables may use the memory of what an algorithm returned: only a copy is written to.
        if name not in self._own:
            self._own[name] = self.state[name].copy()
        selection.scatter(value, self._own[name])
        return self._own[name]


def is_whole(value: object, size: int) -> bool:
    """Returns whether a value of a rule's state is a vector with an element for each weight."""
    return isinstance(value, np.ndarray) and value.shape == (size,)
