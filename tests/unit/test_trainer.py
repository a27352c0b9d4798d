"""The arguments that all trainers share, and the checks that need no launch."""

import inspect
import pickle
import subprocess
import sys

import cloudpickle
import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.driver.checks import check_compilation, check_window

DATA = {"features": np.zeros((8, 3), np.float32), "label": np.zeros(8, np.float32)}


def model(**compiled) -> keras.Model:
    result = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    if compiled:
        result.compile(**compiled)
    return result


@keras.saving.register_keras_serializable("tests")
class Registered(keras.layers.Dense):
    pass


class Unknown(keras.layers.Dense):
    pass


@pytest.mark.parametrize("name", ["num_workers", "batch_size", "num_epoch", "communication_window"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_counts_must_be_positive_integers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer. Received: {value!r}"):
        hvdkeras.EASGD(model(), **{name: value})


@pytest.mark.parametrize("name", ["rho", "learning_rate", "timeout"])
@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), "fast"])
def test_rates_must_be_positive_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        hvdkeras.EASGD(model(), **{name: value})


def test_easgd_that_oscillates_is_refused():
    trainer = hvdkeras.EASGD(model(), loss="mse", num_workers=4, rho=3.0, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"at most 1.*Received: 4 \* 3.0 \* 0.1 = 1.2"):
        trainer.train(DATA)


def test_asynchronous_easgd_that_overshoots_is_refused():
    trainer = hvdkeras.AEASGD(model(), loss="mse", num_workers=4, rho=11.0, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"overshoots.*Received: 11.0 \* 0.1 = 1.1"):
        trainer.train(DATA)


@pytest.mark.parametrize(("window", "workers", "warned"), [(16, 2, True), (15, 2, False), (16, 1, False)])
def test_downpour_warns_of_windows_at_which_its_paper_saw_divergence(caplog, window, workers, warned):
    trainer = hvdkeras.DOWNPOUR(model(), loss="mse", communication_window=window)
    trainer.check(workers)
    assert ("Received: 16" in caplog.text) == warned
    assert ("1412.6651" in caplog.text) == warned


def test_a_window_longer_than_an_epoch_is_warned_of(caplog):
    trainer = hvdkeras.EASGD(model(), loss="mse", communication_window=5)
    check_window(trainer, steps=5)
    assert caplog.text == ""
    check_window(trainer, steps=4)
    assert "at most the 4 batches of an epoch" in caplog.text


@pytest.mark.parametrize(
    ("kind", "compiled", "sparse", "warned"),
    [
        (hvdkeras.SynchronousSGD, {"jit_compile": True}, False, "SynchronousSGD sums gradients by MPI"),
        (hvdkeras.EASGD, {"jit_compile": True}, True, "XLA has no sparse tensors"),
        (hvdkeras.EASGD, {"jit_compile": True}, False, None),
        (hvdkeras.SynchronousSGD, {}, True, None),
    ],
)
def test_a_training_without_the_xla_that_was_asked_for_is_warned_of(caplog, kind, compiled, sparse, warned):
    compiled_model = model(loss="mse", **compiled)
    check_compilation(compiled_model, kind(compiled_model), sparse)
    assert bool(caplog.records) == bool(warned)
    assert (warned or "") in caplog.text


def test_momentum_workers_take_no_other_optimizer():
    with pytest.raises(ValueError, match="worker_optimizer must be left out.*'adam'"):
        hvdkeras.EAMSGD(model(), worker_optimizer="adam")
    with pytest.raises(ValueError, match="momentum must lie between 0 and 1. Received: 1"):
        hvdkeras.EAMSGD(model(), momentum=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse", "worker_optimizer": "sdg"}, "sdg"),
        ({"loss": "mse", "metrics": ["acuracy"]}, "acuracy"),
        ({"loss": "mean_square"}, "mean_square"),
    ],
)
def test_names_that_keras_does_not_know_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hvdkeras.EASGD(model(), **arguments).train(DATA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features_col": {"image": "features"}}, "features_col must name one column.*Received: {'image'"),
        ({"sample_weight_col": ["v", "w"]}, "sample_weight_col must name one column.*Received"),
        ({"class_weight": {2: 1.0}}, r"class_weight must be a dict of class numbers from 0 to 1 .*{2: 1.0}"),
        ({"class_weight": {0: 2.0}, "sample_weight_col": "w"}, "class_weight needs .* no sample_weight_col"),
    ],
)
def test_columns_and_weights_that_do_not_fit_the_model_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hvdkeras.EASGD(model(), loss="binary_crossentropy", **arguments).train(DATA)


