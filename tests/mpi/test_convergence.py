"""All algorithms learn the digits about as well as one process does."""

import pytest

import digits

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

ASYNCHRONOUS = ["AsynchronousEASGD", "EAMSGD", "DOWNPOUR", "AdaptiveDOWNPOUR", "DynSGD", "ADAG"]


@pytest.mark.parametrize(
    ("size", "algorithms"),
    [
        (1, digits.ALGORITHMS),
        (2, digits.ALGORITHMS),
        (3, [name for name in digits.ALGORITHMS if name not in ASYNCHRONOUS]),
        (4, ASYNCHRONOUS),
    ],
)
def test_every_algorithm_reaches_the_single_trainers_accuracy(on_ranks, size, algorithms):
    names = ["SingleTrainer", *(name for name in algorithms if name != "SingleTrainer")]
    results, *others = on_ranks(size, digits.train_all, names, size, timeout=280)
    assert all(other == results for other in others)
    aim = results["SingleTrainer"][0] - 0.02
    assert aim > 0.95
    missed = [name for name, (value, _) in results.items() if value < aim]
    if missed and set(missed) <= set(ASYNCHRONOUS):
        # Their results depend on which rank comes when: on two cores one training in seven of DynSGD on four
        # ranks is a row short of the aim.
        again, *_ = on_ranks(size, digits.train_all, missed, size, timeout=280)
        missed = [name for name, (value, _) in again.items() if value < aim]
    assert missed == []
    rows = {name: set(seen) for name, (_, seen) in results.items() if name != "EnsembleTrainer"}
    assert all(seen == {1437} for seen in rows.values())
