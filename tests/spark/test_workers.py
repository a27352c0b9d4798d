"""Ranks that stay on Spark's executors between trainings."""

import os

import numpy as np
import pytest

import hvdkeras

from digits import FOUND

pytestmark = [pytest.mark.spark, pytest.mark.slow]


def test_trainings_share_ranks_that_hold_a_slot(spark, no_process_left, caplog):
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
        assert workers.run(os.getpid) == process
        with pytest.raises(ValueError, match=r"must be where the ranks .* on Spark's executors.*dict"):
            trainer.train(arrays)
    assert list(tracker.getActiveJobsIds()) == []
    with (
        hvdkeras.Workers(1, verbose=0),
        pytest.raises(ValueError, match=r"on this machine.*a DataFrame of a Spark session"),
    ):
        trainer.train(frame)
