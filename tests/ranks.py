"""Runs a test's functions on real ranks, under a real mpirun."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle

from hvdkeras.launch import environment

CALL = Path(__file__).with_name("call.py")
CREW = Path(__file__).with_name("crew.py")
# After so long without a call the ranks of a crew go.
IDLE_SECONDS = 15.0


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


def start(command: Sequence[str], env: Mapping[str, str], output: Path) -> subprocess.Popen:
    """Starts a command with the environment of a launch, in a session of its own."""
    with open(output, "wb") as stream:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment.variables(), **env},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(process: subprocess.Popen, timeout: float) -> int | None:
    """Waits for a process to end; kills it, and all that it has started, when its time is over."""
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


def start_ranks(
    folder: Path,
    size: int,
    program: Path,
    env: Mapping[str, str] | None = None,
    mpi_args: Sequence[str] = (),
    prefix: Sequence[str] = (),
) -> subprocess.Popen:
    """Starts a program of the tests' own, with `folder` as its argument, under an mpirun."""
    command = [*prefix, *mpirun(size, mpi_args), sys.executable, "-m", "hvdkeras.launch.script"]
    command += [str(program), str(folder)]
    # The test's module travels by value; what it imports of the tests' own must be found.
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    return start(command, {"PYTHONPATH": paths, **(env or {})}, folder / "output")


def results(folder: Path, size: int, returncode: int | None, output: Path) -> list:
    """What the ranks left in a call's folder; RanksFailed where one raised or the job did not end well."""
    errors = {r: (folder / f"error.{r}").read_text() for r in range(size) if (folder / f"error.{r}").exists()}
    if returncode != 0 or errors:
        raise RanksFailed(returncode, errors, output.read_text(errors="replace"))
    return [pickle.loads((folder / f"result.{rank}").read_bytes()) for rank in range(size)]


class Crew:
    """Ranks that stay for several calls, which so need not wait for mpirun and TensorFlow each time.

    A call that fails ends them, and so do a few seconds without one; the next call finds others.

    Args:
        size: Number of ranks.
        new_folder: Makes an empty folder.
    """

    def __init__(self, size: int, new_folder: Callable[[], Path]):
        self._size, self._new_folder = size, new_folder
        self._process: subprocess.Popen | None = None

    def call(self, fn: Callable[..., Any], args: tuple, timeout: float = 120.0) -> list:
        """Calls `fn(*args)` on each rank and returns the results by rank; see `run`."""
        if self._process is None or time.monotonic() > self._leaves:
            self.end()
            self._folder, self._calls = self._new_folder(), 0
            self._process = start_ranks(self._folder, self._size, CREW)
        folder = self._folder / str(self._calls)
        self._calls += 1
        folder.mkdir()
        pack(folder / "part", fn, args)
        (folder / "part").rename(folder / "call")
        deadline = time.monotonic() + timeout
        while (returncode := self._process.poll()) is None:
            if all((folder / f"result.{rank}").exists() for rank in range(self._size)):
                returncode = 0
                break
            if time.monotonic() > deadline:
                returncode = finish(self._process, 0)
                break
            time.sleep(0.01)
        if self._process.poll() is not None:
            self._process = None
        # Well before the ranks' own patience ends: a call must find all of them.
        self._leaves = time.monotonic() + IDLE_SECONDS / 2
        return results(folder, self._size, returncode, self._folder / "output")

    def end(self) -> None:
        """Has the ranks go, and raises RanksFailed unless they go in order."""
        if self._process is not None:
            (self._folder / "end").touch()
            process, self._process = self._process, None
            if (returncode := finish(process, 30)) != 0:
                raise RanksFailed(returncode, {}, (self._folder / "output").read_text(errors="replace"))


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
    process = start_ranks(folder, size, CALL, env, mpi_args, prefix)
    return results(folder, size, finish(process, timeout), folder / "output")
