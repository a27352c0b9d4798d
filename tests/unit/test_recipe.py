"""A copy of the user's model that was pickled is the user's model."""

import pickle
import tracemalloc

import cloudpickle
import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.driver.checks import checked_recipe
from hvdkeras.models.compiled import compiled_with
from hvdkeras.models.optimizers import optimizers_of
from hvdkeras.models.recipe import Recipe
from hvdkeras.models.rest import Rest
from hvdkeras.models.serialization import model_to_bytes
from hvdkeras.models.structure import structural_differences, structure
from hvdkeras.models.values import SEED_STRIDE
from hvdkeras.models.vector import averaged_variables

FACTOR = 3.0
ROWS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")


def model(*layers, **compiled) -> keras.Model:
    result = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(2, name="last")])
    if compiled:
        result.compile(**compiled)
    return result


def copied(original: keras.Model, optimizer="own", build=None, **arguments) -> keras.Model:
    """The copy that a rank makes of what a trainer sends."""
    compiled = compiled_with(original)
    own = compiled.pop("optimizer", "sgd")
    recipe = Recipe.with_copy(
        original, own if optimizer == "own" else optimizer, **{**compiled, **arguments}
    )[0]
    return pickle.loads(cloudpickle.dumps(recipe)).build(**(build or {}))


def assert_same(original: keras.Model, copy: keras.Model) -> None:
    for variable, other in zip(original.variables, copy.variables, strict=True):
        assert variable.name == other.name
        assert variable.trainable == other.trainable
        np.testing.assert_array_equal(np.array(variable.value), np.array(other.value))
    if original.inputs[0].dtype == "float32":
        np.testing.assert_array_equal(original(ROWS), copy(ROWS))


class OwnRate(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step):
        return self.first / (1.0 + keras.ops.cast(step, "float32"))

    def get_config(self):
        return {"first": self.first}


class OwnMetric(keras.metrics.Mean):
    def update_state(self, truth, predicted, sample_weight=None):
        super().update_state(keras.ops.abs(truth - predicted))


def own_metric(truth, predicted):
    return keras.ops.max(keras.ops.abs(truth - predicted), axis=-1)


@pytest.mark.parametrize("quantized", [False, True])
def test_lora_matrices_travel(quantized):
    dense = keras.layers.Dense(8, "tanh")
    original = model(dense)
    if quantized:
        original.quantize("int8")
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.random.default_rng(1).normal(size=(2, 8)))
    copy = copied(original)
    assert_same(original, copy)
    assert np.abs(copy.layers[0].lora_kernel_a.numpy()).min() > 0


def test_flags_of_single_weights_travel():
    original = model(keras.layers.Dense(4))
    original.layers[0].bias.trainable = False
    original.layers[1].trainable = False
    copy = copied(original)
    assert_same(original, copy)
    assert [v.name for v in copy.trainable_variables] == ["kernel"]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_exclusions_from_weight_decay_travel(by_name, trained):
    original = model()
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    bias = original.layers[-1].bias
    optimizer.exclude_from_weight_decay(**({"var_names": ["bias"]} if by_name else {"var_list": [bias]}))
    original.compile(optimizer, "mse")
    if trained:
        original.fit(ROWS, ROWS[:, :2], verbose=0)
    copy = copied(original)
    for each in (original, copy):
        each.fit(ROWS, ROWS[:, :2], epochs=3, shuffle=False, verbose=0)
    assert_same(original, copy)


def test_an_optimizer_goes_on():
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([15], [0.1, 0.0])
    original = model(optimizer=keras.optimizers.Adam(rate, use_ema=True), loss="mse")
    original.fit(ROWS, ROWS[:, :2], epochs=14, verbose=0)
    copy = copied(original)
    assert int(copy.optimizer.iterations) == 14
    for each in (original, copy):
        each.fit(ROWS, ROWS[:, :2], epochs=4, shuffle=False, verbose=0)
    assert_same(original, copy)
    for variable, other in zip(original.optimizer.variables, copy.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy())


