"""How a job is launched: what `local.run` and `spark.run` take alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, TypedDict

# Horovod gives both already; mpirun refuses a second one, even with the same value.
TAKEN_MPI_PARAMETERS = ("pml", "btl")


class Options(TypedDict, total=False):
    """Keyword arguments of a launch.

    Attributes:
        start_timeout: seconds until all ranks must have started and loaded their function. The default, 600,
            leaves a cluster the time to get executors on demand.
        timeout: seconds without a sign of life of a rank, after which the job is ended; 10 at least, 600 by
            default. Ranks send one a second, whatever their function does. Ranks that are cut off from the
            driver for longer end themselves.
        env: variables for the ranks, beside those of `environment.variables()`. Default: none.
        mpi_args: further arguments of mpirun, as on its command line. Default: none.
        verbose: 0 keeps the ranks' output back, 1 (the default) shows it on stderr, tagged by rank, 2 also
            mpirun's words.
        on_message: called on the driver as `on_message(rank, message)` for every `rank.send(message)`; inside
            a running job for the messages of this rank. Default: messages are dropped.
    """

    start_timeout: float
    timeout: float
    env: Mapping[str, str] | None
    mpi_args: str | None
    verbose: int
    on_message: Callable[[int, Any], None] | None


DEFAULTS: Options = {
    "start_timeout": 600,
    "timeout": 600,
    "env": None,
    "mpi_args": None,
    "verbose": 1,
    "on_message": None,
}


def checked(options: Mapping[str, Any]) -> Options:
    """Completes options by their defaults, and refuses what `mpirun` would refuse later and less clearly.

    Raises:
        TypeError: an option is unknown, `env` is not a mapping of strings, or `mpi_args` is not a string.
        ValueError: a number is not positive, or `mpi_args` sets what Horovod sets.
    """
    for name in options:
        if name not in DEFAULTS:
            near = get_close_matches(name, DEFAULTS, n=1) or DEFAULTS
            raise TypeError(f"a launch has no option {name!r}. Did you mean {' or '.join(map(repr, near))}?")
    complete: Options = {**DEFAULTS, **options}  # type: ignore[typeddict-item]
    for name in ("start_timeout", "timeout"):
        seconds = complete[name]
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise ValueError(f"{name} must be a positive number of seconds. Received: {seconds!r}")
    for name, value in (complete["env"] or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env must map strings to strings. Received: {name!r}: {value!r}")
    _check_mpi_args(complete["mpi_args"])
    return complete


def _check_mpi_args(mpi_args: Any) -> None:
    if mpi_args is not None and not isinstance(mpi_args, str):
        raise TypeError(f"mpi_args must be one string, as on mpirun's command line. Received: {mpi_args!r}")
    for flag, name in pairwise((mpi_args or "").split()):
        if flag in ("-mca", "--mca") and name in TAKEN_MPI_PARAMETERS:
            raise ValueError(
                f"mpi_args must not set the parameter {name}: Horovod does. Received: {mpi_args!r}"
            )


def check_num_proc(num_proc: Any) -> None:
    """Raises ValueError where a number of ranks is no positive integer."""
    if isinstance(num_proc, bool) or not isinstance(num_proc, int) or num_proc < 1:
        raise ValueError(f"num_proc must be a positive integer. Received: {num_proc!r}")
