"""Models whose inputs are more than numbers of a fixed shape, with data for them, and Keras's own result."""

import numpy as np

ROWS, EPOCHS = 13, 2
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=(ROWS, 4)).astype("float32")
LABELS = NUMBERS[:, :2] * 2 + 1
TEXTS = [["good film", "bad", "é bad film"][row % 3] for row in range(ROWS)]
LISTS = [[1 + row % 5] * (1 + row % 4) for row in range(ROWS)]
VECTORS = [RANDOM.normal(size=(1 + row % 3, 4)).astype("float32") for row in range(ROWS)]
IMAGES = RANDOM.integers(0, 256, (ROWS, 2, 2, 3), np.uint8)


def padded(rows, shape):
    out = np.zeros((len(rows), *shape), "float32")
    for array, row in zip(out, rows, strict=True):
        array[: len(row)] = row
    return out


def keras_model(inputs, *layers):
    import keras

    tensor = inputs
    for layer in (*layers, keras.layers.Dense(2)):
        tensor = layer(tensor)
    return keras.Model(inputs, tensor)


def text():
    import keras

    vectorization = keras.layers.TextVectorization(output_sequence_length=3)
    vectorization.adapt(TEXTS)
    layers = keras.layers
    pooling = layers.GlobalAveragePooling1D()
    model = keras_model(keras.Input((1,), dtype="string"), vectorization, layers.Embedding(9, 3), pooling)
    return model, np.array(TEXTS), np.array(TEXTS)[:, None].astype(object), {}


def two_words():
    import keras

    words = [["good", "é"][: 1 + row % 2] * (2 - row % 2) for row in range(ROWS)]
    lookup = keras.layers.StringLookup(vocabulary=["good", "é"], output_mode="multi_hot")
    model = keras_model(keras.Input((2,), dtype="string"), lookup)
    return model, np.array(words), np.array(words, object), {}


def one_length():
    import keras

    model = keras_model(keras.Input((None, 2)), keras.layers.LSTM(3))
    return model, NUMBERS.reshape(-1, 2, 2), NUMBERS.reshape(-1, 2, 2), {}


def tokens():
    import keras

    layers = keras.layers
    embedding = layers.Embedding(9, 3, mask_zero=True)
    model = keras_model(keras.Input((None,), dtype="int32"), embedding, layers.GlobalAveragePooling1D())
    return model, LISTS, padded(LISTS, (4,)).astype("int32"), {"padding": {"features": 0}}


def sequences():
    import keras

    layers = keras.layers
    model = keras_model(keras.Input((None, 4)), layers.Masking(), layers.LSTM(3))
    return model, VECTORS, padded(VECTORS, (3, 4)), {"padding": {"features": 0}}


def images_of_open_size():
    import keras

    layers = keras.layers
    inputs = keras.Input((None, None, 3))
    model = keras_model(inputs, layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D())
    return model, IMAGES, IMAGES, {}


def missing():
    import keras

    numbers = NUMBERS.copy()
    numbers[3, 1] = np.nan
    model = keras_model(keras.Input((4,)), Replaced())
    return model, numbers, numbers, {"nan_cols": "features"}


def Replaced():
    import keras

    @keras.saving.register_keras_serializable("hvdkeras tests")
    class Replaced(keras.layers.Layer):
        def call(self, numbers):
            return keras.ops.where(keras.ops.isnan(numbers), 0.5, numbers)

    return Replaced()


def raw_bytes():
    import keras

    model = keras_model(keras.Input((2, 2, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten())
    return model, IMAGES, IMAGES, {}


def doubles():
    import keras

    numbers = NUMBERS.astype(float)
    return keras_model(keras.Input((4,), dtype="float64"), keras.layers.Dense(3)), numbers, numbers, {}


def sparse():
    import keras

    model = keras_model(keras.Input((4,), sparse=True), keras.layers.Dense(3, "tanh"))
    return model, np.maximum(NUMBERS, 0), np.maximum(NUMBERS, 0), {}


def halves():
    import keras

    model = keras_model(keras.Input((4,), dtype="float16"), keras.layers.Dense(3, "tanh"))
    return model, NUMBERS, NUMBERS.astype("float16"), {}


def batch_of_its_own():
    import keras

    return keras_model(keras.Input((4,), batch_size=8), keras.layers.Dense(3, "tanh")), NUMBERS, NUMBERS, {}


def subclassed():
    import keras

    # Neither registered nor among the custom_objects.
    class Own(keras.Model):
        def __init__(self, units=2, **arguments):
            super().__init__(**arguments)
            self.units = units
            self.hidden, self.last = keras.layers.Dense(5, "tanh"), keras.layers.Dense(units)

        def call(self, numbers, training=False):
            return self.last(self.hidden(numbers))

        def train_step(self, batch):
            import tensorflow as tf

            features, labels = batch
            with tf.GradientTape() as tape:
                loss = 3 * self.compute_loss(features, labels, self(features, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    return Own(), NUMBERS, NUMBERS, {}


def without_input():
    import keras

    return keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)]), NUMBERS, NUMBERS, {}


CASES = [
    text,
    two_words,
    one_length,
    tokens,
    sequences,
    images_of_open_size,
    missing,
    raw_bytes,
    doubles,
    sparse,
    halves,
    batch_of_its_own,
    subclassed,
    without_input,
]


def made(case):
    """The model, compiled; its column of features; the array that Keras gets; arguments of a trainer."""
    import keras

    keras.utils.set_random_seed(0)
    model, features, array, arguments = case()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model, features, array, arguments


def trained_by_keras(case):
    """The weights after Keras's `fit` on all rows in each step."""
    import keras
    import tensorflow as tf

    model, _, array, _ = made(case)
    if array.dtype == object:
        array = tf.constant(array)
    if case in (subclassed, without_input):
        # The weights are drawn when the model is built: here as there before the first step.
        model(keras.Input(array.shape[1:]))
    model.fit(array, LABELS, batch_size=ROWS, epochs=EPOCHS, shuffle=False, verbose=0)
    return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]


def trained_by_ranks(cases, num_workers):
    """What a rank of a job runs: the weights of each case that SynchronousSGD gives."""
    import keras

    import hvdkeras

    weights = []
    for case in cases:
        model, features, _, arguments = made(case)
        trainer = hvdkeras.SynchronousSGD(
            model,
            num_workers=num_workers,
            batch_size=-(-ROWS // num_workers),
            num_epoch=EPOCHS,
            verbose=0,
            **arguments,
        )
        trained = trainer.train({"features": features, "label": LABELS})
        weights.append([keras.ops.convert_to_numpy(v) for v in trained.trainable_variables])
    return weights
