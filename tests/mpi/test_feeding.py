"""What one rank learns from weighted rows and nested data is what Keras learns from the same batches."""

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.data.rows import Rows
from hvdkeras.data.writing import write_arrays
from hvdkeras.models.serialization import model_from_bytes, model_to_bytes
from hvdkeras.models.targets import columns, targets

from batching import batches_of

pytestmark = pytest.mark.mpi

ROWS, BATCH_SIZE, EPOCHS, CLASSES = 61, 8, 2, 4


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "x": random.normal(size=(ROWS, 3)),
        "z": random.normal(size=(ROWS, 2)),
        "class": random.integers(0, CLASSES, ROWS),
        "size": random.normal(size=ROWS),
        "v": random.uniform(0, 2, ROWS),
        "w": random.uniform(0, 2, ROWS),
    }


def classifier(loss: str) -> keras.Model:
    units = 1 if loss == "binary_crossentropy" else CLASSES
    activation = "sigmoid" if units == 1 else "softmax"
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, activation)])


def nested() -> keras.Model:
    keras.utils.set_random_seed(1)
    z, x = keras.Input((2,), name="z"), keras.Input((3,), name="x")
    joined = keras.layers.Concatenate()([x, z])
    outputs = {
        "size": keras.layers.Dense(1)(joined),
        "kind": keras.layers.Dense(CLASSES, "softmax")(joined),
    }
    return keras.Model({"z": z, "x": x}, outputs)


def batches(model: keras.Model, data: dict, arguments: dict) -> list[list[np.ndarray]]:
    """All batches of a training, in order."""
    read = columns(
        model,
        arguments["features_col"],
        targets(model, arguments["loss"], arguments["label_col"], arguments.get("sample_weight_col")),
    )
    shards = write_arrays(data, read)
    rows = Rows(shards, 0, 1, BATCH_SIZE, seed=0)
    result = [list(batch) for epoch in range(EPOCHS) for batch in batches_of(rows, epoch)]
    shards.remove()
    return result


def trained(content: bytes, arguments: dict, data: dict) -> tuple[list, list]:
    """What the rank of the job runs: the weights of a training, and those that Keras finds step by step."""
    model, reference = (model_from_bytes(content) for _ in range(2))
    trainer = hvdkeras.SingleTrainer(
        model, batch_size=BATCH_SIZE, num_epoch=EPOCHS, learning_rate=0.1, verbose=0, **arguments
    )
    result = trainer.train(data)
    given = {name: arguments[name] for name in ("loss", "loss_weights") if name in arguments}
    reference.compile(keras.optimizers.SGD(0.1), **given)
    for batch in batches(model, data, arguments):
        if not isinstance(model, keras.Sequential):
            # Keys in alphabetical order: inputs x and z, outputs kind and size, weights of kind and size.
            x, z, kind, size, *weights = batch
            weights = (
                dict(zip(("kind", "size"), weights * (2 // len(weights)), strict=True)) if weights else None
            )
            reference.train_on_batch({"x": x, "z": z}, {"kind": kind, "size": size}, weights)
        else:
            x, y, *weights = batch
            reference.train_on_batch(x, y, *weights, class_weight=arguments.get("class_weight"))
    return result.get_weights(), reference.get_weights()


def assert_equal(pairs: tuple[list, list]) -> None:
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


SPARSE = "sparse_categorical_crossentropy"
NESTED = {
    "features_col": {"x": "x", "z": "z"},
    "label_col": {"size": "size", "kind": "class"},
    "loss": {"size": "mse", "kind": SPARSE},
}


@pytest.mark.parametrize("loss", [SPARSE, "categorical_crossentropy"])
@pytest.mark.parametrize(
    "weights", [{"sample_weight_col": "w"}, {"class_weight": {0: 3.0, 1: 0.5, 2: 0.0, 3: 1.0}}]
)
def test_weighted_rows_and_classes(on_ranks, loss, weights):
    arguments = {"features_col": "x", "label_col": "class", "loss": loss, **weights}
    [pairs] = on_ranks(1, trained, model_to_bytes(classifier(loss)), arguments, arrays())
    assert_equal(pairs)


def test_classes_of_a_binary_classifier(on_ranks):
    data = {**arrays(), "class": arrays()["class"] % 2}
    arguments = {
        "features_col": "x",
        "label_col": "class",
        "loss": "binary_crossentropy",
        "class_weight": {0: 0.25, 1: 2},
    }
    [pairs] = on_ranks(1, trained, model_to_bytes(classifier("binary_crossentropy")), arguments, data)
    assert_equal(pairs)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"loss_weights": {"size": 0.5, "kind": 2.0}},
        {"sample_weight_col": "w"},
        {"sample_weight_col": {"size": "w", "kind": "v"}, "loss_weights": {"size": 0.5, "kind": 2.0}},
    ],
)
def test_models_of_dicts(on_ranks, more):
    [pairs] = on_ranks(1, trained, model_to_bytes(nested()), {**NESTED, **more}, arrays())
    assert_equal(pairs)


def test_two_ranks_train_a_model_of_dicts(on_ranks):
    def train(data: dict) -> float:
        trainer = hvdkeras.AveragingTrainer(
            nested(), num_workers=2, batch_size=4, num_epoch=20, learning_rate=0.1, verbose=0, **NESTED
        )
        trainer.train({**data, "size": data["x"].sum(axis=1)})
        loss = trainer.history.averaged()["loss"]
        return loss[-1] / loss[0]

    assert max(on_ranks(2, train, arrays())) < 0.8


def test_an_ensemble_of_models_of_dicts_is_merged(on_ranks):
    def train(data: dict) -> tuple:
        trainer = hvdkeras.EnsembleTrainer(
            nested(), num_workers=1, merge_models=True, batch_size=4, verbose=0, **NESTED
        )
        merged = trainer.train(data)
        kind, size = merged.predict([data["x"], data["z"]], verbose=0)
        return kind.shape, size.shape, list(merged.output_names)

    assert on_ranks(1, train, arrays()) == [((ROWS, CLASSES), (ROWS, 1), ["kind", "size"])]
