"""A step of SynchronousSGD on ranks with unequal batches is Keras's step on the joined batch."""

import itertools

import numpy as np
import pytest

pytestmark = pytest.mark.mpi

ROWS, TIME, WIDTH = 13, 3, 4
PLACES = [slice(0, 7), slice(7, ROWS)]
REDUCTIONS = ["sum_over_batch_size", "mean_with_sample_weight", "sum"]


def losses() -> dict:
    """Every loss of Keras by name, with labels and what makes predictions of numbers."""
    import keras

    ops, random = keras.ops, np.random.default_rng(0)
    shape = (ROWS, TIME, WIDTH)
    classes = random.integers(0, WIDTH, (ROWS, TIME))
    one_hot = np.eye(WIDTH, dtype="float32")[classes]
    positive = random.uniform(0.5, 2, shape).astype("float32")
    binary = random.integers(0, 2, shape).astype("float32")
    chances = ops.softmax(random.normal(size=shape).astype("float32")).numpy()

    def softmax(numbers):
        return ops.softmax(numbers)

    def unit(numbers):
        return ops.normalize(numbers[:, 0], axis=-1)

    kinds = {
        "MeanSquaredError MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredLogarithmicError Huber "
        "LogCosh CosineSimilarity Poisson": (positive, ops.softplus),
        "Hinge SquaredHinge CategoricalHinge": (2 * one_hot - 1, ops.tanh),
        "KLDivergence": (chances, softmax),
        "BinaryCrossentropy BinaryFocalCrossentropy Dice Tversky": (binary, ops.sigmoid),
        "CategoricalCrossentropy CategoricalFocalCrossentropy": (one_hot, softmax),
        "SparseCategoricalCrossentropy CategoricalGeneralizedCrossEntropy": (classes, softmax),
        "CTC": (random.integers(1, WIDTH, (ROWS, 1)), lambda numbers: numbers),
        "Circle": (classes[:, 0], unit),
    }
    found = {name: value for names, value in kinds.items() for name in names.split()}
    known = {
        name
        for name, value in vars(keras.losses).items()
        if isinstance(value, type) and issubclass(value, keras.losses.Loss) and value is not keras.losses.Loss
    }
    # An older Keras has fewer.
    assert known <= set(found)
    return {name: found[name] for name in sorted(known)}


def loss_cases() -> list[tuple]:
    """Name, arguments, reduction, whether rows have weights, whether there is a mask."""
    cases = [
        (name, {}, *rest)
        for name in losses()
        for rest in itertools.product(REDUCTIONS, (False, True), (False, True))
        # They have one value a row, for which a mask of time steps makes no sense.
        if not (rest[2] and name in ("CTC", "Circle"))
    ]
    ignoring = ("SparseCategoricalCrossentropy", {"ignore_class": 1})
    return cases + [
        (*ignoring, *rest) for rest in itertools.product(REDUCTIONS, (False, True), (False, True))
    ]


def gradients_of_losses() -> dict[str, float]:
    """How far the sum of the ranks' gradients is from the joined batch's, for each case that differs."""
    import keras
    import tensorflow as tf
    from mpi4py import MPI

    from hvdkeras.rank.batches import Batches
    from hvdkeras.rank.losses import JoinedLosses

    comm, known = MPI.COMM_WORLD, losses()
    place = PLACES[comm.rank]
    share = (place.stop - place.start) / ROWS
    joined = JoinedLosses(comm, Batches(np.array([share])), 60.0)
    random = np.random.default_rng(1)
    features = random.normal(size=(ROWS, TIME, 5)).astype("float32")
    kernel = tf.Variable(random.normal(size=(5, WIDTH)).astype("float32"))
    mask = random.uniform(size=(ROWS, TIME)) < 0.6
    mask[:7, 1:] = False
    weights = random.uniform(0.1, 3, (ROWS, TIME)).astype("float32")

    def gradient(case, rows):
        name, arguments, reduction, weighted, masked = case
        labels, predict = known[name]
        loss = getattr(keras.losses, name)(reduction=reduction, **arguments)
        flat = name in ("CTC", "Circle")
        sample_weight = (weights[rows, 0] if flat else weights[rows]) if weighted else None
        with tf.GradientTape() as tape:
            predicted = predict(tf.convert_to_tensor(features[rows]) @ kernel)
            if masked:
                predicted._keras_mask = tf.constant(mask[rows])
            value = loss(tf.constant(labels[rows]), predicted, sample_weight)
        return np.array(tape.gradient(value, kernel))

    differing = {}
    for case in loss_cases():
        wanted = gradient(case, slice(0, ROWS))
        with joined.corrected():
            own = share * gradient(case, place)
        received = comm.allreduce(own)
        assert np.abs(wanted).max() > 0
        distance = float(np.abs(received - wanted).max() / max(1.0, np.abs(wanted).max()))
        if not distance < 1e-5:
            differing[str(case)] = distance
    return differing


