"""Ranks that stay on Spark's executors between trainings."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hvdkeras

from digits import FOUND

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def test_trainings_share_ranks_that_hold_a_slot(spark, no_process_left, caplog, tmp_path):
    import keras

    with pytest.raises(ValueError, match=r"less 1 for Spark's own tasks.*num_proc=2, slots=2 on local"):
        hvdkeras.Workers(2, spark=spark)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, "softmax")])
    numbers = [([float(number), 1.0], number % 2) for number in range(32)]
    frame = spark.createDataFrame(numbers, "features array<float>, label int").repartition(2)
    arrays = {"features": np.ones((4, 2), "float32"), "label": np.zeros(4, "int32")}
    trainer = hvdkeras.SingleTrainer(model, **FOUND, batch_size=8)
    tracker = spark.sparkContext.statusTracker()
    with hvdkeras.Workers(1, spark=spark, verbose=0) as workers:
        assert "1 ranks hold as many of Spark's 2 task slots" in caplog.text
        process = workers.run(os.getpid)
        first = trainer.train(frame).get_weights()
        again = trainer.fit(frame).keras_model.get_weights()
        assert all(map(np.array_equal, first, again))
        alone = weights_by_index(trainer.fitMultiple(frame, rates(trainer)))
        assert workers.run(os.getpid) == process
        with pytest.raises(ValueError, match=r"must be where the ranks .* on Spark's executors.*dict"):
            trainer.train(arrays)
    assert list(tracker.getActiveJobsIds()) == []
    check_candidates_train_side_by_side(trainer, frame, alone, tmp_path)
    with (
        hvdkeras.Workers(1, verbose=0),
        pytest.raises(ValueError, match=r"on this machine.*a DataFrame of a Spark session"),
    ):
        trainer.train(frame)


def rates(trainer):
    return [{trainer.learning_rate_param: rate} for rate in (0.5, 0.1)]


def weights_by_index(candidates):
    return {index: fitted.keras_model.get_weights() for index, fitted in candidates}


def check_candidates_train_side_by_side(trainer, frame, alone, folder):
    """Each candidate waits for the other, and has the weights that it has without the other."""
    meet = trainer.copy()
    meet.callbacks = [meeting(str(folder), 2)]
    candidates = meet.fitMultiple(frame, rates(meet))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: next(candidates), range(2)))
    assert next(candidates, None) is None
    for index, weights in weights_by_index(found).items():
        assert all(map(np.array_equal, weights, alone[index]))
    assert len(os.listdir(folder)) == 2


def meeting(folder, number):
    import keras

    class Meet(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            open(f"{folder}/{os.getpid()}", "x").close()
            deadline = time.monotonic() + 120
            while len(os.listdir(folder)) < number:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited for {number} candidates. Received: {os.listdir(folder)}")
                time.sleep(0.05)

    return Meet()
