"""The MPI recipe, and what importing the launchers costs."""

import os
import subprocess
import sys

import pytest

from hvdkeras.launch import environment


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*environment.TUNING, "OPAL_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("OMPI_COMM_WORLD_")]:
        monkeypatch.delenv(name)


def test_the_recipe_and_this_pythons_mpirun_come_first(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = environment.variables()
    assert environment.TUNING.items() <= found.items()
    assert found["PATH"] == f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    assert found.get("OPAL_PREFIX") == (str(environment.prefix()) if environment.prefix() else None)


def test_what_the_user_has_set_wins(monkeypatch):
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "1")
    monkeypatch.setenv("UCX_TLS", "tcp")
    monkeypatch.setenv("HOME_OF_SOMETHING", "x")
    found = environment.variables()
    assert (found["HOROVOD_CYCLE_TIME"], found["UCX_TLS"]) == ("1", "tcp")
    assert "HOME_OF_SOMETHING" not in found


def test_prepare_keeps_what_is_set(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "UCX_LOG_LEVEL": "info"})
    environment.prepare()
    assert os.environ["UCX_LOG_LEVEL"] == "info"
    assert environment.TUNING.items() - {("UCX_LOG_LEVEL", "fatal")} <= os.environ.items()


@pytest.mark.parametrize(("free", "folder"), [(64 << 20, True), (8 << 30, False)])
def test_windows_avoid_a_small_shared_memory(free, folder, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(environment, "shared_memory_bytes", lambda: free)
    environment.prepare()
    assert ("OMPI_MCA_osc_sm_backing_directory" in os.environ) == folder


def test_the_place_in_a_job_is_mpiruns(monkeypatch):
    assert environment.job() is None
    for name, value in {"RANK": "3", "SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    assert environment.job() == environment.Job(rank=3, size=4, local_rank=1, local_size=2)


def test_importing_the_launchers_loads_neither_tensorflow_nor_mpi_nor_horovod():
    program = (
        "import sys\n"
        "from hvdkeras.launch import cli, local, rank, spark\n"
        "print([name for name in ('tensorflow', 'keras', 'mpi4py.MPI', 'horovod') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr
