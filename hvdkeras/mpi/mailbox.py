"""Python objects as messages between ranks, sent and received without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

from hvdkeras.mpi.collectives import duplicate
from hvdkeras.mpi.waiting import wait


class Mailbox:
    """A rank's mailbox: it sends messages to other ranks' mailboxes and receives theirs.

    All ranks of the communicator make one together, and close it together.

    Args:
        comm: the ranks. The messages travel on a duplicate of it, so that they never meet other messages.
        timeout: seconds that making and closing the mailbox may wait for the other ranks.

    Attributes:
        received: how many messages have arrived so far.

    Raises:
        RankTimeoutError: another rank has not made its mailbox within `timeout` seconds.
    """

    def __init__(self, comm: MPI.Comm, timeout: float) -> None:
        self._comm = duplicate(comm, timeout, f"all {comm.size} ranks to open their mailboxes")
        self._timeout = timeout
        self._sending: list[MPI.Request] = []
        self._receiving: list[tuple[int, MPI.Request]] = []
        self.received = 0

    def send(self, rank: int, message: Any) -> None:
        """Starts to send `message`, any object that pickles, to a rank's mailbox; returns at once."""
        self._sending.append(self._comm.isend(message, rank))

    def arrived(self) -> Iterator[tuple[int, Any]]:
        """Yields the sender and the content of each message that has arrived since the last call.

        The messages of one sender keep their order. Messages of different senders have none.
        """
        self._sending = [request for request in self._sending if not request.Test()]
        status = MPI.Status()
        # A large message arrives in pieces, for which its sender must call MPI, too. So it may take several
        # calls of this method until the message is complete.
        while (found := self._comm.improbe(status=status)) is not None:
            self._receiving.append((status.Get_source(), found.irecv()))
        pending, incomplete = self._receiving, set()
        self._receiving = []
        for source, request in pending:
            done, message = request.test() if source not in incomplete else (False, None)
            if done:
                self.received += 1
                yield source, message
            else:
                incomplete.add(source)
                self._receiving.append((source, request))

    def close(self) -> None:
        """Waits until all that this rank sent has arrived, and frees the communicator. All ranks call it.

        Messages that arrive in the meantime are received and dropped.

        Raises:
            RankTimeoutError: the other ranks have not received the messages, or have not called `close`,
                within `timeout` seconds.
        """

        def emptied() -> bool:
            for _ in self.arrived():
                pass
            return not self._sending

        wait(emptied, self._timeout, "the other ranks to receive the last messages")
        closed = self._comm.Ibarrier().Test
        wait(closed, self._timeout, f"all {self._comm.size} ranks to close their mailboxes")
        self._comm.Free()
