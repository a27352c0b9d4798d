"""The process between a Spark task and the command that Horovod runs there, made in a lighter way.

It stands in for the `multiprocessing` of Horovod's `safe_shell_exec`. Horovod's own event is made of five
semaphores: Spark kills the worker process that holds them as soon as mpirun has ended, and Python's resource
tracker then prints that they leaked, at the end of every training. And a process that multiprocessing starts
imports the main module of the one that starts it, here pyspark's, which the command never needs.
"""

from __future__ import annotations

import sys
from multiprocessing import context
from types import ModuleType


class PipeEvent:
    """An event that one process sets and another waits for.

    Args:
        context: of multiprocessing, which hands this object to the process that it starts.
    """

    def __init__(self, context: context.BaseContext):
        self._reader, self._writer = context.Pipe(duplex=False)

    def set(self) -> None:
        """Ends the wait of the other process."""
        self._writer.send_bytes(b"set")

    def wait(self) -> None:
        """Waits until the other process sets the event."""
        self._reader.poll(None)


class Process(context.SpawnProcess):
    """A process that does not import the main module of this one."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        # It has no file and no name by which it could be imported.
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _Context(context.SpawnContext):
    Process = Process


def get_context(method: str) -> context.BaseContext:
    """As of multiprocessing, for the only method that Horovod asks for.

    Raises:
        ValueError: another method is asked for.
    """
    if method != "spawn":
        raise ValueError(f"method must be 'spawn'. Received: {method!r}")
    return _Context()
