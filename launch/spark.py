"""Ranks on the executors of the active SparkSession."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import agent, cluster, driver, executors, rank, remains, tasks
from hvdkeras.launch.mpirun import ONE_HOST, Mpirun, with_names
from hvdkeras.launch.options import Options, check_num_proc, checked
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports

if TYPE_CHECKING:
    from pyspark import SparkContext
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0
CANCEL_SECONDS = 5.0


def run(
    fn: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    **options: Unpack[Options],
) -> list[Any]:
    """Calls `fn(*args, **kwargs)` on `num_proc` ranks, each in a Spark task's place; returns their results.

    Before anything starts, the cluster's slots and the executors' packages are looked at.

    Args:
        fn: what every rank calls. It travels by cloudpickle.
        args: its positional arguments.
        kwargs: its keyword arguments.
        num_proc: number of ranks; by default as many as the executors registered now have slots.
        **options: see `hvdkeras.launch.options.Options`.

    Returns:
        The results, by rank.

    Raises:
        TrainingError: a rank raised, exited, was killed or fell silent.
        TimeoutError: not all ranks started within `start_timeout`.
        ValueError: no SparkSession is active, the cluster has too few slots, its executors' packages differ
            from the driver's, or an argument is out of its range.
        TypeError: an argument is unknown, has the wrong type or can't be pickled.
    """
    context = cluster.active_context()
    if num_proc is None:
        num_proc = max(1, cluster.slots(context))
    check_num_proc(num_proc)
    with start(driver.pack(fn, args, kwargs), num_proc, checked(options)) as ranks:
        return ranks.results()


def start(task: Sequence[bytes | memoryview], num_proc: int, options: Options, free: int = 0) -> driver.Ranks:
    """Launches ranks in the places of Spark tasks, after a look at the slots and the executors' packages.

    Args:
        task: what they do first, see `driver.pack`.
        num_proc: number of ranks.
        options: all options of the launch.
        free: slots that must remain for Spark's own tasks while the ranks run.

    Raises:
        TimeoutError: executors did not come or did not answer within `start_timeout`.
        ValueError: as in `run`.
    """
    begun, context = time.monotonic(), cluster.active_context()
    start_timeout = options["start_timeout"]
    deadline = begun + start_timeout
    cluster.check_slots(context, num_proc, start_timeout, free)
    executors.check(context, num_proc, deadline, start_timeout)
    return driver.Ranks(
        partial(_SparkJob, context, num_proc, options, deadline),
        task,
        num_proc,
        options,
        driver_host=None if cluster.is_local(context) else context.getConf().get("spark.driver.host"),
        begun=begun,
        env=driver.rank_variables(options["env"]),
    )


class _SparkJob:
    """A job whose ranks are started by Horovod's Spark tasks; see `hvdkeras.launch.supervisor.Job`."""

    def __init__(
        self,
        context: SparkContext,
        num_proc: int,
        options: Options,
        deadline: float,
        reports: Reports,
        env: dict[str, str],
        output: Output,
    ):
        self._context, self._num_proc, self._options, self._deadline = context, num_proc, options, deadline
        self._way = rank.way(reports, options["timeout"], _module_paths(context))
        self._env = env
        self._folders = remains.Folders()
        # A parameter for it would reach other hosts; this reaches only mpirun.
        self._mpirun = Mpirun(output, self._folders, {"TMPDIR": self._folders.sessions})
        self._group: str | None = None
        self._ended = False
        self._trouble: str | None = None

    def run(self) -> None:
        import horovod.spark

        tasks.hasten_ends()
        run = with_names(
            horovod.spark.run, _make_spark_thread=self._spark_thread, _launch_job=self._launch_job
        )
        try:
            run(
                rank.main,
                num_proc=self._num_proc,
                start_timeout=max(0.1, self._deadline - time.monotonic()),
                extra_mpi_args=f"{keepalive(self._options['timeout'])} {self._options['mpi_args'] or ''}",
                env=self._env,
                verbose=self._options["verbose"],
                use_mpi=True,
                nics={"lo"} if cluster.is_local(self._context) else None,
            )
        finally:
            self._ended = True
            self._folders.close()

    def trouble(self) -> str | None:
        return self._trouble

    def end(self) -> None:
        self._ended = True
        # A JVM that is stopped or gone does not answer.
        cancelling = threading.Thread(target=self._cancel, name="cancel-spark", daemon=True)
        cancelling.start()
        self._mpirun.end()
        cancelling.join(CANCEL_SECONDS)

    def _cancel(self) -> None:
        if self._group is not None:
            with suppress(Exception):  # there is nothing to cancel when Spark is gone
                self._context.cancelJobGroup(self._group)

    def _follow(self, group: str) -> None:
        """Asks Spark whether tasks of the job have failed: a lost executor fails its own."""
        tracker = self._context.statusTracker()
        while not (self._ended or self._trouble):
            try:
                failed = sum(
                    info.numFailedTasks
                    for job in tracker.getJobIdsForGroup(group)
                    for stage in getattr(tracker.getJobInfo(job), "stageIds", ())
                    if (info := tracker.getStageInfo(stage)) is not None
                )
                if failed:
                    self._trouble = f"Spark has lost {failed} tasks of the job, as with an executor"
            except Exception as error:
                self._trouble = f"Spark does not answer: {type(error).__name__}: {error}"
            time.sleep(FOLLOW_SECONDS)

    def _launch_job(self, use_mpi: bool, use_gloo: bool | None, settings: Any, *rest: Any) -> None:
        """Stands in for Horovod's function of this name, which asks first whether MPI was built.

        It asks a forked process that imports TensorFlow: three seconds, and a fork beside running threads.
        """
        from horovod.spark import mpi_run

        service, env, _stdout, _stderr, executable = rest
        nics = service.get_common_interfaces()
        flags = ONE_HOST if cluster.is_local(self._context) else None
        args = executable or sys.executable, settings, nics, service, env
        # Horovod's own ranks ask their Spark tasks for their GPUs.
        has_gpus = self._context.getConf().get("spark.task.resource.gpu.amount") is not None
        entry = None if has_gpus else rank.ENTRY
        wrap = partial(agent.executors_python, python=self._context.pythonExec, entry=entry)
        self._mpirun.run(mpi_run.mpi_run, *args, flags=flags, wrap=wrap)

    def _spark_thread(
        self,
        context: SparkContext,
        group: str,
        service: Any,
        results: Any,
        settings: Any,
        use_gloo: bool,
        is_elastic: bool,
    ) -> threading.Thread:
        """Stands in for Horovod's function of this name.

        Its thread would keep this process from ending, and prints a stack trace when the job is cancelled.
        """
        from horovod.spark import runner
        from pyspark import InheritableThread

        self._group = group

        def work() -> None:
            try:
                context.setJobGroup(group, "ranks of hvdkeras", interruptOnCancel=True)
                mapper = runner._make_mapper(service.addresses(), settings, use_gloo, is_elastic)
                if self._ended:
                    raise RuntimeError("the job was ended before its Spark tasks were started")
                rows = context.range(0, numSlices=settings.num_proc)
                results.put(cluster.collect(rows.mapPartitionsWithIndex(tasks.prepared(mapper, self._way))))
            except Exception as error:
                if not self._ended:
                    log.info("the Spark job of the ranks has failed: %s", error)
                service.notify_spark_job_failed()

        thread = InheritableThread(target=work, name="run-spark", daemon=True)
        thread.start()
        threading.Thread(target=self._follow, args=(group,), name="follow-spark", daemon=True).start()
        return thread


def keepalive(timeout: float) -> str:
    """Lets mpirun and its daemons find out that the other's host is gone.

    That takes them longer than the supervisor's `timeout`, which can say which ranks are lost. The probes
    alone take longer: a connection may have been idle until just before the link broke.
    """
    probes = 4
    interval = int(timeout / probes) + 1
    return (
        f"-mca oob_tcp_keepalive_time {interval} -mca oob_tcp_keepalive_intvl {interval} "
        f"-mca oob_tcp_keepalive_probes {probes}"
    )


def _module_paths(context: SparkContext) -> list[str]:
    # On executors, what `addPyFile` sent lies in the working directory: modules as they are, and archives.
    return sys.path if cluster.is_local(context) else [".", *context._python_includes]
