"""Runs a test's functions on real ranks, under a real mpirun."""

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from hvdkeras.launch import environment

CALL = Path(__file__).with_name("mpi") / "call.py"


class RanksFailed(AssertionError):
    """The job did not end well.

    Attributes:
        returncode: mpirun's exit status; None when it was stopped because its time was over.
        errors: Traceback by rank, of the ranks that raised.
        output: What mpirun and the ranks printed.
    """

    def __init__(self, returncode: int | None, errors: dict[int, str], output: str):
        self.returncode, self.errors, self.output = returncode, errors, output
        how = "was stopped, its time was over" if returncode is None else f"ended with {returncode}"
        tracebacks = "".join(f"\n--- rank {rank}\n{text}" for rank, text in sorted(errors.items()))
        super().__init__(f"mpirun {how}{tracebacks}\n--- output\n{output[-4000:]}")


def orphans() -> set[str]:
    """Names in /dev/shm that no process has mapped: what a job has left behind, and no running one's own."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended
            mapped.update(re.findall(r"/dev/shm/(\S+)", maps.read_text()))
    return set(os.listdir("/dev/shm")) - mapped


def pack(file: Path, fn: Callable[..., Any], args: tuple) -> None:
    """Pickles a call; the module of `fn`, a test that no rank could import, travels by value."""
    module = sys.modules[fn.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        file.write_bytes(cloudpickle.dumps((fn, args)))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def mpirun(size: int, arguments: Sequence[str]) -> list[str]:
    """mpirun for `size` ranks, whatever the number of cores."""
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    return ["mpirun", "-np", str(size), "--bind-to", "none", "--oversubscribe", *root, *arguments]


def finish(command: Sequence[str], env: Mapping[str, str], output: Path, timeout: float) -> int | None:
    """Runs a command to its end, or to the end of its time, when it is killed with all it has started."""
    with open(output, "wb") as stream:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment.variables(), **env},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def run(
    folder: Path,
    size: int,
    fn: Callable[..., Any],
    args: tuple,
    *,
    timeout: float = 120.0,
    env: Mapping[str, str] | None = None,
    mpi_args: Sequence[str] = (),
    prefix: Sequence[str] = (),
) -> list:
    """Calls `fn(*args)` on each of `size` ranks and returns the results by rank.

    Args:
        folder: An empty one, which all ranks see.
        size: Number of ranks.
        fn: What they call; it may be a function of the test's own module.
        args: Its arguments.
        timeout: Seconds for the whole job.
        env: More environment variables.
        mpi_args: More arguments of mpirun.
        prefix: A command that starts mpirun somewhere else.

    Raises:
        RanksFailed: with the ranks' tracebacks.
    """
    pack(folder / "call", fn, args)
    program = [sys.executable, "-m", "mpi4py", str(CALL), str(folder)]
    command = [*prefix, *mpirun(size, mpi_args), *program]
    # The test's module travels by value; what it imports of the tests' own must be found.
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    returncode = finish(command, {"PYTHONPATH": paths, **(env or {})}, folder / "output", timeout)
    errors = {r: (folder / f"error.{r}").read_text() for r in range(size) if (folder / f"error.{r}").exists()}
    if returncode != 0 or errors:
        raise RanksFailed(returncode, errors, (folder / "output").read_text(errors="replace"))
    return [pickle.loads((folder / f"result.{rank}").read_bytes()) for rank in range(size)]
