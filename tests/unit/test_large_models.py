"""A model's large weights travel beside its file: what they cost, and whose file holds them all the same."""

import pickle
import tracemalloc
from contextlib import closing

import cloudpickle
import keras
import numpy as np
import pytest
import tensorflow as tf

import hvdkeras
from hvdkeras.driver import training
from hvdkeras.launch.connection import Driver
from hvdkeras.launch.report import Reports
from hvdkeras.launch.wire import in_parts, of_parts
from hvdkeras.models import large
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.serialization import model_from_bytes
from hvdkeras.models.values import read, same

import architectures

UNITS = 1500
LARGEST = 4 * UNITS * UNITS


def wide() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(UNITS) for _ in range(2))])


class Launched(Exception):
    pass


def driver_part(monkeypatch, model) -> None:
    """All that the driver does before a launch."""

    def launch(configuration, spec, on_spark, ranks, on_message):
        raise Launched

    monkeypatch.setattr(training, "launch", launch)
    data = {"features": np.ones((8, 4), "float32"), "label": np.ones((8, UNITS), "float32")}
    with pytest.raises(Launched):
        hvdkeras.DOWNPOUR(model, loss="mse", verbose=0, communication_window=1).train(data)


def test_the_driver_saves_a_model_once_and_loads_it_twice(monkeypatch):
    calls = []

    def count(owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(keras.Model, "save")
    count(keras.models, "load_model")
    driver_part(monkeypatch, wide())
    # The copy that is compared is the one that is tried; the other is for the trainer's `result`.
    assert calls == ["save", "load_model", "load_model"]


def test_the_driver_holds_no_array_of_the_weights(monkeypatch):
    model = wide()
    tracemalloc.start()
    try:
        driver_part(monkeypatch, model)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A quarter of it while two arrays are compared.
    assert most < 0.6 * LARGEST


def test_a_copy_has_memory_of_its_own_once_it_learns():
    model = wide()
    model.compile("adam", "mse")
    before = [np.array(variable.value) for variable in model.variables]
    recipe, copy = Recipe.with_copy(model, model.optimizer, loss="mse")
    (weight,) = recipe.large.values()
    assert len(recipe.content) < 100_000
    assert np.shares_memory(read(model.layers[1].kernel), read(copy.layers[1].kernel))
    copy.fit(np.ones((8, 4)), np.ones((8, UNITS)), verbose=0)
    embedded = tf.IndexedSlices(tf.ones((1, UNITS)), tf.constant([3]), tf.constant([UNITS, UNITS]))
    recipe.build().optimizer.apply([embedded], [(third := recipe.build()).layers[1].kernel])
    for changed in (copy, third):
        assert not same(read(changed.layers[1].kernel), weight.value)
    for value, variable in zip(before, model.variables, strict=True):
        assert same(value, read(variable))
    assert same(weight.value, before[2])


class Own(keras.layers.Layer):
    """Saves and loads in its own way: what it makes of a weight, which it reads back from the store."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1], 3), name="weight")
        self.norm = 0.0

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.weight)

    def save_own_variables(self, store):
        store["w"] = self.weight
        store["norm"] = np.linalg.norm(store["w"])

    def load_own_variables(self, store):
        self.weight.assign(store["w"])
        self.norm = float(store["norm"])


class InPlace(Own):
    """Does what arrays alone allow."""

    def load_own_variables(self, store):
        weight = store["w"]
        weight[:] = weight.astype("float64")
        self.weight.assign(weight)
        self.norm = float(store["norm"])


class Derived(keras.layers.Dense):
    """Takes a constant from the first values of a weight, which its seed draws anew in every process."""

    def build(self, shape):
        super().build(shape)
        self.first = np.array(self.kernel.value)

    def call(self, inputs):
        return super().call(inputs) + keras.ops.sum(self.first)


def stack(*layers) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])


def quantized() -> keras.Model:
    model = stack(keras.layers.Dense(8))
    model.quantize("int8")
    return model


def adapted() -> keras.Model:
    dense = keras.layers.Dense(8)
    model = stack(dense, keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones((2, 8)))
    dense.bias.trainable = False
    return model


def shared_and_nested() -> keras.Model:
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="inside")], name="inner")
    return keras.Model(inputs, keras.layers.Dense(2)(inner(inner(inputs))))


def looked_up() -> keras.Model:
    lookup = keras.layers.StringLookup()
    lookup.adapt(np.array([["a"], ["b"], ["b"]]))
    text = keras.Input((1,), dtype="string")
    return keras.Model(text, keras.layers.Embedding(4, 3)(lookup(text)))


def in_half() -> keras.Model:
    return stack(keras.layers.Dense(8, dtype="bfloat16"))


def computed() -> keras.Model:
    return stack(keras.layers.Lambda(lambda numbers: 2 * numbers), Own(name="own"))


def in_place() -> keras.Model:
    return stack(InPlace(name="own"))


def derived() -> keras.Model:
    return stack(Derived(4, kernel_initializer=keras.initializers.GlorotUniform(seed=1)))


def of_kind(name: str):
    return lambda: getattr(architectures, name)()[0]


OWN = [quantized, adapted, shared_and_nested, looked_up, in_half, computed, in_place, derived]
CASES = {
    **{make.__name__: make for make in OWN},
    **{name: of_kind(name) for name in ("u_net", "masked_lstm", "variational")},
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_model_is_the_same_without_its_weights_in_the_file(monkeypatch, caplog, case):
    monkeypatch.setattr(large, "LARGE_BYTES", 1)
    model = CASES[case]()
    optimizer = getattr(model, "optimizer", None) or "sgd"
    with caplog.at_level("INFO", "hvdkeras"):
        recipe = pickle.loads(cloudpickle.dumps(Recipe.with_copy(model, optimizer, loss="mse")[0]))
    assert bool(recipe.large) == (case != "in_place")
    assert ("all weights travel in the model's file" in caplog.text) == (case == "in_place")
    copy = recipe.build()
    recipe.compare(model, copy)
    if case != "variational":  # whose outputs are random
        shape, dtype = [axis or 3 for axis in model.inputs[0].shape], model.inputs[0].dtype
        inputs = tf.constant([["a"], ["b"], ["c"]]) if dtype == "string" else tf.ones(shape, dtype)
        np.testing.assert_array_equal(*(np.array(each(inputs)) for each in (model, copy)))
    if case in ("computed", "in_place"):
        assert copy.get_layer("own").norm > 0
    # Not those of optimizers, nor one twice.
    assert len(recipe.large) <= len(model.variables)


def test_keras_itself_is_as_before():
    recipe = Recipe.with_copy(wide(), "sgd", loss="mse")[0]
    with pytest.raises(ValueError, match="shape"):
        model_from_bytes(recipe.content)
    drawn = keras.layers.Dense(UNITS)
    drawn.build((None, UNITS))
    assert np.any(read(drawn.kernel))


def test_arrays_travel_without_copies():
    values = {
        "large": np.arange(50_000, dtype="float64").reshape(500, 100),
        "columns": np.asfortranarray(np.ones((300, 300), "float32")),
        "cut": np.ones((600, 600), "float32")[::2, ::2],
        "small": np.arange(3),
        "half": np.ones((300, 300)).astype(keras.ops.convert_to_numpy(keras.ops.ones(1, "bfloat16")).dtype),
        "text": np.array(["a", None], object),
    }
    parts = in_parts(values)
    assert np.shares_memory(values["large"], np.frombuffer(parts[1]))
    assert len(parts) == 3
    again = of_parts([bytearray(part) for part in parts])
    for name, value in values.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)
    again["large"][0] = 7


def test_a_task_is_received_without_copies():
    task = in_parts({"weights": np.ones(LARGEST // 4, "float32")})
    with closing(Reports(task, 1, None)) as reports:
        rank = Driver(["127.0.0.1"], reports.port, reports.key)
        rank.send("hello", 0, "here", 4711)
        tracemalloc.start()
        try:
            received = of_parts(rank.receive())
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert LARGEST <= most < 1.2 * LARGEST
        received["weights"] += 1
        rank.send("result", received)
        reports.settle()
        np.testing.assert_array_equal(reports.take_results()[0]["weights"], 2.0)
