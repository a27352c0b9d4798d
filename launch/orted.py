"""Open MPI's daemon on an executor, from the environment of the Python that the executor runs."""

from __future__ import annotations

import os
import sys

from hvdkeras.launch import environment

# Names, in the environment that the ranks of a host get from its orted, the Python that runs them.
PYTHON_VARIABLE = "HVDKERAS_EXECUTOR_PYTHON"


def main() -> None:
    """Becomes orted, with the arguments of the command line."""
    environment.take_own_paths()
    os.environ[PYTHON_VARIABLE] = sys.executable
    os.execvp("orted", ["orted", *sys.argv[1:]])


if __name__ == "__main__":
    main()
