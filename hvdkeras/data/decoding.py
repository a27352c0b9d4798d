"""Bytes of the data turned into the arrays that the model wants, on a rank, ahead of its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from hvdkeras.data.columns import Column, DataError, convert
from hvdkeras.data.encoded import Encoded
from hvdkeras.data.parts import describe
from hvdkeras.data.rows import Rows, aligned
from hvdkeras.data.shards import Shards

Decoder = Callable[[bytes], np.ndarray]


class DecodedRows:
    """A rank's rows with arrays in the place of bytes; to who reads blocks it looks like `Rows`.

    A block is decoded by several threads, while the block before it trains.

    Args:
        rows: The rank's rows.
        decode: For the name of each encoded column the function from a row's bytes to its array. It is called
            by several threads at once.
        threads: How many. More than one help as far as the decoder gives up Python's lock, as Pillow's does
            for the pixels alone.

    Attributes:
        columns: The columns as the blocks have them.
        rows: As of `Rows`.
        steps: As of `Rows`.
        block_steps: As of `Rows`.
        batch_sizes: As of `Rows`.
    """

    def __init__(self, rows: Rows, decode: Mapping[str, Decoder], threads: int) -> None:
        self.columns = tuple(replace(column, encoded=False) for column in rows.columns)
        self.rows, self.steps, self.batch_sizes = rows.rows, rows.steps, rows.batch_sizes
        self.block_steps = rows.block_steps
        self._source, self._decode, self._threads = rows, dict(decode), threads
        self._pool = ThreadPoolExecutor(threads, "decode")

    def block(self, epoch: int, step: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Returns the block of `Rows.block`, decoded.

        Raises:
            DataError: A row can't be decoded, or to something else than the model wants.
        """
        columns, sizes = self._source.block(epoch, step)
        stored = dict(zip(self._source.columns, columns, strict=True))
        arrays = {
            column: self._decoded_column(column, values) if column.encoded else values
            for column, values in stored.items()
        }
        return tuple(arrays[column] for column in self._source.columns), sizes

    batches = Rows.batches

    def _decoded_column(self, column: Column, values: np.ndarray) -> np.ndarray:
        out = aligned((len(values), *column.shape), column.dtype)

        def decode(part: slice) -> None:
            out[part] = self._stacked(column, values[part])

        cuts = np.linspace(0, len(values), min(self._threads, len(values)) + 1).astype(int).tolist()
        # Reading the results raises what the threads did.
        list(self._pool.map(decode, map(slice, cuts, cuts[1:])))
        return out

    def _stacked(self, column: Column, values: np.ndarray) -> np.ndarray:
        """Rows of an encoded column, decoded, shape (k, *shape)."""
        function, wanted = self._decode[column.name], replace(column, encoded=False)
        decoded = np.stack([_decoded(function, wanted, value) for value in values])
        array, problems = convert(wanted, decoded)
        if problems:
            found = (describe(replace(one, row=values[one.row].row)) for one in problems)
            raise DataError(
                f"column {column.name!r} must be decoded to {wanted.wish}. Received: {', '.join(found)}"
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
    # Not by the number of values, as plain columns are: channels in the wrong place would pass.
    shapes = (column.shape, column.shape[:-1]) if column.one_hot else (column.shape,)
    if array.shape not in shapes or array.dtype.kind not in "fiub":
        raise DataError(
            f"column {column.name!r} must be decoded to numbers of shape {' or '.join(map(str, shapes))}, "
            f"for {column.dtype}. Received: shape {array.shape}, {array.dtype}, from {place}"
        )
    return array


AnyRows = Rows | DecodedRows


def check_decode(shards: Shards, decode: Mapping[str, Decoder]) -> None:
    """Decodes the data's first row, so that a decoder that does not fit is found before anything starts.

    Raises:
        DataError: It can't be decoded, or to something else than the model wants.
    """
    # As many ranks as rows: the first one copies no more than this row from a remote store.
    first = Rows(shards, 0, shards.rows, 1, seed=0)
    DecodedRows(first, decode, 1).block(0, 0)