def test_gradients_of_every_loss(on_ranks):
    assert on_ranks(2, gradients_of_losses, timeout=300) == [{}, {}]


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, 5)).astype("float32")


def dense(**arguments):
    import keras

    layers = keras.layers
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(6, "tanh", **arguments), layers.Dense(2, **arguments)]
    )


def optimizers() -> dict:
    """Every optimizer of Keras, and what changes how they take a step."""
    import keras

    kinds = {
        name: kind
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)
    }
    wrappers = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
    made = {name: kind(0.05) for name, kind in kinds.items() if name not in wrappers}
    schedules = keras.optimizers.schedules
    made["scaled"] = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05), initial_scale=8.0)
    if "MultiOptimizer" in kinds:
        parts = keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.1), {".*bias": keras.optimizers.Adam(0.05)}
        )
        made["divided"] = keras.optimizers.MultiOptimizer(parts)
    for name, arguments in {
        "clipnorm": {"clipnorm": 0.1},
        "global_clipnorm": {"global_clipnorm": 0.1},
        "clipvalue": {"clipvalue": 0.01},
        "ema": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
        "groups": {"gradient_accumulation_steps": 2},
        "decay": {"weight_decay": 0.1},
        "schedule": {"learning_rate": schedules.ExponentialDecay(0.1, 1, 0.5)},
        "cosine": {"learning_rate": schedules.CosineDecay(0.1, 3)},
    }.items():
        made[name] = keras.optimizers.Adam(**{"learning_rate": 0.05, **arguments})
    return made


def regularised():
    import keras

    model = dense(
        kernel_regularizer="l2", activity_regularizer="l1", kernel_constraint=keras.constraints.MaxNorm(0.5)
    )
    model.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError(reduction="sum"))
    return model, (inputs(), inputs(1)[:, :2])


def several_outputs():
    import keras

    layers = keras.layers
    tokens = keras.Input((TIME,), dtype="int32")
    embedded = layers.Embedding(6, 4, mask_zero=True)(tokens)
    each = layers.Dense(6, "softmax", name="each")(embedded)
    last = layers.Dense(1, name="last")(layers.LSTM(3)(embedded))
    model = keras.Model(tokens, [each, last])
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=3)
    model.compile(
        keras.optimizers.SGD(0.5),
        [ignoring, keras.losses.MeanSquaredError(reduction="sum")],
        loss_weights=[2.0, 0.1],
        metrics=[["accuracy"], ["mae"]],
    )
    random = np.random.default_rng(0)
    numbers = random.integers(1, 6, (ROWS, TIME))
    numbers[:7, 1:] = 0
    return model, (numbers, [random.integers(0, 6, (ROWS, TIME)), inputs()[:, :1]])


def dynamic_length():
    import keras

    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32")
    model = keras.Model(tokens, layers.Dense(3, "softmax")(layers.Embedding(6, 4)(tokens)))
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    numbers = np.random.default_rng(0).integers(0, 6, (ROWS, TIME))
    return model, (numbers, numbers % 3)