def test_an_optimizer_of_another_model_is_refused():
    other = model(optimizer="adam", loss="mse")
    other.fit(ROWS, ROWS[:, :2], verbose=0)
    with pytest.raises(ValueError, match="worker_optimizer must be new.*Received: Adam, built on"):
        copied(model(), optimizer=other.optimizer)


@pytest.mark.parametrize("option", [{"run_eagerly": True}, {"jit_compile": True}, {}])
def test_options_of_compile_travel(option):
    original = model(optimizer="sgd", loss="mse", **option)
    copy = copied(original)
    assert copy.run_eagerly == original.run_eagerly == option.get("run_eagerly", False)
    assert copy.jit_compile == original.jit_compile == option.get("jit_compile", False)


@pytest.mark.parametrize("scale", [True, False])
def test_loss_scaling_is_as_the_model_was_compiled(scale):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        original = model()
        original.compile("sgd", "mse", auto_scale_loss=scale)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    for each in (original, copied(original)):
        assert isinstance(each.optimizer, keras.optimizers.LossScaleOptimizer) == scale


@pytest.mark.parametrize(
    "metric",
    [
        own_metric,
        OwnMetric(name="m"),
        keras.metrics.MeanMetricWrapper(own_metric, name="m"),
        {"last": own_metric},
    ],
)
def test_own_metrics_need_no_names(metric):
    metrics = metric if isinstance(metric, dict) else [metric]
    copy = copied(model(optimizer="sgd", loss="mse", metrics=metrics))
    assert len(copy.evaluate(ROWS, ROWS[:, :2], verbose=0)) == 2
    hvdkeras.EASGD(model(optimizer="sgd", loss="mse", metrics=metrics), metrics=["mae"])


@pytest.mark.parametrize("scaled", [False, True])
def test_own_schedules_need_no_names(scaled):
    optimizer = keras.optimizers.Adam(OwnRate(0.5))
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    copy = copied(model(), optimizer=optimizer, loss="mse")
    assert float(copy.optimizer.learning_rate) == 0.5


def test_a_lambda_finds_its_globals():
    def named(x):
        return x + FACTOR

    original = model(keras.layers.Lambda(lambda x: FACTOR * x), keras.layers.Lambda(named))
    copy = copied(original, loss="mse")
    assert_same(original, copy)
    assert copy.built


def test_an_optimizer_given_by_name_takes_the_rate(caplog):
    def rate(optimizer, **arguments):
        trainer = hvdkeras.DOWNPOUR(model(), loss="mse", worker_optimizer=optimizer, **arguments)
        return float(checked_recipe(trainer, trainer)[1].optimizer.learning_rate)

    assert rate("sgd", learning_rate=0.05) == pytest.approx(0.05)
    assert rate("adam") == pytest.approx(0.001)
    assert rate(keras.optimizers.SGD(0.2)) == pytest.approx(0.2)
    assert caplog.text == ""
    assert rate(keras.optimizers.SGD(0.2), learning_rate=0.05) == pytest.approx(0.2)
    assert "rate of its own, 0.2" in caplog.text
    assert "Received: learning_rate=0.05" in caplog.text


def test_a_grid_over_the_rate_reaches_the_named_optimizer():
    trainer = hvdkeras.DOWNPOUR(model(), loss="mse", worker_optimizer="sgd")
    tuned = trainer.copy({trainer.getParam("learning_rate"): 0.25})
    assert float(tuned.recipe().build().optimizer.learning_rate) == 0.25


def pretrained() -> keras.Model:
    whole = keras.Input((1,), dtype="int32", name="number")
    features = keras.Input((3,), name="features")
    normalization, lookup = keras.layers.Normalization(), keras.layers.IntegerLookup(output_mode="one_hot")
    normalization.adapt(1000 + 50 * ROWS)
    lookup.adapt(np.array([[5], [7], [7]]))
    base = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)], name="base")
    base.layers[0].bias.assign([7.0] * 4)
    base.trainable = False
    joined = keras.layers.Concatenate()([base(normalization(features)), lookup(whole)])
    return keras.Model([features, whole], keras.layers.Dense(1)(joined))


