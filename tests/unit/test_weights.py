import pickle

import keras
import numpy as np
import pytest

from hvdkeras.models.compiled import compiled_with
from hvdkeras.models.serialization import model_from_bytes, model_to_bytes, pack, unpack
from hvdkeras.models.vector import FlatWeights, assign, averaged_variables


@pytest.fixture
def model() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )


def test_vector_holds_the_variables_in_their_order(model):
    weights = FlatWeights(model.trainable_variables)
    expected = np.concatenate([np.ravel(v.numpy()) for v in model.trainable_variables])
    np.testing.assert_array_equal(weights.read(), expected)
    assert weights.size == 3 * 2 + 2 + 2 + 2


def test_what_is_written_is_read(model):
    weights = FlatWeights(model.trainable_variables)
    weights.write(np.arange(12, dtype=np.float32))
    np.testing.assert_array_equal(weights.read(), np.arange(12))
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), [[0, 1], [2, 3], [4, 5]])


def test_a_vector_that_was_read_stays_when_the_variables_change(model):
    weights = FlatWeights(model.trainable_variables)
    before = weights.read()
    values = before.copy()
    weights.write(before + 1)
    np.testing.assert_array_equal(before, values)


def test_assign_is_write(model):
    assign(model.trainable_variables, np.arange(12, dtype=np.float32))
    np.testing.assert_array_equal(FlatWeights(model.trainable_variables).read(), np.arange(12))
    with pytest.raises(ValueError, match=r"shape \(12,\). Received: \(13,\)"):
        assign(model.trainable_variables, np.zeros(13, np.float32))


def test_wrong_length_is_refused(model):
    with pytest.raises(ValueError, match=r"shape \(12,\). Received: \(11,\)"):
        FlatWeights(model.trainable_variables).write(np.zeros(11, np.float32))


def test_only_float_statistics_are_averaged(model):
    names = [variable.name for variable in averaged_variables(model)]
    assert names == ["moving_mean", "moving_variance"]
    assert len(model.non_trainable_variables) == 3  # dropout's seed, too


def test_no_variables_make_an_empty_vector():
    weights = FlatWeights([])
    weights.write(weights.read())
    assert weights.read().shape == (0,)


def test_model_comes_back_from_its_bytes(model):
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    copy = model_from_bytes(model_to_bytes(model))
    np.testing.assert_array_equal(copy.predict(rows, verbose=0), model.predict(rows, verbose=0))


def test_packed_keras_objects_survive_pickling():
    value = ["mse", {"out": keras.losses.Huber(delta=2.0)}, len]
    copy = unpack(pickle.loads(pickle.dumps(pack(value))), {})
    assert copy[0] == "mse"
    # Beyond delta the loss is linear: 2 * (5 - 2 / 2).
    assert float(copy[1]["out"](np.zeros((1, 1)), np.full((1, 1), 5.0))) == 8.0
    assert copy[2] is len


def test_compiled_with_are_the_models_own(model):
    assert compiled_with(model) == {}
    model.compile(keras.optimizers.Adam(0.5), keras.losses.Huber(), metrics=["mae"])
    arguments = compiled_with(model)
    assert float(arguments["optimizer"].learning_rate) == 0.5
    assert isinstance(arguments["loss"], keras.losses.Huber)
    assert arguments["metrics"] == ["mae"]


def test_an_optimizer_with_loss_scaling_survives_packing():
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.5), initial_scale=8.0)
    packed = pack(scaled)
    for _ in range(2):
        copy = unpack(pickle.loads(pickle.dumps(packed)), {})
        assert type(copy.inner_optimizer) is keras.optimizers.Adam
        assert float(copy.learning_rate) == 0.5
        assert copy.initial_scale == 8.0


def test_weighted_metrics_are_taken_over(model):
    model.compile("sgd", "mse", weighted_metrics=["mae"])
    assert compiled_with(model)["weighted_metrics"] == ["mae"]
