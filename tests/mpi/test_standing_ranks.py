"""Ranks that stay: between two calls, between two trainings, and not after a failure or their driver."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import hvdkeras
from hvdkeras.launch import rank, supervisor
from hvdkeras.launch.driver import MARK
from hvdkeras.launch.failure import TrainingError
from hvdkeras.launch.standing import StandingRanks

from digits import FOUND, data

pytestmark = pytest.mark.mpi


def place_and_process():
    from mpi4py import MPI

    rank.send(MPI.COMM_WORLD.rank)
    return MPI.COMM_WORLD.rank, os.getpid()


def fail_at_rank_1():
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise ValueError("the second call is bad")
    MPI.COMM_WORLD.Barrier()


def test_ranks_stay_until_one_fails(no_process_left, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "SILENCE_SECONDS", 3.0)
    first_messages, second_messages = [], []
    with StandingRanks(2, on_spark=False, timeout=1, verbose=0) as ranks:
        first = ranks.run(place_and_process, (), lambda *message: first_messages.append(message))
        processes = [psutil.Process(number) for _, number in first]
        # They may be as silent as they like while they have nothing to do.
        for process in processes:
            process.suspend()
        time.sleep(4)
        for process in processes:
            process.resume()
        assert ranks.run(place_and_process, (), lambda *message: second_messages.append(message)) == first
        assert [place for place, _ in first] == [0, 1]
        assert sorted(first_messages) == sorted(second_messages) == [(0, 0), (1, 1)]

        with pytest.raises(
            TrainingError, match="rank 1 .* raised ValueError: the second call is bad"
        ) as caught:
            ranks.run(fail_at_rank_1)
        assert (caught.value.rank, caught.value.host) == (1, os.uname().nodename)
        assert "in fail_at_rank_1" in caught.value.remote_traceback
        assert not any(process.is_running() for process in processes)

        second = ranks.run(place_and_process)
        assert "launching 2 new ones" in caplog.text
        assert not {number for _, number in first} & {number for _, number in second}
        caplog.clear()

        lost = psutil.Process(second[0][1])
        lost.kill()
        psutil.wait_procs([psutil.Process(second[1][1])], timeout=20)
        third = ranks.run(place_and_process)
        assert "launching 2 new ones" in caplog.text
        assert not {number for _, number in second} & {number for _, number in third}
    with pytest.raises(ValueError, match="must not be closed"):
        ranks.run(place_and_process)


IDLE = """
import os, time
from hvdkeras.launch.standing import StandingRanks

StandingRanks(2, on_spark=False).run(os.getpid)
print("idle", flush=True)
time.sleep(100 if WAITS else 0)
"""


@pytest.mark.parametrize("waits", [True, False])
def test_idle_ranks_end_with_their_driver(waits, tmp_path):
    driver = subprocess.Popen(
        [sys.executable, "-c", f"WAITS = {waits}\n{IDLE}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert driver.stdout.readline() == b"idle\n"
    if waits:
        driver.kill()
    driver.communicate(timeout=60)
    assert driver.returncode == (-signal.SIGKILL if waits else 0)
    deadline = time.monotonic() + 20
    while left := [each for each in psutil.process_iter() if marked(each, driver.pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def marked(process, driver_pid):
    try:
        return process.environ().get(MARK, "").startswith(f"{driver_pid}-")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def model():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((64,)), *layers])


def trained(cls, rows, **more):
    arguments = {**FOUND, "num_workers": 2, "batch_size": 64, "num_epoch": 1, "learning_rate": 0.1, **more}
    return cls(model(), **arguments).train(rows).get_weights()


def equal(received, wanted):
    return all(np.array_equal(one, other) for one, other in zip(received, wanted, strict=True))


def models_and_variables():
    import gc

    import keras

    gc.collect()
    return sum(isinstance(each, keras.Model | keras.Variable) for each in gc.get_objects())


@pytest.mark.slow
def test_a_training_on_standing_ranks_is_as_one_with_a_launch_of_its_own(no_process_left):
    rows = {name: values[:256] for name, values in data()[0].items()}
    window = {"communication_window": 4, "rho": 1.25}
    alone = trained(hvdkeras.EASGD, rows, **window)
    with hvdkeras.Workers(2, verbose=0) as workers:
        processes = workers.run(os.getpid)
        assert equal(trained(hvdkeras.EASGD, rows, **window), alone)
        trained(hvdkeras.SynchronousSGD, rows, learning_rate=0.2, seed=3)
        trained(hvdkeras.AsynchronousEASGD, rows, num_workers=None, **window)
        assert workers.run(models_and_variables) == [0, 0]
        assert equal(trained(hvdkeras.EASGD, rows, **window), alone)
        assert workers.run(os.getpid) == processes

        with pytest.raises(ValueError, match="num_workers must be that of the open Workers, 2.*Received: 3"):
            trained(hvdkeras.EASGD, rows, num_workers=3)
        with pytest.raises(ValueError, match="threads must be .*None.*Received: 2"):
            trained(hvdkeras.EASGD, rows, threads=2)
        with pytest.raises(ValueError, match="launch_options must be given to the open Workers"):
            trained(hvdkeras.EASGD, rows, launch_options={"start_timeout": 5})
        with pytest.raises(ValueError, match="one Workers may be open at a time.*num_workers=1"):
            hvdkeras.Workers(1)

        check_candidates(rows)
        assert workers.run(os.getpid) == processes


def check_candidates(rows):
    trainer = hvdkeras.EASGD(
        model(), **FOUND, num_workers=2, batch_size=64, communication_window=4, label_col="label"
    )
    tight = {trainer.rho_param: 2.5, trainer.label_col_param: "other"}
    grid = [{trainer.rho_param: 1.25}, {trainer.label_col_param: "absent"}, tight]
    rows = {**rows, "other": rows["label"] // 2}
    candidates = trainer.fitMultiple(rows, grid)
    fitted = dict([next(candidates)])
    with pytest.raises(ValueError, match="the candidate with label_col='absent' failed: .*'absent'"):
        next(candidates)
    fitted.update(candidates)
    assert sorted(fitted) == [0, 2]
    weights = {index: made.keras_model.get_weights() for index, made in fitted.items()}
    assert equal(weights[2], trainer.copy(tight).train(rows).get_weights())
    assert not equal(weights[0], weights[2])
