"""Asynchronous training with ranks on two hosts, launched by Spark."""

import pytest

import digits

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_asynchronous_algorithms_learn_between_hosts(on_driver, tmp_path):
    algorithms = {"AsynchronousEASGD": None, "DOWNPOUR": "float16"}
    results = on_driver(digits.train_on_spark, algorithms, 4, str(tmp_path))
    for accuracy, hosts, rows in results.values():
        assert accuracy >= 0.95
        assert sorted(hosts) == ["alpha", "alpha", "beta", "beta"]
        assert set(rows) == {1437}
    assert len(results) == 2
    assert list(tmp_path.iterdir()) == []
