"""The vector of a model's weights with its tables: variables of many rows, of which a step changes few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Fewer elements than these are exchanged sooner than their rows are listed.
SMALLEST = 1 << 20

# Above this part of its rows a table is exchanged whole: copies of single rows cost twice as much.
LARGEST_PART = 0.5


@dataclass(frozen=True)
class Table:
    """A variable of which single rows are exchanged.

    Attributes:
        start: its first element in the vector.
        rows: how many it has.
        width: elements of a row.
    """

    start: int
    rows: int
    width: int

    @property
    def elements(self) -> slice:
        """Its elements in the vector."""
        return slice(self.start, self.start + self.rows * self.width)


@dataclass(frozen=True)
class Layout:
    """Where the tables are in a vector.

    Attributes:
        size: elements of the vector.
        tables: in the order of their elements.
    """

    size: int
    tables: tuple[Table, ...]

    @property
    def others(self) -> list[slice]:
        """The elements in no table, run by run; they are always exchanged."""
        ends = [0, *(table.elements.stop for table in self.tables)]
        starts = [*(table.start for table in self.tables), self.size]
        return [slice(first, last) for first, last in zip(ends, starts, strict=True) if first < last]


class Selection:
    """Some rows of the tables, and all other elements: what is exchanged.

    They make up a compact vector, in the order of the whole one.

    Args:
        layout: where the tables are.
        rows: of each table the selected rows, ascending; None for all.

    Attributes:
        layout: as the argument.
        rows: as the argument, with None for more than `LARGEST_PART` of a table.
        size: elements of the compact vector.
        is_whole: whether all elements are selected: then the compact vector is the whole one.
        tables: the elements of each table in the compact vector.
        others: the other elements in the compact vector, a slice for each one of `Layout.others`.
    """

    def __init__(self, layout: Layout, rows: Sequence[np.ndarray | None]) -> None:
        self.layout = layout
        self.rows = [
            None if chosen is None or chosen.size > LARGEST_PART * table.rows else chosen
            for table, chosen in zip(layout.tables, rows, strict=True)
        ]
        self.is_whole = all(chosen is None for chosen in self.rows)
        self.tables: list[slice] = []
        self.others: list[slice] = []
        place = end = 0
        for table, chosen in zip(layout.tables, self.rows, strict=True):
            place = self._add_others(place, table.start - end)
            length = table.width * (table.rows if chosen is None else chosen.size)
            self.tables.append(slice(place, place + length))
            place, end = place + length, table.elements.stop
        self.size = self._add_others(place, layout.size - end)

    def gathered(self, vector: np.ndarray) -> np.ndarray:
        """Returns the compact vector of a whole one: `vector` itself where all is selected."""
        if self.is_whole:
            return vector
        compact = np.empty(self.size, vector.dtype)
        for ours, theirs in zip(self.others, self.layout.others, strict=True):
            compact[ours] = vector[theirs]
        for table, chosen, ours in self._selected():
            values = vector[table.elements].reshape(table.rows, table.width)
            compact[ours] = (values if chosen is None else values[chosen]).reshape(-1)
        return compact

    def scatter(self, compact: np.ndarray, vector: np.ndarray) -> None:
        """Writes a compact vector into a whole one, in place."""
        for ours, theirs in zip(self.others, self.layout.others, strict=True):
            vector[theirs] = compact[ours]
        for table, chosen, ours in self._selected():
            values = vector[table.elements].reshape(table.rows, table.width)
            values[slice(None) if chosen is None else chosen] = compact[ours].reshape(-1, table.width)

    def _selected(self) -> Any:
        return zip(self.layout.tables, self.rows, self.tables, strict=True)

    def _add_others(self, place: int, length: int) -> int:
        if length:
            self.others.append(slice(place, place + length))
        return place + length


def tables_of(model: Any) -> Layout:
    """Returns the layout of a model's trainable weights: its large embeddings are the tables.

    Variables of other layers are exchanged whole, though their gradient may be sparse, too. So are those that
    are not float32: the rank's weights are rounded then, and differ from the center after an exchange.
    """
    import keras

    embeddings = {
        id(variable)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
        for variable in layer.trainable_variables
    }
    tables, place = [], 0
    for variable in model.trainable_variables:
        size = int(np.prod(variable.shape, dtype=np.int64))
        is_float = str(variable.dtype) == "float32"
        if id(variable) in embeddings and is_float and len(variable.shape) == 2 and size >= SMALLEST:
            tables.append(Table(place, *map(int, variable.shape)))
        place += size
    layout = Layout(place, tuple(tables))
    # A center has at least one element outside the tables.
    return layout if layout.others else Layout(place, ())
