"""The vectors that a center works on: their checks, their blocks, and the application of a rule to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Elements of a block. At 256 KiB a vector, what a rule reads and writes still fits the caches, NumPy's cost
# of a call is small beside its work, and from this size on NumPy reuses the temporaries of an expression.
BLOCK = 65_536


def vector(name: str, value: np.ndarray, length: int | None = None) -> np.ndarray:
    """Checks that an argument is a float32 vector that MPI can read in place.

    Args:
        name: the argument's name, for the error.
        value: the argument.
        length: the number of elements that it must have; None for any.

    Returns:
        `value`.

    Raises:
        TypeError: `value` is not a NumPy array of float32.
        ValueError: `value` is not one contiguous vector of `length` elements.
    """
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


def first_slots(slots: int | np.ndarray, length: int) -> np.ndarray:
    """Returns the first values of a center's slots.

    Args:
        slots: the number of slots, which then start with zeros; or their values, shape `(slots, n)`, float32.
        length: n, the center's elements.

    Returns:
        The values, shape `(slots, n)`, float32.

    Raises:
        TypeError: the values are not float32.
        ValueError: the number is negative, or the values have another shape or are not contiguous.
    """
    if isinstance(slots, np.ndarray):
        if slots.dtype != np.float32:
            raise TypeError(f"slots must be a NumPy array of float32. Received: {slots.dtype}")
        if slots.ndim != 2 or slots.shape[1] != length or not slots.flags.c_contiguous:
            raise ValueError(
                f"slots must be one contiguous array of shape (slots, {length}). "
                f"Received: shape {slots.shape}, strides {slots.strides}"
            )
        return slots
    if slots < 0:
        raise ValueError(f"slots must not be negative. Received: {slots}")
    return np.zeros((slots, length), np.float32)


def check_operands(local: np.ndarray, vectors: Sequence[np.ndarray], length: int) -> None:
    """Raises as `vector` does for the arguments of an exchange."""
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


def results_of(
    rule: Callable[..., Sequence[np.ndarray]],
    vectors: Sequence[np.ndarray],
    held: np.ndarray,
    piece: slice,
) -> Iterator[tuple[slice, np.ndarray, Sequence[np.ndarray]]]:
    """Applies a rule to a piece of a center, block by block.

    Args:
        rule: rule(local, center, *slots, *vectors) -> (kept, push, *slot_pushes), see `hvdkeras.center`.
        vectors: the local vector and the rule's further vectors, each of shape `(n,)`.
        held: the center and its slots at the elements of `piece`, shape `(1 + slots, k)`.
        piece: the k elements, as a slice of the n.

    Yields:
        The elements of a block, as a slice of the n; what the rank keeps there; the pushes of the center and
        its slots.
    """
    for block in blocks(piece.start, piece.stop):
        parts = held[:, block.start - piece.start : block.stop - piece.start]
        local, *more = (values[block] for values in vectors)
        kept, *pushes = checked(rule(local, *map(read_only, parts), *more), 1 + len(held), local.shape)
        yield block, kept, pushes


def apply_rule(
    rule: Callable[..., Sequence[np.ndarray]],
    vectors: Sequence[np.ndarray],
    held: np.ndarray,
    piece: slice,
    out: np.ndarray,
) -> None:
    """Applies a rule to a piece of a center, whose pushes are added to it.

    Args:
        rule: as of `results_of`.
        vectors: as of `results_of`.
        held: as of `results_of`. The pushes are added to it.
        piece: as of `results_of`.
        out: vector of shape `(n,)` that gets what the rank keeps, at the elements of `piece`.
    """
    for block, kept, pushes in results_of(rule, vectors, held, piece):
        out[block] = kept
        parts = held[:, block.start - piece.start : block.stop - piece.start]
        for values, push in zip(parts, pushes, strict=True):
            values += push
