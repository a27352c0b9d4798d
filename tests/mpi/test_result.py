"""The result is the one that Keras gives: callbacks as every Keras user writes them, moving averages."""

from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.mpi

ROWS, EPOCHS = 13, 6


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, 4)).astype("float32")
    return {"features": features, "label": features[:, :2] * 2 + 1}


def model(rate, **optimizer):
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.Input((4,)), keras.layers.Dense(3, "tanh", name="hidden"), keras.layers.Dense(2)]
    result = keras.Sequential(layers)
    result.compile(keras.optimizers.Adam(rate, **optimizer), "mse", metrics=["mae"])
    return result


def stops():
    """Too high a rate from the third epoch on: the second one's weights are the best."""
    import keras

    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 20.0])
    return model(rate), [keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)]


def saves_and_changes_the_rate():
    import keras

    def falling(epoch, rate):
        return rate * 0.9

    return model(0.1), [
        keras.callbacks.LearningRateScheduler(falling),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=10.0),
        keras.callbacks.ModelCheckpoint("{folder}/{{epoch}}.keras", save_best_only=True),
        keras.callbacks.CSVLogger("{folder}/log.csv"),
        keras.callbacks.TensorBoard("{folder}/logs"),
    ]


def several_rates():
    import keras

    result = model(0.1)
    optimizers = keras.optimizers
    mapped = optimizers.OptimizerMap(optimizers.SGD(0.1), {".*hidden.*": optimizers.Adam(0.05)})
    result.compile(optimizers.MultiOptimizer(mapped), "mse", metrics=["mae"])
    return result, [
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=10.0),
    ]


def average():
    return model(0.1, use_ema=True, ema_momentum=0.5), []


def average_watched():
    """A callback whose metric is one of training: Keras finds out its direction by the model's metrics."""
    import keras

    class Mine(keras.callbacks.EarlyStopping):
        pass

    return average()[0], [Mine("mae", patience=EPOCHS)]


def average_evaluated():
    import keras

    return model(0.1, use_ema=True, ema_momentum=0.5), [
        keras.callbacks.SwapEMAWeights(),
        keras.callbacks.ModelCheckpoint("{folder}/{{epoch}}.keras"),
    ]


def average_kept():
    import keras

    return model(0.1, use_ema=True, ema_momentum=0.5), [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.ModelCheckpoint("{folder}/{{epoch}}.keras"),
    ]


def other_metrics():
    """A vector, and a dict of what does not add up over parts of the rows."""
    import keras

    class Largest(keras.metrics.Metric):
        def __init__(self, name="largest", **kwargs):
            super().__init__(name=name, **kwargs)
            self.top = self.add_variable((), "zeros", name="top")

        def update_state(self, truth, predicted, sample_weight=None):
            self.top.assign(keras.ops.maximum(self.top, keras.ops.max(predicted)))

        def reset_state(self):
            self.top.assign(0.0)

        def result(self):
            return {"top": self.top, "twice": 2 * self.top}

    used = model(0.1)
    used.compile("sgd", "mse", metrics=[keras.metrics.R2Score(class_aggregation=None), Largest()])
    return used, [keras.callbacks.EarlyStopping("val_top", mode="max", patience=EPOCHS)]


CASES = [
    other_metrics,
    stops,
    saves_and_changes_the_rate,
    several_rates,
    average,
    average_watched,
    average_evaluated,
    average_kept,
]
# Those without validation on the ranks.
UNWATCHED = [average, average_watched]


def made(make, folder: Path):
    """A case whose callbacks write into a folder."""
    result, callbacks = make()
    folder = folder / make.__name__
    folder.mkdir(parents=True, exist_ok=True)
    for callback in callbacks:
        for name in ("filepath", "filename", "log_dir"):
            if isinstance(value := getattr(callback, name, None), str):
                setattr(callback, name, value.format(folder=folder))
    return result, callbacks, folder


def state(trained) -> list[np.ndarray]:
    return [*trained.get_weights(), *(np.asarray(v.value) for v in trained.optimizer.variables)]


