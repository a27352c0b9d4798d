"""Processes of a job in surroundings that break Open MPI unless the environment is prepared."""

import os
import subprocess
import sys

import pytest

from hvdkeras.launch import local

pytestmark = pytest.mark.mpi

# Of TensorFlow: from 2.20 its note on oneDNN comes at every log level where oneDNN is on.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}

# Each rank imports in an order of its own.
SCRIPT = """
import importlib, os
orders = [
    ("tensorflow", "hvdkeras", "mpi4py.MPI"),
    ("hvdkeras", "mpi4py.MPI", "tensorflow"),
    ("mpi4py.MPI", "hvdkeras", "tensorflow"),
]
for name in orders[int(os.environ["OMPI_COMM_WORLD_RANK"])]:
    importlib.import_module(name)
from mpi4py import MPI
MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED).Free()
"""


@pytest.mark.slow
def test_ranks_end_in_silence_whatever_they_import_first(tmp_path):
    # TensorFlow from 2.20 has an hwloc of its own, which Open MPI must not call when it ends.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # The flags are Horovod's: with others, Open MPI calls its own functions before TensorFlow comes.
    flags = "--allow-run-as-root --oversubscribe -bind-to none -map-by slot -mca pml ob1 -mca btl ^openib"
    ran = subprocess.run(
        ["mpirun", *flags.split(), "-np", "3", sys.executable, str(script)],
        env={**os.environ, **QUIET, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_launch_in_a_slurm_job_of_one_task(monkeypatch):
    host = os.uname().nodename
    allocation = {
        **dict.fromkeys(("SLURM_JOB_ID", "SLURM_JOBID"), "17"),
        **dict.fromkeys(("SLURM_NODELIST", "SLURM_JOB_NODELIST"), host),
        **dict.fromkeys(("SLURM_NNODES", "SLURM_JOB_NUM_NODES", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS"), "1"),
        **{"SLURM_CPUS_PER_TASK": "4", "SLURM_JOB_CPUS_PER_NODE": "4", "SLURM_PROCID": "0"},
    }
    for name, value in allocation.items():
        monkeypatch.setenv(name, value)

    def count():
        from mpi4py import MPI

        return MPI.COMM_WORLD.allreduce(1)

    assert local.run(count, num_proc=2) == [2, 2]
