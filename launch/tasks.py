"""What Horovod runs in a Spark task, with less to import and to wait for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from socketserver import BaseServer
from types import ModuleType
from typing import Any

import cloudpickle

# Of Horovod's estimators. The tasks take one function of it.
ESTIMATORS_TOOLS = "horovod.spark.common.util"
# How often the other tasks of a host ask whether its ranks have ended. Horovod's own is 1.
ASK_SECONDS = 0.1
# How often Horovod's services look whether they should end. Python's own is 0.5; they end in turn.
LOOK_SECONDS = 0.05


def prepared(
    mapper: Callable[[int, Any], Iterator[Any]], variables: Mapping[str, str]
) -> Callable[[int, Any], Iterator[Any]]:
    """Returns what Horovod runs in each Spark task, changed for its executor.

    Args:
        mapper: Horovod's function.
        variables: environment variables that the task's ranks get.
    """
    # Unpickled, it imports Horovod.
    packed = cloudpickle.dumps(mapper)

    def mapped(index: int, rows: Any) -> Iterator[Any]:
        from hvdkeras.launch import middleman, tasks

        tasks.import_horovod()
        tasks.hasten_ends()
        from horovod.runner.common.service.task_service import BasicTaskClient
        from horovod.runner.common.util import safe_shell_exec

        safe_shell_exec._create_event = middleman.PipeEvent
        safe_shell_exec.multiprocessing = middleman
        BasicTaskClient.wait_for_command_termination.__defaults__ = (tasks.ASK_SECONDS,)
        # Other tasks, the user's too, get this process next.
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield from cloudpickle.loads(packed)(index, rows)
        finally:
            os.environ.clear()
            os.environ.update(before)

    return mapped


def import_horovod() -> None:
    """Imports Horovod's launcher for Spark without Spark ML, SciPy and setuptools.

    They are two thirds of what it takes, and only Horovod's estimators need them.
    """
    if "horovod.spark" in sys.modules:
        return
    small = ModuleType(ESTIMATORS_TOOLS)
    small.host_hash = host_hash
    sys.modules[ESTIMATORS_TOOLS] = small
    try:
        import horovod.spark.runner  # noqa: F401
    except ImportError:
        pass  # a version that needs more of it; who asks for Horovod imports it
    finally:
        # Whoever imports it from now on gets the whole.
        del sys.modules[ESTIMATORS_TOOLS]


def hasten_ends() -> None:
    """Lets the services that Horovod starts in this process notice their end within `LOOK_SECONDS`."""
    from horovod.runner.common.util import network

    network.in_thread = _in_thread


def _in_thread(target: Callable[..., None], *args: Any, **kwargs: Any) -> Any:
    from horovod.runner.util import threads

    if getattr(target, "__func__", None) is BaseServer.serve_forever:
        target = partial(target, poll_interval=LOOK_SECONDS)
    return threads.in_thread(target, *args, **kwargs)


def host_hash(salt: Any = None) -> str:
    """Names the memory that tasks share, as Horovod does: a host, or a container of YARN on it."""
    from horovod.runner.common.util import host_hash as horovods

    return horovods.host_hash(salt="-".join(map(str, filter(None, [salt, os.environ.get("CONTAINER_ID")]))))
