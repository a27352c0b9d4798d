"""Ranks on this machine: launched from a plain Python script, or those of the job that the script runs in."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from hvdkeras.launch import driver, environment, rank, remains
from hvdkeras.launch.mpirun import ONE_HOST, Mpirun
from hvdkeras.launch.options import Options, check_num_proc, checked
from hvdkeras.launch.output import Output
from hvdkeras.launch.report import Reports

if TYPE_CHECKING:
    from typing_extensions import Unpack


def run(
    fn: Callable[..., Any],
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    **options: Unpack[Options],
) -> list[Any]:
    """Calls `fn(*args, **kwargs)` on `num_proc` ranks of this machine and returns what each returned.

    Inside a running `horovodrun` or `mpirun` job nothing is launched: every rank of the job must make this
    call, takes its part, and gets all results. If `fn` raises there, the rank prints the traceback and aborts
    the job, because the others may be waiting for it.

    Args:
        fn: what every rank calls. It travels by cloudpickle.
        args: its positional arguments.
        kwargs: its keyword arguments.
        num_proc: number of ranks; by default 1, inside a job the job's.
        **options: see `hvdkeras.launch.options.Options`.

    Returns:
        The results, by rank.

    Raises:
        TrainingError: a rank raised, exited, was killed or fell silent.
        TimeoutError: not all ranks started within `start_timeout`.
        ValueError: an argument is out of its range, or differs from the running job.
        TypeError: an argument is unknown, has the wrong type or can't be pickled.
    """
    here = environment.job()
    if num_proc is None:
        num_proc = here.size if here else 1
    check_num_proc(num_proc)
    complete = checked(options)
    if here is not None:
        return _take_part(here, fn, args, kwargs, num_proc, complete["on_message"])
    with start(driver.pack(fn, args, kwargs), num_proc, complete) as ranks:
        return ranks.results()


def start(task: Sequence[bytes | memoryview], num_proc: int, options: Options) -> driver.Ranks:
    """Launches ranks on this machine.

    Args:
        task: what they do first, see `driver.pack`.
        num_proc: number of ranks.
        options: all options of the launch.
    """
    return driver.Ranks(
        partial(_LocalJob, num_proc, options),
        task,
        num_proc,
        options,
        driver_host=None,
        begun=time.monotonic(),
        env={**os.environ, **driver.rank_variables(options["env"])},
    )


class _LocalJob:
    """A job whose ranks are all on this machine; see `hvdkeras.launch.supervisor.Job`."""

    def __init__(
        self,
        num_proc: int,
        options: Options,
        reports: Reports,
        env: dict[str, str],
        output: Output,
    ):
        self._env = {**env, **rank.way(reports, options["timeout"], sys.path)}
        self._num_proc, self._options = num_proc, options
        self._folders = remains.Folders()
        self._mpirun = Mpirun(output, self._folders)

    def run(self) -> None:
        # What `horovod.run` ends in; that one takes neither an environment nor streams.
        from horovod.runner import mpi_run
        from horovod.runner.common.util.settings import Settings

        settings = Settings(
            verbose=self._options["verbose"],
            num_proc=self._num_proc,
            hosts=f"localhost:{self._num_proc}",
            extra_mpi_args=self._options["mpi_args"],
            run_func_mode=True,
        )
        command = [sys.executable, *rank.ENTRY]
        env = {**self._folders.variables(), **self._env}
        try:
            self._mpirun.run(mpi_run.mpi_run, settings, None, env, command, flags=ONE_HOST)
        finally:
            self._folders.close()

    def trouble(self) -> str | None:
        return None

    def end(self) -> None:
        self._mpirun.end()


def _take_part(
    here: environment.Job,
    fn: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any] | None,
    num_proc: int,
    on_message: Callable[[int, Any], None] | None,
) -> list[Any]:
    if num_proc != here.size:
        raise ValueError(
            f"num_proc must be the number of ranks of the running job, {here.size}. Received: {num_proc}"
        )
    environment.prepare()
    from mpi4py import MPI

    rank.show_log(f"[rank {here.rank}, {socket.gethostname()}] %(levelname)s %(name)s: %(message)s")
    rank.abort_on_error()
    own_messages = rank.sending_to(partial(on_message, here.rank)) if on_message else nullcontext()
    try:
        with own_messages:
            result = fn(*args, **(kwargs or {}))
    except BaseException as error:
        # Whoever caught this here would go on alone: the other ranks may wait for this one.
        print(rank.describe(error), end="", file=sys.stderr)
        rank.abort()
    return MPI.COMM_WORLD.allgather(result)


def once(fn: Callable[..., Any], *args: Any) -> Any:
    """Calls `fn(*args)` on rank 0 of the running job and gives all ranks its result; outside a job just here.

    Raises:
        Exception: what `fn` raised, on every rank.
    """
    here = environment.job()
    if here is None:
        return fn(*args)
    environment.prepare()
    from mpi4py import MPI

    result, error = None, None
    if here.rank == 0:
        try:
            result = fn(*args)
        except Exception as raised:
            error = raised
    result, error = MPI.COMM_WORLD.bcast((result, error))
    if error is not None:
        raise error
    return result
