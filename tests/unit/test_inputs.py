"""Inputs of any form: from arrays and Parquet to batches, and the errors where they do not fit."""

import keras
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import hvdkeras
from hvdkeras.data.columns import DataError
from hvdkeras.data.rows import Rows
from hvdkeras.driver import inputs as driver_inputs
from hvdkeras.driver.layout import laid_out
from hvdkeras.ml.rows import evened, stack, string_rows
from hvdkeras.models.saved import SavedModel, Tensor

import inputs

OF_DATA = [case for case in inputs.CASES if case not in (inputs.batch_of_its_own, inputs.without_input)]


def trainer_of(model, **arguments):
    return hvdkeras.EASGD(model, loss="mse", batch_size=inputs.ROWS, verbose=0, **arguments)


def batch_of(trainer, data, store=None):
    """The one batch of all rows, in their order."""
    driver_inputs.build_from_data(trainer, data)
    trainer.store = store
    with laid_out(trainer, data) as shards:
        (features, _), _ = Rows(shards, 0, 1, inputs.ROWS, seed=0).block(0, 0)
    return features


def as_parquet(folder, features):
    """The rows as Spark writes them: images as bytes, lists and strings as they are."""
    rows = [row.tobytes() if np.ndim(row) == 3 else row for row in features]
    rows = [row.tolist() if isinstance(row, np.ndarray | np.str_) else row for row in rows]
    table = pa.table({"features": rows, "label": inputs.LABELS.tolist()})
    parquet.write_table(table, folder / "rows.parquet", row_group_size=5)
    return str(folder / "rows.parquet")


@pytest.mark.parametrize("case", OF_DATA)
@pytest.mark.parametrize("source", ["arrays", "parquet", "shards behind a URL"])
def test_a_batch_is_what_keras_gets(tmp_path, case, source):
    model, features, wanted, arguments = case()
    data = {"features": features, "label": inputs.LABELS}
    if source == "parquet":
        if case is inputs.images_of_open_size:
            pytest.skip("bytes have no shape")
        data = as_parquet(tmp_path, features)
    store = "memory://rows" if "URL" in source else None
    received = batch_of(trainer_of(model, **arguments), data, store)
    if wanted.dtype == object:
        received = np.array([[text.decode() for text in row] for row in received], object)
    np.testing.assert_array_equal(received, wanted)


def the_error(model, features, **arguments):
    with pytest.raises(ValueError, match="Received") as caught:
        batch_of(trainer_of(model, **arguments), {"features": features, "label": inputs.LABELS})
    return str(caught.value)


def test_lists_of_unequal_lengths_need_padding_and_the_error_names_it(tmp_path):
    model, lists, _, _ = inputs.tokens()
    assert "padding={'features': 0} makes the rows of a batch equally long" in the_error(model, lists)
    with pytest.raises(DataError, match=r"'features' must hold one whole number.*padding=\{'features': 0\}"):
        batch_of(trainer_of(model), as_parquet(tmp_path, lists))


@pytest.mark.parametrize(
    ("case", "wrong", "arguments", "message"),
    [
        (inputs.tokens, [[0.5]] * inputs.ROWS, {"padding": {"features": 0}}, "13 rows with fractions"),
        (inputs.tokens, [[1, None]] * inputs.ROWS, {"padding": {"features": 0}}, "13 rows with null values"),
        (inputs.sequences, [[1.0] * 5] * inputs.ROWS, {"padding": {"features": 0}}, "4 numbers at a place"),
        (inputs.missing, np.full((13, 4), np.nan), {}, "nan_cols='features' lets NaN through"),
        (inputs.missing, np.full((13, 4), np.inf), {}, "(the first is row 0: inf)"),
        (inputs.missing, np.full((13, 4), np.inf), {"nan_cols": "features"}, "13 rows with infinite values"),
        (inputs.missing, inputs.NUMBERS, {"nan_cols": "feature"}, "Did you mean 'features'"),
        (inputs.missing, inputs.NUMBERS, {"padding": {"features": 0}}, "there are none"),
        (inputs.text, inputs.NUMBERS[:, 0], {}, "must hold one string"),
        (inputs.text, [None] * inputs.ROWS, {}, "13 rows with null values"),
        (inputs.images_of_open_size, np.zeros((13, 12)), {}, r"nested lists or arrays of shape (None, None"),
    ],
)
def test_what_does_not_fit_is_named(case, wrong, arguments, message):
    error = the_error(case()[0], wrong, **arguments)
    assert message in error
    assert ("nan_cols=" in error) == ("nan_cols=" in message)


def test_a_model_that_no_data_can_build_is_refused_with_its_own_error():
    class Numpy(keras.Model):
        def call(self, numbers):
            return np.asarray(numbers) + 1

    message = the_error(Numpy(), inputs.NUMBERS)
    assert "must have an Input, or a `call` of layers and keras.ops" in message
    assert "features (4,) float32. Received: Numpy" in message


@pytest.mark.parametrize(
    ("batch_size", "rows", "message"),
    [
        (8, {"training": 32}, None),
        (4, {"training": 32}, "batch_size must be that of the model's Input, 8,.* Received: 4"),
        (8, {"training": 33}, "a multiple of 16 for training. Received: 33 rows for training"),
        (8, {"training": 32, "validation": 5}, "16 for training, 8 for validation. Received: 32 rows"),
    ],
)
def test_a_batch_size_of_the_input_is_kept(batch_size, rows, message):
    layers = keras.layers
    features = keras.Input((4, 1), batch_size=8)
    trainer = trainer_of(keras.Model(features, layers.Dense(2)(layers.LSTM(2, stateful=True)(features))))
    trainer.batch_size = batch_size
    recipe, parts = trainer.recipe(), {"training": 2, "validation": 1}
    if message is None:
        driver_inputs.check_batches(trainer, recipe, rows, parts)
        return
    with pytest.raises(ValueError, match=message):
        driver_inputs.check_batches(trainer, recipe, rows, parts)


def test_a_batch_size_that_is_not_given_is_that_of_the_input():
    trainer = hvdkeras.EASGD(inputs.batch_of_its_own()[0], loss="mse")
    driver_inputs.take_batch_size(trainer)
    assert trainer.batch_size == 8


def test_a_predictor_gets_a_subclassed_model_as_a_functional_one():
    model, features, _, arguments = inputs.subclassed()
    batch_of(trainer_of(model, **arguments), {"features": features, "label": inputs.LABELS})
    saved = SavedModel.of(model)
    assert saved.inputs == (Tensor("features", (4,), "float32"),)
    assert [tensor.shape for tensor in saved.outputs] == [(2,)]


def test_executors_make_of_rows_what_training_makes_of_them():
    lists = np.empty(inputs.ROWS, object)
    lists[:] = [np.array(row) for row in inputs.LISTS]
    tensor = Tensor("tokens", (None,), "int32")
    array, wrong = stack(*evened(lists, tensor, padding=0))
    np.testing.assert_array_equal(array, inputs.tokens()[2])
    assert not wrong.any()
    with pytest.raises(ValueError, match="unless padding names it. Received: lengths from 1 to 4"):
        evened(lists, tensor, padding=None)
    strings, null = string_rows(np.array(["a", None], object), Tensor("text", (1,), "string"))
    assert strings.tolist() == [["a"], [""]]
    assert null.tolist() == [False, True]
    numbers = np.array([[1.0, np.nan], [np.inf, 1.0]])
    for nan, expected in ((False, [True, True]), (True, [False, True])):
        assert stack(numbers, Tensor("x", (2,), "float32"), nan)[1].tolist() == expected
