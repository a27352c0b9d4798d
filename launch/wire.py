"""One connection between a rank and its driver: messages of bytes over TCP, and when the last bytes came."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import answer_challenge, deliver_challenge
from typing import Any

import cloudpickle
import psutil

HEADER = struct.Struct("!Q")
PIECE_BYTES = 1 << 20
LONG_BYTES = 1 << 16
# TCP asks the other end four times, after half of the time that it may be silent.
KEEPALIVE_PROBES = 4


def in_parts(value: Any) -> list[bytes | memoryview]:
    """Pickles a value, by cloudpickle; the memory of its large arrays is not copied, but follows as it is.

    The parts hold the arrays, which must not change until the parts are sent.
    """
    buffers: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes < LONG_BYTES:
                return True
        buffers.append(buffer.raw())
        return False

    return [cloudpickle.dumps(value, buffer_callback=is_small), *buffers]


def of_parts(parts: Sequence[bytes | bytearray | memoryview]) -> Any:
    """Returns what `in_parts` was given; its large arrays have the memory of the parts."""
    return cloudpickle.loads(parts[0], buffers=parts[1:])


class Wire:
    """Sends and receives messages; several threads may send.

    Args:
        connected: the socket. It is closed with this object.

    Attributes:
        moved: when bytes arrived last, by `time.monotonic`: a long message is a sign of life, too.
        bulk: bytes of long messages that have arrived.
    """

    def __init__(self, connected: socket.socket):
        self._socket, self._sending = connected, threading.Lock()
        self.moved, self.bulk = time.monotonic(), 0
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def authenticate(self, key: bytes, *, first: bool) -> None:
        """Proves to know the key, and asks the other end to prove it.

        Args:
            key: the secret of the job.
            first: whether this end asks first. One end does, the other does not.

        Raises:
            multiprocessing.AuthenticationError: the other end does not know the key.
        """
        for ask in (first, not first):
            (deliver_challenge if ask else answer_challenge)(self, key)

    def limit_silence(self, seconds: float) -> None:
        """Lets TCP end the connection when the other host has not answered for so many seconds."""
        idle = max(1, int(seconds / 2))
        interval = max(1, int(seconds / 2 / KEEPALIVE_PROBES))
        for level, option, value in (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(idle, 32767)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(interval, 32767)),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(seconds * 1000), 2**31 - 1)),
        ):
            self._socket.setsockopt(level, option, value)

    def send_bytes(self, *messages: bytes | memoryview) -> None:
        """Sends messages; no other thread's comes between them."""
        with self._sending:
            for message in messages:
                self._socket.sendall(HEADER.pack(len(message)))
                self._socket.sendall(message)

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receives the next message.

        Raises:
            EOFError: the other end has closed the connection.
            OSError: the connection is lost, or the message is longer than `maxlength`.
        """
        return bytes(self._receive_next(maxlength))

    def send_parts(self, parts: Sequence[bytes | memoryview], *before: bytes) -> None:
        """Sends a message in several parts, after others; no other thread's comes between them."""
        self.send_bytes(*before, len(parts).to_bytes(4, "big"), *parts)

    def recv_parts(self) -> list[bytearray]:
        """Receives the parts of the next message, of which no copies are made; raises as `recv_bytes`."""
        return [self._receive_next() for _ in range(int.from_bytes(self.recv_bytes(), "big"))]

    def close(self) -> None:
        """Ends the connection, also for a thread that is receiving."""
        with suppress(OSError):  # the other end may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive_next(self, maxlength: int | None = None) -> bytearray:
        (length,) = HEADER.unpack(self._receive(HEADER.size))
        if maxlength is not None and length > maxlength:
            raise OSError(f"a message must have at most {maxlength} bytes here. Received: {length}")
        return self._receive(length)

    def _receive(self, length: int) -> bytearray:
        received = bytearray(length)
        view, at = memoryview(received), 0
        while at < length:
            count = self._socket.recv_into(view[at : at + PIECE_BYTES])
            if count == 0:
                raise EOFError
            self.moved = time.monotonic()
            at += count
            if length > LONG_BYTES:
                self.bulk += count
        return received


def addresses(driver_host: str) -> list[str]:
    """Lists where other machines may reach this one, and at last where this machine reaches itself."""
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    return list(dict.fromkeys([driver_host, *found, "127.0.0.1"]))
