"""Launches on Spark executors: what is looked at first, what comes back, what a failing rank leaves."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pyarrow as pa
import pytest

from hvdkeras.launch import cluster, environment, executors, rank
from hvdkeras.launch import spark as launch
from hvdkeras.launch.driver import MARK
from hvdkeras.launch.failure import TrainingError

pytestmark = pytest.mark.spark


@pytest.mark.slow
def test_results_messages_and_logs(spark, no_process_left, capsys):
    def work(word):
        from mpi4py import MPI

        me = MPI.COMM_WORLD.rank
        rank.send(me)
        print(word, os.environ["GREETED"], os.environ["UCX_LOG_LEVEL"])
        with rank.importing():
            import keras  # noqa: F401
        collector = gc.isenabled(), gc.get_freeze_count() > 100_000
        return me, MPI.COMM_WORLD.allreduce(1), os.environ["OPAL_PREFIX"], collector

    messages = []
    results = launch.run(
        work,
        ("hello",),
        num_proc=2,
        env={"GREETED": "world"},
        on_message=lambda sender, message: messages.append((sender, message)),
    )
    assert results == [(i, 2, str(environment.prefix()), (True, True)) for i in (0, 1)]
    assert sorted(messages) == [(0, 0), (1, 1)]
    printed = capsys.readouterr().err.splitlines()
    assert sorted(line for line in printed if "hello" in line) == [
        f"[rank {i}, {os.uname().nodename}] hello world fatal" for i in (0, 1)
    ]
    variables = cluster.collect(spark.sparkContext.range(1).mapPartitions(lambda _: os.environ))
    assert [name for name in variables if name.startswith(("HOROVOD_", "HVDKERAS_"))] == []


FAILURES = {
    "raise": (lambda: 1 // 0, {"signal": None, "exitcode": None}, "ZeroDivisionError"),
    "os._exit(0)": (lambda: os._exit(0), {"signal": None, "exitcode": 0}, None),
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), {"signal": 9, "exitcode": None}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_one_error_tells_who_failed_and_how(name, spark, no_process_left, capsys):
    fail, ending, words = FAILURES[name]
    moments = []

    def work():
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            rank.send(None)
            fail()
        MPI.COMM_WORLD.Barrier()

    with pytest.raises(TrainingError) as caught:
        launch.run(work, num_proc=2, on_message=lambda *_: moments.append(time.monotonic()))
    assert time.monotonic() - moments[0] < 15
    error = caught.value
    assert (error.rank, error.host) == (1, os.uname().nodename)
    assert {"signal": error.signal, "exitcode": error.exitcode} == ending
    assert (error.remote_traceback is None) if words is None else (words in error.remote_traceback)
    assert "Exception in thread" not in capsys.readouterr().err


def test_more_ranks_than_slots_are_refused_at_once(spark):
    with pytest.raises(ValueError, match=r"num_proc=3, slots=2 on local\[2, 2\]"):
        launch.run(os.getpid, num_proc=3)


def test_executors_with_other_packages_are_refused(spark, monkeypatch):
    if sys.prefix == sys.base_prefix:
        pytest.skip("this Python is no virtual environment: it has no bare Python beneath")
    monkeypatch.setattr(spark.sparkContext, "pythonExec", os.path.realpath(sys.executable))
    with pytest.raises(
        ValueError, match=r"differs from the driver: tensorflow missing there.*PYSPARK_PYTHON"
    ):
        launch.run(os.getpid, num_proc=2)


def test_executors_are_asked_once(spark):
    context = spark.sparkContext
    executors.ask(context, 2)
    question = executors._last
    for _ in range(2):
        executors.check(context, 2, time.monotonic() + 60, 60)
    assert executors._last is question
    assert len(context.statusTracker().getJobIdsForGroup(question._group)) == 1


def test_jobs_of_ranks_and_of_shards_share_a_python_daemon(spark):
    def parents(batches):
        for _ in batches:
            yield pa.RecordBatch.from_pydict({"parent": [os.getppid()]})

    context = spark.sparkContext
    before = dict(context.environment)
    of_rdds = set(cluster.collect(context.range(2).mapPartitions(lambda _: [os.getppid()])))
    of_sql = {row.parent for row in spark.range(2).mapInArrow(parents, "parent long").collect()}
    assert of_rdds == of_sql
    assert len(of_sql) == 1
    assert context.environment == before


def test_executors_without_the_python_are_refused(spark, monkeypatch):
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "/nowhere/python")
    with pytest.raises(ValueError, match=r'could not start Python: Cannot run program "/nowhere/python"'):
        launch.run(os.getpid, num_proc=2)


def test_spark_tasks_that_do_not_start_in_time(spark, no_process_left):
    with pytest.raises(TimeoutError, match="start_timeout=0.1 s"):
        launch.run(os.getpid, num_proc=2, start_timeout=0.1)


def test_slots_are_those_of_tasks_not_of_cores(spark):
    assert cluster.slots(spark.sparkContext) == 2


SCRIPT = """
    import os, time
    from pyspark.sql import SparkSession
    from hvdkeras.launch import environment, gpu, spark

    print("script starts", flush=True)
    session = SparkSession.builder.config("spark.ui.enabled", False)
