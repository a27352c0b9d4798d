"""The step that the driver tries before a launch, and the form in which data is read for it."""

import random

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import hvdkeras
from hvdkeras.data import sources
from hvdkeras.data.columns import Column, DataError, Form
from hvdkeras.data.conversion import Problem, convert
from hvdkeras.driver import training
from hvdkeras.models.targets import targets

ROWS = 40


class Launched(Exception):
    pass


@pytest.fixture
def launched(monkeypatch):
    """The training specifications for which ranks would be launched."""
    specs = []

    def launch(configuration, spec, on_spark, ranks, on_message):
        specs.append(spec)
        raise Launched

    monkeypatch.setattr(training, "launch", launch)
    return specs


def train(model, loss, data, **arguments):
    hvdkeras.EASGD(model, loss=loss, verbose=0, communication_window=1, **arguments).train(data)


def linear(units: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, *shape)).astype("float32")


def first_of_two(truth, predicted):
    return keras.ops.square(truth[:, 0] - predicted[:, 0])


def difference(truth, predicted):
    return keras.ops.mean(keras.ops.abs(truth - predicted), axis=-1)


def test_what_works_is_launched_with_the_labels_as_they_are(launched):
    with pytest.raises(Launched):
        train(linear(), first_of_two, {"features": rows(4), "label": np.arange(2 * ROWS).reshape(ROWS, 2)})
    [spec] = launched
    assert spec.data.shards.columns[1] == Column("label", (2,), "int64")


@pytest.mark.parametrize(
    ("loss", "arguments", "reason"),
    [
        (difference, {}, r"Incompatible shapes: \[5,2\] vs. \[5,3\]"),
        (lambda truth, predicted: truth[:, 5], {}, "slice index 5"),
        (first_of_two, {"metrics": ["mae"]}, "Incompatible shapes"),
        (lambda truth, predicted: truth[:, 0], {}, "No gradients provided"),
    ],
    ids=["shape", "index", "metric", "gradient"],
)
def test_what_raises_names_columns_shapes_and_dtypes(launched, loss, arguments, reason):
    message = (
        r"the model, its loss and its metrics must work on the data. Received: columns input 'features' of "
        r"shape \(5, 4\), float32; label 'label' of shape \(5, 2\), float32; "
        rf"outputs 'dense.*' of shape \(None, 3\); on these 5 rows \w+: .*{reason}"
    )
    with pytest.raises(DataError, match=message) as raised:
        train(linear(), loss, {"features": rows(4), "label": rows(2)}, **arguments)
    assert launched == []
    assert len(str(raised.value)) < 1000


def test_labels_that_are_nan_must_be_masked(launched):
    def masked(truth, predicted):
        there = keras.ops.isfinite(truth)
        return difference(keras.ops.where(there, truth, 0.0), keras.ops.where(there, predicted, 0.0))

    labels = rows(3)
    labels[35, 1] = np.nan
    with pytest.raises(Launched):
        train(linear(), masked, {"features": rows(4), "label": labels})
    with pytest.raises(DataError, match=r"columns label must hold finite.*unless the loss masks.*nan"):
        train(linear(), difference, {"features": rows(4), "label": labels})
    with pytest.raises(DataError, match=r"'label' must hold 3 finite numbers.*row 35: nan"):
        train(linear(), "mae", {"features": rows(4), "label": labels})


def test_the_model_and_the_random_state_are_as_before(launched):
    def draw():
        of_tensors = np.ravel(keras.random.normal((2,))), np.ravel(tf.random.normal([2]))
        return random.random(), np.random.random(), *np.concatenate(of_tensors).tolist()

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse")
    model.fit(rows(4), rows(1), verbose=0)
    before = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    keras.utils.set_random_seed(3)
    with pytest.raises(Launched):
        train(model, None, {"features": rows(4), "label": rows(1)})
    drawn = draw()
    keras.utils.set_random_seed(3)
    spec = launched[0]
    assert drawn == draw()
    after = [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert spec.recipe.build().optimizer.iterations == model.optimizer.iterations


def test_an_evaluation_is_tried_where_there_is_validation(launched):
    class OwnStep(keras.Model):
        def train_step(self, data):
            inputs, labels = data
            return {"loss": keras.ops.mean(keras.ops.square(self(inputs) - labels))}

    inputs = keras.Input((4,))
    model = OwnStep(inputs, keras.layers.Dense(1)(inputs))
    data = {"features": rows(4), "label": rows(1)}
    with pytest.raises(Launched):
        train(model, None, data, custom_objects={"OwnStep": OwnStep})
    with pytest.raises(DataError, match="No loss to compute"):
        train(model, None, data, custom_objects={"OwnStep": OwnStep}, validation_split=0.5)


def test_weights_of_classes_and_rows_are_tried(launched):
    data = {"features": rows(4), "label": np.arange(ROWS) % 3, "w": np.ones((ROWS, 2))}
    with pytest.raises(Launched):
        train(linear(), "sparse_categorical_crossentropy", data, class_weight={0: 2.0})
    with pytest.raises(DataError, match=r"sample weight 'w' of shape \(5, 2\), float32"):
        train(linear(), "sparse_categorical_crossentropy", data, sample_weight_col="w")


@pytest.mark.parametrize("ignored", [255, -1])
def test_ignored_classes_are_no_fault(launched, ignored):
    layer = keras.layers.Conv2D(3, 1, activation="softmax")
    model = keras.Sequential([keras.Input((2, 2, 1)), layer])
    labels = np.random.default_rng(0).integers(0, 3, (ROWS, 2, 2))
    labels[7] = ignored
    data = {"features": rows(2, 2, 1), "label": labels}
    with pytest.raises(Launched):
        train(model, keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored), data)
    with pytest.raises(DataError, match=rf"from 0 to 2 in every row .*\(the first is row 7: {ignored}\)"):
        train(model, "sparse_categorical_crossentropy", data)
    labels[9] = 3
    with pytest.raises(DataError, match=rf"from 0 to 2 or {ignored} in every.*1 row with.*is row 9: 3"):
        train(model, keras.losses.SparseCategoricalCrossentropy(ignore_class=ignored), data)


