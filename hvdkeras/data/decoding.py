"""The decoding of encoded columns: from bytes to the model's arrays, on a rank, ahead of its training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.conversion import convert
from hvdkeras.data.encoded import Encoded
from hvdkeras.data.parts import describe
from hvdkeras.data.rows import Rows, aligned
from hvdkeras.data.shards import Shards
from hvdkeras.data.vectors import Coordinates

Decoder = Callable[[bytes], np.ndarray]


class DecodedRows:
    """A rank's rows with decoded arrays in place of bytes. Its blocks are read as those of `Rows`.

    Several threads decode a block while the rank trains on the block before it.

    Args:
        rows: the rank's rows.
        decode: for the name of each encoded column, the function from a row's bytes to its array. Several
            threads call it at once.
        threads: number of threads. More than one are faster only while the decoder releases Python's lock;
            Pillow's releases it for the pixels.

    Attributes:
        columns: the columns as they are in the blocks.
        rows: as in `Rows`.
        steps: as in `Rows`.
        block_steps: as in `Rows`.
        batch_sizes: as in `Rows`.
    """

    def __init__(self, rows: Rows, decode: Mapping[str, Decoder], threads: int) -> None:
        self.columns = tuple(replace(column, encoded=False) for column in rows.columns)
        self.rows, self.steps, self.batch_sizes = rows.rows, rows.steps, rows.batch_sizes
        self.block_steps = rows.block_steps
        self._source, self._decode, self._threads = rows, dict(decode), threads
        self._pool = ThreadPoolExecutor(threads, "decode")

    def block(
        self, epoch: int, step: int, sparse: Collection[int] = ()
    ) -> tuple[tuple[np.ndarray | Coordinates, ...], np.ndarray]:
        """Returns the block of `Rows.block`, decoded.

        Raises:
            DataError: a row can't be decoded, or its array does not fit the model.
        """
        columns, sizes = self._source.block(epoch, step, sparse)
        stored = dict(zip(self._source.columns, columns, strict=True))
        arrays = {
            column: self._decoded_column(column, values) if column.encoded else values
            for column, values in stored.items()
        }
        return tuple(arrays[column] for column in self._source.columns), sizes

    def _decoded_column(self, column: Column, values: np.ndarray) -> np.ndarray:
        out = aligned((len(values), *column.shape), column.dtype)

        def decode(part: slice) -> None:
            out[part] = self._stacked(column, values[part])

        cuts = np.linspace(0, len(values), min(self._threads, len(values)) + 1).astype(int).tolist()
        # Reading the results raises the exceptions of the threads.
        list(self._pool.map(decode, map(slice, cuts, cuts[1:])))
        return out

    def _stacked(self, column: Column, values: np.ndarray) -> np.ndarray:
        """Returns rows of an encoded column, decoded, shape `(k, *shape)`."""
        function, wanted = self._decode[column.name], replace(column, encoded=False)
        decoded = np.stack([_decoded(function, wanted, value) for value in values])
        array, problems = convert(wanted, decoded)
        if problems:
            found = ", ".join(describe(replace(one, row=values[one.row].row)) for one in problems)
            raise DataError(
                f"column {column.name!r} must be decoded to {wanted.requirement}. Received: {found}"
            )
        return array


def _decoded(function: Decoder, column: Column, value: Encoded) -> np.ndarray:
    place = f"row {value.row} of the data ({len(value.data)} bytes)"
    try:
        array = np.asarray(function(bytes(value.data)))
    except Exception as error:
        raise DataError(
            f"column {column.name!r} can't be decoded in {place}: {type(error).__name__}: {error}"
        ) from error
    # The shape is checked, not only the number of values as in plain columns: it finds swapped axes.
    shapes = (column.shape, column.shape[:-1]) if column.one_hot else (column.shape,)
    if array.shape not in shapes or array.dtype.kind not in "fiub":
        raise DataError(
            f"column {column.name!r} must be decoded to numbers of shape {' or '.join(map(str, shapes))}, "
            f"for {column.dtype}. Received: shape {array.shape}, {array.dtype}, from {place}"
        )
    return array


def check_decode(shards: Shards, decode: Mapping[str, Decoder]) -> None:
    """Decodes the data's first row, so that a wrong decoder is found before the ranks start.

    Raises:
        DataError: the row can't be decoded, or its array does not fit the model.
    """
    # With as many ranks as rows, the first rank copies only this row from a remote store.
    first = Rows(shards, 0, shards.rows, 1, seed=0)
    DecodedRows(first, decode, 1).block(0, 0)
