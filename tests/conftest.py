"""What tests of several levels share."""

import os
import time
from contextlib import suppress

import psutil
import pytest

from hvdkeras.launch import driver

# Kept by their parents from one launch to the next: Spark's idle workers, multiprocessing's bookkeeper.
RESIDENT = ("pyspark.daemon", "multiprocessing.resource_tracker")


def launched_processes(driver_pid):
    """Processes that launches of one driver started: its descendants, and any that a launch has marked."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        found.update(psutil.Process(driver_pid).children(recursive=True))
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(driver.MARK, "").startswith(f"{driver_pid}-"):
                found.add(process)
    return {process for process in found if _works(process)}


def _works(process):
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return not any(name in " ".join(process.cmdline()) for name in RESIDENT)
    return False


def wait_until_gone(find, seconds=10):
    """Waits until `find()` finds no process, and returns what it found last."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [process.as_dict(["pid", "cmdline"]) for process in left]


@pytest.fixture
def no_process_left():
    """Sees to it that after the test nothing runs that did not run before."""
    before = launched_processes(os.getpid())
    yield
    assert wait_until_gone(lambda: launched_processes(os.getpid()) - before) == []
