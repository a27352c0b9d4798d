"""A process above mpirun, and above orted on an executor: it ends all that they have started on its host.

It does so when its command ends, or the process that started it: the driver, or an executor's `orted.py`.
It does so at SIGTERM, too: Horovod sends it to the children of `orted.py`, and kills them five seconds on.
It runs as a script of its own (`python keeper.py FOLDERS COMMAND`), and needs nothing of this package.
Its standard input is a pipe that only that process holds: the end of it is the word to end the job.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl
# mpirun and orted end their ranks in this time after a SIGTERM; then all are killed.
TERM_SECONDS = 3.0
PARENT_SECONDS = 0.5


def main(folders: str, command: str) -> int:
    """Runs a shell command to its end.

    Args:
        folders: directories to remove in the end, separated as in PATH.
        command: what to run.

    Returns:
        The command's exit status; 128 and the number of the signal that killed it.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # who started it decides
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    # Ranks whose mpirun or orted was killed become children of this process.
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)
    started = subprocess.Popen(
        f"exec {command}",
        shell=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_default_signals,
    )
    threading.Thread(target=_end_with_parent, args=(started, os.getppid(), told), daemon=True).start()
    status = started.wait()
    kill_children()
    for folder in filter(None, folders.split(os.pathsep)):
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _end_with_parent(started: subprocess.Popen, parent: int, told: threading.Event) -> None:
    # A process that the parent forked may hold the pipe open: its death is seen in another way, too.
    while not (told.is_set() or select.select([0], [], [], PARENT_SECONDS)[0]) and os.getppid() == parent:
        pass
    started.terminate()
    try:
        started.wait(TERM_SECONDS)
    except subprocess.TimeoutExpired:
        started.kill()


def kill_children() -> None:
    """Kills every process that descends from this one, and waits for its end."""
    while True:
        for process in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def descendants(root: int) -> list[int]:
    """Lists the processes that descend from one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The name, in parentheses, may hold anything; state and parent follow it.
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has ended
            children.setdefault(parent, []).append(int(entry))
    found, left = [], [root]
    while left:
        left += (new := children.get(left.pop(), []))
        found += new
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
