"""The driver's end of its connections with the ranks: hands out functions, gathers what came of them."""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError
from typing import Any

from hvdkeras.launch.failure import Failure, TrainingError, bounded
from hvdkeras.launch.wire import Wire, addresses, of_parts

log = logging.getLogger(__name__)

# Whoever connects has so long to prove that it is a rank of this job.
CHALLENGE_SECONDS = 30.0
# Ranks whose messages the receiver does not take fast enough wait.
MESSAGES_KEPT = 1000
LOOK_SECONDS = 0.5
# The receiver is the caller's own code: how long it may take for one message when the job is over.
RECEIVER_SECONDS = 600.0


@dataclass
class Word:
    """What was heard of a rank last.

    Attributes:
        moment: when, by `time.monotonic`.
        kind: what it said.
        place: the line of Python that its main thread runs; empty where it is not known.
        since: since when it has been in that line, by `time.monotonic`.
    """

    moment: float
    kind: str
    place: str
    since: float


class Reports:
    """Everything that the ranks of one job tell their driver.

    Args:
        task: the parts of what every rank gets when it connects; `give` has further ones.
        size: the number of ranks.
        driver_host: the name or address by which other machines know this one; None where all ranks are on
            this machine, and no other needs to connect.
        on_message: called with (rank, message) for every message, one call at a time, on another thread.
        timeout: seconds of silence after which TCP may take a rank's host for lost.

    Attributes:
        changed: notified whenever something else here changes, and held while it does.
        hosts: host name by rank, of those that connected.
        inside: the ranks that are inside MPI.
        started: the ranks that have also loaded their function.
        results: result of the newest task by rank.
        failures: what failing ranks reported, in the order in which it came.
        lost: when a rank's connection ended without a word, by rank, in that order.
        broken: an exception that `on_message` raised, or what came of a rank and can't be read here. It ends
            the job.
    """

    def __init__(
        self,
        task: Sequence[bytes | memoryview],
        size: int,
        driver_host: str | None,
        on_message: Callable[[int, Any], None] | None = None,
        timeout: float = 600.0,
    ):
        self.changed = threading.Condition()
        self.hosts: dict[int, str] = {}
        self.inside: set[int] = set()
        self.started: set[int] = set()
        self.results: dict[int, Any] = {}
        self.failures: list[Failure] = []
        self.lost: dict[int, float] = {}
        self.broken: BaseException | None = None
        self.size, self.key = size, secrets.token_bytes(32)
        self._task, self._timeout = task, timeout
        self._on_message, self._messages = on_message, queue.Queue(MESSAGES_KEPT)
        self._words: dict[int, Word] = {}
        self._wires: dict[int, Wire] = {}
        self._open: set[Wire] = set()
        self._closed = False
        self._listener = socket.create_server(
            ("0.0.0.0" if driver_host else "127.0.0.1", 0), backlog=size + 8
        )
        self.port = self._listener.getsockname()[1]
        self.addresses = addresses(driver_host) if driver_host else ["127.0.0.1"]
        threading.Thread(target=self._accept, name="reports", daemon=True).start()
        if on_message is not None:
            threading.Thread(target=self._hand_on, name="reports-messages", daemon=True).start()

    def last_words(self) -> dict[int, Word]:
        """Returns what was heard last, by rank, of the ranks that have started."""
        with self.changed:
            return {
                rank: Word(max(word.moment, self._wires[rank].moved), word.kind, word.place, word.since)
                for rank, word in self._words.items()
            }

    def settle(self, timeout: float = 2.0) -> None:
        """Waits until all ranks that connected were heard to their end: mpirun may be faster than they.

        Args:
            timeout: seconds without more of a result while the receiver of messages has none to take.
        """
        before, moved = None, 0.0
        with self.changed:
            while not (self._closed or self.broken) and (self.unheard() or self._messages.unfinished_tasks):
                left = self._messages.unfinished_tasks
                state = [left, len(self.unheard()), *(wire.bulk for wire in self._wires.values())]
                if state != before:
                    before, moved = state, time.monotonic()
                elif time.monotonic() - moved > (RECEIVER_SECONDS if left else timeout):
                    if left:
                        log.warning("on_message did not return for %g s: not waited for", RECEIVER_SECONDS)
                    break
                self.changed.wait(min(timeout, LOOK_SECONDS))

    def give(self, task: Sequence[bytes | memoryview]) -> None:
        """Gives all ranks, whose results have come, a further task. An empty one lets them end."""
        with self.changed:
            wires = list(self._wires.values())
            if task:
                self.results = {}
        for wire in wires:
            # A host that does not take it must not keep the others waiting, nor the supervisor.
            sending = partial(_send, wire, task)
            threading.Thread(target=sending, name="reports-give", daemon=True).start()

    def take_results(self) -> list[Any]:
        """Returns the results by rank, and keeps no reference to them."""
        with self.changed:
            taken, self.results = self.results, dict.fromkeys(self.results)
        return [taken[rank] for rank in range(self.size)]

    def all_connected(self) -> bool:
        """Whether the connections of all ranks are open."""
        with self.changed:
            return self.size == sum(wire in self._open for wire in self._wires.values())

    def all_started(self) -> bool:
        """Whether every rank is inside MPI and has loaded its function."""
        return len(self.started) == self.size

    def close(self) -> None:
        """Ends all connections, and with them the ranks that still run."""
        with self.changed:
            self._closed = True
            for wire in self._open:
                wire.close()
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self.changed.notify_all()

    def unheard(self) -> set[int]:
        """Returns the ranks that connected and have said neither how they ended, nor ended."""
        return set(self.hosts) - set(self.results) - set(self.lost) - {f.rank for f in self.failures}

    def _accept(self) -> None:
        while not self._closed:
            try:
                accepted, _ = self._listener.accept()
                wire = Wire(accepted)
                with self.changed:
                    self._open.add(wire)
                threading.Thread(target=self._serve, args=(wire,), name="reports-rank", daemon=True).start()
            except Exception as error:
                # Closed; or this process has too many files or threads, and no rank would be heard any more.
                if not self._closed:
                    self._break(error)
                return

    def _serve(self, wire: Wire) -> None:
        rank = None
        try:
            rank = self._greeted(wire)
            wire.send_parts(self._task)
            while True:
                self._take(rank, wire.recv_bytes().decode(), wire.recv_parts())
        except AuthenticationError as error:
            log.warning("a connection without the key of this job was refused: %s", error)
        except (EOFError, OSError):
            with self.changed:
                if not self._closed and rank in self.unheard():
                    self.lost[rank] = time.monotonic()
                self.changed.notify_all()
        except BaseException as error:
            self._break(error)
        finally:
            with self.changed:
                self._open.discard(wire)
            wire.close()

    def _greeted(self, wire: Wire) -> int:
        """Lets a rank in that knows the key; returns its number."""
        impatience = threading.Timer(CHALLENGE_SECONDS, wire.close)
        impatience.daemon = True
        impatience.start()
        try:
            wire.authenticate(self.key, first=True)
            wire.recv_bytes(maxlength=16)
            rank, host, _ = of_parts(wire.recv_parts())
        finally:
            impatience.cancel()
        wire.limit_silence(self._timeout)
        with self.changed:
            self.hosts[rank], self._wires[rank] = host, wire
            self.changed.notify_all()
        return rank

    def _take(self, rank: int, kind: str, parts: list[bytearray]) -> None:
        try:
            content = of_parts(parts)
        except Exception as error:
            raise self._unreadable(rank, kind, error) from error
        if kind == "message":
            self._queue(rank, *content)
        with self.changed:
            now = time.monotonic()
            if kind == "alive":
                self._hear(rank, now, *content)
            elif kind == "inside":
                self.inside.add(rank)
            elif kind == "started":
                self.started.add(rank)
                self._words[rank] = Word(now, kind, "", now)
            elif kind == "result":
                self.results[rank] = content[0]
            elif kind == "failure":
                # Later a rank that was stopped may be heard again: mpirun continues those that it ends.
                heard = {other: wire.moved for other, wire in self._wires.items()}
                self.failures.append(Failure(rank, *content, moment=now, heard=heard))
            self.changed.notify_all()

    def _hear(self, rank: int, now: float, place: str) -> None:
        before = self._words.get(rank)
        if before is not None:
            since = before.since if before.place == place else now
            self._words[rank] = Word(now, "alive", place, since)

    def _queue(self, rank: int, message: Any) -> None:
        if self._on_message is None:
            return
        while not self._closed:
            with suppress(queue.Full):
                self._messages.put((rank, message), timeout=LOOK_SECONDS)
                return
            self._wires[rank].moved = time.monotonic()  # it is not the rank's fault that it is not heard

    def _hand_on(self) -> None:
        while not self._closed:
            with suppress(queue.Empty):
                rank, message = self._messages.get(timeout=LOOK_SECONDS)
                try:
                    self._on_message(rank, message)
                except BaseException as error:
                    self._break(error)
                with self.changed:
                    self._messages.task_done()
                    self.changed.notify_all()

    def _break(self, error: BaseException) -> None:
        # The job can't go on when a receiver fails, or when what came of a rank can't be read.
        with self.changed:
            self.broken = self.broken or error
            self.changed.notify_all()

    def _unreadable(self, rank: int, kind: str, error: Exception) -> TrainingError:
        host = self.hosts[rank]
        return TrainingError(
            f"a {kind} of rank {rank} on {host} can't be unpickled by the driver: "
            f"{type(error).__name__}: {bounded(str(error))}",
            rank=rank,
            host=host,
            remote_traceback=bounded(traceback.format_exc()),
        )


def _send(wire: Wire, task: Sequence[bytes | memoryview]) -> None:
    with suppress(OSError):  # the thread that reads this connection hears of its end, too
        wire.send_parts(task)
