"""The event by which Horovod ends a command on an executor, without named semaphores.

Horovod's own is made of five semaphores. Spark kills the worker process that holds them as soon as mpirun has
ended, and Python's resource tracker then prints that they leaked, at the end of every training.
"""

from __future__ import annotations

from multiprocessing.context import BaseContext


class PipeEvent:
    """An event that one process sets and another waits for.

    Args:
        context: of multiprocessing, which hands this object to the process that it starts.
    """

    def __init__(self, context: BaseContext):
        self._reader, self._writer = context.Pipe(duplex=False)

    def set(self) -> None:
        """Ends the wait of the other process."""
        self._writer.send_bytes(b"set")

    def wait(self) -> None:
        """Waits until the other process sets the event."""
        self._reader.poll(None)
