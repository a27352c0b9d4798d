"""What happens on a rank around the function that it was started for.

A rank connects to its driver, gets a function, runs it, and sends back the result or the traceback, until the
driver has no more. It ends with the driver: no rank outlives the process that started it.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import io
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle

from hvdkeras.launch import deferred, environment, remains
from hvdkeras.launch.connection import Driver
from hvdkeras.launch.failure import RankTimeoutError, bounded
from hvdkeras.launch.wire import of_parts

if TYPE_CHECKING:
    from hvdkeras.launch.report import Reports

# Names the variable that tells a rank how to reach its driver.
DRIVER_VARIABLE = "HVDKERAS_DRIVER"
# What Python gets to run a rank.
ENTRY = ("-c", "from hvdkeras.launch import rank; rank.main()")
# How long an MPI that is broken may take to abort before the process ends by itself.
ABORT_SECONDS = 5
# How long telling the driver of an error may take before the job is aborted without.
TELL_SECONDS = 30
LONGEST_SUMMARY = 1000
# What keeps written bytes back until it is flushed.
WRITTEN = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


_driver: Driver | None = None
_receiver: Callable[[Any], None] | None = None


def send(message: Any) -> None:
    """Sends a message to the driver, whose `on_message(rank, message)` gets it.

    In a job that was not launched from a driver, each rank's own `on_message` gets it, if there is one.

    Args:
        message: anything that cloudpickle takes.
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


def perform(
    addresses: Sequence[str], port: int, key: bytes, timeout: float = 600.0, paths: Sequence[str] = ()
) -> NoReturn:
    """Runs, on this rank, one function of the driver after another, and sends back what came of each.

    It ends the process.

    Args:
        addresses: see `Driver`.
        port: see `Driver`.
        key: see `Driver`.
        timeout: see `Driver`.
        paths: where else modules of the driver are found, relative to the working directory or absolute.
    """
    global _driver
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
    _driver = driver = Driver(addresses, port, key, timeout)
    driver.send("hello", place.rank, socket.gethostname(), os.getpid())
    task = driver.receive()
    driver.follow()
    if place.local_rank == 0:
        # It reads what all processes have mapped: nobody has to wait for it.
        threading.Thread(target=remains.clear_away, name="clear-away", daemon=True).start()
    sys.path.extend(path for path in map(os.path.abspath, paths) if path not in sys.path)
    deferred.defer()
    try:
        # Only a process inside MPI is missed by mpirun when it exits with status 0 half-way.
        from mpi4py import MPI  # noqa: F401

        driver.send("inside")
        with sending_to(partial(driver.send, "message")):
            while task:
                with importing():
                    fn, args, kwargs = of_parts(task)
                del task  # what the function lets go of is freed
                driver.send("started")
                driver.send("result", fn(*args, **kwargs))
                del fn, args, kwargs  # they would stay in memory until there is another task
                task = driver.next_task()
    except BaseException as error:
        waited = isinstance(error, RankTimeoutError)
        _fail(driver, describe(error), exit_status(error), summary(error), waited)
    driver.finish()
    leave()


@contextmanager
def importing() -> Iterator[None]:
    """Keeps the garbage collector from what the block imports.

    TensorFlow and Keras make several hundred thousand objects, which stay. The collector looks at them again
    and again while they are imported, a fifth of the time that it takes.
    """
    collects, has_keras = gc.isenabled(), "keras" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if _driver is not None and not has_keras and "keras" in sys.modules:
            # Once in a rank, before it has trained: there is no garbage among what is not looked at any more.
            gc.freeze()
        if collects:
            gc.enable()


def leave() -> NoReturn:
    """Ends a process that has nothing more to do, without taking Python's modules apart.

    That would take seconds once TensorFlow is loaded. What a program may have arranged for its end still
    happens: threads are waited for, exit functions run, objects that nobody has any more are finalised, files
    are flushed, MPI ends, and so do C's libraries.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    for each in gc.get_objects():
        # Not `isinstance`, which may ask an object for its class.
        if type(each) in WRITTEN:
            with suppress(OSError, ValueError):  # its disk is full, or it is closed
                each.flush()
    if (mpi := sys.modules.get("mpi4py.MPI")) is not None and not mpi.Is_finalized():
        mpi.Finalize()
    # No other thread may run Python from here on: this one keeps the lock.
    ctypes.PyDLL(None).exit(0)
    os._exit(0)


def _fail(driver: Driver, described: str, status: int | None, summed_up: str, waited: bool) -> NoReturn:
    """Tells the driver why this rank ends, and ends the job."""
    late = threading.Timer(TELL_SECONDS, abort)
    late.daemon = True
    late.start()
    try:
        driver.send("failure", described, status, summed_up, waited)
    finally:
        abort()


@contextmanager
def limit(seconds: float, what: str) -> Iterator[None]:
    """Ends the job, with an error of this rank, if the block takes longer: for MPI's calls that only block.

    Args:
        seconds: how long the block may take.
        what: what it waits for, as in `"all 2 ranks to make the center"`.
    """
    waiting = threading.get_ident()

    def give_up() -> None:
        me = environment.job()
        message = summary(RankTimeoutError(f"rank {me.rank if me else 0} waited {seconds:g} s for {what}"))
        frame = sys._current_frames().get(waiting)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        described = f"Waiting in (most recent call last):\n{stack}{message}\n"
        if _driver is not None:
            _fail(_driver, described, None, message, waited=True)
        print(described, end="", file=sys.stderr)
        abort()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def show_log(line_format: str) -> None:
    """Lets this package's log reach stderr, unless the program has arranged its logging otherwise.

    Args:
        line_format: as in `logging.Formatter`. Where a driver tags what its ranks print, lines need no tag.
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
    trace = traceback.format_exception(type(error), error, inner or error.__traceback__)
    return bounded("".join(map(bounded, trace)))


def summary(error: BaseException) -> str:
    """Names an error in one line: its type, and the first line of its message."""
    name = type(error).__qualname__
    if type(error).__module__ not in ("builtins", "__main__"):
        name = f"{type(error).__module__}.{name}"
    try:
        message = str(error).strip().partition("\n")[0][:LONGEST_SUMMARY]
    except Exception:
        message = "(its message can't be shown)"
    return f"{name}: {message}" if message else name


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


def way(reports: Reports, timeout: float, paths: Sequence[str]) -> dict[str, str]:
    """Returns the variable by which a rank finds its driver, for its environment.

    Args:
        reports: the driver's end.
        timeout: see `Driver`.
        paths: see `perform`.
    """
    found = {"addresses": reports.addresses, "port": reports.port, "key": reports.key}
    return {DRIVER_VARIABLE: cloudpickle.dumps({**found, "timeout": timeout, "paths": list(paths)}).hex()}


def main() -> NoReturn:
    """Entry of ranks, which find their way to the driver in their environment."""
    perform(**cloudpickle.loads(bytes.fromhex(os.environ.pop(DRIVER_VARIABLE))))
