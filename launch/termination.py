"""A signal that ends the driver becomes an exception, so that its `with` and `finally` clauses run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from hvdkeras.launch import environment

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


_received: list[int] = []


class Terminated(KeyboardInterrupt):
    """This process has received a signal that ends it. At an interrupt Spark Connect ends its jobs, too."""


@contextlib.contextmanager
def unwound() -> Iterator[None]:
    """Lets a signal end this process only after the block's exits have run.

    The process then dies of the same signal; a second one ends it at once. Signals that are ignored, or have
    a handler of the user's, keep it. Nothing changes outside the main thread, which alone gets signals, and
    in a job, whose ranks mpirun ends together.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    free = [each for each in SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    if not in_main_thread or environment.job() is not None or not free:
        yield
        return
    for each in free:
        signal.signal(each, _raise)
    try:
        yield
    finally:
        _restore()
        if _received:
            # Also where an exit raised, or something caught the exception.
            os.kill(os.getpid(), _received[0])


def _restore() -> None:
    for each in SIGNALS:
        if signal.getsignal(each) is _raise:
            signal.signal(each, signal.SIG_DFL)


def _raise(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    _restore()
    raise Terminated(signal.Signals(number).name)
