"""mpirun on the driver's machine: started by Horovod's functions, read, and ended for certain."""

from __future__ import annotations

import subprocess
import threading
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import psutil

from hvdkeras.launch import remains
from hvdkeras.launch.output import Output

# In the environment of mpirun and its ranks, which tells them from those of another launch.
MARK = "HVDKERAS_LAUNCH"
# Ranks of one host talk through its memory and open no port. mpirun opens one on all interfaces whatever it
# is told, but tells its processes the address of this one only.
ONE_HOST = ["-mca pml ob1", "-mca btl self,vader", "-mca oob_tcp_if_include lo"]
# The keeper needs 4 of them where mpirun does not answer.
END_SECONDS = 10.0
# For what is left in the pipes when mpirun has ended.
READ_SECONDS = 5.0


class Mpirun:
    """Runs one mpirun under a keeper, which ends with this process and leaves nothing.

    Args:
        output: where mpirun's two streams go.
        folders: the job's directories, which the keeper removes in the end.
        own: variables for mpirun that its ranks do not get.
    """

    def __init__(self, output: Output, folders: remains.Folders, own: Mapping[str, str] | None = None):
        self._output, self._folders, self._own = output, folders, own or {}
        self._lock = threading.Lock()
        self._keeper: subprocess.Popen | None = None
        self._ended = False

    def run(
        self,
        start: Callable[..., None],
        *args: Any,
        flags: list[str] | None = None,
        wrap: Callable[[Callable[..., None]], Callable[..., None]] = lambda mpi_run: mpi_run,
    ) -> None:
        """Calls one of Horovod's functions that run mpirun.

        Args:
            start: `mpi_run` of `horovod.runner.mpi_run`, or one that finds it by the name `hr_mpi_run`.
            *args: its arguments.
            flags: MPI parameters in place of Horovod's own.
            wrap: makes of Horovod's `mpi_run` what `start` finds by that name.

        Raises:
            RuntimeError: there is no Open MPI, or mpirun's status is not 0.
        """
        from horovod.runner import mpi_run as horovods

        def implementation(tcp_flag: bool | None, env: Mapping[str, str]) -> tuple[list[str], list[str], str]:
            _require_open_mpi(env)
            return list(flags or horovods._OMPI_FLAGS), list(horovods._NO_BINDING_ARGS), horovods._OMPI_IMPL

        names = {
            "safe_shell_exec": SimpleNamespace(execute=self._execute),
            "_get_mpi_implementation_flags": implementation,
        }
        if start is horovods.mpi_run:
            with_names(start, **names)(*args)
        else:
            with_names(start, hr_mpi_run=wrap(with_names(horovods.mpi_run, **names)))(*args)

    def end(self) -> None:
        """Ends mpirun and all that it started on this machine; one that has not begun will not."""
        with self._lock:
            self._ended = True
            keeper = self._keeper
        if keeper is None:
            return
        with suppress(OSError):
            keeper.stdin.close()
        try:
            keeper.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                kill([psutil.Process(keeper.pid)])

    def _execute(self, command: str, env: Mapping[str, str], **_: Any) -> int:
        """Stands in for Horovod's `safe_shell_exec.execute`.

        That one decodes the output strictly, and starts a process that imports the caller's script again.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError("the job was ended before mpirun was started")
            self._keeper = keeper = self._folders.keep(
                command, {**env, **self._own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        readers = [
            threading.Thread(target=self._output.read, args=(stream,), name="read-mpirun", daemon=True)
            for stream in (keeper.stdout, keeper.stderr)
        ]
        for reader in readers:
            reader.start()
        status = keeper.wait()
        if status < 0:
            kill(marked(env[MARK]))  # the keeper was killed, and nobody else does it
        for reader in readers:
            reader.join(READ_SECONDS)
        with suppress(OSError):
            keeper.stdin.close()
        return status if status >= 0 else 128 - status


def _require_open_mpi(env: Mapping[str, str]) -> None:
    try:
        asked = subprocess.run(
            ["mpirun", "--version"], env=dict(env), capture_output=True, timeout=60, check=False
        )
        said = (asked.stdout + asked.stderr).decode(errors="replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not ("Open MPI" in said or "OpenRTE" in said):
        raise RuntimeError(f"ranks need the mpirun of Open MPI on PATH. Received: {said}")


def marked(mark: str) -> list[psutil.Process]:
    """Finds the processes of one launch on this machine."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """Kills processes and their descendants, and waits until they are gone."""
    family = list(processes)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=END_SECONDS)


def with_names(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """Returns a function of the same code that finds these names where it looks into its module.

    The module itself stays as it is for everybody else in this process.
    """
    made = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made
