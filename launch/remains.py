"""What a job keeps in files of this machine, and the removal of what killed ones have left."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hvdkeras.launch import environment

KEEPER = Path(__file__).with_name("keeper.py")
PREFIX = "hvdkeras-launch-"
SHARED_MEMORY = Path("/dev/shm")
MAPPED = re.compile(r"(/\S*/(?:vader_segment|osc_sm)\.\S+|/dev/shm/ucx_shm_posix_\S+)")
# A job that is younger may be about to lock or to map its files.
AGE_SECONDS = 60.0


class Folders:
    """The two directories of one job on this machine: shared memory, and Open MPI's sessions.

    Jobs share none of Open MPI's files then, and what is in them can go with the job. A lock that the
    keeper of the job inherits says that the job is alive.

    Attributes:
        lock: descriptor of the locked file.
        paths: the directories.
    """

    def __init__(self) -> None:
        enough = environment.shared_memory_bytes() >= environment.SHARED_MEMORY_BYTES
        self.sessions = tempfile.mkdtemp(prefix=PREFIX)
        self.shared_memory = tempfile.mkdtemp(prefix=PREFIX, dir=SHARED_MEMORY) if enough else self.sessions
        self.paths = list(dict.fromkeys([self.sessions, self.shared_memory]))
        self.lock = os.open(Path(self.sessions, "lock"), os.O_CREAT | os.O_RDWR)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        if self.shared_memory != self.sessions:
            # The lock of the one says that the other is in use.
            Path(self.shared_memory, "sessions").write_text(self.sessions)

    def variables(self) -> dict[str, str]:
        """Lists the variables that make Open MPI use the directories, unless the user chose others."""
        wanted = {
            "OMPI_MCA_orte_tmpdir_base": self.sessions,
            "OMPI_MCA_btl_vader_backing_directory": self.shared_memory,
            "OMPI_MCA_osc_sm_backing_directory": self.shared_memory,
        }
        return {name: path for name, path in wanted.items() if name not in os.environ}

    def keep(self, command: str, env: Mapping[str, str], **streams: Any) -> subprocess.Popen:
        """Starts a shell command under a keeper, which removes the directories when the command has ended.

        Args:
            command: what to run. It ends when the keeper's standard input does.
            env: its environment.
            **streams: `stdout` and `stderr`, as in `subprocess.Popen`.

        Returns:
            The keeper.
        """
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), os.pathsep.join(self.paths), command],
            env=env,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the driver's
            pass_fds=[self.lock],
            **streams,
        )

    def close(self) -> None:
        """Removes the directories, which the keeper has done if there was one, and gives the lock back."""
        for path in self.paths:
            shutil.rmtree(path, ignore_errors=True)
        os.close(self.lock)


def clear_away() -> None:
    """Removes what jobs of this user have left on this machine: files that no process uses any more."""
    now = time.time()
    # The last job of a user removes Open MPI's folder on a host, which makes one that starts then fail.
    sessions = f"ompi.{socket.gethostname()}.{os.getuid()}"
    Path(tempfile.gettempdir(), sessions, "keep").mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (Path(tempfile.gettempdir()), SHARED_MEMORY):
        for path in _owned(folder, f"{PREFIX}*", now):
            if not is_locked(path):
                shutil.rmtree(path, ignore_errors=True)
    segments = list(_owned(SHARED_MEMORY, f"vader_segment.{socket.gethostname()}.{os.getuid()}.*", now))
    segments += _owned(SHARED_MEMORY, f"osc_sm.{socket.gethostname()}.*", now)
    segments += _owned(SHARED_MEMORY, "ucx_shm_posix_*", now)
    used = mapped() if segments else set()
    for path in segments:
        if str(path) not in used:
            path.unlink(missing_ok=True)


def leave() -> None:
    """Removes the shared memory files of a job that is over, on a rank that is to end without MPI's help."""
    for path in mapped("self"):
        # Others that have mapped it keep what they have.
        Path(path).unlink(missing_ok=True)


def mapped(process: str = "[0-9]*") -> set[str]:
    """Finds the files of Open MPI's shared memory that processes have mapped."""
    found = set()
    for maps in Path("/proc").glob(f"{process}/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            found.update(MAPPED.findall(maps.read_text()))
    return found


def _owned(folder: Path, pattern: str, now: float) -> list[Path]:
    found = []
    for path in folder.glob(pattern):
        with suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.getuid() and now - status.st_mtime > AGE_SECONDS:
                found.append(path)
    return found


def is_locked(path: Path) -> bool:
    """Whether a living job holds the lock of a directory."""
    with suppress(OSError):
        path = Path((path / "sessions").read_text())
    try:
        with open(path / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # nobody holds what is not there
    return False
