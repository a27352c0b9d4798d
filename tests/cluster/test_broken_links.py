"""The link between the hosts goes down in the middle of a launch by Spark."""

import subprocess
import threading
import time
from pathlib import Path

import hosts as two
import psutil
import pytest

from hvdkeras.launch.mpirun import MARK

import digits

pytestmark = [pytest.mark.cluster, pytest.mark.chaos, pytest.mark.slow]


def broken(session, folder, seconds, timeout):
    """Ranks on both hosts that say they are there, and then work by themselves for some seconds."""
    from hvdkeras.launch import cluster, spark
    from hvdkeras.launch.failure import TrainingError

    deadline = time.monotonic() + 120
    while cluster.slots(session.sparkContext) < 4 and time.monotonic() < deadline:
        time.sleep(0.5)

    def work():
        import socket

        Path(folder, f"{socket.gethostname()}").touch()
        time.sleep(seconds)
        return socket.gethostname()

    began = time.monotonic()
    try:
        results = spark.run(work, num_proc=4, timeout=timeout)
    except TrainingError as error:
        return error.host, str(error), time.monotonic() - began
    return None, sorted(results), time.monotonic() - began


def broken_training(session, folder, seconds, timeout):
    """Synchronous EASGD on both hosts, whose epochs take a second and more; the result is as of `broken`."""
    import socket

    import keras

    from hvdkeras.launch.failure import TrainingError

    class Slow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            Path(folder, socket.gethostname()).touch()
            time.sleep(1)

    learn, held_out = digits.data()
    rows = [(f.tolist(), int(label)) for f, label in zip(learn["features"], learn["label"], strict=True)]
    frame = session.createDataFrame(rows, "features array<float>, label int")
    used = digits.trainer("EASGD", 4)
    used.store, used.num_epoch, used.timeout, used.callbacks = folder, seconds, timeout, [Slow()]
    began = time.monotonic()
    try:
        trained = used.train(frame)
    except TrainingError as error:
        return error.host, str(error), time.monotonic() - began
    assert digits.accuracy(trained, held_out) >= 0.95
    return None, sorted(rank.host for rank in used.history.ranks), time.monotonic() - began


def cut(hosts, folder, seconds):
    """Takes beta's link down when all hosts have ranks, for so many seconds."""
    two.wait_for(lambda: {"alpha", "beta"} <= {path.name for path in folder.iterdir()}, "ranks", 220)
    time.sleep(1)
    link = [two.which("ip"), "-n", hosts.networks[1], "link", "set", "eth0"]
    subprocess.run([*link, "down"], check=True)
    time.sleep(seconds)
    subprocess.run([*link, "up"], check=True)


def ranks_left():
    found = []
    for process in psutil.process_iter():
        try:
            if MARK in process.environ() and "pytest" not in " ".join(process.cmdline()):
                found.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [words for words in found if "rank.main()" in " ".join(words)]


@pytest.mark.timeout(580)
@pytest.mark.parametrize("work", [broken, broken_training])
@pytest.mark.parametrize(("down", "lost"), [(5, False), (45, True)])
def test_a_link_that_is_down(on_driver, hosts, tmp_path, down, lost, work):
    # A rank's silence of 15 seconds is the end; 5 seconds are made up for by TCP, which takes as long again.
    before = ranks_left()
    cutting = threading.Thread(target=cut, args=(hosts, tmp_path, down))
    cutting.start()
    host, told, _ = on_driver(work, str(tmp_path), 100 if lost else 25, 15 if lost else 60)
    if lost:
        # The link is still down: ranks that are cut off have ended by themselves, or do so.
        assert host == "beta", told
        assert "is silent" in told or "ended without a word" in told
        two.wait_for(lambda: ranks_left() == before, "the ranks on both hosts to end", 40)
    else:
        assert (host, told) == (None, ["alpha", "alpha", "beta", "beta"]), told
    cutting.join()
