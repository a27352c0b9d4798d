"""Where the user's callbacks run, and which are refused: on the driver, before anything is launched."""

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.driver.callbacks import check_monitors, divided

DATA = {"features": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.float32)}


def model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


class Batches(keras.callbacks.ModelCheckpoint):
    def on_train_batch_end(self, batch, logs=None):
        pass


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (keras.callbacks.BackupAndRestore("folder"), "BackupAndRestore: give the trainer checkpoint=folder"),
        (
            keras.callbacks.ModelCheckpoint("a.keras", save_freq=5),
            "save_freq of ModelCheckpoint.*save_freq=5",
        ),
        (
            keras.callbacks.TensorBoard("logs", update_freq="batch"),
            "update_freq of TensorBoard must be 'epoch'",
        ),
        (Batches("a.keras"), "Batches must not define on_train_batch_end: as a ModelCheckpoint"),
    ],
)
@pytest.mark.parametrize("name", ["callbacks", "center_callbacks"])
def test_callbacks_that_mean_nothing_on_the_center_are_refused(name, callback, message):
    with pytest.raises(ValueError, match=message):
        hvdkeras.EASGD(model(), loss="mse", **{name: [callback]})


def test_callbacks_run_on_the_center_by_their_kind():
    class Mine(keras.callbacks.EarlyStopping):
        pass

    ordinary, mine, swap = keras.callbacks.Callback(), Mine(), keras.callbacks.SwapEMAWeights()
    last = keras.callbacks.Callback()
    result = divided([ordinary, swap, mine], [last])
    assert (result.ranks, result.center, result.swaps) == ([ordinary], [mine, last], [swap])


@pytest.mark.parametrize(
    "algorithm", ["EASGD", "AsynchronousEASGD", "DOWNPOUR", "AveragingTrainer", "DiLoCo"]
)
def test_a_moving_average_of_a_rank_is_refused_where_the_center_is_the_result(algorithm):
    used = getattr(hvdkeras, algorithm)(
        model(), loss="mse", worker_optimizer=keras.optimizers.SGD(use_ema=True)
    )
    with pytest.raises(
        ValueError, match=f"without use_ema for {algorithm}.*SynchronousSGD and SingleTrainer"
    ):
        used.train(DATA)


def test_weights_are_swapped_only_with_their_average():
    swap = keras.callbacks.SwapEMAWeights()
    with pytest.raises(ValueError, match="unless the optimizer has use_ema=True"):
        hvdkeras.SingleTrainer(model(), loss="mse", callbacks=[swap]).train(DATA)


def test_a_monitor_without_validation_warns(caplog):
    check_monitors([keras.callbacks.EarlyStopping(), keras.callbacks.ModelCheckpoint("a.keras")], False)
    assert [record.getMessage() for record in caplog.records] == [
        "EarlyStopping monitors val_loss, which needs validation_split or validation_data: "
        "it does nothing without"
    ]
