"""Every algorithm's rule and exchanges, against numbers that a reader can check in the head."""

import keras
import numpy as np
import pytest

import hvdkeras
from hvdkeras import LocalCenter
from hvdkeras.trainers.adag import accumulated_gradient_normalization
from hvdkeras.trainers.averaging import average
from hvdkeras.trainers.diloco import outer_step
from hvdkeras.trainers.downpour import adagrad, downpour
from hvdkeras.trainers.dynsgd import staleness_aware
from hvdkeras.trainers.easgd import elastic
from hvdkeras.trainers.synchronous import warmed_up


def vector(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def assert_vectors(results, expected) -> None:
    assert len(results) == len(expected)
    for result, values in zip(results, expected, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, values, rtol=1e-6)


def test_elastic_moves_both_by_alpha_of_their_distance():
    local, center = vector(5, -1, 0), vector(1, 1, 0)
    assert_vectors(elastic(local, center, alpha=0.25), [[4, -0.5, 0], [1, -0.5, 0]])
    assert_vectors([local, center], [[5, -1, 0], [1, 1, 0]])


def test_elastic_with_alpha_one_swaps_worker_and_center():
    local, center = vector(5), vector(1)
    new_local, difference = elastic(local, center, alpha=1.0)
    assert_vectors([new_local, center + difference], [[1], [5]])


def test_downpour_adds_what_changed_since_the_pull():
    # The worker pulled 1 and went to 3; meanwhile others moved the center to 10.
    assert_vectors(downpour(vector(3), vector(10), vector(1)), [[12], [2]])


def test_adagrad_divides_by_the_root_of_all_squares():
    # update 3, accumulator 16 + 9 = 25, step 0.5 * 3 / 5 = 0.3
    results = adagrad(vector(4), vector(10), vector(16), vector(1), learning_rate=0.5, epsilon=0.0)
    assert_vectors(results, [[10.3], [0.3], [9]])


def test_adagrad_leaves_weights_that_did_not_change():
    results = adagrad(vector(1), vector(10), vector(0), vector(1), learning_rate=0.5, epsilon=1e-7)
    assert_vectors(results, [[10], [0], [0]])


def test_adag_divides_by_the_steps_of_the_window():
    assert_vectors(accumulated_gradient_normalization(vector(9), vector(10), vector(1), steps=4), [[12], [2]])


def test_dynsgd_divides_by_staleness_plus_one():
    assert_vectors(staleness_aware(vector(9), vector(10), vector(1), staleness=3), [[12], [2]])
    assert_vectors(staleness_aware(vector(9), vector(10), vector(1), staleness=0), [[18], [8]])


def test_shares_of_all_workers_make_the_mean():
    center, locals_ = vector(1), [vector(2), vector(4), vector(9)]
    assert_vectors([center + sum(average(local, center, 3)[1] for local in locals_)], [[5]])


def test_outer_step_is_nesterov_on_the_mean_gradient():
    # Two workers, gradients 1 and 3, mean 2. First step: velocity 2, step 0.5 * (2 + 0.9 * 2) = 1.9.
    center, zero = vector(10), vector(0)
    v1, first = outer_step(vector(9), center, zero, 0.5, 0.9, 2)
    v2, second = outer_step(vector(7), center, zero, 0.5, 0.9, 2)
    assert_vectors([center + first + second, v1, v2], [[8.1], [1], [3]])
    # The same gradients again: velocity 0.9 * 2 + 2 = 3.8, step 0.5 * (2 + 0.9 * 3.8) = 2.71.
    _, again = outer_step(center - 1, center, v1, 0.5, 0.9, 2)
    _, once_more = outer_step(center - 3, center, v2, 0.5, 0.9, 2)
    assert_vectors([center + again + once_more], [[7.29]])


def test_outer_step_with_rate_one_and_no_momentum_averages():
    center = vector(1)
    steps = [outer_step(vector(x), center, vector(0), 1.0, 0.0, 2)[1] for x in (2, 6)]
    shares = [average(vector(x), center, 2)[1] for x in (2, 6)]
    assert_vectors(steps, shares)


def test_the_learning_rate_warms_up_to_its_full_size():
    scaled = [warmed_up(epochs, 4, True, 6) for epochs in (0, 2, 6, 50)]
    np.testing.assert_allclose(scaled, [1, 2, 4, 4])
    plain = [warmed_up(epochs, 4, False, 6) for epochs in (0, 2, 6, 50)]
    np.testing.assert_allclose(plain, [0.25, 0.5, 1, 1])
    assert [warmed_up(epochs, 4, True, 0) for epochs in (0, 3)] == [4, 4]


ELASTIC = {"rho": 2.5, "learning_rate": 0.1}  # alpha = 0.25

# By algorithm: its arguments, what the center starts with, and exchanges in their order: a worker, its weight
# after a window of 4 batches, its weight after the exchange, and the center then.
EXCHANGES = {
    "AveragingTrainer": ({}, 1, [("a", 5, 5, 5), ("a", 7, 7, 7)]),
    # Gradient 2: velocity 2, step 0.5 * (2 + 0.5 * 2). Again 2: velocity 3, step 0.5 * (2 + 0.5 * 3).
    "DiLoCo": (
        {"outer_learning_rate": 0.5, "outer_momentum": 0.5},
        10,
        [("a", 8, 8.5, 8.5), ("a", 6.5, 6.75, 6.75)],
    ),
    "EASGD": (ELASTIC, 1, [("a", 5, 4, 2), ("a", 6, 5, 3)]),
    "SynchronousEAMSGD": (ELASTIC, 1, [("a", 5, 4, 2), ("a", 6, 5, 3)]),
    "AsynchronousEASGD": (ELASTIC, 1, [("a", 5, 4, 2), ("b", 6, 5, 3)]),
    "EAMSGD": (ELASTIC, 1, [("a", 5, 4, 2), ("b", 6, 5, 3)]),
    # Updates 2, 4 and 1: the last since worker a pulled 3.
    "DOWNPOUR": ({}, 1, [("a", 3, 3, 3), ("b", 5, 7, 7), ("a", 4, 8, 8)]),
    # A LocalCenter has no staleness.
    "DynSGD": ({}, 1, [("a", 3, 3, 3), ("b", 5, 7, 7), ("a", 4, 8, 8)]),
    # Updates 8 / 4, 4 / 4 and 4 / 4.
    "ADAG": ({}, 1, [("a", 9, 3, 3), ("b", 5, 4, 4), ("a", 7, 5, 5)]),
    # Updates 3, 4 and 12: the roots of the sums of their squares are 3, 5 and 13.
    "AdaptiveDOWNPOUR": (
        {"server_learning_rate": 0.5, "epsilon": 1e-30},
        1,
        [("a", 4, 1.5, 1.5), ("b", 5, 1.9, 1.9), ("a", 13.5, 1.9 + 6 / 13, 1.9 + 6 / 13)],
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_workers_exchange_in_turn(name):
    arguments, start, exchanges = EXCHANGES[name]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    algorithm = getattr(hvdkeras, name)(model, loss="mse", **arguments).algorithm()
    center = LocalCenter(vector(start), slots=algorithm.center_slots)
    states = {worker: algorithm.begin(center.pull()) for worker, *_ in exchanges}
    for worker, trained, kept, center_then in exchanges:
        local, states[worker] = algorithm.exchange(vector(trained), center, states[worker], 4)
        assert_vectors([local, center.pull()], [[kept], [center_then]])


def test_every_algorithm_with_a_center_has_exchanges_here():
    public = {name: getattr(hvdkeras, name) for name in hvdkeras.trainers.__all__}
    assert {each.__name__ for each in public.values() if each.mode.has_center} == set(EXCHANGES)