def test_a_column_of_weights_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="column 'w' is not in the data"):
        hvdkeras.EASGD(model(), loss="mse", rho=0.1, sample_weight_col="w").train(DATA)


@pytest.mark.parametrize("decode", [len, {"image": len}, {"features": "len"}])
def test_decode_needs_functions_by_column(decode):
    with pytest.raises(ValueError, match=r"decode must be a dict of functions .*features, label. Rec"):
        hvdkeras.EASGD(model(), decode=decode)


def test_what_decode_does_not_fit_is_refused_before_a_launch():
    def train(features, function=lambda data: np.frombuffer(data, np.uint8)):
        trainer = hvdkeras.EASGD(model(), loss="mse", decode={"features": function})
        trainer.train({**DATA, "features": features})

    with pytest.raises(ValueError, match=r"'features' must be a list or a NumPy array of objects, bytes"):
        train(DATA["features"])
    with pytest.raises(ValueError, match=r"'features' must be decoded .*\(3,\), .*Received: shape \(2,\)"):
        train([b"\0\1"] * 8)
    with pytest.raises(ValueError, match="'features' can't be decoded in row 0 .*: TypeError"):
        train([b"\0\1\2"] * 8, abs)


def test_own_layers_travel_registered_or_not():
    trainer = hvdkeras.EASGD(keras.Sequential([keras.Input((3,)), Unknown(1)]), loss="mse")
    recipe = pickle.loads(cloudpickle.dumps(trainer.recipe()))
    assert isinstance(recipe.build().layers[0], Unknown)


def test_registered_layers_travel_with_the_trainer():
    trainer = hvdkeras.EASGD(keras.Sequential([keras.Input((3,)), Registered(1)]), loss="mse")
    recipe = pickle.loads(cloudpickle.dumps(trainer.recipe()))
    assert isinstance(recipe.build().layers[0], Registered)


def test_what_the_model_was_compiled_with_is_the_default():
    trainer = hvdkeras.EASGD(model(optimizer=keras.optimizers.Adam(0.5), loss="mae", metrics=["mse"]))
    copy = pickle.loads(cloudpickle.dumps(trainer.recipe())).build()
    assert isinstance(copy.optimizer, keras.optimizers.Adam)
    assert float(copy.optimizer.learning_rate) == 0.5
    assert copy.loss == "mae"


def test_default_optimizer_is_sgd_at_the_learning_rate():
    copy = hvdkeras.EASGD(model(), loss="mse", learning_rate=0.25).recipe().build()
    assert isinstance(copy.optimizer, keras.optimizers.SGD)
    assert float(copy.optimizer.learning_rate) == 0.25


def test_what_travels_to_ranks_is_small_and_has_the_weights():
    original = model()
    trainer = hvdkeras.SingleTrainer(original, loss="mse")
    sent = cloudpickle.dumps((trainer.algorithm(), trainer.recipe()))
    _, recipe = pickle.loads(sent)
    np.testing.assert_array_equal(recipe.build().get_weights()[0], original.get_weights()[0])
    assert len(sent) < 40_000


@pytest.mark.parametrize("data", [3, None, [1, 2]])
def test_unknown_data_is_refused(data):
    with pytest.raises(ValueError, match="data must be a Spark or pandas DataFrame.*Received"):
        hvdkeras.SingleTrainer(model(), loss="mse").train(data)


def test_fewer_rows_than_ranks_are_refused():
    with pytest.raises(ValueError, match="9.*8|8.*9"):
        hvdkeras.EASGD(model(), loss="mse", num_workers=9, rho=0.1).train(DATA)


def test_importing_the_package_loads_nothing_heavy():
    code = "import hvdkeras, sys; print({'tensorflow', 'keras', 'mpi4py', 'horovod'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()"


@pytest.mark.parametrize("scaled", [False, True])
def test_a_rate_that_follows_a_schedule_can_not_warm_up(scaled):
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9))
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    trainer = hvdkeras.SynchronousSGD(model(), loss="mse", worker_optimizer=optimizer, warmup_epochs=2)
    with pytest.raises(ValueError, match="need an optimizer whose learning rate is a number. Received"):
        trainer.train(DATA)


class Misdeclared(hvdkeras.Trainer):
    mode = True


class WithoutARule(hvdkeras.Trainer):
    mode = hvdkeras.Mode.SYNCHRONOUS


class RuleWithoutAMode(hvdkeras.Trainer):
    def exchange(self, local, center, state, steps):
        return local, state


class SlotsWithoutACenter(hvdkeras.EASGD):
    center_slots = 1


