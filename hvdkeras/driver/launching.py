"""The launch of the ranks, repeated from the newest intact checkpoint where a rank is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hvdkeras.driver.configuration import Configuration
from hvdkeras.driver.saturation import SaturationLog
from hvdkeras.history import progress
from hvdkeras.launch import environment, local, spark
from hvdkeras.launch.failure import TrainingError
from hvdkeras.launch.standing import StandingRanks
from hvdkeras.rank import worker
from hvdkeras.spec import TrainingSpec

logger = logging.getLogger("hvdkeras")


def launch(
    configuration: Configuration,
    spec: TrainingSpec,
    on_spark: bool,
    ranks: StandingRanks | None,
    on_message: Callable[[int, Any], None],
) -> tuple[list[worker.Result], list[str]]:
    """Runs the ranks to their end.

    Args:
        configuration: whose `launch_options`, `max_restarts` and `verbose` are used.
        spec: what the ranks get.
        on_spark: whether ranks are launched on Spark executors; otherwise on this machine.
        ranks: those that train; None: they are launched for this training.
        on_message: gets the ranks' messages beside the display of the progress, with the rank, on any thread.

    Returns:
        The results by rank, and the reason of each restart, a line each.

    Raises:
        TrainingError: a rank raised an exception, or ranks were lost more often than `max_restarts` allows.
    """
    members = spec.ensemble.members if spec.ensemble else spec.num_workers
    run = (
        _runner(configuration, spec, on_spark)
        if ranks is None
        else partial(ranks.run, worker.run_on_standing_rank)
    )
    saturation = SaturationLog(spec.num_workers)
    restarts: list[str] = []
    while True:
        try:
            with progress.shown(members, spec.num_workers, spec.num_epoch, configuration.verbose) as show:
                results = run((spec,), on_message=_to_all(show, on_message, saturation.on_message))
            return results, restarts
        except TrainingError as error:
            # A rank would raise the same exception again, unless it waited for one that is lost.
            is_of_the_rank = error.remote_traceback is not None and not error.waited
            if len(restarts) == configuration.max_restarts or is_of_the_rank:
                raise
            restarts.append(str(error).splitlines()[0])
            logger.warning(
                "restart %d of %d from the last checkpoint: %s",
                len(restarts),
                configuration.max_restarts,
                restarts[-1],
            )
            spec = _resuming(spec)


def _to_all(*receivers: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    def on_message(rank: int, message: Any) -> None:
        for receive in receivers:
            receive(rank, message)

    return on_message


def _runner(configuration: Configuration, spec: TrainingSpec, on_spark: bool) -> Callable[..., list[Any]]:
    """Launches ranks for one call of `worker.run`, or calls it in the running job."""
    job = environment.job()
    return partial(
        spark.run if on_spark else local.run,
        worker.run,
        num_proc=job.size if job else spec.num_workers,
        timeout=spec.timeout,
        verbose=configuration.verbose,
        **configuration.launch_options,
    )


def _resuming(spec: TrainingSpec) -> TrainingSpec:
    checkpoint: Any = spec.checkpoint
    return replace(spec, checkpoint=replace(checkpoint, resume=True))
