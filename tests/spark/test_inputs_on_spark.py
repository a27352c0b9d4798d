"""Strings, lists of any length, NaN, raw bytes and files in a DataFrame, in training and predicting."""

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.predictors import ModelPredictor

import inputs

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def dataframe(spark):
    numbers = inputs.missing()[1]
    rows = [
        (
            row,
            inputs.TEXTS[row],
            inputs.LISTS[row],
            numbers[row].tolist(),
            bytearray(inputs.IMAGES[row].tobytes()),
            None if row == 5 else float(row),
            inputs.LABELS[row].tolist(),
        )
        for row in range(inputs.ROWS)
    ]
    columns = "id int, text string, tokens array<int>, numbers array<float>, image binary, age double"
    return spark.createDataFrame(rows, columns + ", label array<float>").coalesce(2).cache()


def a_model():
    layers = keras.layers
    keras.utils.set_random_seed(0)
    vectorization = layers.TextVectorization(output_sequence_length=3)
    vectorization.adapt(inputs.TEXTS)
    tensors = {
        "text": keras.Input((1,), dtype="string", name="text"),
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "numbers": keras.Input((4,), name="numbers"),
        "age": keras.Input((1,), name="age"),
        "raw": keras.Input((2, 2, 3), name="raw"),
        "file": keras.Input((None, None, 3), name="file"),
    }
    pooling = layers.GlobalAveragePooling1D()
    parts = [
        layers.GlobalAveragePooling1D()(layers.Embedding(9, 3)(vectorization(tensors["text"]))),
        pooling(layers.Embedding(9, 3, mask_zero=True)(tensors["tokens"])),
        inputs.Replaced()(tensors["numbers"]),
        inputs.Replaced()(tensors["age"]),
        layers.Flatten()(layers.Rescaling(1 / 255)(tensors["raw"])),
        layers.GlobalAveragePooling2D()(tensors["file"]),
    ]
    return keras.Model(tensors, layers.Dense(2)(layers.Concatenate()(parts)))


def as_keras_gets_it():
    age = np.arange(inputs.ROWS, dtype="float32")[:, None]
    age[5] = np.nan
    return {
        "text": keras.ops.convert_to_tensor(np.array(inputs.TEXTS, object)[:, None].tolist()),
        "tokens": inputs.tokens()[2],
        "numbers": inputs.missing()[2],
        "age": age,
        "raw": inputs.IMAGES,
        "file": inputs.IMAGES / 255,
    }


def test_a_fitted_model_reads_what_it_was_trained_on(dataframe, tmp_path):
    def to_array(data):
        return np.frombuffer(data, np.uint8).reshape(2, 2, 3) / 255

    columns = ["text", "tokens", "numbers", "age", "image", "file"]
    frame = dataframe.withColumn("file", dataframe.image)
    trainer = hvdkeras.SynchronousSGD(
        a_model(),
        worker_optimizer=keras.optimizers.SGD(0.01),
        loss="mse",
        batch_size=inputs.ROWS,
        features_col=dict(zip(["text", "tokens", "numbers", "age", "raw", "file"], columns, strict=True)),
        decode={"file": to_array},
        padding={"tokens": 0},
        nan_cols=["numbers", "age"],
        num_workers=1,
        verbose=0,
    )
    fitted = trainer.fit(frame)
    wanted = a_model()
    wanted.compile(keras.optimizers.SGD(0.01), "mse")
    wanted.fit(as_keras_gets_it(), inputs.LABELS, batch_size=inputs.ROWS, verbose=0)
    expected = wanted.predict(as_keras_gets_it(), verbose=0)
    fitted.write().save(f"{tmp_path}/fitted")
    with pytest.raises(ValueError, match="decode must have the functions .* for file"):
        ModelPredictor.load(f"{tmp_path}/fitted")
    for predictor in (fitted, ModelPredictor.load(f"{tmp_path}/fitted", decode={"file": to_array})):
        rows = predictor.transform(frame).orderBy("id").collect()
        np.testing.assert_allclose([row.prediction for row in rows], expected, atol=1e-5)


def test_rows_that_do_not_fit_are_named(dataframe):
    keras.utils.set_random_seed(0)
    with pytest.raises(ValueError, match=r"'tokens' must hold .*padding=\{'tokens': 0\} makes"):
        hvdkeras.EASGD(inputs.tokens()[0], loss="mse", features_col="tokens").train(dataframe)
    with pytest.raises(Exception, match="'tokens' must hold lists of one length, unless padding names it"):
        ModelPredictor(inputs.tokens()[0], "tokens").transform(dataframe).collect()
    with pytest.raises(ValueError, match="'age' must hold strings"):
        ModelPredictor(inputs.text()[0], "age").transform(dataframe)
    fixed = keras.Sequential([keras.Input((4,), batch_size=8), keras.layers.Dense(2)])
    kept = (
        ModelPredictor(fixed, "numbers", handle_invalid="keep").transform(dataframe).orderBy("id").collect()
    )
    expected = fixed.predict(inputs.NUMBERS, verbose=0)
    expected[3] = np.nan
    received = [[np.nan] * 2 if row.prediction is None else row.prediction for row in kept]
    np.testing.assert_allclose(received, expected, atol=1e-6)
