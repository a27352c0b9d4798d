"""Vectors in half precision, whose rounding errors are not lost."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from hvdkeras.center.vectors import blocks

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class Half:
    """Numbers of half precision, kept as uint16, which MPI can move.

    Args:
        dtype: `"float16"`, with 11 significant bits up to 65,504, or `"bfloat16"`, with 8 and the range of
            float32.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = DTYPES[dtype]
        self._largest = np.float32(ml_dtypes.finfo(self._dtype).max)

    def write(self, values: np.ndarray, out: np.ndarray) -> None:
        """Rounds float32 numbers into `out`, uint16. What is larger than the dtype's largest is cut off."""
        out.view(self._dtype)[:] = np.clip(values, -self._largest, self._largest)

    def read(self, halves: np.ndarray) -> np.ndarray:
        """Returns rounded numbers, uint16 of any shape, as float32."""
        return halves.view(self._dtype).astype(np.float32)


class Rounding:
    """Rounds one vector after the other; each gets the rounding error of the one before first.

    So the sum of all rounded vectors differs from the sum of the vectors by the error of the last one,
    whatever their number (error feedback: Seide et al. 2014, 1-Bit Stochastic Gradient Descent and its
    Application to Data-Parallel Distributed Training of Speech DNNs).

    Args:
        length: n, the elements of a vector.
        half: the half precision. What it cuts off is part of the error.
    """

    def __init__(self, length: int, half: Half) -> None:
        self._half = half
        self._error = np.zeros(length, np.float32)

    def __call__(self, values: np.ndarray, out: np.ndarray) -> None:
        """Rounds a vector.

        Args:
            values: shape `(n,)`, float32. It is not changed.
            out: where the rounded numbers go, shape `(n,)`, uint16.
        """
        for block in blocks(0, values.size):
            exact = values[block] + self._error[block]
            self._half.write(exact, out[block])
            np.subtract(exact, self._half.read(out[block]), out=self._error[block])
