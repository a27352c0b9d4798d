"""Rounds on real ranks: the center's metrics, callbacks, one decision to stop for all."""

import numpy as np
import pytest

import digits

pytestmark = pytest.mark.mpi


def train(algorithm: str, num_workers: int, arguments: dict, held_out: bool = False):
    """What a rank of the job runs; returns what the driver would have."""
    learn, validation = digits.data()
    used = digits.trainer(algorithm, num_workers)
    for name, value in {"num_epoch": 4, **arguments}.items():
        setattr(used, name, value)
    trained = used.train(learn, validation_data=validation if held_out else None)
    return used, trained


def each(fn, algorithms: list[str], *args) -> dict:
    """What `fn` returns for each algorithm, in one job."""
    return {algorithm: fn(algorithm, *args) for algorithm in algorithms}


def compare_with_evaluate(algorithm: str, num_workers: int, arguments: dict) -> tuple[dict, dict, list]:
    _, validation = digits.data()
    used, trained = train(algorithm, num_workers, arguments, held_out=True)
    rows = {"features": validation["features"], "label": validation["label"]}
    found = trained.evaluate(rows["features"], rows["label"], verbose=0, return_dict=True)
    return used.history.center[-1].metrics, found, [each.epoch for each in used.history.center]


def test_metrics_are_those_of_one_process_that_evaluates_the_center(on_ranks):
    algorithms = ["EASGD", "AsynchronousEASGD", "SynchronousSGD", "DOWNPOUR"]
    for results in on_ranks(3, each, compare_with_evaluate, algorithms, 3, {}):
        for algorithm, (metrics, found, epochs) in results.items():
            assert set(metrics) == {"val_loss", "val_accuracy"}
            for name, value in found.items():
                assert metrics[f"val_{name}"] == pytest.approx(value, abs=1e-6)
            # An asynchronous rank may be further when the last one arrives, and evaluations still due
            # when all have ended are made as one.
            assert epochs == sorted(epochs)
            assert epochs[-1] == 4
            if algorithm in ("EASGD", "SynchronousSGD"):
                assert epochs == [1, 2, 3, 4]


def with_few_rows(num_workers: int) -> tuple[dict, float]:
    """Fewer validation rows than ranks, and a metric whose totals are many."""
    import keras

    learn, validation = digits.data()
    few = {name: values[:2] for name, values in validation.items()}
    used = digits.trainer("EASGD", num_workers)
    used.num_epoch, used.metrics = 1, [keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")]
    trained = used.train(learn, validation_data=few)
    return used.history.center[-1].metrics, trained.evaluate(few["features"], few["label"], verbose=0)[1]


def test_fewer_validation_rows_than_ranks(on_ranks):
    for metrics, top in on_ranks(3, with_few_rows, 3, timeout=120):
        assert metrics["val_top"] == pytest.approx(top, abs=1e-6)


def rows_of_a_split(num_workers: int) -> list[int]:
    used, _ = train("EASGD", num_workers, {"validation_split": 0.25, "num_epoch": 2})
    return used.history.rows_seen()


def test_a_split_leaves_rows_out_of_the_training(on_ranks):
    # 1437 rows, 359 of them for validation.
    assert on_ranks(2, rows_of_a_split, 2, timeout=120) == [[1078, 1078]] * 2


def stop_early(algorithm: str, num_workers: int) -> list[int]:
    """EarlyStopping on the center, which can't improve on the first evaluation by as much as is asked."""
    import keras

    stopping = keras.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=2)
    used, _ = train(algorithm, num_workers, {"callbacks": [stopping], "num_epoch": 50}, held_out=True)
    return [len(rank.rows) for rank in used.history.ranks], len(used.history.center)


def test_early_stopping_stops_all_ranks(on_ranks):
    for results in on_ranks(4, each, stop_early, ["EASGD", "AsynchronousEASGD"], 4):
        assert results["EASGD"] == ([3, 3, 3, 3], 3)
        epochs, evaluations = results["AsynchronousEASGD"]
        assert evaluations == 3
        assert max(epochs) < 50


def one_rank_wishes(algorithm: str, num_workers: int) -> list[int]:
    import keras

    class Wish(keras.callbacks.Callback):
        """Rank 1 has had enough in the middle of its second epoch."""

        def on_train_batch_end(self, batch, logs=None):
            if self.params["rank"] == 1 and self.epoch == 1:
                self.model.stop_training = True

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    used, _ = train(algorithm, num_workers, {"callbacks": [Wish()], "num_epoch": 50})
    return [len(rank.rows) for rank in used.history.ranks]


def test_one_ranks_wish_to_stop_is_granted_to_all(on_ranks):
    for results in on_ranks(3, each, one_rank_wishes, ["EASGD", "SynchronousSGD", "DOWNPOUR"], 3):
        # Those that go in step end the epoch together.
        assert results["EASGD"] == results["SynchronousSGD"] == [2, 2, 2]
        assert max(results["DOWNPOUR"]) < 50


def reach(algorithm: str, num_workers: int) -> tuple[float, float, int]:
    _, validation = digits.data()
    target = {"stop_at": {"val_accuracy": 0.9}, "num_epoch": 100, "center_window": 5}
    used, trained = train(algorithm, num_workers, target, held_out=True)
    evaluations = [each.metrics["val_accuracy"] for each in used.history.center]
    assert all(value < 0.9 for value in evaluations[:-1])
    return evaluations[-1], digits.accuracy(trained, validation), len(evaluations)


def test_a_training_ends_when_the_center_reaches_what_was_asked_for(on_ranks):
    for results in on_ranks(2, each, reach, ["EASGD", "AsynchronousEASGD", "SingleTrainer"], 2):
        for seen, accuracy, _ in results.values():
            assert 0.9 <= seen < 1
            # The result is the center that was seen, not a later one.
            assert accuracy == pytest.approx(seen, abs=1e-6)


