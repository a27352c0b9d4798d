"""Ranks that must end with the same weights, and what they do if they have not."""

from __future__ import annotations

import logging

import numpy as np
from mpi4py import MPI

from hvdkeras.mpi.collectives import broadcast, gathered

logger = logging.getLogger("hvdkeras")

# Of the weights' norm. Sums in another order, as with another number of threads, differ by less.
TOLERANCE = 1e-3


def check_agreement(comm: MPI.Comm, weights: np.ndarray, timeout: float, what: str) -> None:
    """Compares the ranks' weights after a training in which all should have the same.

    Differences of rounding are warned of, once, by rank 0.

    Args:
        comm: the ranks.
        weights: this rank's, shape `(n,)`, float32.
        timeout: seconds that a rank waits for the others.
        what: what the weights are, for the messages.

    Raises:
        RuntimeError: on every rank, naming those whose weights are further from rank 0's than rounding.
    """
    if comm.size == 1:
        return
    first = broadcast(comm, np.array(weights), timeout, f"{what} of rank 0")
    distance = 0.0
    if first.tobytes() != weights.tobytes():
        distance = float(np.linalg.norm(weights - first) / max(float(np.linalg.norm(first)), 1e-30))
    distances = gathered(comm, np.array(distance), timeout, f"{what} of the other ranks")
    apart = [rank for rank, other in enumerate(distances) if not other <= TOLERANCE]
    if apart:
        raise RuntimeError(
            f"{what} must be the same on all ranks after a synchronous training: a step of the model has "
            f"changed them without the other ranks. Received: ranks {apart} differ from rank 0, by "
            f"{[float(f'{distances[rank]:.3g}') for rank in apart]} of its norm"
        )
    if comm.rank == 0 and distances.any():
        logger.warning("%s differ between ranks by rounding, %.2g of their norm", what, distances.max())
