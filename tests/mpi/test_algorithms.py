"""Every algorithm on real ranks against a NumPy recursion of its equations, on a linear model."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hvdkeras.data.columns import Column
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import write_arrays
from hvdkeras.trainers.downpour import adagrad

from batching import batches_of

pytestmark = pytest.mark.mpi

ROWS, BATCH_SIZE, EPOCHS, WINDOW, RATE = 61, 4, 3, 3, 0.05
START = np.array([0.5, -0.25, 1.0], np.float32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, 3)).astype("float32")
    labels = (features @ np.array([1.0, 2.0, -1.0]) + 0.1 * random.normal(size=ROWS)).astype("float32")
    columns = [Column("features", (3,), "float32"), Column("label", (1,), "float32")]
    return write_arrays(
        {"features": features, "label": labels}, columns, str(tmp_path_factory.mktemp("store"))
    )


def train(algorithm: str, arguments: dict, shards: Shards) -> tuple[np.ndarray, dict]:
    """What a rank of the job runs: trains a linear model without bias, returns its weights."""
    import keras

    import hvdkeras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([START[:, None]])
    trainer = getattr(hvdkeras, algorithm)(
        model, loss="mse", batch_size=BATCH_SIZE, num_epoch=EPOCHS, learning_rate=RATE, verbose=0, **arguments
    )
    trained = trainer.train(shards)
    return trained.get_weights()[0].ravel(), trainer.history.to_dict()


def windows(shards: Shards, rank: int, size: int, window: int) -> Iterator[list]:
    """The batches of a rank, in lists of a window; an epoch's last window may be shorter."""
    rows = Rows(shards, rank, size, BATCH_SIZE, seed=0)
    for epoch in range(EPOCHS):
        batches = [
            tuple(np.array(column, np.float64) for column in batch) for batch in batches_of(rows, epoch)
        ]
        for start in range(0, len(batches), window):
            yield batches[start : start + window]


def descend(local: np.ndarray, batches: list) -> np.ndarray:
    """SGD on the mean squared error."""
    for features, labels in batches:
        local = local - RATE * 2 * features.T @ (features @ local - labels.ravel()) / len(labels)
    return local


def recursion(shards: Shards, size: int, window: int, exchange: Callable) -> np.ndarray:
    """A synchronous training: `exchange(locals, center)` returns both anew."""
    center = START.astype(np.float64)
    locals_ = [center] * size
    for step in zip(*(windows(shards, rank, size, window) for rank in range(size)), strict=True):
        locals_ = [descend(local, batches) for local, batches in zip(locals_, step, strict=True)]
        locals_, center = exchange(locals_, center)
    return center


@pytest.mark.parametrize("size", [1, 2, 4])
def test_synchronous_easgd_equals_its_recursion(on_ranks, shards, size):
    alpha = 4.0 * RATE

    def exchange(locals_, center):
        differences = [alpha * (local - center) for local in locals_]
        moved = [local - difference for local, difference in zip(locals_, differences, strict=True)]
        return moved, center + sum(differences)

    results = on_ranks(size, train, "EASGD", {"rho": 4.0, "communication_window": WINDOW}, shards)
    for weights, history in results:
        np.testing.assert_allclose(weights, recursion(shards, size, WINDOW, exchange), atol=1e-5)
        assert np.sum([rank["rows"] for rank in history["ranks"]], axis=0).tolist() == [ROWS] * EPOCHS


def averaging(locals_, center):
    mean = np.mean(locals_, axis=0)
    return [mean] * len(locals_), mean


