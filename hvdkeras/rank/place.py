"""Which model a rank trains, and with which ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Place:
    """A rank's place in a training.

    Attributes:
        comm: the ranks that train one model together; only this rank for a member of an ensemble.
        threads: TensorFlow threads of this rank; rows are decoded in as many threads.
        member: the number of the ensemble's member; None without an ensemble.
    """

    comm: MPI.Comm
    threads: int
    member: int | None = None

    @property
    def number(self) -> int:
        """The number by which this model's random layers are seeded: the rank's, or the member's."""
        return self.comm.rank if self.member is None else self.member

    @property
    def log_name(self) -> str:
        """The name of this rank's TensorBoard logs."""
        return f"rank-{self.comm.rank}" if self.member is None else f"model-{self.member}"

    @property
    def center_log_name(self) -> str:
        """The name of the center's TensorBoard logs."""
        return "center" if self.member is None else f"center-{self.member}"
