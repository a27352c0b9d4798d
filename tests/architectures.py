"""Models of the kinds that people train, small, with a few rows for each."""

import numpy as np

ROWS = 8
RANDOM = np.random.default_rng(0)
APPLICATIONS = ("MobileNetV2", "EfficientNetV2B0", "ResNet50")


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


def lora():
    import keras

    dense = keras.layers.Dense(4, "tanh")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2)])
    dense.enable_lora(2)
    return model, "mse", {"features": numbers(4), "label": numbers(2)}


def application(name):
    import keras

    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)
    return model, "sparse_categorical_crossentropy", {"features": numbers(32, 32, 3), "label": whole(3)}


SMALL = (masked_lstm, transformer, u_net, two_towers, lora)


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
        predicted = trained.predict(received if len(received) > 1 else received[0], verbose=0)
        np.savez(folder / f"{name}.npz", *[data[each] for each in features], predicted=predicted)
    return wrong
