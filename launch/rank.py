"""What happens on a rank around the function that it was started for.

A rank connects to its driver, gets the function, runs it, and sends back the result or the traceback. It ends
with the driver: no rank outlives the process that started it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from types import TracebackType
from typing import Any, NoReturn

import cloudpickle

from hvdkeras.launch import environment

# Names the variable that tells a rank on this machine how to reach its driver.
DRIVER_VARIABLE = "HVDKERAS_DRIVER"
CONNECT_SECONDS = 10
# How long an MPI that is broken may take to abort before the process ends by itself.
ABORT_SECONDS = 5


class Driver:
    """The rank's end of its connection with the driver.

    Args:
        addresses: Host names or IP addresses of the driver, likeliest first.
        port: Its port.
        key: The secret that both ends prove to know.
    """

    def __init__(self, addresses: Sequence[str], port: int, key: bytes):
        self._connection = _connect(addresses, port)
        self._writing = threading.Lock()
        self._finished = False
        answer_challenge(self._connection, key)
        deliver_challenge(self._connection, key)

    def send(self, kind: str, *content: Any) -> None:
        data = cloudpickle.dumps((kind, *content))
        with self._writing:
            self._connection.send_bytes(data)

    def receive(self) -> bytes:
        return self._connection.recv_bytes()

    def follow(self) -> None:
        """From now on, ends this process when the driver is gone."""
        threading.Thread(target=self._follow, name="follow-driver", daemon=True).start()

    def finish(self) -> None:
        self._finished = True

    def _follow(self) -> None:
        try:
            self._connection.recv_bytes()
        except (EOFError, OSError):
            if not self._finished:
                print("the driver is gone: this rank ends too", file=sys.stderr, flush=True)
                os._exit(1)


def _connect(addresses: Sequence[str], port: int) -> Connection:
    refusals = []
    for address in addresses:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connected:
                connected.settimeout(None)
                return Connection(os.dup(connected.fileno()))
        except OSError as error:
            refusals.append(f"{address}: {error}")
    raise ConnectionError(
        f"{socket.gethostname()} can't reach the driver. Tried on port {port}: {'; '.join(refusals)}"
    )


_receiver: Callable[[Any], None] | None = None


def send(message: Any) -> None:
    """Sends a message to the driver, whose `on_message(rank, message)` gets it.

    In a job that was not launched from a driver, each rank's own `on_message` gets it, if there is one.

    Args:
        message: Anything that cloudpickle takes.
    """
    if _receiver is not None:
        _receiver(message)


@contextmanager
def sending_to(receiver: Callable[[Any], None]) -> Iterator[None]:
    """Lets another receiver have this rank's messages for a while."""
    global _receiver
    before, _receiver = _receiver, receiver
    try:
        yield
    finally:
        _receiver = before


def perform(addresses: Sequence[str], port: int, key: bytes, paths: Sequence[str] = ()) -> None:
    """Runs, on this rank, the function that the driver holds ready, and sends back what came of it.

    Args:
        addresses: See `Driver`.
        port: See `Driver`.
        key: See `Driver`.
        paths: Where else modules of the driver are found, relative to the working directory or absolute.
    """
    environment.prepare()
    if os.environ.get("NCCL_DEBUG") == "INFO":
        os.environ["NCCL_DEBUG"] = "WARN"  # Horovod on Spark asks for pages of text
    faulthandler.enable(all_threads=False)
    show_log("%(levelname)s %(name)s: %(message)s")
    place = environment.job()
    if place is None:
        raise RuntimeError(
            "a rank is started by mpirun. Received: no OMPI_COMM_WORLD_RANK in the environment"
        )
    driver = Driver(addresses, port, key)
    driver.send("hello", place.rank, socket.gethostname(), os.getpid())
    task = driver.receive()
    driver.follow()
    sys.path.extend(path for path in map(os.path.abspath, paths) if path not in sys.path)
    try:
        # Only a process inside MPI is missed by mpirun when it exits with status 0 half-way.
        from mpi4py import MPI  # noqa: F401

        driver.send("started")
        fn, args, kwargs = cloudpickle.loads(task)
        with sending_to(partial(driver.send, "message")):
            driver.send("result", fn(*args, **kwargs))
    except BaseException as error:
        try:
            driver.send("failure", describe(error), exit_status(error))
        finally:
            abort()
    driver.finish()


def show_log(line_format: str) -> None:
    """Lets this package's log reach stderr, unless the program has arranged its logging otherwise.

    Args:
        line_format: As in `logging.Formatter`. Where a driver tags what its ranks print, lines need no tag.
    """
    own = logging.getLogger("hvdkeras")
    if not own.hasHandlers():
        # Not on the root: what other packages show themselves would come twice.
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(line_format))
        own.addHandler(handler)
    if own.level == logging.NOTSET:
        own.setLevel(logging.INFO)


def describe(error: BaseException) -> str:
    """Formats the traceback of an error, without the frame that called the user's function."""
    inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, inner or error.__traceback__))


def exit_status(error: BaseException) -> int | None:
    """Tells the status that an error would end a Python program with, if it is a SystemExit."""
    if not isinstance(error, SystemExit):
        return None
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def abort() -> NoReturn:
    """Ends all ranks of the job: others may be waiting for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    threading.Timer(ABORT_SECONDS, os._exit, (1,)).start()
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(1)
    os._exit(1)


def abort_on_error() -> None:
    """From now on, an uncaught exception in this process ends the job, after its traceback is printed."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        abort()

    sys.excepthook = hook


def main() -> None:
    """Entry of ranks on the driver's machine, which find their way to it in their environment."""
    perform(**cloudpickle.loads(bytes.fromhex(os.environ.pop(DRIVER_VARIABLE))))
