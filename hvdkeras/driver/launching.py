"""The launch of the ranks, repeated from the newest intact checkpoint where a rank is lost."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from hvdkeras.driver.configuration import Configuration
from hvdkeras.history import progress
from hvdkeras.launch import environment, local, spark
from hvdkeras.launch.failure import TrainingError
from hvdkeras.rank import worker
from hvdkeras.spec import TrainingSpec

logger = logging.getLogger("hvdkeras")


def launch(
    configuration: Configuration, spec: TrainingSpec, on_spark: bool
) -> tuple[list[worker.Result], list[str]]:
    """Runs the ranks to their end.

    Args:
        configuration: whose `launch_options`, `max_restarts` and `verbose` are used.
        spec: what the ranks get.
        on_spark: whether the ranks run on Spark executors; otherwise on this machine.

    Returns:
        The results by rank, and the reason of each restart, a line each.

    Raises:
        TrainingError: a rank raised an exception, or ranks were lost more often than `max_restarts` allows.
    """
    job = environment.job()
    members = spec.ensemble.members if spec.ensemble else spec.num_workers
    run = spark.run if on_spark else local.run
    restarts: list[str] = []
    while True:
        try:
            with progress.shown(members, spec.num_workers, spec.num_epoch, configuration.verbose) as receiver:
                results = run(
                    worker.run,
                    (spec,),
                    num_proc=job.size if job else spec.num_workers,
                    timeout=spec.timeout,
                    verbose=configuration.verbose,
                    on_message=receiver,
                    **configuration.launch_options,
                )
            return results, restarts
        except TrainingError as error:
            # A rank would raise the same exception again.
            if len(restarts) == configuration.max_restarts or error.remote_traceback is not None:
                raise
            restarts.append(str(error).splitlines()[0])
            logger.warning(
                "restart %d of %d from the last checkpoint: %s",
                len(restarts),
                configuration.max_restarts,
                restarts[-1],
            )
            spec = _resuming(spec)


def _resuming(spec: TrainingSpec) -> TrainingSpec:
    checkpoint: Any = spec.checkpoint
    return replace(spec, checkpoint=replace(checkpoint, resume=True))