"""

ENDLESS = """
    session = session.master("local[2]").getOrCreate()

    def work():
        print("rank works", flush=True)
        time.sleep(100)

    spark.run(work, num_proc=2)
"""


def start_script(folder, *parts):
    """Starts a script without a main guard as the leader of a process group of its own."""
    script = folder / "script.py"
    script.write_text("".join(textwrap.dedent(part) for part in parts))
    return subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Where the tests run in a shell's background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(tmp_path):
    driver = start_script(tmp_path, SCRIPT, ENDLESS)
    read = []
    while "rank works" not in "".join(read[-1:]):
        read.append(driver.stdout.readline())
        assert read[-1], "".join(read)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    assert any(MARK in process.environ() for process in family if process.status() != psutil.STATUS_ZOMBIE)
    os.killpg(driver.pid, signal.SIGINT)
    rest = driver.communicate(timeout=60)[0]
    assert driver.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in rest
    assert "".join(read).count("script starts") == 1
    _, alive = psutil.wait_procs(family, timeout=15)
    assert alive == []


ON_A_CLUSTER_WITH_GPUS = """
    session = (
        session.master("local-cluster[1,2,1024]")
        .config("spark.worker.resource.gpu.amount", 2)
        .config("spark.worker.resource.gpu.discoveryScript", os.path.abspath("find_gpus"))
        .config("spark.executor.resource.gpu.amount", 2)
        .config("spark.task.resource.gpu.amount", 1)
        .getOrCreate()
    )
    session.sparkContext.addPyFile(os.path.abspath("sent/sent_module.py"))

    def work():
        import sent_module

        here = environment.job()
        device = gpu.pin(here.local_rank, here.local_size)
        return device, os.environ["CUDA_VISIBLE_DEVICES"], sent_module.VALUE

    print("got", spark.run(work, num_proc=2), flush=True)
    try:
        spark.run(work, num_proc=3, start_timeout=1)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_on_an_executor_apart_with_gpus_given_by_spark(tmp_path):
    finder = tmp_path / "find_gpus"
    finder.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["5", "7"]}\'\n')
    finder.chmod(0o755)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "sent_module.py").write_text("VALUE = 42\n")
    driver = start_script(tmp_path, SCRIPT, ON_A_CLUSTER_WITH_GPUS)
    output = driver.communicate(timeout=120)[0]
    assert driver.returncode == 0, output
    got = next(line for line in output.splitlines() if "got [" in line)
    assert sorted(eval(got.split("got ")[1])) == [("5", "5", 42), ("7", "7", 42)]
    assert "num_proc=3, slots=2 on local-cluster" in output
