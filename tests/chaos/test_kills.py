"""Processes of a launch that are killed: the others end, and no file is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from hvdkeras.launch import local

pytestmark = [pytest.mark.mpi, pytest.mark.chaos]

TRAINING = """
    import os, time
    from pathlib import Path
    from hvdkeras.launch import local

    def work():
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        window = MPI.Win.Allocate(1 << 20, comm=comm)
        comm.sendrecv(bytes(100_000), (comm.rank + 1) % comm.size)  # maps the other's shared memory
        comm.Barrier()
        Path(os.environ["READY"]).touch()
        time.sleep(100)

    if __name__ == "__main__":
        try:
            local.run(work, num_proc=2, verbose=0)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""


STOPPED = TRAINING.replace("time.sleep(100)", "time.sleep(2)\n        raise ValueError('while mpirun stood')")


@pytest.mark.parametrize(
    ("victim", "number"),
    [
        ("driver", signal.SIGTERM),
        ("driver", signal.SIGKILL),
        ("mpirun", signal.SIGKILL),
        pytest.param("keeper.py", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left(boxed, victim, number):
    found = boxed(TRAINING, victim, number)
    assert found["processes"] == {}
    if victim != "keeper.py":  # it is the one that removes files; the next launch does then
        assert found["shared"] == []
        assert [name for name in found["temporary"] if "hvdkeras-launch" in name] == []
    if victim != "driver":
        assert "TrainingError: " in found["output"]


def test_a_stopped_mpirun_does_not_hold_an_error_back(boxed):
    found = boxed(STOPPED, "mpirun", signal.SIGSTOP)
    assert (found["processes"], found["shared"]) == ({}, [])
    assert "ValueError: while mpirun stood" in found["output"]


@pytest.mark.slow
def test_a_launch_beside_drivers_that_are_killed(tmp_path):
    """What jobs of one machine shared was Open MPI's folder, which the end of one took from the other."""
    (tmp_path / "script.py").write_text(textwrap.dedent(TRAINING))
    for turn in range(3):
        ready = tmp_path / f"ready-{turn}"
        command = [sys.executable, str(tmp_path / "script.py")]
        other = subprocess.Popen(command, env={**os.environ, "READY": str(ready)})
        while not ready.exists():
            assert other.poll() is None
            time.sleep(0.02)
        other.terminate()
        assert local.run(os.getppid, num_proc=2, start_timeout=60)
        other.wait()


ON_SPARK = """
    import os, sys, time
    from pathlib import Path

    os.environ.update(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    os.environ["SPARK_LOCAL_DIRS"] = os.environ["TMPDIR"]
    from pyspark.sql import SparkSession
    from hvdkeras.launch import cluster, spark

    def work():
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()
        Path(os.environ["READY"]).touch()
        time.sleep(45)

    if __name__ == "__main__":
        session = SparkSession.builder.master("local-cluster[2,1,1024]").config("spark.ui.enabled", False)
        session = session.config("spark.driver.host", "127.0.0.1").config("spark.executor.memory", "900m")
        session = session.getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        while cluster.slots(session.sparkContext) < 2:
            time.sleep(0.5)
        try:
            spark.run(work, num_proc=2, verbose=0)
            print("all results came")
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        session.stop()
"""


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "victim", ["driver", "CoarseGrainedExecutorBackend", "pyspark.daemon", "mpirun", "orted"]
)
def test_nothing_of_a_launch_by_spark_is_left(boxed, victim):
    found = boxed(ON_SPARK, victim, signal.SIGKILL, timeout=280)
    assert found["processes"] == {}
    if victim == "pyspark.daemon":  # its workers, and the ranks under them, live on
        assert "all results came" in found["output"]
    elif victim != "driver":
        assert "TrainingError: " in found["output"]
    # The semaphores are of Horovod's Spark tasks, 32 bytes each: Spark kills its Python workers.
    assert [name for name in found["shared"] if not name.startswith("sem.mp-")] == []
