"""Trainings that are killed and go on: from their last checkpoint, to where they would have come."""

import os
import random
import signal
import threading

import keras
import numpy as np
import pytest

import hvdkeras

import digits

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

ELASTIC = {"learning_rate": 0.05, "rho": 2.0, "communication_window": 4}


class Kill(keras.callbacks.Callback):
    """Kills a rank soon after a random window of each attempt, the first `times` attempts.

    Soon after, so that it may be reading, training, exchanging or writing a checkpoint. Attempts are counted
    by files, because every attempt is a job of its own.
    """

    def __init__(self, folder, times: int, rank: int):
        super().__init__()
        self.folder, self.times, self.rank = str(folder), times, rank
        chance = random.Random(0)
        self.moments = [(chance.randint(3, 20), chance.uniform(0, 0.03)) for _ in range(times)]

    def on_train_begin(self, logs=None):
        self.attempt, self.windows = len(os.listdir(self.folder)), 0

    def on_train_batch_end(self, batch, logs=None):
        self.windows += 1
        if self.params["rank"] != self.rank or self.attempt >= self.times:
            return
        window, seconds = self.moments[self.attempt]
        if self.windows == window:
            open(f"{self.folder}/{self.attempt}", "w").close()
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def model() -> keras.Model:
    """With all that a rank has beside weights: random states, statistics, an optimizer's moments."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(48, "relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, "softmax"),
    ]
    return keras.Sequential([keras.Input((64,)), *layers])


def train(algorithm: str, resume: bool = False, **arguments):
    learn, _ = digits.data()
    common = {**digits.FOUND, "batch_size": 16, "num_epoch": 40, "num_workers": 2, "seed": 3}
    used = getattr(hvdkeras, algorithm)(model(), **{**common, **arguments})
    return used, used.train(learn, resume=resume)


def killed(folder, algorithm: str, times: int, rank: int, **arguments):
    moments = folder / "moments"
    moments.mkdir()
    return train(
        algorithm,
        checkpoint=folder / "checkpoints",
        max_restarts=times,
        callbacks=[Kill(moments, times, rank)],
        **arguments,
    )


def assert_same_weights(one, other):
    for mine, its in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.timeout(280)
def test_five_kills_change_nothing(tmp_path):
    """Checkpoints in the middle of epochs, and the one who keeps the center killed."""
    arguments = {**ELASTIC, "worker_optimizer": "adam", "validation_split": 0.1}
    undisturbed, wanted = train("EASGD", **arguments)
    used, received = killed(tmp_path, "EASGD", 5, 0, checkpoint_minutes=0.2 / 60, **arguments)
    assert len(used.history.restarts) == 5
    assert all("SIGKILL" in line for line in used.history.restarts)
    assert_same_weights(received, wanted)
    assert used.history.rows_seen() == undisturbed.history.rows_seen() == [1293] * 40
    evaluations, others = (
        [(each.epoch, each.metrics) for each in h.history.center] for h in (used, undisturbed)
    )
    assert evaluations == others


class KillAtEpochsEnd(keras.callbacks.Callback):
    """Kills the rank once, after the last window of its second epoch and before the epoch's end."""

    def __init__(self, file):
        super().__init__()
        self.file = str(file)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch + 1 >= self.params["steps"] and not os.path.exists(self.file):
            open(self.file, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("algorithm", ["EASGD", "AsynchronousEASGD"])
def test_an_epoch_that_is_trained_but_not_ended_is_not_forgotten(tmp_path, algorithm):
    """With a checkpoint that is due at every window."""
    arguments = {**ELASTIC, "num_epoch": 4, "checkpoint_minutes": 1e-9, "max_restarts": 1}
    callbacks = [KillAtEpochsEnd(tmp_path / "killed")]
    used, _ = train(algorithm, checkpoint=tmp_path / "run", callbacks=callbacks, **arguments)
    assert len(used.history.restarts) == 1
    assert used.history.rows_seen() == [1437] * 4
    assert [len(rank.metrics["loss"]) for rank in used.history.ranks] == [4, 4]


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        ("SynchronousSGD", {"learning_rate": 0.05, "accumulation": 3}),
        ("DiLoCo", {"learning_rate": 0.05, "communication_window": 16}),
        ("EnsembleTrainer", {"learning_rate": 0.05, "num_models": 3}),
    ],
)
def test_what_a_rule_and_its_gradients_keep_is_kept(tmp_path, algorithm, arguments):
    arguments["num_epoch"] = 12
    _, wanted = train(algorithm, **arguments)
    used, received = killed(tmp_path, algorithm, 1, 0, checkpoint_minutes=0.2 / 60, **arguments)
    assert len(used.history.restarts) == 1
    if algorithm != "EnsembleTrainer":
        wanted, received = [wanted], [received]
    for one, other in zip(received, wanted, strict=True):
        assert_same_weights(one, other)


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("algorithm", "arguments", "times"),
    [("AsynchronousEASGD", ELASTIC, 3), ("AdaptiveDOWNPOUR", {"server_learning_rate": 0.02}, 1)],
)
def test_an_asynchronous_training_loses_no_rows(tmp_path, algorithm, arguments, times):
    _, held_out = digits.data()
    _, undisturbed = train(algorithm, **arguments)
    used, trained = killed(tmp_path, algorithm, times, 1, **arguments)
    assert len(used.history.restarts) == times
    assert used.history.rows_seen() == [1437] * 40
    assert digits.accuracy(trained, held_out) >= digits.accuracy(undisturbed, held_out) - 0.02


