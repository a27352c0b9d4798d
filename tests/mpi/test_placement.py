"""Where the center of an asynchronous training is: what is decided, and that the training follows it."""

import pytest

pytestmark = pytest.mark.mpi

# Numbers of a center of 40 MB.
SIZE = 10_000_000


def decided():
    """What `placement` decides about clusters that are not here, by their ranks' hosts."""
    from hvdkeras.center.chunks import alternating
    from hvdkeras.center.placement import Demand, by_service, without_measuring

    hosts = [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8]
    large, small = Demand(SIZE, 1, 16), Demand(1000, 1, 16)
    reasons = [
        without_measuring(large, [0] * 8, None),
        without_measuring(large, [0] * 4 + [4] * 4, None),
        without_measuring(small, hosts, None),
        without_measuring(large, hosts, None),
        without_measuring(small, [0, 0], True),
    ]
    return reasons, [by_service(large, hosts, seconds) for seconds in (0.02, 0.08)], alternating(hosts)


def test_the_center_stays_at_rank_0_unless_its_link_is_too_slow(on_ranks):
    [(reasons, by_service, order)] = on_ranks(1, decided)
    one_host, two_hosts, small, to_be_measured, wanted = reasons
    assert one_host == ""
    assert "between 2 hosts" in two_hosts
    assert "below 4.2 MB" in small
    assert to_be_measured is None
    assert wanted == "center_sharded=True"
    # A window is taken to last 0.32 s: (0.32 + 0.02) / 0.02 and (0.32 + 0.08) / 0.08 workers, of which 8 are
    # on other hosts.
    assert [sharded for sharded, _ in by_service] == [False, True]
    assert "carries 17 workers of other hosts. There are 8" in by_service[0][1]
    assert order == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def placed():
    """Trains with the center where it is wanted; what rank 0 logs, and what the history says."""
    import logging

    import keras
    import numpy as np

    import hvdkeras

    lines, handler = [], logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("hvdkeras").addHandler(handler)
    results = []
    for algorithm, arguments in (
        ("DOWNPOUR", {}),
        ("DOWNPOUR", {"center_sharded": True}),
        ("EASGD", {"exchange_dtype": "bfloat16"}),
    ):
        model = keras.Sequential([keras.Input((700,)), keras.layers.Dense(800), keras.layers.Dense(1)])
        trainer = getattr(hvdkeras, algorithm)(
            model, loss="mse", communication_window=1, batch_size=4, **arguments
        )
        trainer.train({"features": np.ones((32, 700), np.float32), "label": np.ones(32, np.float32)})
        results.append(trainer.history.saturation)
    logging.getLogger("hvdkeras").removeHandler(handler)
    return [line for line in lines if line.startswith(("the center (", "exchange_dtype"))], results


def test_a_training_follows_the_argument_and_says_so(on_ranks):
    (said, results), (said_by_rank_1, _) = on_ranks(2, placed)
    # On one host there is nothing to choose.
    assert said == [
        "the center (2.2 MB) is spread over the hosts: center_sharded=True",
        "exchange_dtype='bfloat16': nothing is converted on one host",
    ]
    assert said_by_rank_1 == []
    at_rank_0, spread, synchronous = results
    assert at_rank_0.ranks == 2
    assert at_rank_0.workers > 1
    assert spread is None
    assert synchronous is None
