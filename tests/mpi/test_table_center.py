"""A center of which only the rows that are not at rest are exchanged: as the dense way, bit by bit."""

import numpy as np
import pytest
import table_exchanges
from table_exchanges import BATCH, WIDTH, embedding, samples

pytestmark = pytest.mark.mpi


def test_every_algorithm_that_settles_is_as_the_dense_way(on_ranks):
    # Of a turn's exchange: this rank's 3 + 1 rows and those of the other two, and 7 elements in no table.
    most = 7 + WIDTH * 3 * (3 + 1)
    for sizes in on_ranks(3, table_exchanges.every_algorithm_is_as_the_dense_way):
        assert len(sizes) == 4
        assert all(0 < size <= most for size in sizes)


def zeroing():
    """A callback that changes a row that no step touches."""
    import keras

    def zero(epoch, logs):
        layer = callback.model.layers[0]
        values = layer.get_weights()[0]
        values[100 + epoch] = 0
        layer.set_weights([values])

    callback = keras.callbacks.LambdaCallback(on_epoch_end=zero)
    return callback


def both_ways(folder: str) -> None:
    """One rank's DOWNPOUR, interrupted and resumed, against one of whole exchanges, which a subclass has."""
    import keras

    import hvdkeras

    class Whole(hvdkeras.DOWNPOUR):
        pass

    def train(kind, **arguments):
        given = {
            "communication_window": 2,
            "batch_size": BATCH,
            "num_epoch": 3,
            "num_workers": 1,
            "verbose": 0,
        }
        given |= {"callbacks": [zeroing()], "validation_split": 0.1}
        trainer = kind(embedding(lambda: keras.optimizers.Adagrad(0.1)), **{**given, **arguments})
        return trainer, trainer.train(samples(distinct=False)).get_weights()

    train(hvdkeras.DOWNPOUR, num_epoch=2, checkpoint=folder)
    one = train(hvdkeras.DOWNPOUR, checkpoint=folder, resume=True)
    other = train(Whole)
    assert all((a == b).all() for a, b in zip(one[1], other[1], strict=True))
    distances = [trainer.history.ranks[0].distance for trainer, _ in (one, other)]
    np.testing.assert_allclose(*distances, rtol=1e-6)


def test_a_rank_trains_as_in_the_dense_way(on_ranks, tmp_path):
    on_ranks(1, both_ways, str(tmp_path), timeout=300)


def test_ranks_that_touch_rows_of_their_own_train_as_keras_does(on_ranks):
    on_ranks(2, table_exchanges.two_ranks_train_as_keras_does, timeout=300)
