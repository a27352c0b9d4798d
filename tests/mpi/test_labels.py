"""Labels, losses and weights of any form that Keras takes: against Keras's own `fit` in one process."""

import numpy as np
import pytest

pytestmark = pytest.mark.mpi

ROWS, EPOCHS = 13, 2


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, *shape)).astype("float32")


def classes(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, count, (ROWS, *shape))


def stack(*layers, shape: tuple = (4,)):
    import keras

    return keras.Sequential([keras.Input(shape), *layers])


def tokens():
    """Class numbers of a sequence, for a function around Keras's sparse crossentropy."""
    import keras

    def wrapper(truth, predicted):
        return keras.losses.sparse_categorical_crossentropy(truth, predicted, from_logits=True)

    return stack(keras.layers.Dense(9), shape=(6, 4)), wrapper, {"x": numbers(6, 4), "y": classes(9, 6)}, {}


def masks():
    import keras

    class Dice(keras.losses.Loss):
        def call(self, truth, predicted):
            whole = keras.ops.one_hot(keras.ops.cast(truth, "int32"), 3)
            both = keras.ops.sum(whole * predicted, axis=(1, 2, 3))
            return 1 - 2 * both / keras.ops.sum(whole + predicted, axis=(1, 2, 3))

    layer = keras.layers.Conv2D(3, 3, padding="same", activation="softmax")
    data = {"x": numbers(8, 8, 1), "y": classes(3, 8, 8).astype("uint8")}
    return stack(layer, shape=(8, 8, 1)), Dice(), data, {}


def void(ignored: int):
    """Segmentation with a class number of pixels that do not count."""
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored)
    labels = classes(3, 8, 8)
    labels[:, :3] = ignored
    layer = keras.layers.Conv2D(3, 3, padding="same", activation="softmax")
    return stack(layer, shape=(8, 8, 1)), loss, {"x": numbers(8, 8, 1), "y": labels}, {}


def ctc():
    import keras

    data = {"x": numbers(8, 4), "y": 1 + classes(4, 3)}
    return stack(keras.layers.Dense(5, "softmax"), shape=(8, 4)), "ctc", data, {}


def survival():
    """Time and event of each row, against one risk."""
    import keras

    def likelihood(truth, predicted):
        time, event = truth[:, 0], truth[:, 1]
        return keras.ops.exp(predicted[:, 0]) * time - event * predicted[:, 0]

    labels = np.stack([np.abs(numbers()), classes(2)], axis=1).astype("float32")
    return stack(keras.layers.Dense(1)), likelihood, {"x": numbers(4), "y": labels}, {}


def distribution():
    import keras

    def likelihood(truth, predicted):
        mean, scale = predicted[:, :1], keras.ops.softplus(predicted[:, 1:]) + 0.1
        return keras.ops.log(scale) + keras.ops.square((truth - mean) / scale)

    return stack(keras.layers.Dense(2)), likelihood, {"x": numbers(4), "y": numbers(1, seed=2)}, {}


def missing():
    import keras

    def masked(truth, predicted):
        there = keras.ops.isfinite(truth)
        distance = keras.ops.where(there, truth, 0.0) - keras.ops.where(there, predicted, 0.0)
        return keras.ops.mean(keras.ops.square(distance), axis=-1)

    labels = numbers(2, seed=2)
    labels[classes(2, 2) == 0] = np.nan
    return stack(keras.layers.Dense(2)), masked, {"x": numbers(4), "y": labels}, {}


def weights_of_time_steps():
    import keras

    data = {"x": numbers(6, 4), "y": classes(3, 6), "w": np.abs(numbers(6))}
    more = {"sample_weight_col": "w", "weighted_metrics": ["accuracy"]}
    loss = "sparse_categorical_crossentropy"
    return stack(keras.layers.Dense(3, "softmax"), shape=(6, 4)), loss, data, more


def two_outputs():
    import keras

    first = keras.Input((4,))
    hidden = keras.layers.Dense(3, "tanh")(first)
    outputs = [keras.layers.Dense(2, name="a")(hidden), keras.layers.Dense(1, name="b")(hidden)]
    return first, outputs


def output_without_loss():
    import keras

    first, outputs = two_outputs()
    model = keras.Model(first, outputs)
    more = {"label_col": [None, "y"], "metrics": [None, ["mae"]], "labels": lambda data: [None, data["y"]]}
    return model, [None, "mse"], {"x": numbers(4), "y": numbers(1)}, more


