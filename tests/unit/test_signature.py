import keras
import pytest

from hvdkeras.data.columns import Column
from hvdkeras.signature import columns


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

    for own in (loss, OwnLoss()):
        assert columns(classifier(), own, "x", "y", scalars={"y"})[1] == Column("y", (), "float32")
        assert columns(classifier(), own, "x", "y")[1] == Column("y", (10,), "float32")
    assert columns(classifier(), "mse", "x", "y", scalars={"y"})[1] == Column("y", (10,), "float32")


def test_several_inputs_and_outputs():
    loss = {"size": "mse", "kind": "sparse_categorical_crossentropy"}
    assert columns(two_by_two(), loss, ["x", "ids"], ["kind", "size"]) == (
        Column("x", (3,), "float32"),
        Column("ids", (2,), "int32"),
        Column("kind", (), "int32", classes=4),
        Column("size", (1,), "float32"),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((classifier(), None, "x", "y"), "loss must be given"),
        ((classifier(), "cross", "x", "y"), "loss must be a Keras loss.*'cross'"),
        ((classifier(), "mse", ["x", "z"], "y"), "features_col must name one column for each .* 1 inputs"),
        ((two_by_two(), "mse", ["x", "z"], "y"), "label_col must name one column for each .* 2 outputs"),
        ((two_by_two(), ["mse"], ["x", "z"], ["y", "w"]), "loss must have one entry for each output"),
        (
            (two_by_two(), {"kind": "mse"}, ["x", "z"], ["y", "w"]),
            r"\['kind', 'size'\]. Received: \['kind'\]",
        ),
        ((classifier(), "mse", 3, "y"), "features_col must be a column's name"),
        ((keras.Sequential([keras.layers.Dense(1)]), "mse", "x", "y"), "built Functional or Sequential"),
        (
            (keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(1)]), "mse", "x", "y"),
            "fixed shape beyond the batch",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        columns(*arguments)
