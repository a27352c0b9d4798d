"""Ranks that the user keeps between trainings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hvdkeras.data import sources
from hvdkeras.data.shards import Shards
from hvdkeras.driver.configuration import Configuration
from hvdkeras.launch import cluster, environment
from hvdkeras.launch.standing import StandingRanks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger("hvdkeras")

_open: Workers | None = None


class Workers(StandingRanks):
    """Ranks that stay between trainings: the first training launches none, nor does any later one.

        with hvdkeras.Workers(2):
            first = EASGD(model, rho=1.0).train(rows)
            second = EASGD(model, rho=4.0).train(rows)      # begins at once

    From its construction to `close()`, or to the end of the `with` block, every training of this process
    runs on these ranks: `train`, `fit`, and what a `CrossValidator` or a `Pipeline` calls. Each is a training
    of its own, with the result that it would have on ranks of its own. One such object may be open at a time.

    A training that fails ends the ranks, and the next one launches new ones. Python modules that the ranks
    have imported stay as they were: close the ranks after a change of such a file.

    Args:
        num_workers: number of ranks. Trainings without a number take it; another number is refused.
        spark: the session on whose executors the ranks run. They keep a task slot each until they are closed,
            and one more must be there, with which Spark writes the data. None: the ranks are on this machine.
        timeout: seconds without a sign of life of a rank in a training, after which it is ended; as of a
            trainer.
        verbose: as of a trainer: 0 shows nothing of what the ranks print.
        launch_options: as of a trainer.

    Raises:
        ValueError: an argument is out of its range, another object is open, the script runs inside a job, or
            Spark has too few slots.
        TimeoutError: the ranks did not start in time.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        spark: SparkSession | None = None,
        timeout: float = 600.0,
        verbose: int = 1,
        launch_options: Mapping[str, Any] | None = None,
    ):
        global _open
        if _open is not None:
            raise ValueError(
                f"one Workers may be open at a time: close() the one of {_open.num_proc} ranks first. "
                f"Received: num_workers={num_workers!r}"
            )
        if environment.job() is not None:
            raise ValueError(
                "Workers can't be used in a script that runs under mpirun or horovodrun, whose ranks stay "
                f"anyway. Received: a job of {environment.job().size} ranks"
            )
        if spark is not None and cluster.is_connect(spark):
            raise ValueError(
                "spark must be a classic session, on whose executors ranks can run. Leave it out for Spark "
                "Connect: the ranks then run on this machine. Received: a session of Spark Connect"
            )
        options = dict(launch_options or {})
        on_spark, free = spark is not None, 1
        super().__init__(num_workers, on_spark, free, timeout=timeout, verbose=verbose, **options)
        self._context = spark.sparkContext if on_spark else None
        self._threads: tuple[int | None, ...] = ()  # as of the first training: a process sets them once
        self._check_session()
        self.run(os.getpid)
        if on_spark:
            logger.warning(
                "%d ranks hold as many of Spark's %d task slots until they are closed",
                num_workers,
                cluster.slots(self._context),
            )
        _open = self

    def close(self) -> None:
        """Ends the ranks and frees Spark's slots. A second call does nothing."""
        global _open
        if _open is self:
            _open = None
        super().close()

    def check(self, configuration: Configuration, num_workers: int, data: Any) -> None:
        """Checks that a training fits these ranks.

        Raises:
            ValueError: it does not; the message says which of its arguments.
        """
        end = "unless they are closed before"
        if num_workers != self.num_proc:
            raise ValueError(
                f"num_workers must be that of the open Workers, {self.num_proc}, {end}. "
                f"Received: {num_workers}"
            )
        if configuration.launch_options:
            raise ValueError(
                f"launch_options must be given to the open Workers, {end}. "
                f"Received: {configuration.launch_options!r}"
            )
        self._check_session()
        self._check_place(data, end)
        self._threads = self._threads or (configuration.threads,)
        if configuration.threads != self._threads[0]:
            raise ValueError(
                f"threads must be that of the first training on the open Workers, {self._threads[0]}, {end}. "
                f"Received: {configuration.threads}"
            )

    def _check_place(self, data: Any, end: str) -> None:
        where = "Spark's executors" if self._context is not None else "this machine"
        context = data.sparkSession.sparkContext if sources.has_executors(data) else None
        if context is not self._context and not isinstance(data, Shards):
            kind = "a DataFrame of a Spark session" if context is not None else f"{type(data).__name__}"
            raise ValueError(
                f"data must be where the ranks of the open Workers are, on {where}, {end}. Received: {kind}"
            )

    def _check_session(self) -> None:
        if self._context is not None and self._context is not cluster.active_context():
            raise ValueError(
                "the Spark session of the open Workers must be the active one: close() them, open others. "
                "Received: another SparkContext"
            )


def open_workers() -> Workers | None:
    """Returns the ranks that the user keeps; None where none are kept."""
    return _open
