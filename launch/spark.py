"""Ranks on the executors of the active SparkSession."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import agent, cluster, driver, events, horovodrun, rank
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports

if TYPE_CHECKING:
    from pyspark import SparkContext


def run(
    fn: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    *,
    start_timeout: float = 600,
    env: Mapping[str, str] | None = None,
    mpi_args: str | None = None,
    verbose: int = 1,
    on_message: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Calls `fn(*args, **kwargs)` on `num_proc` ranks, each in a Spark task's place; returns their results.

    Before anything starts, the cluster's slots and the executors' packages are looked at.

    Args:
        fn: What every rank calls. It travels by cloudpickle.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        num_proc: Number of ranks; by default as many as the executors registered now have slots.
        start_timeout: Seconds until all ranks must have started. The default leaves a cluster the time to get
            executors on demand.
        env: Variables for the ranks, beside those of `environment.variables()`.
        mpi_args: Further arguments of mpirun, as on its command line.
        verbose: 0 keeps the ranks' output back, 1 shows it on stderr, tagged by rank, 2 also mpirun's words.
        on_message: Called here as `on_message(rank, message)` for every `rank.send(message)`.

    Returns:
        The results, by rank.

    Raises:
        TrainingError: A rank raised, exited or was killed.
        TimeoutError: Not all ranks started within `start_timeout`.
        ValueError: No SparkSession is active, the cluster has too few slots, its executors' packages differ
            from the driver's, or an argument is out of its range.
        TypeError: An argument has the wrong type or can't be pickled.
    """
    context = cluster.active_context()
    if num_proc is None:
        num_proc = max(1, cluster.slots(context))
    driver.check_arguments(num_proc, start_timeout, env, mpi_args)
    task = driver.pack(fn, args, kwargs)
    cluster.check_slots(context, num_proc, start_timeout)
    cluster.check_executors(context, num_proc)

    def start(reports: Reports, environ: dict[str, str], output: Output) -> None:
        import horovod.spark

        with (
            horovodrun.mpi_is_built(),
            agent.executors_python(context.pythonExec),
            events.on_executors(),
            _no_word_of_cancelling(),
        ):
            horovod.spark.run(
                rank.perform,
                (reports.addresses, reports.port, reports.key, _module_paths(context)),
                num_proc=num_proc,
                start_timeout=start_timeout,
                extra_mpi_args=mpi_args,
                env=environ,
                stdout=output,
                stderr=output,
                verbose=verbose,
                use_mpi=True,
            )

    return driver.launch(
        start,
        task,
        num_proc,
        driver_host=None if cluster.is_local(context) else context.getConf().get("spark.driver.host"),
        start_timeout=start_timeout,
        env=driver.rank_variables(env),
        verbose=verbose,
        on_message=on_message,
    )


@contextmanager
def _no_word_of_cancelling() -> Iterator[None]:
    """Keeps back the stack trace that Horovod's thread prints when its Spark job is cancelled."""
    tell = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        of_horovod = args.thread is not None and "run_spark" in args.thread.name
        if not (of_horovod and re.search(r"Job \d+ cancelled", str(args.exc_value))):
            tell(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = tell


def _module_paths(context: SparkContext) -> list[str]:
    # On executors, what `addPyFile` sent lies in the working directory: modules as they are, and archives.
    return sys.path if cluster.is_local(context) else [".", *context._python_includes]
