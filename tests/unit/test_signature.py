import keras
import pytest

from hvdkeras.data.columns import Column, Form
from hvdkeras.models import targets as reading
from hvdkeras.models.schema import class_weights, input_columns
from hvdkeras.models.targets import targets


def columns(model, loss, features_col, label_col, forms=None, sample_weight_col=None) -> tuple[Column, ...]:
    read = targets(model, loss, label_col, sample_weight_col)
    return reading.columns(model, features_col, read, forms)


def classifier(classes: int = 10) -> keras.Model:
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)])


class OwnLoss(keras.losses.Loss):
    def call(self, truth, predicted):
        return keras.losses.sparse_categorical_crossentropy(truth, predicted)


def two_by_two() -> keras.Model:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), dtype="int32", name="b")
    joined = keras.layers.Concatenate()([a, keras.layers.Rescaling(1.0)(b)])
    outputs = {
        "kind": keras.layers.Dense(4, name="kind")(joined),
        "size": keras.layers.Dense(1, name="size")(joined),
    }
    return keras.Model([a, b], list(outputs.values()))


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.sparse_categorical_crossentropy,
    ],
)
def test_sparse_losses_take_class_numbers(loss):
    assert columns(classifier(), loss, "image", "digit") == (
        Column("image", (28, 28, 1), "float32"),
        Column("digit", (), "int32", classes=10),
    )


@pytest.mark.parametrize("loss", ["categorical_crossentropy", keras.losses.CategoricalCrossentropy()])
def test_categorical_losses_take_one_hot_rows(loss):
    assert columns(classifier(7), loss, "image", "digit")[1] == Column(
        "digit", (7,), "float32", 7, one_hot=True
    )


def test_other_losses_take_the_outputs_shape():
    assert columns(classifier(1), "mse", "image", "y")[1] == Column("y", (1,), "float32")


def test_the_users_own_loss_takes_what_the_data_has():
    def loss(truth, predicted):
        return keras.losses.sparse_categorical_crossentropy(truth, predicted)

    number, pair = {"y": Form((), "int64")}, {"y": Form((2,), "float32")}
    for own in (loss, OwnLoss()):
        assert columns(classifier(), own, "x", "y", number)[1] == Column("y", (), "int64")
        assert columns(classifier(), own, "x", "y", pair)[1] == Column("y", (2,), "float32", nan=True)
        assert columns(classifier(), own, "x", "y")[1] == Column("y", (10,), "float32", nan=True)
    assert columns(classifier(), "mse", "x", "y", number)[1] == Column("y", (10,), "float32")


def test_several_inputs_and_outputs():
    loss = {"size": "mse", "kind": "sparse_categorical_crossentropy"}
    assert columns(two_by_two(), loss, ["x", "ids"], ["kind", "size"]) == (
        Column("x", (3,), "float32"),
        Column("ids", (2,), "int32"),
        Column("kind", (), "int32", classes=4),
        Column("size", (1,), "float32"),
    )


def with_dicts() -> keras.Model:
    b, a = keras.Input((3,), name="b"), keras.Input((2,), name="a")
    joined = keras.layers.Concatenate()([a, b])
    outputs = {
        "size": keras.layers.Dense(1, name="dense_1")(joined),
        "kind": keras.layers.Dense(4, name="dense_2")(joined),
    }
    return keras.Model({"b": b, "a": a}, outputs)


def test_dicts_of_columns_get_the_models_order():
    assert input_columns(two_by_two(), {"b": "ids", "a": "x"}) == ["x", "ids"]
    assert targets(two_by_two(), "mse", {"size": "s", "kind": "k"}, None).names == ["k", "s"]
    assert input_columns(classifier(), ["x"]) == input_columns(classifier(), "x") == ["x"]
    one_input = keras.Sequential([keras.Input((3,), name="only"), keras.layers.Dense(1, name="last")])
    assert input_columns(one_input, {"only": "x"}) == ["x"]
    assert targets(one_input, "mse", {"last": "y"}, None).names == ["y"]


def test_a_model_of_dicts_has_its_keys_as_names():
    loss = {"size": "mse", "kind": "sparse_categorical_crossentropy"}
    features, labels = {"b": "B", "a": "A"}, {"size": "S", "kind": "K"}
    assert columns(with_dicts(), loss, features, labels, sample_weight_col={"size": "W", "kind": "V"}) == (
        Column("A", (2,), "float32"),
        Column("B", (3,), "float32"),
        Column("K", (), "int32", classes=4),
        Column("S", (1,), "float32"),
        Column("V", (), "float32"),
        Column("W", (), "float32"),
    )


