"""The simulator against arithmetic by hand, closed forms and Keras."""

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras.arguments import declared_arguments
from hvdkeras.data.share import Share
from hvdkeras.simulation import Failures, Quadratic, Times, measuring, simulate
from hvdkeras.simulation.centers import SynchronousCenter
from hvdkeras.simulation.dense import DenseModel


class Targets:
    """Every worker has a loss of its own, `(x - target) ** 2 / 2`."""

    def __init__(self, targets, start=1.0, steps=2):
        self._targets = np.array(targets, np.float32)[:, np.newaxis]
        self.initial, self.steps = np.array([start], np.float32), steps

    def rows(self, workers, steps):
        return np.ones(len(workers), np.int64)

    def gradients(self, weights, workers, epochs, steps):
        return weights - self._targets[workers]

    def evaluate(self, weights):
        return {"x": float(weights[0])}


def trainer(kind, rate=0.5, **arguments):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    kind = getattr(hvdkeras, kind) if isinstance(kind, str) else kind
    if kind.mode.has_center:
        arguments.setdefault("communication_window", 1)
    return kind(model, loss="mse", learning_rate=rate, **arguments)


def path(result):
    return [round(each.metrics["x"], 6) for each in result.evaluations]


# Two workers with the targets 0 and 4 start from 1, so that their first steps of 0.5 lead to 0.5 and 2.5.
BY_HAND = {
    # Its center is evaluated after a window of two steps.
    "SynchronousSGD": ({}, [1, 1.75]),
    "AveragingTrainer": ({}, [1, 1.5, 1.75]),
    # Mean gradient -0.5: velocity -0.5, step 0.5 * 0.75. Then -0.3125: velocity -0.5625, step 0.5 * 0.59375.
    "DiLoCo": ({"outer_learning_rate": 0.5, "outer_momentum": 0.5}, [1, 1.375, 1.671875]),
    # alpha = 0.25: differences -0.125 and 0.375, then of 0.3125 and 3.0625 from 1.25.
    "EASGD": ({"rho": 0.5}, [1, 1.25, 1.46875]),
    # One after the other: 1 - 0.125, then + 0.25 * (2.5 - 0.875).
    "AsynchronousEASGD": ({"rho": 0.5}, [1, 0.875, 1.28125]),
    # Updates -0.5 and 1.5.
    "DOWNPOUR": ({}, [1, 0.5, 2]),
    # The second update met one other: 1.5 / 2.
    "DynSGD": ({}, [1, 0.5, 1.25]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_two_workers_by_hand(name):
    arguments, expected = BY_HAND[name]
    result = simulate(
        trainer(name, **arguments), Targets([0, 4]), 2, Times(step=1, exchange=0.25), evaluations=4
    )
    assert path(result)[:3] == pytest.approx(expected)


@pytest.mark.parametrize(
    "name", ["SingleTrainer", "SynchronousSGD", "AveragingTrainer", "DOWNPOUR", "ADAG", "DynSGD"]
)
def test_one_worker_is_plain_sgd(name):
    problem = Quadratic([0.5, 2.0], [3, -1], noise=0.1, steps=40)
    result = simulate(trainer(name, rate=0.1, num_epoch=2), problem, 1, Times(step=1))
    weights, one = problem.initial[np.newaxis].copy(), np.zeros(1, int)
    for epoch in range(2):
        for step in range(40):
            weights -= np.float32(0.1) * problem.gradients(weights, one, one + epoch, one + step)
    if not getattr(hvdkeras, name).mode.has_center:
        assert result.weights.tolist() == weights[0].tolist()
    # Through a center the weights are center + (local - center), which rounds.
    np.testing.assert_allclose(result.weights, weights[0], rtol=1e-5, atol=1e-6)
    assert result.rows == 80


@pytest.mark.parametrize("steps", [1, 4])
def test_the_center_saturates_at_the_knee(steps):
    times = Times(step=0.05 / steps, exchange=0.008, latency=0.001)
    knee = times.knee(steps, size=1)
    assert knee == pytest.approx((0.05 + 0.002 + 0.008) / 0.008)
    problem = Quadratic([1.0], steps=40 * steps)

    def rate(workers):
        result = simulate(
            trainer("AsynchronousEASGD", rate=0.01, communication_window=steps), problem, workers, times
        )
        return result.exchanges.sum() / result.seconds, result.utilization

    alone, below, above = rate(1), rate(int(0.8 * knee)), rate(int(3 * knee))
    assert above[0] / alone[0] == pytest.approx(knee, rel=0.1)
    assert below[0] / alone[0] == pytest.approx(int(0.8 * knee), rel=0.1)
    assert (above[1] > 0.95, below[1] < 0.85) == (True, True)


@pytest.mark.parametrize("workers", [2, 8])
def test_asynchrony_begets_momentum(workers):
    """W workers whose steps take exponential times act as a momentum of 1 - 1 / W, with steps of rate / W
    (Mitliagkas et al. 2016)."""
    rate, length, runs = 0.2, 25, 150
    problem, times = Targets([0] * workers, steps=40), Times(step=1, spread=1)
    algorithm = trainer("DOWNPOUR", rate=rate)
    paths = []
    for seed in range(runs):
        result = simulate(algorithm, problem, workers, times, evaluations=1000, seed=seed, seconds=40)
        paths.append(path(result)[:length])
    mean, error = np.mean(paths, axis=0), np.std(paths, axis=0) / np.sqrt(runs)
    # The first update is a whole step: all workers have read the first weights.
    predicted, velocity = [1.0], -rate
    for _ in range(length - 1):
        velocity = (1 - 1 / workers) * velocity - rate / workers * predicted[-1]
        predicted.append(predicted[-1] + velocity)
    assert (np.abs(mean - predicted) <= 4 * error + 1e-6).all()
    # Least squares on the mean path find the momentum.
    steps = np.diff(mean)
    momentum, step = np.linalg.lstsq(np.stack([steps[:-1], mean[1:-1]], axis=1), steps[1:], rcond=None)[0]
    assert momentum == pytest.approx(1 - 1 / workers, abs=0.05)
    assert step == pytest.approx(-rate / workers, abs=0.02)


class Unbounded(hvdkeras.AsynchronousEASGD):
    """EASGD beyond the bound that its check refuses."""

    def check(self, num_workers):
        pass


def round_robin(workers, rate, alpha):
    """One round on the loss `x ** 2 / 2`, as a map of the workers' weights and the center."""
    result = np.eye(workers + 1)
    for worker in range(workers):
        step = np.eye(workers + 1)
        step[worker] = step[-1] = 0
        step[worker, [worker, -1]] = (1 - alpha) * (1 - rate), alpha
        step[-1, [worker, -1]] = alpha * (1 - rate), 1 - alpha
        result = step @ result
    return result


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize(("rate", "alpha"), [(0.5, 0.9), (0.5, 1.15), (0.5, 1.25), (1.5, 0.1), (2.5, 0.1)])
def test_easgd_in_round_robin_grows_by_the_eigenvalues_of_its_map(workers, rate, alpha):
    """The setting of Zhang et al. 2015, section 3."""
    rounds = 60
    radius = np.abs(np.linalg.eigvals(round_robin(workers, rate, alpha))).max()
    algorithm = trainer(Unbounded, rate=rate, rho=alpha / rate)
    result = simulate(algorithm, Targets([0] * workers, steps=rounds), workers, Times(step=1))
    expected = np.linalg.matrix_power(round_robin(workers, rate, alpha), rounds) @ np.ones(workers + 1)
    assert result.weights[0] == pytest.approx(expected[-1], rel=1e-3, abs=1e-12)
    assert (abs(result.weights[0]) > 1) == (radius > 1)
    if rate < 1:
        # Then the maps are similar to symmetric ones, so that the bound of one worker holds for all numbers.
        assert (radius <= 1) == (alpha <= (4 - 2 * rate) / (4 - 3 * rate))


LOG = []


class Logged(hvdkeras.DOWNPOUR):
    def exchange(self, local, center, state, steps):
        LOG.append((id(center), center.staleness()))
        return super().exchange(local, center, state, steps)


def test_staleness_is_the_pushes_of_others_since_the_own_exchange():
    LOG.clear()
    times = Times(step=1, exchange=0.1, spread=0.5, slow={2: 3.0})
    result = simulate(trainer(Logged, rate=0.01), Quadratic([1.0], steps=30), 5, times)
    names = [name for name, _ in LOG]
    for at, (name, staleness) in enumerate(LOG):
        before = [number for number in range(at) if names[number] == name]
        assert staleness == at - (before[-1] + 1 if before else 0)
    by_worker = {name: [each for key, each in LOG if key == name] for name in names}
    assert sorted(np.mean(each) for each in by_worker.values()) == pytest.approx(
        sorted(result.staleness_mean)
    )
    assert max(map(max, by_worker.values())) == result.staleness_max.max()
    assert result.staleness_mean.argmax() == 2


def test_only_workers_that_wait_are_slowed_down():
    times, problem = Times(step=1, slow={0: 4.0}), Quadratic([1.0], steps=10)
    together = simulate(trainer("EASGD", rate=0.01), problem, 4, times)
    # They wait for the reduction before, so not in their first window, and only 2 s in the second.
    assert (together.seconds, together.waiting.tolist()) == (40, [0, 26, 26, 26])
    apart = simulate(trainer("AsynchronousEASGD", rate=0.01), problem, 4, times, seconds=10)
    assert apart.exchanges.tolist() == [2, 10, 10, 10]


def test_a_reduction_runs_beside_the_next_window_unless_its_result_is_needed():
    times, problem = Times(step=1, exchange=0.25), Quadratic([1.0], steps=10)
    assert simulate(trainer("EASGD", rate=0.01), problem, 4, times).seconds == 10.25
    assert simulate(trainer("AveragingTrainer"), problem, 4, times).seconds == 12.5
    assert simulate(trainer("SynchronousSGD"), problem, 4, times).seconds == 12.5


def test_goodput_where_workers_die():
    problem, algorithm = Quadratic([1.0, 0.1], noise=0.1, steps=1500), trainer("AsynchronousEASGD", rate=0.01)
    failures = Failures(mean_seconds=200, restart=3, checkpoint=10)
    results = [
        simulate(algorithm, problem, 4, Times(1, spread=0.2), failures=each) for each in (failures, None)
    ]
    assert results[0].failures > 20
    assert results[0].goodput == pytest.approx(failures.goodput(4), rel=0.1)
    assert results[0].seconds * results[0].goodput == pytest.approx(results[1].seconds)
    # What was lost was trained again.
    assert results[0].weights.tolist() == results[1].weights.tolist()
    assert results[0].rows == results[1].rows == 6000


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "categorical_crossentropy", "mse"])
def test_gradients_are_those_of_keras(loss):
    import tensorflow as tf

    random = np.random.default_rng(0)
    last = "tanh" if loss == "mse" else "softmax"
    hidden = [keras.layers.Dense(5, "relu"), keras.layers.Dense(4, "sigmoid", use_bias=False)]
    layers = [keras.Input((2, 3)), keras.layers.Flatten(), *hidden, keras.layers.Dense(3, last)]
    model = keras.Sequential(layers)
    classes = random.integers(0, 3, 23)
    data = {"features": random.normal(size=(23, 2, 3)).astype("float32")}
    data["label"] = classes if loss.startswith("sparse") else np.eye(3, dtype="float32")[classes]
    used = hvdkeras.EASGD(model, loss=loss, batch_size=4, metrics=["accuracy"])
    problem = DenseModel(used, data, num_workers=3)
    weights = np.stack([problem.initial] * 3)
    weights += random.normal(size=weights.shape).astype("float32") / 4
    model.compile(loss=loss, metrics=["accuracy"])
    for step in range(problem.steps):
        place = np.arange(3), np.full(3, 1), np.full(3, step)
        for worker, gradient in enumerate(problem.gradients(weights, *place)):
            share = Share(23, worker, 3, 4, 0, False)
            cut = slice(*share.cuts(step, step + 1))
            rows = share.order(1)[cut] + share.start
            hvdkeras.models.vector.assign(model.trainable_variables, weights[worker])
            with tf.GradientTape() as tape:
                outputs = model(data["features"][rows])
                value = tf.reduce_mean(keras.losses.get(loss)(data["label"][rows], outputs))
            parts = tape.gradient(value, [variable.value for variable in model.trainable_variables])
            expected = np.concatenate([np.ravel(part) for part in parts])
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    found = problem.evaluate(weights[2])
    expected = model.evaluate(data["features"], data["label"], verbose=0, return_dict=True)
    assert {name: expected[name] for name in found} == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_optimizer_is_kerass(nesterov):
    problem = Quadratic([0.5, 2.0], [3, -1], steps=20)
    rule = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    result = simulate(trainer("SingleTrainer", worker_optimizer=rule), problem, 1, Times(step=1))
    variable = keras.Variable(problem.initial)
    rule = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(20):
        rule.apply([variable.value * np.array([0.5, 2.0], np.float32)], [variable])
    np.testing.assert_allclose(result.weights, variable.numpy(), rtol=1e-5)