def class_weights():
    import keras

    model = dense()
    model.compile(
        keras.optimizers.SGD(0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        weighted_metrics=["accuracy"],
    )
    return model, (inputs(), np.arange(ROWS) // 8, {"class_weight": {0: 1.0, 1: 5.0}})


def own_function():
    import keras

    def of_the_batch(truth, predicted):
        return keras.ops.sqrt(keras.ops.sum(keras.ops.square(truth - predicted)))

    model = dense()
    model.compile(keras.optimizers.SGD(0.5), of_the_batch)
    return model, (inputs(), inputs(1)[:, :2])


def added_losses():
    import keras

    class Adding(keras.layers.Layer):
        def call(self, numbers):
            self.add_loss(keras.ops.mean(keras.ops.square(numbers)))
            return numbers

    first = keras.Input((5,))
    model = keras.Model(first, Adding()(keras.layers.Dense(2)(first)))
    model.compile(keras.optimizers.SGD(0.5), "mae")
    return model, (inputs(), inputs(1)[:, :2])


def two_optimizers():
    """A model whose step applies two optimizers, one of them without naming the variables."""
    import keras
    import tensorflow as tf

    class Adversaries(keras.Model):
        def compile(self, **arguments):
            super().compile(**arguments)
            self.others = {"left": keras.optimizers.Adam(0.05)}
            self.others["left"].build(self.layers[1].trainable_variables)
            self.criterion = keras.losses.MeanSquaredError(reduction="sum")

        def train_step(self, data):
            features, labels, *_ = data
            for layer in self.layers[1:]:
                with tf.GradientTape() as tape:
                    loss = self.criterion(labels, self(features, training=True))
                gradients = tape.gradient(loss, layer.trainable_variables)
                if layer is self.layers[1]:
                    self.others["left"].apply(gradients)
                else:
                    self.optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
            return {"loss": loss}

    first = keras.Input((5,))
    model = Adversaries(first, keras.layers.Dense(2)(keras.layers.Dense(3, "tanh")(first)))
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    return model, (inputs(), inputs(1)[:, :2])


MODELS = [
    regularised,
    several_outputs,
    dynamic_length,
    class_weights,
    own_function,
    added_losses,
    two_optimizers,
]


def with_optimizer(name: str, sparse: bool):
    def make():
        if not sparse:
            model = dense()
            model.compile(optimizers()[name], "mse", metrics=["mae"])
            return model, (inputs(), inputs(1)[:, :2])
        # Tokens occur several times: optimizers that square gradients square each occurrence by itself.
        model, data = dynamic_length()
        model.compile(optimizers()[name], "sparse_categorical_crossentropy")
        return model, data

    return make


def part_of(data: tuple, place: slice) -> tuple[tuple, dict]:
    import keras

    more = data[2] if len(data) > 2 else {}
    return keras.tree.map_structure(lambda rows: rows[place], data[:2]), more


def steps_of_models(eagerly: bool, models: list, accumulation: int = 1) -> dict[str, float]:
    """How far weights are from those of one process after three steps, for each model that differs."""
    import keras
    from mpi4py import MPI

    from hvdkeras.rank import gradients
    from hvdkeras.rank.batches import Batches
    from hvdkeras.rank.losses import JoinedLosses
    from hvdkeras.rank.sums import OverMPI

    comm = MPI.COMM_WORLD
    place = PLACES[comm.rank]
    share = (place.stop - place.start) / ROWS
    differing = {}
    for name, make in models:
        results = []
        for alone in (True, False):
            keras.utils.set_random_seed(0)
            model, data = make()
            model.run_eagerly = eagerly
            rows, more = part_of(data, slice(0, ROWS) if alone else place)
            if not alone:
                batches = Batches(np.full(3, share))
                sums = OverMPI(comm, 60.0, None)
                gradients.join(model, batches, JoinedLosses(comm, batches, 60.0), sums, accumulation)
            # Three batches that are the same make groups of accumulation of two and one.
            logs = [model.train_on_batch(*rows, **more, return_dict=True) for _ in range(3)]
            results.append((model.get_weights(), logs[0]["loss"]))
        (wanted, loss), (received, own) = results
        distances = [float(np.abs(a - b).max()) for a, b in zip(wanted, received, strict=True)]
        mean = comm.allreduce(share * np.sum(own)) - np.sum(loss)
        if not max(distances) < 1e-5 or (accumulation == 1 and not abs(mean) < 1e-4):
            differing[name] = [*distances, float(mean)]
    return differing


def test_steps_of_every_optimizer(on_ranks):
    def train():
        models = itertools.product(optimizers(), (False, True))
        return steps_of_models(True, [(each, with_optimizer(*each)) for each in models])

    assert on_ranks(2, train, timeout=300) == [{}, {}]


@pytest.mark.parametrize("eagerly", [True, False])
def test_steps_of_models(on_ranks, eagerly):
    models = [(make.__name__, make) for make in MODELS]
    assert on_ranks(2, steps_of_models, eagerly, models, timeout=300) == [{}, {}]