def test_sample_weights_are_one_column_or_one_for_each_output():
    weight = Column("w", (), "float32")
    assert columns(classifier(), "mse", "x", "y", sample_weight_col="w")[2:] == (weight,)
    assert columns(two_by_two(), "mse", ["x", "z"], ["k", "s"], sample_weight_col="w")[4:] == (weight,)
    both = columns(two_by_two(), "mse", ["x", "z"], ["k", "s"], sample_weight_col=["w", "v"])
    assert both[4:] == (weight, Column("v", (), "float32"))


@pytest.mark.parametrize(
    ("loss", "classes", "expected"),
    [
        ("sparse_categorical_crossentropy", 4, {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}),
        ("categorical_crossentropy", 4, {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}),
        ("binary_crossentropy", 1, {0: 1.0, 1: 2.0}),
    ],
)
def test_class_weights_are_completed(loss, classes, expected):
    model = classifier(classes)
    read = columns(model, loss, "x", "y")
    assert class_weights(model, {1: 2}, read) == expected
    assert class_weights(model, None, read) is None


@pytest.mark.parametrize(
    "value", [{}, {4: 1.0}, {-1: 1.0}, {"0": 1.0}, {0: -1.0}, {0: float("nan")}, [1.0], 2]
)
def test_class_weights_are_weights_of_classes(value):
    model = classifier(4)
    with pytest.raises(
        ValueError, match="class_weight must be a dict of class numbers from 0 to 3.*Received"
    ):
        class_weights(model, value, columns(model, "sparse_categorical_crossentropy", "x", "y"))


def test_class_weights_need_one_output_and_no_other_weights():
    for model, read in (
        (two_by_two(), columns(two_by_two(), "mse", ["x", "z"], ["k", "s"])),
        (classifier(), columns(classifier(), "mse", "x", "y", sample_weight_col="w")),
    ):
        with pytest.raises(ValueError, match="class_weight needs a model with one output.*Received: columns"):
            class_weights(model, {0: 1.0}, read)
    steps = keras.Sequential([keras.Input((5, 3)), keras.layers.Dense(4)])
    with pytest.raises(ValueError, match=r"labels of one class a row. Received: 'y' of shape \(5,\)"):
        class_weights(steps, {0: 1.0}, columns(steps, "sparse_categorical_crossentropy", "x", "y"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (two_by_two(), "mse", {"a": "x"}, ["y", "w"]),
            r"features_col must name one .* 2 inputs \(a, b\). Received: {'a': 'x'}",
        ),
        (
            (two_by_two(), "mse", {"a": "x", "c": "z"}, ["y", "w"]),
            r"\(a, b\). Received: {'a': 'x', 'c': 'z'}",
        ),
        ((two_by_two(), "mse", ["x", "z"], {"kind": "y"}), "label_col must name one column .* 2 outputs"),
        ((two_by_two(), "mse", {"a": "x", "b": 3}, ["y", "w"]), "features_col must be a column's name"),
        (
            (two_by_two(), "mse", ["x", "z"], ["y", "w"], None, ["v"]),
            "sample_weight_col must name one column for each .* 2 outputs",
        ),
        ((classifier(), None, "x", "y"), "loss must be given"),
        ((classifier(), "cross", "x", "y"), "loss must be a Keras loss.*'cross'"),
        (
            (classifier(), "mse", ["x", "z"], "y"),
            "features_col must name the column of the model's only input",
        ),
        ((two_by_two(), "mse", ["x", "z"], "y"), "label_col must name one column for each .* 2 outputs"),
        ((two_by_two(), ["mse"], ["x", "z"], ["y", "w"]), "loss must have one entry for each output"),
        (
            (two_by_two(), {"kinds": "mse"}, ["x", "z"], ["y", "w"]),
            r"kind, size. Received: \['kinds'\]",
        ),
        ((classifier(), "mse", 3, "y"), "features_col must be a column's name"),
        ((keras.Sequential([keras.layers.Dense(1)]), "mse", "x", "y"), "whose inputs are known"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        columns(*arguments)
