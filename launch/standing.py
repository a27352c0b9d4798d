"""Ranks that stay between calls: on this machine, or on the executors of the active SparkSession."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import driver, local, spark
from hvdkeras.launch.options import Options, check_num_proc, checked

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)


class StandingRanks:
    """Ranks that make one call after another; the first launches them.

    A call that fails ends the ranks, and so may the loss of an executor between two calls: the next call
    launches new ones. Calls of several threads are made one after the other.

    Args:
        num_proc: number of ranks.
        on_spark: whether they run on the executors of the active SparkSession; otherwise on this machine.
        free: slots that Spark must have beside those of the ranks.
        **options: see `hvdkeras.launch.options.Options`; `on_message` is an argument of `run`.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument is unknown or has the wrong type.
    """

    def __init__(self, num_proc: int, on_spark: bool, free: int = 0, **options: Unpack[Options]):
        check_num_proc(num_proc)
        complete = checked({**options, "on_message": self._hand_on})
        start = partial(spark.start, free=free) if on_spark else local.start
        self._start = partial(start, num_proc=num_proc, options=complete)
        self._ranks: driver.Ranks | None = None
        self._receiver: Callable[[int, Any], None] | None = None
        self._lock, self._closed = threading.Lock(), False
        self.num_proc = num_proc

    def __enter__(self) -> StandingRanks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        fn: Callable[..., Any],
        args: tuple = (),
        on_message: Callable[[int, Any], None] | None = None,
    ) -> list[Any]:
        """Calls `fn(*args)` on each rank and returns the results by rank.

        Args:
            fn: as in `hvdkeras.launch.local.run`.
            args: as in `hvdkeras.launch.local.run`.
            on_message: see `hvdkeras.launch.options.Options`.

        Raises:
            Exception: as `hvdkeras.launch.local.run` or `hvdkeras.launch.spark.run`.
            ValueError: the ranks were closed.
        """
        task = driver.pack(fn, args, None)
        with self._lock:
            if self._closed:
                raise ValueError(f"ranks must not be closed when they get a call. Received: {fn!r}")
            self._receiver = on_message
            try:
                return self._given(task).results()
            finally:
                self._receiver = None

    def close(self) -> None:
        """Ends the ranks, after the call that they are making. A second call does nothing."""
        with self._lock:
            self._closed = True
            if self._ranks is not None:
                self._ranks.let_go()

    def _given(self, task: Sequence[bytes | memoryview]) -> driver.Ranks:
        """The ranks, which have been given a task."""
        if self._ranks is not None and self._ranks.are_ready():
            self._ranks.give(task)
            return self._ranks
        if self._ranks is not None:
            log.warning("the standing ranks have ended: launching %d new ones", self.num_proc)
            self._ranks.let_go()
        self._ranks = self._start(task)
        return self._ranks

    def _hand_on(self, rank: int, message: Any) -> None:
        if self._receiver is not None:
            self._receiver(rank, message)