def test_what_a_rank_raises_is_not_tried_again(tmp_path):
    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise ArithmeticError("no")

    with pytest.raises(hvdkeras.TrainingError, match="ArithmeticError: no"):
        train("EASGD", checkpoint=tmp_path, max_restarts=3, callbacks=[Fail()], **ELASTIC)
    assert sorted(os.listdir(tmp_path)) == ["00000001", "owner.json"]


def repeat() -> None:
    arguments = {**ELASTIC, "num_epoch": 3, "worker_optimizer": "adam"}
    (first, one), (second, other), (_, another) = (
        train("EASGD", **{**arguments, **seed}) for seed in ({}, {}, {"seed": 4})
    )
    assert_same_weights(one, other)
    assert first.history.averaged() == second.history.averaged()
    assert any((a != b).any() for a, b in zip(one.get_weights(), another.get_weights(), strict=True))


def test_a_seed_repeats_a_synchronous_training_bit_for_bit(on_ranks):
    on_ranks(2, repeat)


def finish_and_go_on(folder: str) -> None:
    arguments = {**ELASTIC, "checkpoint": folder, "checkpoints_kept": 2, "validation_split": 0.1}
    first, wanted = train("EASGD", num_epoch=4, **arguments)
    assert sorted(os.listdir(folder)) == ["00000003", "00000004", "owner.json"]
    assert_same_weights(keras.models.load_model(f"{folder}/00000004/model.keras"), wanted)
    with pytest.raises(ValueError, match=r"checkpoint must be a folder without checkpoints, unless resume"):
        train("EASGD", num_epoch=4, **arguments)

    again, received = train("EASGD", resume=True, num_epoch=4, **arguments)
    assert_same_weights(received, wanted)
    assert again.history.center == first.history.center
    further, longer_resumed = train("EASGD", resume=True, num_epoch=6, **arguments)
    _, longer = train("EASGD", num_epoch=6, **{**arguments, "checkpoint": None})
    assert_same_weights(longer_resumed, longer)
    assert [each.epoch for each in further.history.center] == [1, 2, 3, 4, 5, 6]


def test_a_finished_training_is_resumed_to_its_result_and_beyond(on_ranks, tmp_path):
    on_ranks(2, finish_and_go_on, str(tmp_path))


def go_on_with_another(algorithm: str, folder: str, arguments: dict) -> None:
    common = {**digits.FOUND, "checkpoint": folder, **arguments}
    learn, held_out = digits.data()
    fewer = {name: rows[:1000] for name, rows in learn.items()}
    trainer = getattr(hvdkeras, algorithm)
    trainer(model(), **common, num_workers=2, batch_size=16, num_epoch=5).train(learn)
    used = trainer(model(), **common, num_workers=3, batch_size=32, num_epoch=7)
    trained = used.train(fewer, resume=True)
    assert used.history.rows_seen() == [1000] * 7  # each of the epochs before is counted as one of the new
    assert [len(rank.metrics["loss"]) for rank in used.history.ranks] == [7] * 3
    assert digits.accuracy(trained, held_out) > 0.85


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        ("EASGD", {**ELASTIC, "worker_optimizer": "adam"}),
        pytest.param("DOWNPOUR", {"learning_rate": 0.1}, marks=pytest.mark.chaos),
        pytest.param("SynchronousSGD", {"learning_rate": 0.1}, marks=pytest.mark.chaos),
    ],
)
def test_other_rows_another_batch_size_and_number_of_workers_go_on(on_ranks, tmp_path, algorithm, arguments):
    on_ranks(3, go_on_with_another, algorithm, str(tmp_path), arguments)


def go_on_with_another_model(folder: str) -> None:
    train("SingleTrainer", num_epoch=1, num_workers=1, checkpoint=folder)
    with pytest.raises(ValueError, match="of the same algorithm to resume from, EASGD. Received: .* Single"):
        train("EASGD", resume=True, num_epoch=2, num_workers=1, checkpoint=folder, **ELASTIC)
    other = keras.models.clone_model(model())  # as large, and with other names
    other.layers[0].activation = keras.activations.tanh
    learn, _ = digits.data()
    trainer = hvdkeras.SingleTrainer(other, **digits.FOUND, num_epoch=2, checkpoint=folder)
    with pytest.raises(ValueError, match=r"keras_model must be that .*activation is 'tanh' instead of"):
        trainer.train(learn, resume=True)


def test_another_algorithm_or_model_can_not_go_on(on_ranks, tmp_path):
    on_ranks(1, go_on_with_another_model, str(tmp_path))


def stop_and_resume(folder: str, minutes: float | None) -> None:
    arguments = {"learning_rate": 0.1, "checkpoint": folder, "checkpoint_minutes": minutes}
    arguments |= {"stop_at": {"val_accuracy": 0.8}, "validation_split": 0.2}
    first, wanted = train("DOWNPOUR", **arguments)
    assert len(first.history.center) < 40
    assert len(first.history.rows_seen()) == len(first.history.averaged()["loss"]) < 40
    again, received = train("DOWNPOUR", resume=True, **arguments)
    assert_same_weights(received, wanted)
    assert again.history.center == first.history.center


@pytest.mark.parametrize("minutes", [None, 60.0])
def test_a_stopped_training_stays_stopped(on_ranks, tmp_path, minutes):
    on_ranks(2, stop_and_resume, str(tmp_path), minutes)
