"""Models of the kinds that people train, small, with a few rows for each."""

import numpy as np

ROWS = 8
RANDOM = np.random.default_rng(0)


def numbers(*shape):
    return RANDOM.normal(size=(ROWS, *shape)).astype("float32")


def whole(high, *shape):
    return RANDOM.integers(0, high, (ROWS, *shape)).astype("int32")


def masked_lstm():
    import keras

    layers = keras.layers
    hidden = [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(4), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((5,), dtype="int32"), *hidden])
    return model, "sparse_categorical_crossentropy", {"features": whole(9, 5), "label": whole(3)}


def transformer():
    import keras

    layers = keras.layers
    tokens = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(9, 8)(tokens)
    attended = layers.MultiHeadAttention(2, 4)(embedded, embedded, use_causal_mask=True)
    attended = layers.LayerNormalization()(layers.Add()([embedded, layers.Dropout(0.1)(attended)]))
    forward = layers.Dense(8)(layers.Dense(16, "gelu")(attended))
    forward = layers.LayerNormalization()(layers.Add()([attended, forward]))
    model = keras.Model(tokens, layers.Dense(9, "softmax")(forward))
    return model, "sparse_categorical_crossentropy", {"features": whole(9, 5), "label": whole(9, 5)}


def u_net():
    import keras

    layers = keras.layers
    image = keras.Input((8, 8, 3))
    wide = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", activation="relu")(image))
    deep = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(wide))
    up = layers.Conv2DTranspose(4, 2, strides=2)(deep)
    model = keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(layers.Concatenate()([wide, up])))
    return model, "sparse_categorical_crossentropy", {"features": numbers(8, 8, 3), "label": whole(3, 8, 8)}


def two_towers():
    import keras

    layers = keras.layers
    user, item = keras.Input((), dtype="int32", name="user"), keras.Input((), dtype="string", name="item")
    words = layers.StringLookup(vocabulary=["a", "b", "c"])(item)
    towers = [layers.Dense(4)(layers.Embedding(9, 4)(ids)) for ids in (user, words)]
    model = keras.Model([user, item], layers.Dense(1, "sigmoid")(layers.Dot(1, normalize=True)(towers)))
    data = {"user": whole(9), "item": np.array(list("abcdabcd")), "label": whole(2)}
    return model, "binary_crossentropy", data


def sampling():
    """The layer of a variational autoencoder: draws from a normal distribution, and adds its divergence."""
    import keras

    @keras.saving.register_keras_serializable("hvdkeras tests")
    class Sampling(keras.layers.Layer):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.seed_generator = keras.random.SeedGenerator(1)

        def call(self, inputs):
            mean, log_variance = inputs
            ops = keras.ops
            divergence = ops.square(mean) + ops.exp(log_variance) - log_variance - 1
            self.add_loss(ops.mean(ops.sum(divergence, axis=-1)) / 2)
            noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
            return mean + ops.exp(log_variance / 2) * noise

    return Sampling


def variational():
    import keras

    layers = keras.layers
    image = keras.Input((6,))
    hidden = layers.Dense(8, "relu")(image)
    mean, log_variance = layers.Dense(2, name="mean")(hidden), layers.Dense(2)(hidden)
    decoded = layers.Dense(6)(layers.Dense(8, "relu")(sampling()()([mean, log_variance])))
    # The draws differ from call to call, the mean does not: so the file's predictions can be compared.
    model = keras.Model(image, {"decoded": decoded, "mean": mean})
    data = {"features": numbers(6), "label": numbers(6)}
    return model, {"decoded": "mse", "mean": None}, data


def lora():
    import keras

    dense = keras.layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2)])
    dense.enable_lora(2)
    return model, "mse", {"features": numbers(4), "label": numbers(2)}


def application(name, **arguments):
    import keras

    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(32, 32, 3), classes=3, **arguments)
    return model, "sparse_categorical_crossentropy", {"features": numbers(32, 32, 3), "label": whole(3)}


def mobile_net():
    return application("MobileNetV2", alpha=0.35)


def efficient_net():
    return application("EfficientNetV2B0")


def res_net():
    return application("ResNet50")


SMALL = (masked_lstm, transformer, u_net, variational, two_towers, lora)
APPLICATIONS = (mobile_net, efficient_net, res_net)


def predictions(model, inputs):
    """What the model predicts; of a variational one the mean, which it does not draw."""
    predicted = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    return predicted["mean"] if isinstance(predicted, dict) else predicted


def train(pairs, folder):
    """What a rank of a job runs: trains each pair of a model and an algorithm.

    Each trained model is saved in a folder of the rank, with its predictions.

    Returns:
        the names of the trainings whose weights are not finite, or as they were.
    """
    import keras
    from mpi4py import MPI

    import hvdkeras

    folder, wrong = folder / str(MPI.COMM_WORLD.rank), []
    for make, algorithm in pairs:
        keras.utils.set_random_seed(0)
        model, loss, data = make()
        features = [name for name in data if name != "label"]
        trainer = getattr(hvdkeras, algorithm)(
            model, loss=loss, features_col=features, batch_size=2, num_workers=2, verbose=0
        )
        trained = trainer.train(data)
        name = f"{make.__name__}-{algorithm}"
        variables = zip(model.trainable_variables, trained.trainable_variables, strict=True)
        moved = any(not np.array_equal(one.numpy(), other.numpy()) for one, other in variables)
        if not moved or not all(np.isfinite(v.numpy()).all() for v in trained.trainable_variables):
            wrong.append(name)
        trained.save(folder / f"{name}.keras")
        received = [keras.ops.convert_to_tensor(data[each].tolist()) for each in features]
        predicted = predictions(trained, received)
        np.savez(folder / f"{name}.npz", *[data[each] for each in features], predicted=predicted)
    return wrong