def left_out_of_a_dict():
    import keras

    first, (a, b) = two_outputs()
    model = keras.Model(first, {"a": a, "b": b})
    more = {"label_col": {"b": "y"}, "labels": lambda data: {"a": None, "b": data["y"]}}
    return model, {"b": "mse"}, {"x": numbers(4), "y": numbers(1)}, more


def added():
    """No loss of an output, and no labels: a layer adds the loss."""
    import keras

    class Rate(keras.layers.Layer):
        def call(self, mean):
            self.add_loss(keras.ops.mean(keras.ops.square(mean - 1)))
            return mean

    model = stack(keras.layers.Dense(2), Rate())
    return model, None, {"x": numbers(4)}, {"label_col": None, "custom_objects": {"Rate": Rate}}


def computed():
    """An autoencoder that computes its loss itself."""
    import keras

    class Autoencoder(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(x - y_pred))

    first = keras.Input((4,))
    model = Autoencoder(first, keras.layers.Dense(4)(keras.layers.Dense(2)(first)))
    more = {"label_col": None, "custom_objects": {"Autoencoder": Autoencoder}}
    return model, None, {"x": numbers(4)}, more


def of_keras():
    return void(255)


def negative():
    return void(-1)


CASES = [
    tokens,
    masks,
    of_keras,
    negative,
    ctc,
    survival,
    distribution,
    missing,
    weights_of_time_steps,
    output_without_loss,
    left_out_of_a_dict,
    added,
    computed,
]


def made(make, eagerly: bool):
    """A compiled model, its data, and the arguments of a trainer beside them."""
    import keras

    keras.utils.set_random_seed(0)
    model, loss, data, more = make()
    compiled = {name: more[name] for name in ("metrics", "weighted_metrics") if name in more}
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eagerly, **compiled)
    given = {name: value for name, value in more.items() if name not in (*compiled, "labels")}
    return model, data, {"label_col": "y", **given}, more.get("labels", lambda data: data.get("y"))


def by_keras(make, eagerly: bool = True) -> list[np.ndarray]:
    model, data, _, labels = made(make, eagerly)
    before = model.get_weights()
    model.fit(
        data["x"],
        labels(data),
        sample_weight=data.get("w"),
        batch_size=ROWS,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
    )
    assert any(not np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    return model.get_weights()


def by_ranks(algorithm: str, cases: list, num_workers: int, eagerly: bool, **arguments) -> list:
    """What a rank of the job runs."""
    import hvdkeras

    trained = []
    for make in cases:
        model, data, given, _ = made(make, eagerly)
        trainer = getattr(hvdkeras, algorithm)(
            model,
            features_col="x",
            # All rows in each step: seven on one rank, six on the other.
            batch_size=-(-ROWS // num_workers),
            num_epoch=EPOCHS,
            verbose=0,
            **({} if algorithm == "SingleTrainer" else {"num_workers": num_workers}),
            **given,
            **arguments,
        )
        models = trainer.train(data)
        trained += [each.get_weights() for each in (models if isinstance(models, list) else [models])]
    return trained


@pytest.fixture(scope="module")
def expected() -> dict:
    return {make.__name__: by_keras(make) for make in CASES}


@pytest.mark.parametrize(
    ("algorithm", "num_workers", "cases", "eagerly"),
    [
        ("SingleTrainer", 1, [missing, output_without_loss, added], False),
        ("SynchronousSGD", 2, CASES, True),
    ],
)
def test_the_result_is_the_one_that_keras_gives(on_ranks, expected, algorithm, num_workers, cases, eagerly):
    for trained in on_ranks(num_workers, by_ranks, algorithm, cases, num_workers, eagerly, timeout=300):
        for make, weights in zip(cases, trained, strict=True):
            for wanted, received in zip(expected[make.__name__], weights, strict=True):
                np.testing.assert_allclose(received, wanted, rtol=0, atol=1e-5, err_msg=make.__name__)


@pytest.mark.parametrize("algorithm", ["EASGD", "DOWNPOUR", "EnsembleTrainer"])
def test_every_algorithm_takes_them(on_ranks, algorithm):
    cases = [output_without_loss, computed]
    arguments = {"num_models": 2} if algorithm == "EnsembleTrainer" else {"communication_window": 1}

    def train() -> bool:
        trained = by_ranks(algorithm, cases, 2, True, validation_split=0.3, **arguments)
        return all(np.isfinite(array).all() for weights in trained for array in weights)

    assert on_ranks(2, train, timeout=300) == [True, True]