def test_a_fresh_start_concerns_the_weights_that_train():
    original = pretrained()
    keras.utils.set_random_seed(5)
    first = copied(original, loss="mse", build={"fresh": True, "rank": 0})
    second = copied(original, loss="mse", build={"fresh": True, "rank": 1})
    for fresh in (first, second):
        for variable, other in zip(original.variables, fresh.variables, strict=True):
            equal = np.array_equal(variable.numpy(), other.numpy())
            assert equal == (not variable.trainable or variable.name == "bias")
        assert fresh.get_layer("integer_lookup").get_vocabulary() == [-1, 7, 5]
    assert not np.array_equal(first.layers[-1].kernel.numpy(), second.layers[-1].kernel.numpy())


def test_a_fresh_start_begins_with_a_new_optimizer():
    original = model(optimizer="adam", loss="mse")
    original.fit(ROWS, ROWS[:, :2], verbose=0)
    assert int(copied(original, build={"fresh": True}).optimizer.iterations) == 0


def test_what_no_step_changes_is_not_averaged():
    assert averaged_variables(pretrained()) == []
    original = model(keras.layers.BatchNormalization(), keras.layers.BatchNormalization(trainable=False))
    original.layers[-1].trainable = False
    assert averaged_variables(original) == original.layers[0].non_trainable_variables
    original.layers[-1].trainable = True
    original.layers[-1].enable_lora(1)
    assert averaged_variables(original) == original.layers[0].non_trainable_variables


class Teacher(keras.Model):
    """A step of its own may change frozen weights."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_step_of_ones_own_may_change_everything():
    inputs = keras.Input((3,))
    dense = keras.layers.Dense(2)
    original = Teacher(inputs, dense(inputs))
    dense.trainable = False
    assert averaged_variables(original) == dense.variables


def test_seeds_of_random_layers_differ_by_rank():
    original = model(
        keras.layers.Dropout(0.5, seed=1), keras.layers.Dropout(0.5), optimizer="sgd", loss="mse"
    )
    original(ROWS, training=True)
    states = []
    for rank in (None, 0, 1):
        keras.utils.set_random_seed(17)
        copy = copied(original, build={"rank": rank})
        states.append([v.numpy().tolist() for v in copy.variables if v.name == "seed_generator_state"])
    exact, first, second = states
    assert exact == [v.numpy().tolist() for v in original.variables if v.name == "seed_generator_state"]
    assert first[0] == [1, 1]
    assert second[0] == [1 + SEED_STRIDE, 1]
    # Without a seed of its own it has Keras's, which ranks set.
    assert first[1] == second[1] != exact[1]


class TwoRates(keras.Model):
    """Its own `compile` makes a second optimizer."""

    def compile(self, optimizer, loss, **arguments):
        super().compile(optimizer=optimizer, loss=loss, **arguments)
        self.second = [keras.optimizers.Adam(0.5)]


class Configured(keras.Model):
    """Follows Keras's protocol for classes that compile themselves."""

    def compile(self, left, right):
        super().compile(optimizer=left, loss="mse")
        self.right = right

    def get_compile_config(self):
        return {"left": self.optimizer, "right": self.right}

    def compile_from_config(self, config):
        self.compile(**{name: keras.saving.deserialize_keras_object(value) for name, value in config.items()})


@pytest.mark.parametrize("kind", [TwoRates, Configured])
def test_every_optimizer_of_a_model_travels(kind):
    inputs = keras.Input((3,))
    original = kind(inputs, keras.layers.Dense(2)(inputs))
    if kind is TwoRates:
        original.compile("sgd", loss="mse")
    else:
        original.compile(keras.optimizers.SGD(0.25), keras.optimizers.Adam(0.5))
    optimizers_of(original)[1].build(original.trainable_variables)
    optimizers_of(original)[1].iterations.assign(3)
    copy = copied(original, custom_objects={kind.__name__: kind}, build={"steps_per_execution": 2})
    assert [type(each).__name__ for each in optimizers_of(copy)] == ["SGD", "Adam"]
    assert int(optimizers_of(copy)[1].iterations) == 3
    assert copy.steps_per_execution == 2
    if kind is Configured:
        with pytest.raises(ValueError, match="worker_optimizer, loss must be left out .* Configured"):
            copied(original, optimizer="adam", loss="mae", custom_objects={"Configured": Configured})


