"""Horovod's launcher, which otherwise asks its compiled code whether MPI is there.

On CPUs no such code is needed: Horovod starts the ranks, and mpi4py carries what they exchange. This module
is the command `horovodrun` of an environment with hvdkeras, and what `hvdkeras run` starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mpi_is_built() -> Iterator[None]:
    """Answers Horovod's question with yes.

    Horovod would ask a forked process that imports TensorFlow: three seconds, a fork beside running threads,
    and "no" where nothing was compiled. Whether there is an mpirun it still asks by itself.
    """
    from horovod.runner import launch

    question = launch.mpi_built
    launch.mpi_built = lambda verbose=False: True
    try:
        yield
    finally:
        launch.mpi_built = question


def main() -> None:
    """Runs `horovodrun` with the arguments of the command line."""
    with mpi_is_built():
        from horovod.runner import launch

        launch.run_commandline()


if __name__ == "__main__":
    main()