class SettlesSometimes(hvdkeras.DOWNPOUR):
    settles = "sometimes"


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (SettlesSometimes, "SettlesSometimes.settles must be True or False. Received: 'sometimes'"),
        (Misdeclared, "Misdeclared.mode must be one of Mode.INDEPENDENT, .*Received: True"),
        (WithoutARule, "WithoutARule must define exchange. Received: mode=Mode.SYNCHRONOUS"),
        (RuleWithoutAMode, "RuleWithoutAMode must not define exchange, or set another mode"),
        (SlotsWithoutACenter, "center_slots must be 0: only an asynchronous center has slots"),
    ],
)
def test_an_authors_mistakes_are_found_on_the_driver(algorithm, message):
    with pytest.raises(TypeError, match=message):
        algorithm(model(), loss="mse").train(DATA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 3}, "EASGD has no argument 'epochs'; here it is called 'num_epoch'"),
        ({"optimizer": "adam"}, "EASGD has no argument 'optimizer'; here it is called 'worker_optimizer'"),
        ({"comunication_window": 3}, "Did you mean 'communication_window'"),
        ({"xyz": 3}, "EASGD has no argument 'xyz'. It has keras_model, "),
    ],
)
def test_an_unknown_argument_names_the_nearest_ones(arguments, message):
    with pytest.raises(TypeError, match=message):
        hvdkeras.EASGD(model(), **arguments)


class Momentum(hvdkeras.EASGD):
    """As an author writes it who wants arguments of his own."""

    def __init__(self, keras_model, *, friction=0.5, **arguments):
        super().__init__(keras_model, **arguments)
        self.friction = friction


def test_a_class_with_arguments_of_its_own_lists_them():
    parameters = inspect.signature(Momentum).parameters
    assert next(iter(parameters)) == "keras_model"
    assert {"friction", "rho", "num_epoch"} <= set(parameters)
    with pytest.raises(TypeError, match="Momentum has no argument 'fricton'. Did you mean 'friction'"):
        Momentum(model(), fricton=1)
    assert Momentum(model(), friction=0.1, rho=2).algorithm().friction == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": "x"}, "seed must be an integer from 0. Received: 'x'"),
        ({"verbose": "loud"}, "verbose must be 0, 1 or 2. Received: 'loud'"),
        ({"tensorboard": 3}, "tensorboard must be a path or URL. Received: 3"),
        ({"stop_at": ["val_loss"]}, r"stop_at must be a dict of numbers by metric. Received: \['val_loss'\]"),
        (
            {"stop_at": {"val_loss": "low"}},
            "stop_at must map metrics to numbers. Received: 'val_loss': 'low'",
        ),
        ({"custom_objects": [1]}, "custom_objects must be a dict by name"),
        ({"features_col": 3}, "features_col must be a column's name"),
        ({"store": 3}, "store must be a path or URL. Received: 3"),
        ({"callbacks": [3]}, "callbacks must hold Keras callbacks. Received: 3"),
        ({"validation_split": 1.5}, "validation_split must lie between 0 and 1. Received: 1.5"),
        ({"validation_split": "a"}, "validation_split must lie between 0 and 1. Received: 'a'"),
        ({"max_restarts": -1}, "max_restarts must be an integer from 0. Received: -1"),
        ({"launch_options": {"start_timout": 3}}, "no option 'start_timout'. Did you mean 'start_timeout'"),
        ({"launch_options": {"start_timeout": -3}}, "start_timeout must be a positive number .*-3"),
    ],
)
def test_every_value_is_checked_when_a_trainer_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        hvdkeras.EASGD(model(), **arguments)


def test_a_value_that_is_set_later_is_checked_too():
    trainer = hvdkeras.EASGD(model(), loss="mse")
    with pytest.raises(ValueError, match="rho must be a positive number. Received: 0"):
        trainer.rho = 0


def test_the_rule_travels_without_what_the_user_brought():
    algorithm = hvdkeras.EASGD(
        model(), loss="mse", rho=2.0, callbacks=[keras.callbacks.Callback()]
    ).algorithm()
    assert algorithm.alpha == 0.02
    assert not {"keras_model", "callbacks", "custom_objects", "history"} & set(vars(algorithm))


def test_stages_and_the_local_center_are_importable_from_the_package():
    from hvdkeras import AccuracyEvaluator, LabelIndexTransformer, LocalCenter, ModelPredictor

    assert ModelPredictor.__module__ == "hvdkeras.predictors"
    assert LabelIndexTransformer.__module__ == "hvdkeras.transformers"
    assert AccuracyEvaluator.__module__ == "hvdkeras.evaluators"
    assert LocalCenter.__module__ == "hvdkeras.center.local"
