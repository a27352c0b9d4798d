"""The driver's end of its connections with the ranks: hands out the function, gathers what came of it."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from os import dup
from typing import Any

import cloudpickle
import psutil

log = logging.getLogger(__name__)


@dataclass
class Failure:
    """What a rank said before it ended: its traceback, and the exit status if it raised SystemExit."""

    rank: int
    traceback: str
    exitcode: int | None


class Reports:
    """Everything that the ranks of one job tell their driver.

    Args:
        task: The bytes that every rank gets when it connects.
        size: The number of ranks.
        driver_host: The name or address by which other machines know this one; None where all ranks are on
            this machine, and no other needs to connect.
        on_message: Called with (rank, message) for every message, one call at a time, on another thread.

    Attributes:
        hosts: Host name by rank, of those that connected.
        started: The ranks that are inside MPI.
        results: Result by rank.
        failures: What failing ranks reported, in the order in which it came.
        lost: Ranks whose connection ended without a word, in that order.
        broken: An exception that `on_message` raised, which ends the job.
    """

    def __init__(
        self,
        task: bytes,
        size: int,
        driver_host: str | None,
        on_message: Callable[[int, Any], None] | None = None,
    ):
        self.hosts: dict[int, str] = {}
        self.started: set[int] = set()
        self.results: dict[int, Any] = {}
        self.failures: list[Failure] = []
        self.lost: list[int] = []
        self.broken: BaseException | None = None
        self.size = size
        self.key = secrets.token_bytes(32)
        self._task = task
        self._on_message = on_message
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._closed = False
        self._listener = socket.create_server(
            ("0.0.0.0" if driver_host else "127.0.0.1", 0), backlog=size + 8
        )
        self.port = self._listener.getsockname()[1]
        self.addresses = _addresses(driver_host) if driver_host else ["127.0.0.1"]
        threading.Thread(target=self._accept, name="reports", daemon=True).start()

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_started(self, timeout: float) -> bool:
        """Waits until all ranks are inside MPI or the job has ended. False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or len(self.started) == self.size, timeout)

    def settle(self, timeout: float = 2.0) -> None:
        """Waits until all ranks that connected were heard to their end: mpirun may be faster than they."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open_ranks(), timeout)

    def close(self) -> None:
        """Ends all connections, and with them the ranks that still run."""
        with self._changed:
            self._closed = True
            for each in [*self._sockets, self._listener]:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._changed.notify_all()

    def _open_ranks(self) -> set[int]:
        ended = set(self.results) | set(self.lost) | {failure.rank for failure in self.failures}
        return set(self.hosts) - ended

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._changed:
                self._sockets.append(accepted)
            threading.Thread(target=self._serve, args=(accepted,), name="reports-rank", daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        rank = None
        try:
            with Connection(dup(accepted.fileno())) as connection:
                deliver_challenge(connection, self.key)
                answer_challenge(connection, self.key)
                _, rank, host, _ = cloudpickle.loads(connection.recv_bytes())
                with self._changed:
                    self.hosts[rank] = host
                connection.send_bytes(self._task)
                while True:
                    self._take(rank, *cloudpickle.loads(connection.recv_bytes()))
        except AuthenticationError as error:
            log.warning("a connection without the key of this job was refused: %s", error)
        except (EOFError, OSError):
            with self._changed:
                if not self._closed and rank in self._open_ranks():
                    self.lost.append(rank)
                self._changed.notify_all()
        except BaseException as error:
            # A message that this process can't read, or whose receiver failed: the job can't go on.
            self.broken = self.broken or error
            self.close()

    def _take(self, rank: int, kind: str, *content: Any) -> None:
        with self._changed:
            if kind == "started":
                self.started.add(rank)
            elif kind == "result":
                self.results[rank] = content[0]
            elif kind == "failure":
                self.failures.append(Failure(rank, *content))
            elif kind == "message" and self._on_message is not None:
                self._on_message(rank, *content)
            self._changed.notify_all()


def _addresses(driver_host: str) -> list[str]:
    """Lists where other machines may reach this one, and at last where this machine reaches itself."""
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    return list(dict.fromkeys([driver_host, *found, "127.0.0.1"]))
