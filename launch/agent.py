"""Ranks with the Python of their executors, wherever that is.

Horovod starts orted and the ranks by the driver's paths. Executors that unpack an archive, as on YARN and
Kubernetes, have their environment elsewhere, each in a folder of its own. Here their Python starts both:

    mpirun -> this agent, on the driver -> Horovod's task service on the executor -> orted.py there -> ranks

Of several executors on a host the first one's Python starts all ranks there, as Horovod has one orted a host.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hvdkeras.launch import tasks
from hvdkeras.launch.orted import PYTHON_VARIABLE


def executors_python(
    mpi_run: Callable[..., None], python: str, entry: Sequence[str] | None
) -> Callable[..., None]:
    """Returns Horovod's `mpi_run` changed so that executors start ranks with their own Python.

    Args:
        mpi_run: Horovod's function.
        python: what the executors call it, as in `PYSPARK_PYTHON`; a relative path begins at the working
            directory of an executor.
        entry: arguments of Python for a rank; None: Horovod's own, whose import takes a second.
    """

    def run(settings: Any, nics: Any, env: dict[str, str], command: Sequence[str], **streams: Any) -> None:
        settings.extra_mpi_args = settings.extra_mpi_args.replace(
            "-m horovod.spark.driver.mpirun_rsh", f"-m hvdkeras.launch.agent {shlex.quote(python)}"
        )
        # The first word is the driver's Python; orted.py has left the executor's in the environment.
        start = f'cd "${{HOROVOD_SPARK_WORK_DIR:-.}}"; exec "${PYTHON_VARIABLE}" "$@"'
        mpi_run(settings, nics, env, ["/bin/sh", "-c", start, "rank", *(entry or command[1:])], **streams)

    return run


def own_orted(command: str, python: str) -> str:
    """Rewrites the command that mpirun sends to a host.

    Args:
        command: sets variables to the driver's paths and ends with `orted` and its arguments.
        python: see `executors_python`.

    Raises:
        ValueError: the command starts no orted.
    """
    found = re.search(r"(?:^|[\s;])\S*\borted\s+(.*)", command, re.DOTALL)
    if found is None:
        raise ValueError(f"mpirun must start orted on other hosts. Received: {command}")
    return f"exec {shlex.quote(python)} -m hvdkeras.launch.orted {found[1]}"


def main() -> None:
    """Starts orted on a host: `agent PYTHON ADDRESSES SETTINGS HOST COMMAND...`."""
    tasks.import_horovod()
    from horovod.runner.common.util import codec, secret
    from horovod.spark.driver.rsh import rsh

    python, addresses, settings, host, *command = sys.argv[1:]
    key = codec.loads_base64(os.environ[secret.HOROVOD_SECRET_KEY])
    verbose = codec.loads_base64(settings).verbose
    there = own_orted(" ".join(command), python)
    # One orted serves all ranks of its host: the first task there starts it.
    rsh(codec.loads_base64(addresses), key, host, there, {}, 0, verbose)


if __name__ == "__main__":
    main()
