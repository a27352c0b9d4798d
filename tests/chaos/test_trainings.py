"""Whole trainings that fail in the user's code, run out of memory, or follow one another in one driver."""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest

import hvdkeras
from hvdkeras.launch import environment

import digits

pytestmark = [pytest.mark.mpi, pytest.mark.chaos, pytest.mark.slow]

COUNT = int(os.environ.get("HVDKERAS_TEST_TRAININGS", "12"))
MEMORY = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def trainer(algorithm: str = "EASGD", **arguments):
    return getattr(hvdkeras, algorithm)(
        digits.model(), **{**digits.FOUND, "num_workers": 2, "num_epoch": 2, "batch_size": 64, **arguments}
    )


class Raises(keras.callbacks.Callback):
    """Raises at rank 1 when the training begins."""

    def on_train_begin(self, logs=None):
        if self.params["rank"] == 1:
            raise ArithmeticError("before the first batch")


class Sleeps(keras.callbacks.Callback):
    """Sleeps at rank 1 for some seconds at the end of the first epoch."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def on_epoch_end(self, epoch, logs=None):
        if self.params["rank"] == 1 and epoch == 0:
            time.sleep(self.seconds)


def to_array(content):
    if b"broken" in content:
        raise ArithmeticError("not a picture")
    return np.frombuffer(content, np.float32)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("algorithm", ["EASGD", "DOWNPOUR"])
def test_a_callback_that_raises_is_one_error(algorithm):
    with pytest.raises(hvdkeras.TrainingError, match="ArithmeticError: before the first batch") as caught:
        trainer(algorithm, callbacks=[Raises()], timeout=60).train(digits.data()[0])
    assert caught.value.rank == 1


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("algorithm", ["EASGD", "DOWNPOUR", "SynchronousSGD"])
def test_a_callback_that_is_longer_than_the_timeout(algorithm):
    """The other rank waits for that one, asynchronous ones at their end; the error says where it is."""
    with pytest.raises(hvdkeras.TrainingError, match=r"rank 0 waited 10 s for") as caught:
        trainer(algorithm, callbacks=[Sleeps(60)], timeout=10).train(digits.data()[0])
    assert caught.value.waited
    assert "in on_epoch_end" in str(caught.value).split("Heard last:")[1]


@pytest.mark.usefixtures("nothing_left")
def test_a_row_that_decode_refuses_on_a_rank_is_one_error():
    learn, _ = digits.data()
    rows = [row.tobytes() for row in learn["features"]]
    rows[1000] = b"broken"
    data = {"features": np.array(rows, object), "label": learn["label"]}
    with pytest.raises(hvdkeras.TrainingError, match=r"row 1000 of the data \(6 bytes\): ArithmeticError"):
        trainer(decode={"features": to_array}, timeout=60).train(data)


@pytest.fixture
def little_memory():
    """A group of processes that have 1.5 GB together: the file that takes their numbers."""
    for root, limit in zip(MEMORY, ("memory.limit_in_bytes", "memory.max"), strict=True):
        group = root / f"hvdkeras-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            (group / limit).write_text(str(1_500_000_000))
            yield group / "cgroup.procs"
            break
        with suppress(OSError):
            group.rmdir()
    else:
        pytest.skip("NOT TESTED OUT OF MEMORY: no memory controller of cgroups that this user may write")
    deadline = time.monotonic() + 20
    while group.exists() and time.monotonic() < deadline:
        with suppress(OSError):  # its last process is about to end
            group.rmdir()
        time.sleep(0.1)
    assert not group.exists()


def test_a_rank_that_runs_out_of_memory_is_one_error(little_memory, tmp_path):
    script = """
        from hvdkeras.launch import local

        def work():
            from mpi4py import MPI

            held = bytearray(1 << 32) if MPI.COMM_WORLD.rank == 1 else b""
            MPI.COMM_WORLD.Barrier()
            return len(held)

        try:
            local.run(work, num_proc=2, verbose=0)
        except Exception as error:
            print(type(error).__name__, error.rank, str(error).splitlines()[0])
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    ended = subprocess.run(
        ["sh", "-c", f"echo $$ > {little_memory} && exec $0 $1", sys.executable, tmp_path / "script.py"],
        env={**os.environ, **environment.variables()},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert re.match(r"TrainingError 1 rank 1 on .*SIGKILL.* memory runs out", ended.stdout), ended


@pytest.mark.timeout(590)
@pytest.mark.usefixtures("nothing_left")
def test_trainings_leave_their_driver_as_it_was(tmp_path, monkeypatch, capsys):
    """Descriptors, threads and files stay as they are after the first trainings, and memory all but."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    learn = {name: rows[:256] for name, rows in digits.data()[0].items()}
    here, states, sizes = psutil.Process(), [], []
    for _ in range(COUNT):
        trainer(num_workers=1, num_epoch=1).train(learn)
        time.sleep(0.5)  # the last threads see that their job is over
        states.append((here.num_fds(), threading.active_count(), os.listdir(tmp_path)))
        sizes.append(here.memory_info().rss)
    with capsys.disabled():
        print(f"\n{COUNT} trainings: MB {[size // 1_000_000 for size in sizes]}, {states[-1]}")
    assert states[3:] == [states[3]] * (COUNT - 3)
    assert states[-1][2] == []
    # TensorFlow keeps something of every function that it has traced.
    assert sizes[-1] - sizes[3] < 20e6 + 1e6 * COUNT