@pytest.mark.parametrize("window", [WINDOW, None])
def test_averaging_equals_its_recursion(on_ranks, shards, window):
    results = on_ranks(2, train, "AveragingTrainer", {"communication_window": window}, shards)
    expected = recursion(shards, 2, window or 1000, averaging)
    for weights, _ in results:
        np.testing.assert_allclose(weights, expected, atol=1e-5)


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (1.0, 0.0)])
def test_diloco_equals_its_recursion(on_ranks, shards, rate, momentum):
    velocity = np.zeros(3)

    def exchange(locals_, center):
        nonlocal velocity
        gradient = center - np.mean(locals_, axis=0)
        velocity = momentum * velocity + gradient
        center = center - rate * (gradient + momentum * velocity)
        return [center] * len(locals_), center

    arguments = {"communication_window": WINDOW, "outer_learning_rate": rate, "outer_momentum": momentum}
    expected = recursion(shards, 2, WINDOW, exchange)
    if momentum == 0:
        np.testing.assert_allclose(expected, recursion(shards, 2, WINDOW, averaging), atol=1e-9)
    for weights, _ in on_ranks(2, train, "DiLoCo", arguments, shards):
        np.testing.assert_allclose(weights, expected, atol=1e-5)


def alone(shards: Shards, window: int, rule: Callable) -> np.ndarray:
    """One worker and its center: `rule(local, center, pulled, steps)` returns both anew."""
    center = local = pulled = START.astype(np.float64)
    for batches in windows(shards, 0, 1, window):
        local, center = rule(descend(local, batches), center, pulled, len(batches))
        pulled = local
    return center


ONE_WORKER = {
    "AsynchronousEASGD": (
        {"rho": 4.0},
        lambda local, center, pulled, steps: (
            local - 4 * RATE * (local - center),
            center + 4 * RATE * (local - center),
        ),
    ),
    "DOWNPOUR": ({}, lambda local, center, pulled, steps: (local, local)),
    "ADAG": ({}, lambda local, center, pulled, steps: (center + (local - pulled) / steps,) * 2),
    "DynSGD": ({}, lambda local, center, pulled, steps: (local, local)),
}


@pytest.mark.parametrize("algorithm", ONE_WORKER)
def test_one_asynchronous_worker_equals_its_recursion(on_ranks, shards, algorithm):
    arguments, rule = ONE_WORKER[algorithm]
    [(weights, history)] = on_ranks(
        1, train, algorithm, {"communication_window": WINDOW, **arguments}, shards
    )
    np.testing.assert_allclose(weights, alone(shards, WINDOW, rule), atol=1e-5)
    # 61 rows are 16 batches, so five windows of 3 and one of 1 in each epoch.
    assert history["ranks"][0]["telemetry"]["exchanges"] == EPOCHS * 6


def test_one_adaptive_downpour_worker_equals_its_recursion(on_ranks, shards):
    accumulator = np.zeros(3)

    def rule(local, center, pulled, steps):
        nonlocal accumulator
        center, _, squares = adagrad(local, center, accumulator, pulled, 0.02, 1e-7)
        accumulator = accumulator + squares
        return center, center

    arguments = {"communication_window": WINDOW, "server_learning_rate": 0.02}
    [(weights, _)] = on_ranks(1, train, "AdaptiveDOWNPOUR", arguments, shards)
    np.testing.assert_allclose(weights, alone(shards, WINDOW, rule), atol=1e-5)


def test_one_eamsgd_worker_equals_its_recursion(on_ranks, shards):
    alpha, momentum = 4.0 * RATE, 0.5
    center = local = START.astype(np.float64)
    velocity = np.zeros(3)
    for batches in windows(shards, 0, 1, WINDOW):
        for features, labels in batches:
            # Keras keeps the weights at the point where Nesterov takes the gradient.
            gradient = 2 * features.T @ (features @ local - labels.ravel()) / len(labels)
            velocity = momentum * velocity - RATE * gradient
            local = local + momentum * velocity - RATE * gradient
        difference = alpha * (local - center)
        local, center = local - difference, center + difference
    arguments = {"communication_window": WINDOW, "rho": 4.0, "momentum": momentum}
    [(weights, _)] = on_ranks(1, train, "EAMSGD", arguments, shards)
    np.testing.assert_allclose(weights, center, atol=1e-5)
