"""What is refused before a launch, and the connections between ranks and driver without MPI."""

import os
import socket
import subprocess
import sys
import threading
import venv
from contextlib import closing
from importlib.metadata import distribution
from itertools import pairwise
from multiprocessing import AuthenticationError
from pathlib import Path

import pytest

import hvdkeras
from hvdkeras.launch import (
    agent,
    checks,
    cluster,
    executors,
    gpu,
    libraries,
    local,
    middleman,
    remains,
    report,
    spark,
)
from hvdkeras.launch.cli import main
from hvdkeras.launch.connection import Driver
from hvdkeras.launch.mpirun import with_names
from hvdkeras.launch.report import Reports
from hvdkeras.launch.spark import keepalive
from hvdkeras.launch.wire import Wire


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_proc": 0}, ValueError, "num_proc must be a positive integer. Received: 0"),
        ({"num_proc": 2.0}, ValueError, "num_proc must be a positive integer. Received: 2.0"),
        ({"num_proc": True}, ValueError, "num_proc must be a positive integer. Received: True"),
        ({"start_timout": 3}, TypeError, "no option 'start_timout'. Did you mean 'start_timeout'?"),
        ({"start_timeout": 0}, ValueError, "start_timeout must be a positive number of seconds. Received: 0"),
        ({"env": {"A": 1}}, TypeError, "env must map strings to strings. Received: 'A': 1"),
        ({"mpi_args": ["-x"]}, TypeError, "mpi_args must be one string"),
        ({"mpi_args": "-v --mca pml ob1"}, ValueError, "mpi_args must not set the parameter pml"),
        ({"fn": 3}, TypeError, "fn must be callable. Received: 3"),
        (
            {"args": (threading.Lock(),)},
            TypeError,
            "getpid and its arguments can't be sent to other processes",
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(arguments, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        local.run(**{"fn": os.getpid, **arguments})


def test_ranks_on_spark_need_a_session(monkeypatch):
    monkeypatch.setattr("pyspark.SparkContext._active_spark_context", None)
    with pytest.raises(ValueError, match="no active SparkSession"):
        spark.run(os.getpid, num_proc=2)


@pytest.mark.parametrize(
    ("conf", "slots"),
    [
        ({"spark.master": "spark://h:7077"}, None),
        ({"spark.master": "spark://h:7077", "spark.cores.max": "6"}, 6),
        ({"spark.master": "spark://h:7077", "spark.cores.max": "6", "spark.task.cpus": "2"}, 3),
        ({"spark.master": "yarn", "spark.executor.instances": "3"}, 3),
        ({"spark.master": "yarn", "spark.executor.instances": "3", "spark.executor.cores": "4"}, 12),
        ({"spark.master": "k8s://h", "spark.executor.instances": "2", "spark.task.cpus": "1"}, 2),
        ({"spark.master": "yarn", "spark.dynamicAllocation.enabled": "true"}, float("inf")),
        (
            {
                "spark.master": "yarn",
                "spark.dynamicAllocation.enabled": "true",
                "spark.dynamicAllocation.maxExecutors": "5",
                "spark.executor.cores": "2",
            },
            10,
        ),
        (
            {
                "spark.master": "yarn",
                "spark.executor.instances": "2",
                "spark.executor.cores": "8",
                "spark.executor.resource.gpu.amount": "2",
                "spark.task.resource.gpu.amount": "1",
            },
            4,
        ),
        (
            {
                "spark.master": "yarn",
                "spark.executor.instances": "2",
                "spark.executor.cores": "8",
                "spark.executor.resource.gpu.amount": "1",
                "spark.task.resource.gpu.amount": "0.25",
            },
            8,
        ),
    ],
)
def test_slots_that_the_configuration_allows(conf, slots):
    assert cluster.slots_to_come(conf) == slots


def test_versions_differ_by_their_first_two_numbers():
    here = {"python": "3.11.7", "numpy": "2.0.2", "keras": "3.15.1", "horovod": "0.28.1"}
    there = {"python": "3.11.2", "numpy": "1.26.4", "keras": None, "horovod": "0.28.1"}
    assert executors.compare(here, here) == []
    assert executors.compare(here, there) == [
        "numpy 1.26.4 there, 2.0.2 here",
        "keras missing there, 3.15.1 here",
    ]


@pytest.fixture
def reports():
    with closing(Reports([b"the task"], 2, None)) as opened:
        yield opened


def test_a_rank_gets_its_task_and_is_heard_to_its_end(reports):
    rank = Driver(["127.0.0.1"], reports.port, reports.key)
    rank.send("hello", 1, "there", 4711)
    assert rank.receive() == [b"the task"]
    rank.send("started")
    rank.send("result", {"weights": [1.5]})
    reports.settle()
    assert reports.hosts == {1: "there"}
    assert reports.started == {1}
    assert reports.results == {1: {"weights": [1.5]}}
    assert not reports.all_started()


def test_strangers_neither_get_in_nor_in_the_way(reports):
    with socket.create_connection(("127.0.0.1", reports.port)):  # says nothing
        with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
            Driver(["127.0.0.1"], reports.port, b"another key").receive()
        rank = Driver(["127.0.0.1"], reports.port, reports.key)
        rank.send("hello", 0, "here", 1)
        assert rank.receive() == [b"the task"]
    assert reports.hosts == {0: "here"}


def test_a_rank_that_cannot_reach_its_driver_says_what_it_tried(reports):
    reports.close()
    with pytest.raises(
        ConnectionError, match=rf"can't reach the driver. Tried on port {reports.port}: 127.0.0.1"
    ):
        Driver(["127.0.0.1"], reports.port, reports.key)


def test_doctor_tells_what_is_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PYSPARK_PYTHON", "/nowhere/python")
    monkeypatch.setattr(checks.environment, "path", lambda: str(tmp_path))
    monkeypatch.setattr(libraries, "check_libraries", lambda: iter(()))
    monkeypatch.setattr(libraries, "check_ranks", lambda: checks.Check("two ranks", checks.OK, "started"))
    assert main(["doctor"]) == 1
    wrong = [
        line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith(checks.WRONG)
    ]
    assert wrong == ["Java", "Spark", "mpirun"]


@pytest.mark.parametrize(
    ("modules", "spark_version", "good"),
    [
        ("java.base@17.0.9", "3.5.9", True),
        ("java.base@11.0.2", "3.5.9", False),
        ("java.base@17.0.9", "4.1.4", False),
        ("java.base@21\njdk.incubator.vector@21", "4.1.4", True),
    ],
)
def test_doctor_knows_which_java_fits_which_spark(modules, spark_version, good, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/java")
    monkeypatch.setattr(checks, "_output", lambda command: modules)
    monkeypatch.setattr(checks, "version_of", lambda name: spark_version)
    assert (checks.check_java().state == checks.OK) == good


def test_the_doctor_of_a_bare_environment_names_what_is_missing_and_the_command(tmp_path):
    venv.create(tmp_path, symlinks=True)
    python = tmp_path / "bin" / "python"
    packages = tmp_path / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    # As an installed wheel lies there, with nothing beside it.
    (packages / "hvdkeras").mkdir()
    package = Path(hvdkeras.__file__).parent
    for entry in [*package.iterdir(), Path(local.__file__).parent]:
        (packages / "hvdkeras" / entry.name).symlink_to(entry)
    described = distribution("hvdkeras")
    (packages / "hvdkeras-1.dist-info").mkdir()
    text = described.read_text("METADATA") or described.read_text("PKG-INFO")
    (packages / "hvdkeras-1.dist-info" / "METADATA").write_text(text)
    ran = subprocess.run(
        [python, "-m", "hvdkeras.launch.cli", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "Traceback" not in ran.stdout
    missing, command = next(
        pair for pair in pairwise(ran.stdout.splitlines()) if pair[0].startswith("WRONG packages")
    )
    for name in ("cloudpickle", "horovod", "keras", "mpi4py", "numpy", "pandas", "pyarrow"):
        assert f" {name}" in missing
        assert f"'{name}" in command
    assert f"HOROVOD_SKIP_COMPILE=1 {python} -m pip install '" in command


@pytest.mark.parametrize(
    ("devices", "compiled", "state"),
    [([], None, checks.OK), (["0"], None, checks.NOTE), (["0"], {"mpi": True, "nccl": True}, checks.OK)],
)
def test_the_doctor_asks_for_a_compiled_horovod_only_where_gpus_are(devices, compiled, state, monkeypatch):
    monkeypatch.setattr(gpu, "visible_devices", lambda: devices)
    found = libraries._horovod({"horovod": compiled})
    assert found.state == state
    assert bool(found.remedy) == (state == checks.NOTE)


def _wait(event, reached):
    event.wait()
    reached.send(hasattr(sys.modules["__mp_main__"], "__file__"))


def test_an_event_of_pipes_reaches_a_process_without_this_ones_main_module():
    context, main = middleman.get_context("spawn"), sys.modules["__main__"]
    event = middleman.PipeEvent(context)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_wait, args=(event, writer))
    process.start()
    assert sys.modules["__main__"] is main
    assert not reader.poll(0.2)
    event.set()
    assert reader.poll(60)
    assert reader.recv() is False
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize(
    "before", ["", "OPAL_PREFIX=/driver ; export OPAL_PREFIX; PATH=/driver/bin:$PATH ; exec /driver/bin/"]
)
def test_an_executors_python_starts_its_own_orted(before):
    arguments = '-mca ess "env" -mca orte_node_regex "vm,a1b2@0(2)" -mca plm "rsh"'
    expected = f"exec './my env/python' -m hvdkeras.launch.orted {arguments}"
    assert agent.own_orted(f"{before}orted {arguments}", "./my env/python") == expected
    with pytest.raises(ValueError, match="Received: ls"):
        agent.own_orted("ls /", "python")


def test_run_becomes_horovodrun(monkeypatch, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("")
    started = []
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    main(["run", "-np", "4", "-H", "a:2,b:2", "--mpi-args=-x A", str(script), "--epochs", "3"])
    program, command, environ = started[0]
    assert program == sys.executable
    assert command[1:] == [
        *("-m", "hvdkeras.launch.horovodrun", "--mpi", "-np", "4", "-H", "a:2,b:2", "--mpi-args=-x A"),
        *(sys.executable, "-m", "hvdkeras.launch.script", str(script), "--epochs", "3"),
    ]
    assert environ["OMPI_MCA_osc"] == "sm,ucx"


@pytest.mark.parametrize("arguments", [["-np", "0", __file__], ["-np", "2", "/nowhere.py"], [__file__]])
def test_run_refuses_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == 2


def test_who_does_not_prove_the_key_in_time_is_sent_away(monkeypatch):
    monkeypatch.setattr(report, "CHALLENGE_SECONDS", 0.3)
    with (
        closing(Reports([b"the task"], 2, None)) as reports,
        socket.create_connection(("127.0.0.1", reports.port)) as silent,
    ):
        silent.settimeout(10)
        while silent.recv(4096):  # the challenge, then the end
            pass


def test_a_silent_host_ends_its_connection():
    with socket.socket() as connected:
        Wire(connected).limit_silence(40)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        found = [connected.getsockopt(socket.IPPROTO_TCP, option) for option in options]
        assert found == [20, 5, 4, 40_000]
        assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def test_what_killed_launches_left_goes_with_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(remains, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(remains.tempfile, "tempdir", str(tmp_path))
    alive, dead = remains.Folders(), remains.Folders()
    os.close(dead.lock)  # as the end of its driver and its keeper does
    young = tmp_path / f"{remains.PREFIX}young"
    segment = tmp_path / f"vader_segment.{socket.gethostname()}.{os.getuid()}.12.0"
    foreign = tmp_path / f"vader_segment.elsewhere.{os.getuid()}.12.0"
    for path in (segment, foreign):
        path.write_bytes(b"")
    for path in [*alive.paths, *dead.paths, segment, foreign]:
        os.utime(path, (1, 1))
    young.mkdir()
    remains.clear_away()
    left = {str(path) for path in tmp_path.iterdir()}
    sessions = tmp_path / f"ompi.{socket.gethostname()}.{os.getuid()}"
    assert left == {*alive.paths, str(young), str(foreign), str(sessions)}
    alive.close()


def test_a_functions_names_are_its_own():
    other = with_names(remains.clear_away, tempfile=None)
    assert other.__globals__["tempfile"] is None
    assert remains.tempfile is not None


@pytest.mark.parametrize("timeout", [0.5, 15, 600])
def test_mpirun_bears_a_broken_link_for_longer_than_the_timeout(timeout):
    words = keepalive(timeout).split()
    values = {name: int(value) for name, value in zip(words[1::3], words[2::3], strict=True)}
    assert values["oob_tcp_keepalive_intvl"] * values["oob_tcp_keepalive_probes"] > timeout
    assert values["oob_tcp_keepalive_time"] >= 1
