"""The vectors that a center works on: checks of them, and the blocks that they are worked on in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Elements of a block. At 256 KiB a vector, what a rule reads and writes still fits the caches, NumPy's cost
# of a call is small beside its work, and from here on NumPy reuses the temporaries of an expression.
BLOCK = 65_536


def vector(name: str, value: np.ndarray, length: int | None = None) -> np.ndarray:
    """Returns `value` if it is a float32 vector that MPI can read in place, of `length` elements if given."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        received = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name} must be a NumPy vector of float32. Received: {received}")
    if value.ndim != 1 or not value.flags.c_contiguous or value.size == 0:
        raise ValueError(
            f"{name} must be one contiguous vector that is not empty. "
            f"Received: shape {value.shape}, strides {value.strides}"
        )
    if length is not None and value.size != length:
        raise ValueError(f"{name} must have the center's {length} elements. Received: {value.size}")
    return value


def check_operands(local: np.ndarray, vectors: Sequence[np.ndarray], length: int) -> None:
    """Raises as `vector` does for what an exchange takes from its rank."""
    vector("local", local, length)
    for number, value in enumerate(vectors):
        vector(f"vector {number}", value, length)


def destination(out: np.ndarray | None, length: int) -> np.ndarray:
    """Returns `out`, checked, or a new vector."""
    if out is None:
        return np.empty(length, np.float32)
    if not vector("out", out, length).flags.writeable:
        raise ValueError("out must be writeable. Received: a read-only vector")
    return out


def blocks(start: int, stop: int, size: int = BLOCK) -> list[slice]:
    """Cuts the elements from `start` to `stop` into slices of at most `size`."""
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def read_only(values: np.ndarray) -> np.ndarray:
    """Returns a view that can't be written to: a rule that works in place must not change the center."""
    view = values.view()
    view.flags.writeable = False
    return view


def checked(results: Sequence[np.ndarray], count: int, shape: tuple[int]) -> Sequence[np.ndarray]:
    """Returns what a rule returned; NumPy would spread a scalar or a wrong shape over the vector silently."""
    if len(results) != count or any(result.shape != shape for result in results):
        shapes = [np.shape(result) for result in results]
        raise ValueError(f"a rule must return {count} vectors of shape {shape} here. Received: {shapes}")
    return results
