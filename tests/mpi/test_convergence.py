"""All algorithms learn the digits about as well as one process does."""

import numpy as np
import pytest

import digits

pytestmark = [pytest.mark.mpi, pytest.mark.slow]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_algorithm_reaches_the_single_trainers_accuracy(on_ranks, size):
    results, *others = on_ranks(size, digits.train_all, list(digits.ALGORITHMS), size, timeout=280)
    assert all(other == results for other in others)
    aim = results["SingleTrainer"][0] - 0.02
    rows = {name: set(seen) for name, (_, seen) in results.items() if name != "EnsembleTrainer"}
    assert all(seen == {1437} for seen in rows.values())
    assert {name: value for name, (value, _) in results.items() if value < aim} == {}
    assert np.mean([value for value, _ in results.values()]) > 0.95
