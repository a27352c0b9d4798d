"""Which device and how many cores a rank takes. Call both functions before TensorFlow touches devices."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

# Where this process has been given its device: the list is narrow then, and says nothing on the host.
_PINNED = "HVDKERAS_PINNED"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))


def pin(local_rank: int, local_size: int = 1, devices: Sequence[str] | None = None) -> str | None:
    """Makes one GPU visible to this process and lets TensorFlow take its memory bit by bit.

    The GPU is taken from the list that Spark's resource scheduling gave to this rank's task; else, by local
    rank, from CUDA_VISIBLE_DEVICES; else, by local rank, from all GPUs of the host. More ranks than GPUs
    share them in turn. A process that has its GPU already keeps it.

    Args:
        local_rank: number of this rank on its host.
        local_size: number of ranks on its host.
        devices: the devices that belong to this rank alone; by default those from Spark, if any.

    Returns:
        The index or identifier of the GPU, as in CUDA_VISIBLE_DEVICES, or None where there is no GPU.
    """
    if _PINNED not in os.environ:
        os.environ[_PINNED] = _take(local_rank, local_size, devices) or ""
    device = os.environ[_PINNED] or None
    # At each call: the first may come before the program has a log.
    if device is None:
        log.info("no GPU: local rank %d computes on the CPU", local_rank)
    else:
        log.info("local rank %d takes GPU %s", local_rank, device)
    return device


def _take(local_rank: int, local_size: int, devices: Sequence[str] | None) -> str | None:
    own = list(spark_devices() if devices is None else devices)
    seen = own or visible_devices()
    device = choose(seen, 0 if own else local_rank)
    if device is None:
        return None
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if not own and local_size > len(seen):
        log.warning("%d ranks of this host share %d GPUs: %s", local_size, len(seen), ", ".join(seen))
    if "tensorflow" in sys.modules:
        _tell_tensorflow(seen.index(device))
    return device


def _tell_tensorflow(index: int) -> None:
    # It may have read CUDA_VISIBLE_DEVICES before it was narrowed, and then lists the GPUs in the same order.
    config = sys.modules["tensorflow"].config
    listed = config.list_physical_devices("GPU")
    mine = listed[index] if len(listed) > 1 else listed[0] if listed else None
    if mine is None:
        log.warning("TensorFlow lists no GPU: its build or the driver does not fit")
        return
    try:
        config.set_visible_devices(mine, "GPU")
        config.experimental.set_memory_growth(mine, True)
    except RuntimeError:
        log.warning("TensorFlow had taken its GPUs before this rank got its own")


def choose(devices: Sequence[str], local_rank: int) -> str | None:
    """Takes the device of a local rank from a list, in turn; None from an empty one."""
    return devices[local_rank % len(devices)] if devices else None


def visible_devices() -> list[str]:
    """Lists the GPUs that this process may use: CUDA_VISIBLE_DEVICES if it is set, else all of the host."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return host_devices()
    devices = []
    for device in (entry.strip() for entry in listed.split(",")):
        # CUDA too stops at the first entry that names no device.
        if not device or device.startswith("-") or device == "NoDevFiles":
            break
        devices.append(device)
    return devices


def host_devices() -> list[str]:
    """Lists the indices of this host's NVIDIA GPUs, as its driver's tool tells them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if told.returncode != 0:
        log.warning("nvidia-smi failed, so no GPU is used: %s", (told.stdout + told.stderr).strip())
        return []
    return told.stdout.split()


def spark_devices() -> list[str]:
    """Lists the GPUs that Spark's resource scheduling gave to the task of this rank."""
    if "horovod.spark.task.task_info" not in sys.modules:
        return []  # not a rank on Spark
    from horovod.spark.task import get_available_devices

    return list(get_available_devices())


def horovod_is_compiled() -> bool:
    """Tells whether this environment's Horovod has compiled code for TensorFlow, without loading it.

    Only sums of gradients on GPUs need it.
    """
    found = importlib.util.find_spec("horovod")
    if found is None or found.origin is None:
        return False
    return any(Path(found.origin).parent.glob("tensorflow/mpi_lib*.so"))


def cores() -> int:
    """Counts the cores that this process may use: its affinity, and the limit of its container."""
    allowed = len(os.sched_getaffinity(0))
    limit = _cgroup_cores()
    return max(1, allowed if limit is None else min(allowed, int(limit)))


def _cgroup_cores() -> float | None:
    unified, quota = CGROUP_LIMITS
    if unified.exists():
        limit, period = unified.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    if quota.exists():
        limit, period = int(quota.read_text()), int(quota.with_name("cpu.cfs_period_us").read_text())
        return None if limit <= 0 else limit / period
    return None


def limit_threads(local_size: int, threads: int | None = None) -> int:
    """Sets how many threads TensorFlow and OpenMP use in this process.

    Ranks that each take all cores slow each other down.

    Args:
        local_size: number of ranks on this host.
        threads: number of threads; by default cores / local_size, at least 1.

    Returns:
        The number of threads.

    Raises:
        ValueError: `threads` is not positive.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be a positive integer. Received: {threads}")
    count = threads or max(1, cores() // local_size)
    known = all(os.environ.get(name) == str(count) for name in THREAD_VARIABLES)
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and not known:
        try:
            tensorflow.config.threading.set_intra_op_parallelism_threads(count)
            tensorflow.config.threading.set_inter_op_parallelism_threads(count)
        except RuntimeError:
            if threads is not None:
                log.warning("TensorFlow had started its threads before this rank was given %d", count)
    return count
