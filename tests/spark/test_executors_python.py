"""An executor that unpacks its environment from an archive, as on YARN and Kubernetes."""

import subprocess
import sys

import pytest

import archives

pytestmark = [pytest.mark.spark, pytest.mark.slow]

PROGRAM = """
import os, sys
os.environ["PYSPARK_PYTHON"] = "./environment/bin/python"
from pyspark.sql import SparkSession
from hvdkeras.launch import spark

def where():
    import mpi4py, os, sys
    from mpi4py import MPI
    first_on_path = os.environ["PATH"].split(":")[0]
    me = sys.prefix, os.environ["OPAL_PREFIX"], first_on_path, os.getcwd()
    return MPI.COMM_WORLD.allgather(me)

if __name__ == "__main__":
    session = SparkSession.builder.master("local-cluster[1,2,1024]").config("spark.ui.enabled", "false")
    session = session.config("spark.archives", sys.argv[1] + "#environment")
    session = session.config("spark.executor.memory", "900m").config("spark.driver.host", "127.0.0.1")
    # How many executors come is known then, and they are waited for.
    session = session.config("spark.cores.max", "2").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    one, other = spark.run(where, num_proc=2)
    session.stop()
    assert one == other
    for prefix, open_mpi, first_on_path, folder in one:
        assert os.path.samefile(prefix, folder + "/environment"), (prefix, folder)
        assert open_mpi == prefix != sys.prefix, (open_mpi, prefix)
        assert first_on_path == prefix + "/bin", (first_on_path, prefix)
    print("each rank ran in its executor's folder")
"""


@pytest.mark.timeout(300)
def test_ranks_run_the_python_that_their_executor_has_unpacked(tmp_path):
    archives.pack(tmp_path / "environment.tar.gz")
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "environment.tar.gz")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "each rank ran in its executor's folder" in ran.stdout
    # Spark kills the workers in which Horovod's task service ran.
    assert "leaked" not in ran.stderr