def test_the_states_of_all_optimizers_come_back():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(2)(keras.layers.Dropout(0.5, seed=1)(inputs))
    original = TwoRates(inputs, keras.layers.Dense(2)(hidden))
    original.compile("sgd", loss="mse")
    trained, returned = (copied(original, custom_objects={"TwoRates": TwoRates}) for _ in range(2))
    # The second one trains the last layer alone, and is built when a step first applies it.
    second = optimizers_of(trained)[1]
    second.apply([np.ones((2, 2)), np.ones(2)], trained.layers[-1].trainable_variables)
    trained.train_on_batch(ROWS, ROWS[:, :2])
    pickle.loads(pickle.dumps(Rest.of(trained))).give(returned)
    for optimizer, other in zip(optimizers_of(trained), optimizers_of(returned), strict=True):
        assert optimizer.built
        assert other.built
        assert int(optimizer.iterations) == int(other.iterations) == 1
        for one, two in zip(optimizer.variables, other.variables, strict=True):
            np.testing.assert_array_equal(np.array(one.value), np.array(two.value))
    assert np.array_equal(*(each.layers[1].seed_generator.state.value for each in (trained, returned)))


class Forgetful(keras.layers.Layer):
    """Its configuration leaves an argument out."""

    def __init__(self, width=2, **arguments):
        super().__init__(**arguments)
        self.width = width

    def build(self, shape):
        self.scale = self.add_weight(shape=(self.width,), name="scale")

    def call(self, inputs):
        return inputs * keras.ops.sum(self.scale)

    def get_config(self):
        return super().get_config()


class Fading(keras.optimizers.SGD):
    """Each copy has half the momentum."""

    def __init__(self, momentum=0.5, **arguments):
        super().__init__(momentum=momentum / 2, **arguments)


def test_what_differs_is_named():
    custom = {"Forgetful": Forgetful}
    with pytest.raises(ValueError, match="must survive saving and loading .*forgetful"):
        copied(model(Forgetful(width=5, name="forgetful")), loss="mse", custom_objects=custom)
    with pytest.raises(ValueError, match="of which these differ: the optimizer's configuration"):
        copied(model(), optimizer=Fading(), loss="mse")


def layered(activation="relu", units=8, **dropout) -> bytes:
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(units, activation)(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.Dropout(**{"rate": 0.5, **dropout})(hidden))
    return model_to_bytes(keras.Model(inputs, outputs))


def test_a_comparison_makes_no_copies_of_its_own():
    model = keras.Sequential([keras.Input((500,)), keras.layers.Dense(500)])
    recipe = Recipe.with_copy(model, "sgd", loss="mse")[0]
    copy = recipe.build()
    tracemalloc.start()
    try:
        recipe.compare(model, copy)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # One byte for each number says whether it is the same.
    numbers = 500 * 500
    assert numbers < most < 1.5 * numbers


def test_the_structure_of_a_model_has_none_of_its_names():
    first, again = structure(layered()), structure(layered())  # dense, dense_1; dense_2, dense_3
    assert list(structural_differences(first, again)) == []


def test_what_differs_in_a_structure_is_named():
    [line] = structural_differences(structure(layered("tanh")), structure(layered("relu")))
    assert line == "model.config.layers[1].config.activation is 'tanh' instead of 'relu'"
    [line] = structural_differences(structure(layered(rate=0.1)), structure(layered()))
    assert line == "model.config.layers[2].config.rate is 0.1 instead of 0.5"
    deeper = structure(model_to_bytes(keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])))
    wider = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)])
    [line] = structural_differences(deeper, structure(model_to_bytes(wider)))
    assert line == "model.config.layers has 2 entries instead of 3"
