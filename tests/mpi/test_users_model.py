"""What the user brings is what trains: against Keras's own `fit` in one process."""

import re

import numpy as np
import pytest

import ranks

pytestmark = pytest.mark.mpi

ROWS, EPOCHS, FACTOR = 13, 6, 0.5


def data() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, 4)).astype("float32")
    return {"features": features, "label": features[:, :2] * 2 + 1}


def stack(*layers, **compiled):
    import keras

    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile(**{"loss": "mse", **compiled})
    return model


def lora():
    import keras

    hidden = keras.layers.Dense(8, "tanh")
    model = stack(hidden)
    hidden.enable_lora(4)
    hidden.lora_kernel_b.assign(np.full((4, 8), 0.1))
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


def lora_on_int8():
    import keras

    hidden = keras.layers.Dense(8, "tanh")
    model = stack(hidden)
    hidden.quantize("int8")
    hidden.enable_lora(4)
    hidden.lora_kernel_b.assign(np.full((4, 8), 0.1))
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


def excluded():
    import keras

    optimizer = keras.optimizers.AdamW(0.05, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return stack(optimizer=optimizer)


def trained_before():
    import keras

    rate = keras.optimizers.schedules.PiecewiseConstantDecay([18], [0.1, 0.001])
    model = stack(optimizer=keras.optimizers.Adam(rate))
    columns = data()
    model.fit(columns["features"], columns["label"], batch_size=ROWS, epochs=15, shuffle=False, verbose=0)
    return model


def eager():
    return stack(optimizer="sgd", run_eagerly=True)


def own_objects():
    import keras

    class Falling(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.1 / (1.0 + keras.ops.cast(step, "float32"))

        def get_config(self):
            return {}

    def worst(truth, predicted):
        return keras.ops.max(keras.ops.abs(truth - predicted), axis=-1)

    metrics = [worst, keras.metrics.MeanMetricWrapper(worst, name="wrapped")]
    return stack(optimizer=keras.optimizers.Adam(Falling()), metrics=metrics)


def frozen():
    import keras

    model = stack(keras.layers.Dense(8), keras.layers.BatchNormalization(), optimizer="sgd")
    model.layers[0].trainable = model.layers[1].trainable = False
    model.layers[0].bias.assign(np.linspace(0, 1, 8))
    model.compile("sgd", "mse")
    return model


def lambda_with_a_global():
    import keras

    return stack(keras.layers.Lambda(lambda numbers: FACTOR * numbers), optimizer="sgd")


def seeded_dropout():
    import keras

    return stack(keras.layers.Dropout(0.5, seed=1), optimizer="sgd")


def normalised():
    import keras

    layer = keras.layers.Normalization()
    layer.adapt(1 + 5 * data()["features"])
    return stack(layer, optimizer="sgd")


CASES = [
    lora,
    lora_on_int8,
    excluded,
    trained_before,
    eager,
    own_objects,
    frozen,
    lambda_with_a_global,
    normalised,
]


def state(model) -> tuple[list[np.ndarray], list[np.ndarray]]:
    import keras

    weights = [v for v in model.variables if v.name != "seed_generator_state"]
    optimizer = model.optimizer.variables
    return tuple([keras.ops.convert_to_numpy(v) for v in group] for group in (weights, optimizer))


def by_keras(make) -> tuple[list, list]:
    import keras

    keras.utils.set_random_seed(0)
    model, columns = make(), data()
    model.fit(columns["features"], columns["label"], batch_size=ROWS, epochs=EPOCHS, shuffle=False, verbose=0)
    return state(model)


def by_ranks(algorithm: str, cases: list, num_workers: int) -> list[tuple[list, list]]:
    """What a rank of the job runs."""
    import keras

    import hvdkeras

    trained = []
    for make in cases:
        keras.utils.set_random_seed(0)
        arguments = {} if algorithm == "SingleTrainer" else {"num_workers": num_workers}
        # All rows in each step: seven on one rank, six on the other.
        size = -(-ROWS // num_workers)
        trainer = getattr(hvdkeras, algorithm)(
            make(), batch_size=size, num_epoch=EPOCHS, verbose=0, **arguments
        )
        trained.append(state(trainer.train(data())))
    return trained


@pytest.fixture(scope="module")
def expected() -> dict:
    return {make.__name__: by_keras(make) for make in [*CASES, seeded_dropout]}


@pytest.mark.parametrize(
    ("algorithm", "num_workers", "cases"),
    [("SingleTrainer", 1, [*CASES, seeded_dropout]), ("SynchronousSGD", 2, CASES)],
)
def test_the_result_is_the_one_that_keras_gives(on_ranks, expected, algorithm, num_workers, cases):
    for trained in on_ranks(num_workers, by_ranks, algorithm, cases, num_workers, timeout=400):
        for make, received in zip(cases, trained, strict=True):
            for mine, wanted in zip(received, expected[make.__name__], strict=True):
                for one, other in zip(mine, wanted, strict=True):
                    np.testing.assert_allclose(one, other, atol=1e-5, err_msg=make.__name__)


def frozen_and_adapted():
    import keras

    layers = keras.layers
    numbers, features = keras.Input((1,), dtype="int32", name="number"), keras.Input((4,), name="features")
    normalization, lookup = (
        layers.Normalization(name="normalization"),
        layers.IntegerLookup(output_mode="one_hot", name="integer_lookup"),
    )
    normalization.adapt(1000 + 50 * data()["features"])
    lookup.adapt(np.array([[5], [7], [7]]))
    base = keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="base")
    base.layers[0].bias.assign([0.1, 0.7, 1.3, 7.0])
    base.trainable = False
    joined = layers.Concatenate()([base(normalization(features)), lookup(numbers)])
    return keras.Model([features, numbers], layers.Dense(2)(layers.BatchNormalization()(joined)))


def keeps(algorithm: str) -> list[bool]:
    """Whether what can't train is as it was, to the bit, in each model that comes back."""
    import keras

    import hvdkeras

    keras.utils.set_random_seed(0)
    original = frozen_and_adapted()
    trainer = getattr(hvdkeras, algorithm)(
        original,
        loss="mse",
        features_col=["features", "number"],
        batch_size=4,
        num_epoch=2,
        verbose=0,
        num_workers=3,
        validation_split=0.2,
        **({"num_models": 3} if algorithm == "EnsembleTrainer" else {"communication_window": 2}),
    )
    columns = data()
    features = 1000 + 50 * columns["features"]
    number = np.resize(np.array([5, 7], np.int32), (ROWS, 1))
    models = trainer.train({"features": features, "number": number, "label": columns["label"]})
    kept = []
    for model in models if isinstance(models, list) else [models]:
        for name in ("base", "normalization"):
            pairs = zip(original.get_layer(name).variables, model.get_layer(name).variables, strict=True)
            kept += [a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs]
        kept.append(model.get_layer("integer_lookup").get_vocabulary() == [-1, 7, 5])
        kept.append(bool(np.isfinite(model.predict([features, number], verbose=0)).all()))
        trained = zip(original.trainable_variables, model.trainable_variables, strict=True)
        kept.append(all(not np.array_equal(a.numpy(), b.numpy()) for a, b in trained))
    return kept


@pytest.mark.parametrize("algorithm", ["EnsembleTrainer", "AsynchronousEASGD", "AveragingTrainer"])
def test_what_does_not_train_stays_as_it_is(on_ranks, algorithm):
    for kept in on_ranks(3, keeps, algorithm, timeout=300):
        assert kept
        assert all(kept)


def hidden_optimizer(found: bool) -> None:
    """A step that applies an optimizer which nobody averages, or changes weights by itself."""
    import keras

    import hvdkeras

    hidden = [keras.optimizers.Adam(0.5)]

    class Hiding(keras.Model):
        def train_step(self, batch):
            logs = super().train_step(batch)
            bias = self.layers[-1].bias
            if found:
                keras.optimizers.Optimizer.apply(hidden[0], [bias.value], [bias])
            else:
                bias.assign_add(keras.ops.mean(batch[0][:, :2], axis=0))
            return logs

    inputs = keras.Input((4,))
    model = Hiding(inputs, keras.layers.Dense(2)(inputs))
    hvdkeras.SynchronousSGD(
        model, loss="mse", batch_size=7, verbose=0, custom_objects={"Hiding": Hiding}
    ).train(data())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (True, "must apply only optimizers that are attributes of the model.*Received: Adam"),
        (False, r"the model's weights must be the same on all ranks.*Received: ranks \[1\] differ"),
    ],
)
def test_ranks_never_differ_in_silence(on_new_ranks, found, message):
    with pytest.raises(ranks.RanksFailed) as failed:
        on_new_ranks(2, hidden_optimizer, found, timeout=300)
    assert re.search(message, str(failed.value), re.DOTALL)
