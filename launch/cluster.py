"""What a Spark cluster offers, looked at before ranks are launched on it."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import RDD, SparkConf, SparkContext

# How long executors may take to register where the cluster doesn't say how many will come.
REGISTRATION_SECONDS = 20.0
POLL_SECONDS = 0.2
# Of a session whose errors in functions leave out pyspark's own frames, as they do by default.
SQL_VARIABLE = "SPARK_SIMPLIFIED_TRACEBACK"
_environment = threading.Lock()


def active_context() -> SparkContext:
    """Gets the running SparkContext.

    Raises:
        ValueError: there is none.
    """
    from pyspark import SparkContext

    context = SparkContext._active_spark_context
    if context is None or context._jsc is None:
        raise ValueError(
            "ranks on Spark need an active SparkSession with a SparkContext in this process (Spark Connect "
            "has none). Received: no active SparkSession"
        )
    return context


def is_connect(session: Any) -> bool:
    """Returns whether a session is one of Spark Connect, which has neither a SparkContext nor a JVM."""
    return type(session).__module__.startswith("pyspark.sql.connect")


def is_local(context: SparkContext) -> bool:
    """Tells whether the executor is a part of this process: `local`, `local[N]`, `local[N, F]`."""
    return context.master == "local" or context.master.startswith("local[")


def slots(context: SparkContext) -> int:
    """Counts the tasks that the executors registered now can run at the same time.

    That is what Spark itself reckons for barrier stages: cores, `spark.task.cpus` and resources such as GPUs.
    """
    spark = context._jsc.sc()
    return spark.maxNumConcurrentTasks(spark.resourceProfileManager().defaultResourceProfile())


def slots_to_come(conf: SparkConf) -> float | None:
    """Reckons the slots that the configuration allows in the end.

    Returns:
        Their number; `math.inf` where nothing bounds dynamic allocation; None where the configuration doesn't
        tell, as on a standalone cluster whose applications take whatever is there.
    """
    per_executor = _slots_per_executor(conf)
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        executors = conf.get("spark.dynamicAllocation.maxExecutors")
        return math.inf if executors is None or per_executor is None else int(executors) * per_executor
    if conf.get("spark.cores.max") is not None:
        return int(conf.get("spark.cores.max")) // int(conf.get("spark.task.cpus", "1"))
    executors = conf.get("spark.executor.instances")
    return None if executors is None or per_executor is None else int(executors) * per_executor


def _slots_per_executor(conf: SparkConf) -> int | None:
    master = conf.get("spark.master", "")
    cores = conf.get("spark.executor.cores", "1" if master.startswith(("yarn", "k8s")) else None)
    if cores is None:
        return None
    count = int(cores) // int(conf.get("spark.task.cpus", "1"))
    for_task = float(conf.get("spark.task.resource.gpu.amount", "0"))
    if for_task > 0:
        # Below one, Spark lets floor(1 / amount) tasks share each GPU.
        of_executor = int(conf.get("spark.executor.resource.gpu.amount", "0"))
        by_gpu = (
            of_executor * math.floor(1 / for_task) if for_task < 1 else of_executor // math.ceil(for_task)
        )
        count = min(count, by_gpu)
    return count


def check_slots(context: SparkContext, num_proc: int, start_timeout: float, free: int = 0) -> None:
    """Refuses a launch that the cluster has no room for, and waits for executors that are on their way.

    Args:
        context: of the application.
        num_proc: number of ranks.
        start_timeout: seconds that executors have to come.
        free: slots that are needed beside the ranks'.

    Raises:
        ValueError: the cluster has too few slots, and by its configuration gets no more.
        TimeoutError: executors that the configuration announces did not come within `start_timeout`.
    """
    needed = num_proc + free
    if slots(context) >= needed:
        return
    conf = context.getConf()
    to_come = slots_to_come(conf)
    local = is_local(context)
    if local or (to_come is not None and to_come < needed):
        raise ValueError(_too_few(context, num_proc, free, slots(context) if local else int(to_come)))
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        return  # Spark asks for executors only when tasks wait for them.
    patience = start_timeout if to_come is not None else min(start_timeout, REGISTRATION_SECONDS)
    deadline = time.monotonic() + patience
    while slots(context) < needed:
        if time.monotonic() > deadline:
            text = _too_few(context, num_proc, free, slots(context))
            if to_come is None:
                raise ValueError(text)
            raise TimeoutError(f"waited {patience:g} s for executors: {text}")
        time.sleep(POLL_SECONDS)


def _too_few(context: SparkContext, num_proc: int, free: int, found: int) -> str:
    beside = f", less {free} for Spark's own tasks beside ranks that stay" if free else ""
    return (
        "num_proc (num_workers of a trainer) must not exceed the task slots of the Spark application"
        f"{beside}: its executors' cores / spark.task.cpus, or fewer where tasks need GPUs. "
        f"Received: num_proc={num_proc}, slots={found} on {context.master}"
    )


def collect(rdd: RDD[Any]) -> list[Any]:
    """Runs a job of this package in the Python processes that Spark SQL's functions have.

    An executor has a Python daemon for each set of environment variables, whose start takes a second or two.
    SQL's functions have one variable more than those of an RDD have.
    """
    environment = rdd.context.environment
    with _environment:
        own = SQL_VARIABLE in environment
        environment.setdefault(SQL_VARIABLE, "1")
        try:
            rdd._jrdd  # noqa: B018 (makes Spark's function, which keeps a copy of the variables)
        finally:
            if not own:
                del environment[SQL_VARIABLE]
    return rdd.collect()