def test_losses_of_their_own_need_no_labels(launched):
    class Adding(keras.layers.Layer):
        def call(self, numbers):
            self.add_loss(keras.ops.mean(numbers))
            return numbers

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), Adding()])
    with pytest.raises(Launched):
        train(model, None, {"features": rows(4)}, label_col=None, custom_objects={"Adding": Adding})
    assert [column.name for column in launched[0].data.shards.columns] == ["features"]
    with pytest.raises(ValueError, match="label_col must name a column for each output that has a loss"):
        train(linear(), "mse", {"features": rows(4)}, label_col=None)
    with pytest.raises(ValueError, match="loss must be given.*Received: None"):
        train(linear(), None, {"features": rows(4)}, label_col=None)


def outputs(nesting) -> keras.Model:
    first = keras.Input((4,))
    return keras.Model(first, nesting(*(keras.layers.Dense(n + 1, name="ab"[n])(first) for n in range(2))))


@pytest.mark.parametrize(
    ("loss", "label_col", "labels"),
    [
        ([None, "mse"], "y", [None, "y"]),
        ([None, "mse"], [None, "y"], [None, "y"]),
        ([None, "mse"], ["x", "y"], ["x", "y"]),
        ({"a": "mse"}, "y", ["y", None]),
        ({"a": "mse"}, {"a": "y"}, ["y", None]),
        ({"a": "mse", "b": None}, {"a": "y", "b": "x"}, ["y", "x"]),
    ],
)
def test_outputs_without_a_loss_need_no_column(loss, label_col, labels):
    assert targets(outputs(lambda a, b: [a, b]), loss, label_col, None).labels == labels
    as_dict = dict(zip("ab", labels, strict=True))
    if not isinstance(loss, list):
        assert targets(outputs(lambda a, b: {"a": a, "b": b}), loss, label_col, None).labels == as_dict


def test_keras_gets_a_whole_dict_of_losses(launched):
    data = {"features": rows(4), "label": rows(1)}
    with pytest.raises(Launched):
        train(outputs(lambda a, b: [a, b]), {"a": "mse"}, data, loss_weights={"a": 2.0}, metrics={"a": "mae"})
    with pytest.raises(ValueError, match=r"output that has a loss, of a, b. Received: .*c"):
        train(outputs(lambda a, b: [a, b]), {"c": "mse"}, data)


def test_the_form_of_the_data_is_that_of_its_rows(tmp_path):
    arrays = {
        "scalar": np.arange(3),
        "mask": np.zeros((3, 2, 4), np.uint8),
        "float": np.zeros((3, 2)),
        "flag": np.array([True, False, True]),
    }
    forms = {
        "scalar": Form((), "int64"),
        "mask": Form((2, 4), "uint8"),
        "float": Form((2,), "float32"),
        "flag": Form((), "bool"),
    }
    table = pa.table({name: array.tolist() for name, array in arrays.items()})
    table = table.set_column(1, "mask", pa.array(arrays["mask"].tolist(), pa.list_(pa.list_(pa.uint8()))))
    pq.write_table(table, tmp_path / "rows.parquet")
    for data in (arrays, tmp_path / "rows.parquet"):
        assert sources.forms(data, [*forms, "absent"], {}) == forms
    decoder = {"image": lambda content: np.frombuffer(content, np.uint8).reshape(2, 2)}
    assert sources.forms({"image": [b"1234", b""]}, ["image"], decoder) == {"image": Form((2, 2), "uint8")}
    assert sources.forms({"text": np.array(["a"])}, ["text"], {}) == {}


def test_values_that_are_allowed_are_no_problem():
    numbers = Column("y", (2,), "float32", nan=True)
    assert convert(numbers, pa.array([[1.0, np.nan], [2.0, 0.0]]))[1] == []
    assert convert(numbers, np.array([[1.0, np.nan], [np.inf, 0.0]]))[1] == [
        Problem("infinite values", 1, 1, "inf")
    ]
    void = Column("y", (), "int32", classes=3, ignored=255)
    np.testing.assert_array_equal(convert(void, pa.array([0, 255, 2]))[0], [0, 255, 2])
    assert convert(void, pa.array([0, 255, 3, 254]))[1] == [Problem("values out of range", 2, 2, "3")]


def test_an_optimizer_that_only_a_step_knows_is_found_before_the_launch(launched):
    hidden = keras.optimizers.Adam(0.5)

    class Hiding(keras.Model):
        def train_step(self, batch):
            logs = super().train_step(batch)
            bias = self.layers[-1].bias
            hidden.apply([bias.value], [bias])
            return logs

    inputs = keras.Input((4,))
    model = Hiding(inputs, keras.layers.Dense(2)(inputs))
    arguments = {"loss": "mse", "verbose": 0, "custom_objects": {"Hiding": Hiding}}
    data = {"features": rows(4), "label": rows(2)}
    message = "must apply only optimizers that are attributes of the model.*Received: Adam"
    with pytest.raises(ValueError, match=message):
        hvdkeras.SynchronousSGD(model, **arguments).train(data)
    # Ranks that do not average gradients may have it; a trial would have taught it.
    with pytest.raises(Launched):
        hvdkeras.EASGD(model, communication_window=1, **arguments).train(data)
    assert not hidden.built
