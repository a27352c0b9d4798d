"""The weights of a model of which only the rows that changed are read and written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hvdkeras.models.tables import Layout, Selection
from hvdkeras.models.vector import FlatWeights

# All ways in which a TensorFlow variable changes, but for raw operations on its handle.
ROW_CHANGES = tuple(f"scatter_{name}" for name in ("add", "sub", "update", "mul", "div", "max", "min"))
OTHER_CHANGES = (
    *("assign", "assign_add", "assign_sub", "batch_scatter_update", "_strided_slice_assign"),
    *(f"scatter_nd_{name}" for name in ("add", "sub", "update", "max", "min")),
)


class Touched:
    """Records which rows of a TensorFlow variable an optimizer, a layer or a callback changes.

    It takes the place of the variable's own methods. What is recorded becomes a part of the graph that a
    change is in, so that it must be made before Keras traces the training step.

    Args:
        variable: of shape `(rows, width)`.
    """

    def __init__(self, variable: Any) -> None:
        import tensorflow as tf

        self._rows = int(variable.shape[0])
        # One more for a change of the whole variable.
        self.flags = tf.Variable(tf.zeros(self._rows + 1, tf.bool), trainable=False, name="touched")
        for name in ROW_CHANGES:
            self._record(variable, name, self._of_rows)
        for name in OTHER_CHANGES:
            self._record(variable, name, self._of_all)

    def rows(self) -> np.ndarray | None:
        """Returns for each row whether it has changed, shape `(rows,)`, bool; None where all may have."""
        flags = self.flags.numpy()
        return None if flags[-1] else flags[:-1]

    def clear(self, rows: Any = None) -> None:
        """Forgets the changes of these rows, or of all; in a graph, too."""
        import tensorflow as tf

        if rows is None:
            self.flags.assign(tf.zeros(self._rows + 1, tf.bool))
        else:
            self._set(rows, False)

    def _record(self, variable: Any, name: str, record: Callable) -> None:
        change = getattr(variable, name)

        def recorded(*arguments: Any, **keywords: Any) -> Any:
            record(*arguments, **keywords)
            return change(*arguments, **keywords)

        setattr(variable, name, recorded)

    def _of_rows(self, sparse_delta: Any, *_: Any, **__: Any) -> None:
        self._set(sparse_delta.indices, True)

    def _of_all(self, *_: Any, **__: Any) -> None:
        self._set([self._rows], True)

    def _set(self, rows: Any, flag: bool) -> None:
        import tensorflow as tf

        # TensorFlow has this operation of bool on GPUs for 32-bit indices alone.
        rows = tf.cast(rows, tf.int32)
        self.flags.scatter_update(tf.IndexedSlices(tf.fill(tf.shape(rows), flag), rows))


class RowWeights:
    """A model's weights, read and written where they are selected.

    Args:
        variables: the trainable Keras variables.
        weights: the same as one vector.
        layout: which of the variables are tables.
    """

    def __init__(self, variables: Sequence[Any], weights: FlatWeights, layout: Layout) -> None:
        import tensorflow as tf

        values = [variable.value for variable in variables]
        starts = np.cumsum([0, *(int(np.prod(value.shape)) for value in values)]).tolist()
        numbers = {table.start: number for number, table in enumerate(layout.tables)}
        self._weights = weights
        self.touched = [Touched(values[starts.index(table.start)]) for table in layout.tables]
        parts = [(value, numbers.get(start)) for value, start in zip(values, starts, strict=False)]
        row_numbers = [tf.TensorSpec([None], tf.int64) for _ in layout.tables]

        @tf.function(input_signature=row_numbers)
        def read(*rows: tf.Tensor) -> tf.Tensor:
            selected = [value if n is None else tf.gather(value, rows[n]) for value, n in parts]
            return tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in selected], axis=0)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32), *row_numbers])
        def write(vector: tf.Tensor, *rows: tf.Tensor) -> None:
            place = 0
            for value, number in parts:
                shape = value.shape if number is None else [tf.size(rows[number]), value.shape[1]]
                size = value.shape.num_elements() if number is None else shape[0] * shape[1]
                new = tf.cast(tf.reshape(vector[place : place + size], shape), value.dtype)
                if number is None:
                    value.assign(new)
                else:
                    # Not by the variable's method, which would record it.
                    tf.raw_ops.ResourceScatterUpdate(resource=value.handle, indices=rows[number], updates=new)
                    self.touched[number].clear(rows[number])
                place += size

        self._read, self._write = read, write

    def read(self, selection: Selection) -> np.ndarray:
        """Returns the selected weights, shape `(selection.size,)`, float32; read-only."""
        if selection.is_whole:
            return self._weights.read()
        return np.frombuffer(memoryview(self._read(*_row_numbers(selection))), np.float32)

    def write(self, selection: Selection, compact: np.ndarray) -> None:
        """Sets the selected weights, whose changes are forgotten, from `compact`."""
        if compact.shape != (selection.size,):
            raise ValueError(f"vector must have the shape ({selection.size},). Received: {compact.shape}")
        if selection.is_whole:
            self._weights.write(compact)
        else:
            self._write(np.ascontiguousarray(compact, np.float32), *_row_numbers(selection))
        for touched, rows in zip(self.touched, selection.rows, strict=True):
            if rows is None:
                touched.clear()


def _row_numbers(selection: Selection) -> list[np.ndarray]:
    return [
        np.arange(table.rows) if rows is None else rows
        for table, rows in zip(selection.layout.tables, selection.rows, strict=True)
    ]