def rates(algorithm: str, num_workers: int) -> list[list[float]]:
    """What the ranks' optimizers run at, epoch by epoch."""
    import keras
    from mpi4py import MPI

    seen = []

    class RateAtBatch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.rate = float(self.model.optimizer.learning_rate)

        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.rate)

    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    train(
        algorithm, num_workers, {"callbacks": [RateAtBatch()], "center_callbacks": [schedule], "num_epoch": 3}
    )
    return MPI.COMM_WORLD.allgather(seen)


def test_the_centers_learning_rate_is_that_of_all_ranks(on_ranks):
    for ranks in on_ranks(2, rates, "EASGD", 2, timeout=120):
        np.testing.assert_allclose(ranks, [[0.1, 0.05, 0.1 / 3]] * 2, rtol=1e-6)


def warming_up(num_workers: int) -> list[float]:
    import keras

    # An object keeps its rate, 0.001; a name would take the trainer's.
    optimizer = keras.optimizers.Adam()
    arguments = {
        "scale_learning_rate": True,
        "warmup_epochs": 2,
        "num_epoch": 3,
        "worker_optimizer": optimizer,
    }
    used, _ = train("SynchronousSGD", num_workers, arguments)
    return [rank.learning_rate for rank in used.history.ranks]


def test_the_learning_rate_of_synchronous_sgd_warms_up(on_ranks):
    # 45 batches an epoch, 16 a window: the rate of an epoch's last window was set after 32 of them.
    wanted = [0.001 * (1 + (epoch + 32 / 45) / 2) for epoch in range(2)]
    for ranks in on_ranks(2, warming_up, 2, timeout=120):
        np.testing.assert_allclose(ranks, [[*wanted, 0.002]] * 2, rtol=1e-5)


def restored(num_workers: int) -> tuple[float, float]:
    """EarlyStopping restores the best evaluation's weights: the first, as the rate is far too high."""
    import keras

    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    learn, validation = digits.data()
    used = digits.trainer("SynchronousSGD", num_workers)
    used.num_epoch, used.center_callbacks = 6, [stopping]
    used.worker_optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([2 * used_steps(num_workers)], [0.1, 100.0])
    )
    trained = used.train(learn, validation_data=validation)
    best = min(each.metrics["val_loss"] for each in used.history.center)
    return best, trained.evaluate(validation["features"], validation["label"], verbose=0)[0]


def used_steps(num_workers: int) -> int:
    return -(-1437 // (num_workers * 16))


def test_the_weights_that_a_callback_restores_are_the_result(on_ranks):
    for best, found in on_ranks(2, restored, 2, timeout=120):
        assert found == pytest.approx(best, abs=1e-6)


def files_of_callbacks(num_workers: int, folder: str) -> list[str]:
    import keras

    path = f"{folder}/best.keras"
    saving = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    arguments = {"center_callbacks": [saving], "tensorboard": f"{folder}/logs", "num_epoch": 2}
    used, _ = train("EASGD", num_workers, arguments, held_out=True)
    _, validation = digits.data()
    loss = keras.models.load_model(path).evaluate(validation["features"], validation["label"], verbose=0)[0]
    return loss, min(each.metrics["val_loss"] for each in used.history.center)


def test_keras_saves_the_center_and_tensorboard_sees_center_and_ranks(on_ranks, tmp_path):
    for loss, best in on_ranks(2, files_of_callbacks, 2, str(tmp_path), timeout=120):
        assert loss == pytest.approx(best, abs=1e-6)
    logs = {path.name: list(path.rglob("events.*")) for path in (tmp_path / "logs").iterdir()}
    assert set(logs) == {"center", "rank-0", "rank-1"}
    assert all(logs.values())


def members(num_workers: int) -> list[tuple[int, float]]:
    used, _ = train("EnsembleTrainer", num_workers, {"num_models": 3, "num_epoch": 2}, held_out=True)
    return [(each.member, each.epoch) for each in used.history.center]


def test_each_member_of_an_ensemble_is_evaluated(on_ranks):
    evaluations = [(member, epoch) for member in range(3) for epoch in (1, 2)]
    assert on_ranks(2, members, 2, timeout=120) == [evaluations] * 2


def after_the_last_round() -> tuple[bool, bool, bool]:
    """Two ranks that ask for an evaluation, and end, before rank 0 could open the round."""
    from hvdkeras.coordination.center_callbacks import CenterCallbacks
    from hvdkeras.coordination.coordinator import Coordinator
    from hvdkeras.coordination.evaluation import CenterModel
    from hvdkeras.coordination.messages import Arrival, Contribution, Occasion

    used = digits.trainer("AsynchronousEASGD", 2)
    center = CenterCallbacks(CenterModel(used.recipe().build(), None), [], {}, 1, 2, {})
    center.begin()
    coordinator = Coordinator(2, center, lambda: None, None, False, lambda: False, {})
    for rank in range(2):
        for occasion in (Occasion.EVALUATE, Occasion.END):
            coordinator.receive(rank, Arrival(occasion, 1.0, np.empty(0, np.float32)))
    opened = coordinator.proceed()
    for rank in range(2):
        coordinator.receive(rank, Contribution(None))
    return opened.evaluate, coordinator.proceed().is_last, coordinator.proceed() is None


def test_no_round_opens_after_the_last(on_new_ranks):
    # The other ranks are gone: what is sent to them would never arrive, and rank 0 would wait for that.
    assert on_new_ranks(1, after_the_last_round, timeout=120) == [(True, True, True)]
