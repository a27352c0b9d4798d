"""Open MPI's daemon on an executor, from the environment of the Python that the executor runs."""

from __future__ import annotations

import os
import shlex
import sys

from hvdkeras.launch import environment, remains

# Names, in the environment that the ranks of a host get from its orted, the Python that runs them.
PYTHON_VARIABLE = "HVDKERAS_EXECUTOR_PYTHON"


def main() -> int:
    """Runs orted, with the arguments of the command line, under a keeper.

    Ranks end with their orted, also where it is killed, and so has no time to remove the job's files.

    Returns:
        orted's exit status.
    """
    environment.take_own_paths()
    folders = remains.Folders()
    env = {**os.environ, **folders.variables(), PYTHON_VARIABLE: sys.executable}
    try:
        return folders.keep(shlex.join(["orted", *sys.argv[1:]]), env).wait()
    finally:
        folders.close()


if __name__ == "__main__":
    sys.exit(main())
