"""How many workers a center at rank 0 carries: the figure, and the driver's warning."""

import logging
import math

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.driver.saturation import SaturationLog
from hvdkeras.history import History
from hvdkeras.history.records import RankHistory
from hvdkeras.history.saturation import LOAD_PREFIX, Load, Saturation

# Three windows of 0.03 s, an exchange of 0.02 s: two and a half workers.
CROWDED = [Load(0.02, 0.01, 0.05), Load(0.03, 0.02, 0.05), Load(0.04, 0.03, 0.05)]


def test_a_center_carries_as_many_workers_as_a_closed_queue():
    found = Saturation.of(CROWDED)
    assert (found.workers, found.ranks) == (pytest.approx(2.5), 3)
    assert found.is_reached
    assert not Saturation.of(CROWDED[1:]).is_reached
    # Ranks in different chunks of the center don't wait for each other.
    assert not Saturation.of([Load(0.02, 0.02, 0.001)] * 3).is_reached
    assert Saturation.of([Load(0.1, 0.0, 0.0)]).workers == math.inf


def test_the_driver_warns_once_and_only_of_a_crowd(caplog):
    caplog.set_level(logging.WARNING, "hvdkeras")
    calm, crowded = SaturationLog(2), SaturationLog(3)
    for rank in range(2):
        calm.on_message(rank, Load(1.0, 0.01, 0.02))
    for rank, load in [*enumerate(CROWDED), (0, CROWDED[0])]:
        crowded.on_message(rank, "another message")
        crowded.on_message(rank, load)
    (record,) = caplog.records
    assert "carries 2.5 workers such as these before it saturates, and 3 train" in record.message
    assert "A longer communication_window helps" in record.message


def test_the_history_has_the_figure_where_all_ranks_measured_it():
    telemetry = {LOAD_PREFIX + "between": 0.03, LOAD_PREFIX + "service": 0.01, LOAD_PREFIX + "waiting": 0.0}
    ranks = [RankHistory(rank, "host", "CPU", telemetry=dict(telemetry)) for rank in range(2)]
    assert History(ranks, 1.0, 10).saturation == Saturation.of([Load(0.03, 0.01, 0.0)] * 2)
    del ranks[1].telemetry["load_waiting"]
    assert History(ranks, 1.0, 10).saturation is None


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        ("EASGD", "center_sharded", True),
        ("SynchronousSGD", "center_sharded", False),
        ("SingleTrainer", "exchange_dtype", "float16"),
        ("SynchronousSGD", "exchange_dtype", "float16"),
        ("EnsembleTrainer", "exchange_dtype", "bfloat16"),
    ],
)
def test_what_means_nothing_for_an_algorithm_is_refused(algorithm, name, value):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    trainer = getattr(hvdkeras, algorithm)(model, loss="mse", **{name: value})
    data = {"features": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.float32)}
    with pytest.raises(ValueError, match=f"{name} must be left out for {algorithm}.*Received: {value!r}"):
        trainer.train(data)
