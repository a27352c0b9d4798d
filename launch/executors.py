"""Whether the executors have the driver's Python and packages: they are asked once, as early as possible."""

from __future__ import annotations

import os
import re
import sys
import time
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import cluster

if TYPE_CHECKING:
    from pyspark import SparkContext

# Distributions that must agree, and the names that each goes by.
PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-rocm"),
    "keras": ("keras",),
    "horovod": ("horovod",),
    "mpi4py": ("mpi4py",),
    "numpy": ("numpy",),
    "hvdkeras": ("hvdkeras",),
}

# The question that was asked last: most sessions keep their executors.
_last: _Question | None = None


def ask(context: SparkContext, num_proc: int) -> None:
    """Begins to ask the executors that are there, in a thread, unless they have answered before.

    Meanwhile the caller checks and writes what the ranks will need. Errors come from `check`.

    Args:
        context: of the application.
        num_proc: number of ranks that will be launched.
    """
    _asked(context, num_proc)


def check(context: SparkContext, num_proc: int, deadline: float, start_timeout: float) -> None:
    """Compares the executors' Python and packages with the driver's.

    Args:
        context: of the application.
        num_proc: number of ranks.
        deadline: of `time.monotonic`.
        start_timeout: seconds before the deadline at the start, for the error.

    Raises:
        ValueError: they differ, or an executor has no such Python.
        TimeoutError: the executors did not answer before the deadline.
    """
    from py4j.protocol import Py4JJavaError

    global _last
    question = _asked(context, num_proc)
    try:
        found = question.answers(deadline, start_timeout)
    except BaseException as error:
        _last = None
        if not isinstance(error, Py4JJavaError):
            raise
        if "PYTHON_VERSION_MISMATCH" in str(error) or "Python in worker has different version" in str(error):
            raise ValueError(f"the executors run another Python than the driver. {_remedy()}") from error
        if missing := re.search(r"Cannot run program .*", str(error)):
            raise ValueError(f"an executor could not start Python: {missing[0]}. {_remedy()}") from error
        raise
    here = versions()
    for host, python, there in found:
        differences = compare(here, there)
        if differences:
            _last = None  # they may have been mended when they are asked again
            raise ValueError(
                f"the executor on {host} with {python} differs from the driver: {'; '.join(differences)}. "
                f"{_remedy()}"
            )


def _asked(context: SparkContext, num_proc: int) -> _Question:
    global _last
    # Spark deals a job's tasks out over all slots, and so over all executors.
    tasks = 1 if cluster.is_local(context) else max(num_proc, cluster.slots(context))
    infos = context._jsc.sc().statusTracker().getExecutorInfos()
    executors = frozenset(f"{info.host()}:{info.port()}" for info in infos)
    asked = context, context.pythonExec, executors, tasks
    if _last is None or _last.asked != asked:
        _last = _Question(asked)
    return _last


class _Question:
    """One Spark job that asks executors for their packages.

    Args:
        asked: the application, its Python, its executors, and the number of tasks.
    """

    def __init__(self, asked: tuple[SparkContext, str, frozenset[str], int]) -> None:
        from pyspark import InheritableThread

        self.asked = asked
        self._group = f"hvdkeras-check-{time.monotonic_ns()}"
        self._found: list[Any] = []
        self._error: Exception | None = None
        self._thread = InheritableThread(target=self._work, name="check-executors", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        context, _, _, tasks = self.asked
        try:
            context.setJobGroup(self._group, "hvdkeras looks at the executors", interruptOnCancel=True)
            look = _look_around(PACKAGES)
            self._found = cluster.collect(context.parallelize(range(tasks), tasks).mapPartitions(look))
        except Exception as error:
            self._error = error

    def answers(self, deadline: float, start_timeout: float) -> list[tuple[str, str, dict[str, str | None]]]:
        """Waits for host, Python and versions of each task; raises what the job raised."""
        try:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        finally:
            if running := self._thread.is_alive():
                self.asked[0].cancelJobGroup(self._group)
        if running:
            raise TimeoutError(
                f"waited start_timeout={start_timeout:g} s for the executors of {self.asked[0].master} to "
                "answer which packages they have"
            )
        if self._error is not None:
            raise self._error
        return self._found


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
