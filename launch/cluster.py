"""What a Spark cluster offers, looked at before ranks are launched on it."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext

# How long executors may take to register where the cluster doesn't say how many will come.
REGISTRATION_SECONDS = 20.0
POLL_SECONDS = 0.2

# Distributions that must agree, and the names that each goes by.
PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-rocm"),
    "keras": ("keras",),
    "horovod": ("horovod",),
    "mpi4py": ("mpi4py",),
    "numpy": ("numpy",),
    "hvdkeras": ("hvdkeras",),
}


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


def check_executors(context: SparkContext, num_proc: int) -> None:
    """Compares the executors' Python and packages with the driver's, in one Spark job.

    Raises:
        ValueError: they differ, or an executor has no such Python.
    """
    from py4j.protocol import Py4JJavaError

    tasks = max(num_proc, slots(context))
    here, look = versions(), _look_around(PACKAGES)
    try:
        found = context.parallelize(range(tasks), tasks).mapPartitions(look).collect()
    except Py4JJavaError as error:
        if "PYTHON_VERSION_MISMATCH" in str(error) or "Python in worker has different version" in str(error):
            raise ValueError(f"the executors run another Python than the driver. {_remedy()}") from error
        if found := re.search(r"Cannot run program .*", str(error)):
            raise ValueError(f"an executor could not start Python: {found[0]}. {_remedy()}") from error
        raise
    for host, python, there in found:
        differences = compare(here, there)
        if differences:
            raise ValueError(
                f"the executor on {host} with {python} differs from the driver: {'; '.join(differences)}. "
                f"{_remedy()}"
            )


def _remedy() -> str:
    set_to = os.environ.get("PYSPARK_PYTHON")
    return (
        "Every executor needs an environment with the driver's versions, and PYSPARK_PYTHON must name its "
        f"Python before the session starts: {sys.executable} where it is the same, or one from an archive "
        f"(docs/install.md). Received: PYSPARK_PYTHON={set_to or '(not set)'}"
    )


def compare(here: dict[str, str | None], there: dict[str, str | None]) -> list[str]:
    """Tells in words where two sets of versions differ in their first two numbers."""
    return [
        f"{name} {there.get(name) or 'missing'} there, {version or 'missing'} here"
        for name, version in here.items()
        if _minor(version) != _minor(there.get(name))
    ]


def _minor(version: str | None) -> list[str] | None:
    return version.split(".")[:2] if version else None


def versions() -> dict[str, str | None]:
    """Gives the versions of this Python and of the packages that must agree; None for a missing one."""
    _, _, found = next(_look_around(PACKAGES)(iter(())))
    return found


def _look_around(packages: dict[str, tuple[str, ...]]) -> Any:
    # Defined inside, so that it travels by value: an executor may not have this package.
    def look(_: Any) -> Any:
        import importlib.metadata
        import platform
        import socket
        import sys

        found = {"python": platform.python_version()}
        for package, names in packages.items():
            found[package] = None
            for name in names:
                try:
                    found[package] = importlib.metadata.version(name)
                    break
                except importlib.metadata.PackageNotFoundError:
                    continue
        yield socket.gethostname(), sys.executable, found

    return look
