"""A rank's part in the rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hvdkeras.coordination.coordinator import Coordinator
from hvdkeras.coordination.messages import Arrival, Contribution, Decision, Round
from hvdkeras.mpi.mailbox import Mailbox
from hvdkeras.mpi.waiting import wait


class TakePart(Protocol):
    """Does what a round asks of this rank, and returns its contribution."""

    def __call__(self, round_: Round) -> Contribution: ...


class Participant:
    """Sends this rank's reports, and does what rounds ask of it.

    Args:
        mailbox: exchanges messages with the other ranks.
        size: number of ranks.
        take_part: does this rank's part of a round.
        coordinator: leads the rounds; None except at rank 0.
        timeout: seconds that a wait may take without any message.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        size: int,
        take_part: TakePart,
        coordinator: Coordinator | None,
        timeout: float,
    ) -> None:
        self._mailbox, self._size, self._take_part = mailbox, size, take_part
        self._coordinator, self._timeout = coordinator, timeout

    def report(self, arrival: Arrival) -> None:
        """Reports to the coordinator where this rank's training is."""
        self._mailbox.send(0, arrival)

    def attend(self) -> Decision | None:
        """Handles the messages that have arrived, without waiting; returns the newest decision, if any."""
        newest = None
        for source, message in self._mailbox.arrived():
            if isinstance(message, Round):
                self._mailbox.send(0, self._take_part(message))
            elif isinstance(message, Decision):
                newest = message
            else:
                self._coordinator.receive(source, message)
        answer = self._coordinator.proceed() if self._coordinator else None
        if answer is not None:
            for rank in range(self._size):
                self._mailbox.send(rank, answer)
        return newest

    def decision(self, wanted: Callable[[Decision], bool] = lambda decision: True) -> Decision:
        """Attends until a decision arrives that is wanted, and returns it.

        Raises:
            RankTimeoutError: nothing has arrived for `timeout` seconds.
        """
        while True:
            received, before = None, self._mailbox.received

            def has_news(before: int = before) -> bool:
                nonlocal received
                received = self.attend()
                return received is not None or self._mailbox.received > before

            wait(has_news, self._timeout, "a round: the reports of the other ranks, or rank 0's decision")
            if received is not None and wanted(received):
                return received

    def leave(self) -> None:
        """Waits until all messages have arrived. All ranks call it, after the last decision."""
        self._mailbox.close()
