"""The rank's end of its connection with the driver: tasks come, heartbeats and results go."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from hvdkeras.launch import remains
from hvdkeras.launch.wire import Wire, in_parts

CONNECT_SECONDS = 10
BEAT_SECONDS = 1.0


class Driver:
    """The rank's end of its connection with the driver.

    Args:
        addresses: host names or IP addresses of the driver, likeliest first.
        port: its port.
        key: the secret that both ends prove to know.
        timeout: seconds after which TCP takes the driver's host for lost.
    """

    def __init__(self, addresses: Sequence[str], port: int, key: bytes, timeout: float = 600.0):
        self._wire = _connect(addresses, port)
        self._wire.limit_silence(timeout)
        self._finished = False
        self._tasks: queue.SimpleQueue[list[bytearray]] = queue.SimpleQueue()
        self._wire.authenticate(key, first=False)

    def send(self, kind: str, *content: Any) -> None:
        self._wire.send_parts(in_parts(content), kind.encode())

    def receive(self) -> list[bytearray]:
        return self._wire.recv_parts()

    def follow(self) -> None:
        """From now on, shows the driver that this process lives, and ends it when the driver is gone.

        It ends, too, when the process is gone that started it: mpirun or its daemon.

        Further tasks are received by `next_task` then.
        """
        threading.Thread(target=self._follow, name="follow-driver", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def next_task(self) -> list[bytearray]:
        """Waits for the next task; an empty one is the last. It has no bound but the driver's own life."""
        return self._tasks.get()

    def finish(self) -> None:
        self._finished = True

    def _follow(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._tasks.put(self._wire.recv_parts())
        if not self._finished:
            print("the driver is gone: this rank ends too", file=sys.stderr, flush=True)
        remains.leave()
        os._exit(0 if self._finished else 1)

    def _beat(self) -> None:
        main = threading.main_thread().ident
        parent = os.getppid()
        with suppress(OSError):  # then the other thread ends this process
            while not self._finished:
                if os.getppid() != parent:
                    remains.leave()
                    os._exit(1)
                self.send("alive", _place(sys._current_frames().get(main)))
                time.sleep(BEAT_SECONDS)


def _place(frame: FrameType | None) -> str:
    """Names the line of Python that a thread runs."""
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _connect(addresses: Sequence[str], port: int) -> Wire:
    refusals = []
    for address in addresses:
        try:
            connected = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
            connected.settimeout(None)
            return Wire(connected)
        except OSError as error:
            refusals.append(f"{address}: {error}")
    raise ConnectionError(
        f"{socket.gethostname()} can't reach the driver. Tried on port {port}: {'; '.join(refusals)}"
    )
