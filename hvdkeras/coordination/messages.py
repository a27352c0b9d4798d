"""Rounds: the occasions at which all ranks together look at the center, and save what they stand at.

A rank reports to rank 0 when it has come as far as the next round. When all have, rank 0 opens the round:
every rank evaluates the center on its part of the validation rows, or writes its part of a checkpoint, and
answers. Rank 0 adds the answers up and closes the round with a decision for all.

Asynchronous ranks don't wait for any of it: they look for messages at the end of each communication window.
Synchronous ones report at the same point of their training, and wait for the decision there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

from hvdkeras.mpi.collectives import duplicate
from hvdkeras.mpi.waiting import wait


@dataclass
class Report:
    """A rank has come as far as a round.

    Attributes:
        kind: `"look"` for a round that evaluates the center, `"save"` for one that only saves, `"final"` at
            the end of the rank's training; `"stop"` if the rank wishes to stop, `"begin"` at its start.
        progress: epochs of training behind the rank.
        other: the rank's averaged variables, shape `(m,)`.
        logs: Keras's logs of the rank's training, of the newest epoch or the running one.
        rows: rows that the rank trains on in an epoch: its weight in the mean of the logs.
    """

    kind: str
    progress: float
    other: np.ndarray
    logs: dict[str, float] = field(default_factory=dict)
    rows: int = 1


@dataclass
class Opening:
    """What all ranks do now.

    Attributes:
        look: evaluate the center.
        save: write what the rank stands at into the checkpoint of this number, if it is one.
        weights: the center to evaluate, shape `(n,)`; None where every rank has it.
        other: the mean of the ranks' averaged variables, shape `(m,)`.
    """

    look: bool
    save: int | None
    weights: np.ndarray | None
    other: np.ndarray


@dataclass
class Findings:
    """A rank has done its part.

    Attributes:
        sums: its metrics' totals, which add up over the ranks; None without validation rows of its own.
    """

    sums: np.ndarray | None


@dataclass
class Decision:
    """How a round ends.

    Attributes:
        stop: no rank trains any further.
        end: no round will follow.
        learning_rate: what a callback set it to, if one did.
        metrics: the center's, such as `val_loss`.
    """

    stop: bool = False
    end: bool = False
    learning_rate: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Chair(Protocol):
    """What rank 0 does in the name of all; see `hvdkeras.coordination.coordinator`."""

    def take(self, rank: int, message: Report | Findings) -> None: ...

    def proceed(self) -> Opening | Decision | None: ...


class Rounds:
    """A rank's part in the rounds.

    Args:
        comm: the ranks that train.
        take_part: does what an `Opening` asks for, and returns the rank's sums.
        chair: on rank 0, what leads the rounds; None on the others.
        timeout: seconds that a wait may take without any message.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        take_part: Callable[[Opening], np.ndarray | None],
        chair: Chair | None,
        timeout: float,
    ) -> None:
        self._post = Post(comm, timeout)
        self._size, self._take_part, self._chair, self._timeout = comm.size, take_part, chair, timeout

    def report(self, report: Report) -> None:
        """Tells rank 0 how far this rank has come."""
        self._post.send(0, report)

    def attend(self) -> Decision | None:
        """Does what has been asked for since the last call; returns the newest decision, if one came."""
        newest = None
        for source, message in self._post.arrived():
            if isinstance(message, Opening):
                self._post.send(0, Findings(self._take_part(message)))
            elif isinstance(message, Decision):
                newest = message
            else:
                self._chair.take(source, message)
        answer = self._chair.proceed() if self._chair else None
        if answer is not None:
            for rank in range(self._size):
                self._post.send(rank, answer)
        return newest

    def decision(self, wanted: Callable[[Decision], bool] = lambda decision: True) -> Decision:
        """Attends until a decision has come that is wanted, and returns it.

        Raises:
            TimeoutError: nothing has arrived for `timeout` seconds.
        """
        while True:
            received, before = None, self._post.received

            def moved(before: int = before) -> bool:
                nonlocal received
                received = self.attend()
                return received is not None or self._post.received > before

            wait(moved, self._timeout, "the other ranks to come as far, or rank 0 to decide")
            if received is not None and wanted(received):
                return received

    def leave(self) -> None:
        """Waits until all messages have arrived. All ranks call it, after the last decision."""
        self._post.close()


class Post:
    """Python objects as messages between ranks, sent and received without waiting.

    Args:
        comm: the ranks; messages on it don't meet those of others, because it is duplicated.
        timeout: seconds that `close` waits for the others.

    Attributes:
        received: how many messages have arrived.
    """

    def __init__(self, comm: MPI.Comm, timeout: float) -> None:
        self._comm, self._timeout = duplicate(comm, timeout, f"all {comm.size} ranks to begin"), timeout
        self._sending: list[MPI.Request] = []
        self._coming: list[tuple[int, MPI.Request]] = []
        self.received = 0

    def send(self, rank: int, message: Any) -> None:
        self._sending.append(self._comm.isend(message, rank))

    def arrived(self) -> Iterator[tuple[int, Any]]:
        """Yields the sender and content of each message that has arrived, a sender's in their order."""
        self._sending = [request for request in self._sending if not request.Test()]
        status = MPI.Status()
        # A large message takes the sender's help to arrive: it is received bit by bit, call by call.
        while (found := self._comm.improbe(status=status)) is not None:
            self._coming.append((status.Get_source(), found.irecv()))
        waiting, late = self._coming, set()
        self._coming = []
        for source, request in waiting:
            done, message = request.test() if source not in late else (False, None)
            if done:
                self.received += 1
                yield source, message
            else:
                late.add(source)
                self._coming.append((source, request))

    def close(self) -> None:
        """Waits until all that was sent has arrived, and gives the communicator back. All ranks call it."""

        def emptied() -> bool:
            for _ in self.arrived():
                pass
            return not self._sending

        wait(emptied, self._timeout, "the last messages to arrive")
        wait(self._comm.Ibarrier().Test, self._timeout, f"all {self._comm.size} ranks to end their rounds")
        self._comm.Free()