def test_workers_must_exchange_equally_often():
    center = SynchronousCenter(np.zeros(2, np.float32), 2)
    ones = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"as often as the others. Received: \[0, 1\] pushes"):
        center.together([lambda each: each.push(ones), lambda each: each.pull()])
    center = SynchronousCenter(np.zeros(2, np.float32), 2)

    def twice(each):
        each.push(ones)
        each.push(each.pull())
        return each.pull().tolist()

    assert center.together([twice, twice]) == ([[6, 6], [6, 6]], [True, True], 2)


def convolution():
    layers = [keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((5, 5, 1)), *layers])


def regular():
    layer = keras.layers.Dense(1, kernel_regularizer="l2", name="regular")
    return keras.Sequential([keras.Input((5,)), layer])


QUADRATIC, TIMES = Quadratic([1.0]), Times(step=1)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("step must be a positive number. Received: 0", lambda: Times(step=0)),
        ("restart must be a number from 0. Received: -1", lambda: Failures(1, -1, 1)),
        ("num_workers must be a positive", lambda: simulate(trainer("EASGD"), QUADRATIC, 0, TIMES)),
        ("ranks never exchange", lambda: simulate(trainer("EnsembleTrainer"), QUADRATIC, 2, TIMES)),
        (
            "from 0 to 1. Received: 2",
            lambda: simulate(trainer("DOWNPOUR"), QUADRATIC, 2, Times(1, slow={2: 2})),
        ),
        ("must be at most 1", lambda: simulate(trainer("EASGD"), QUADRATIC, 200, TIMES)),
        (
            "worker_optimizer must be SGD. Received: Adam",
            lambda: simulate(trainer("DOWNPOUR", worker_optimizer="adam"), QUADRATIC, 2, TIMES),
        ),
        ("data must be arrays by column name", lambda: simulate(trainer("DOWNPOUR"), "folder", 2, TIMES)),
        (
            "must let 4 workers reach the next checkpoint",
            lambda: simulate(trainer("DOWNPOUR"), QUADRATIC, 4, TIMES, failures=Failures(1, 0, 50)),
        ),
        (
            "stop_at must be left out",
            lambda: simulate(trainer("DOWNPOUR", stop_at={"loss": 1}), QUADRATIC, 2, TIMES),
        ),
        (
            "validation_indicator_col must be left out: it is not simulated. Received: 'held'",
            lambda: simulate(trainer("DOWNPOUR", validation_indicator_col="held"), QUADRATIC, 2, TIMES),
        ),
        (
            "resume must be left out: it is not simulated. Received: True",
            lambda: simulate(trainer("DOWNPOUR", checkpoint="folder", resume=True), QUADRATIC, 2, TIMES),
        ),
        (
            "Received: 'regular' of float32 with kernel_regularizer",
            lambda: simulate(hvdkeras.DOWNPOUR(regular(), loss="mse"), {"features": []}, 2, TIMES),
        ),
        (
            "only Dense and Flatten layers",
            lambda: simulate(hvdkeras.DOWNPOUR(convolution(), loss="mse"), {"features": []}, 2, TIMES),
        ),
    ],
)
def test_what_is_not_simulated_is_refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_trainer_s_shuffle_is_simulated():
    rows = {"features": np.linspace(-1, 1, 24), "label": np.linspace(3, 0, 24)}

    def found(ours, **argument):
        keras.utils.set_random_seed(0)
        one = trainer("EASGD", rho=0.5, batch_size=2, num_epoch=2, shuffle=ours)
        return path_of(simulate(one, rows, 3, Times(step=1), **argument))

    assert found(True) == found(False, shuffle=True)
    assert found(False) == found(True, shuffle=False)
    assert found(True) != found(False)


def path_of(result):
    return [each.metrics["loss"] for each in result.evaluations]


def test_what_is_measured_only_trains(tmp_path):
    folder = tmp_path / "made"
    one = trainer(
        "EASGD",
        checkpoint=folder,
        resume=True,
        checkpoint_minutes=1,
        max_restarts=2,
        timeline=folder,
        tensorboard=folder,
        validation_split=0.2,
        stop_at={"val_loss": 1.0},
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    bare = measuring._bare(one)
    bare.check_together()
    given = {name for name in declared_arguments(type(one)) if bare.is_given(name)}
    assert given == {"loss", "learning_rate", "communication_window"}
    assert one.resume