def written(folder: Path) -> dict[str, list]:
    """What callbacks have written: models, tables, the tags of logs."""
    import keras

    # With swap_on_epoch Keras saves the trained weights as their average.
    read = keras.Model.get_weights if folder.name == average_kept.__name__ else state
    found = {path.name: read(keras.models.load_model(path)) for path in sorted(folder.glob("*.keras"))}
    for path in sorted(folder.glob("log.csv")):
        found[path.name] = [np.genfromtxt(path, delimiter=",", skip_header=1)]
    for name in ("train", "validation"):
        for tag, values in graphs(folder / "logs" / name).items():
            found[f"{name}/{tag}"] = [values]
    return found


def graphs(folder: Path) -> dict[str, np.ndarray]:
    """What TensorBoard would draw."""
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted(folder.glob("events*")):
        events = EventAccumulator(str(path)).Reload()
        for tag in sorted(each for each in events.Tags()["tensors"] if each.startswith("epoch_")):
            found[tag] = np.array([tf.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)])
    return found


def rates(optimizer) -> list[float]:
    parts = getattr(optimizer, "optimizers", [optimizer])
    return [float(each.learning_rate) for each in parts]


def by_keras(make, folder: Path) -> tuple:
    used, callbacks, folder = made(make, folder)
    columns = data()
    fitted = used.fit(
        columns["features"],
        columns["label"],
        validation_data=(columns["features"], columns["label"]),
        batch_size=ROWS,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    validation = {name: values for name, values in fitted.history.items() if name.startswith("val_")}
    return state(used), written(folder), validation, rates(used.optimizer)


def by_ranks(algorithm: str, cases: list, num_workers: int, folder: Path) -> list[tuple]:
    """What a rank of the job runs; what callbacks write is read by rank 0."""
    from mpi4py import MPI

    import hvdkeras

    results = []
    for make in cases:
        used, callbacks, written_to = made(make, folder)
        trainer = getattr(hvdkeras, algorithm)(
            used,
            batch_size=-(-ROWS // num_workers),
            num_epoch=EPOCHS,
            verbose=0,
            callbacks=callbacks,
            num_workers=num_workers,
            tensorboard=str(written_to / "board") if make is other_metrics else None,
        )
        watched = {} if make in UNWATCHED else {"validation_data": data()}
        trained = trainer.train(data(), **watched)
        center = trainer.history.center
        validation = {
            name: [each.metrics[name] for each in center] for name in (center[-1].metrics if center else ())
        }
        found = written(written_to) if MPI.COMM_WORLD.rank == 0 else None
        results.append((state(trained), found, validation, rates(trained.optimizer)))
    return results


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("keras")
    return {make.__name__: by_keras(make, folder) for make in CASES}


@pytest.mark.parametrize(
    ("algorithm", "num_workers", "cases"),
    [("SingleTrainer", 1, [stops, *UNWATCHED]), ("SynchronousSGD", 2, CASES)],
)
def test_callbacks_do_what_they_do_in_keras(on_ranks, tmp_path, expected, algorithm, num_workers, cases):
    results = on_ranks(num_workers, by_ranks, algorithm, cases, num_workers, tmp_path, timeout=300)
    for rank, trained in enumerate(results):
        for make, (weights, found, validation, ends_with) in zip(cases, trained, strict=True):
            wanted_weights, wanted_files, wanted_metrics, wanted_rates = expected[make.__name__]
            note = f"{make.__name__}, rank {rank}"
            assert set(validation) == (set() if make in UNWATCHED else set(wanted_metrics)), note
            for name, values in validation.items():
                np.testing.assert_allclose(
                    values, np.array(wanted_metrics[name]), rtol=1e-4, err_msg=note + name
                )
            np.testing.assert_allclose(ends_with, wanted_rates, rtol=1e-5, err_msg=note)
            for one, other in zip(weights, wanted_weights, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4, err_msg=note)
            if rank == 0:
                assert set(found) == set(wanted_files), note
                for name, values in wanted_files.items():
                    for one, other in zip(found[name], values, strict=True):
                        np.testing.assert_allclose(
                            one, other, atol=1e-5, rtol=1e-4, err_msg=f"{note}, {name}"
                        )
    if other_metrics in cases:
        # Keras's own TensorBoard takes no vectors.
        drawn = graphs(tmp_path / other_metrics.__name__ / "board" / "center" / "validation")
        wanted = np.array(expected[other_metrics.__name__][2]["val_r2_score"])
        np.testing.assert_allclose(drawn["epoch_r2_score_1"], wanted[:, 1], rtol=1e-4)
