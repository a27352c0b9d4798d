"""Synchronous SGD on real ranks against one process on the joined batches."""

import numpy as np
import pytest

from hvdkeras.data.columns import Column
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import write_arrays
from hvdkeras.launch import gpu

from batching import batches_of

pytestmark = pytest.mark.mpi

ROWS, BATCH_SIZE, EPOCHS = 61, 4, 2
OPTIMIZERS = {
    "sgd": {"class_name": "SGD", "config": {"learning_rate": 0.05}},
    "momentum": {"class_name": "SGD", "config": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}},
    "adam": {"class_name": "Adam", "config": {"learning_rate": 0.01, "clipnorm": 1.0}},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    random = np.random.default_rng(0)
    features = random.normal(size=(ROWS, 3)).astype("float32")
    labels = (features @ np.array([1.0, 2.0, -1.0]) + 0.1 * random.normal(size=ROWS)).astype("float32")
    columns = [Column("features", (3,), "float32"), Column("label", (1,), "float32")]
    return write_arrays({"features": features, "label": labels}, columns, tmp_path_factory.mktemp("store"))


def model():
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(1)])


def train(optimizer: str, arguments: dict, shards: Shards) -> tuple[list, list]:
    """What a rank of the job runs; returns its own weights and the trained model's."""
    import keras

    import hvdkeras

    own = []

    class Keep(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            own.extend(self.model.get_weights())

    trainer = hvdkeras.SynchronousSGD(
        model(),
        loss="mse",
        worker_optimizer=OPTIMIZERS[optimizer],
        batch_size=BATCH_SIZE,
        num_epoch=EPOCHS,
        verbose=0,
        callbacks=[Keep()],
        **arguments,
    )
    return own, trainer.train(shards).get_weights()


def joined(optimizer: str, size: int, accumulation: int, shards: Shards) -> list[np.ndarray]:
    """One process; each of its batches is what all ranks train on in a step."""
    import keras

    one = model()
    one.compile(keras.optimizers.get(OPTIMIZERS[optimizer]), "mse")
    ranks = [Rows(shards, rank, size, BATCH_SIZE, seed=0) for rank in range(size)]
    for epoch in range(EPOCHS):
        steps = list(zip(*(batches_of(rank, epoch) for rank in ranks), strict=True))
        for start in range(0, len(steps), accumulation):
            group = steps[start : start + accumulation]
            features, labels = (np.concatenate([batch[i] for s in group for batch in s]) for i in range(2))
            # Steps of a group count alike, whatever their number of rows.
            rows = [sum(len(batch[0]) for batch in step) for step in group]
            weight = np.repeat(sum(rows) / len(rows) / np.array(rows), rows)
            one.train_on_batch(features, labels, sample_weight=weight)
    return one.get_weights()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_ranks_equal_one_process(on_ranks, shards, optimizer):
    expected = joined(optimizer, 2, 1, shards)
    for own, trained in on_ranks(2, train, optimizer, {}, shards):
        for weights in (own, trained):
            for received, wanted in zip(weights, expected, strict=True):
                np.testing.assert_allclose(received, wanted, atol=1e-5)


def test_accumulated_gradients_equal_larger_batches(on_ranks, shards):
    expected = joined("momentum", 2, 3, shards)
    for own, _ in on_ranks(2, train, "momentum", {"accumulation": 3}, shards):
        for received, wanted in zip(own, expected, strict=True):
            np.testing.assert_allclose(received, wanted, atol=1e-5)


def test_half_precision_keeps_the_ranks_equal(on_ranks, shards):
    expected = joined("sgd", 3, 1, shards)
    ranks = [own for own, _ in on_ranks(3, train, "sgd", {"compression": "fp16"}, shards)]
    for first, *others, wanted in zip(*ranks, expected, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)
        np.testing.assert_allclose(first, wanted, atol=5e-3)
        assert not np.array_equal(first, wanted)


def rows_over_mpi() -> dict:
    """Rows of a gradient of shape (4, 2): three of rank 0, one of rank 1."""
    import tensorflow as tf
    from mpi4py import MPI

    from hvdkeras.rank import sums

    rank, found, small = MPI.COMM_WORLD.rank, {}, sums.SMALL_BYTES
    indices, values = [([1, 1, 3], [[1, 2], [3, 1], [2, 2]]), ([1], [[0.1, 1000.0]])][rank]
    gradient = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(indices), tf.constant([4, 2]))
    for limit, shape in ((small, [4, 2]), (0, [4, 2]), (0, [3, 2])):
        for compression in (None, "fp16"):
            sums.SMALL_BYTES = limit
            over = sums.OverMPI(MPI.COMM_WORLD, 30.0, compression)
            whole = tf.IndexedSlices(gradient.values, gradient.indices % shape[0], tf.constant(shape))
            rows = tf.function(over.rows)(whole)
            found[limit, shape[0], compression] = rows.indices.numpy(), rows.values.numpy(), over.telemetry
    sums.SMALL_BYTES = small
    return found


def test_rows_of_all_ranks_come_one_after_another_or_summed(on_ranks):
    for found in on_ranks(2, rows_over_mpi):
        for (limit, length, compression), (indices, values, telemetry) in found.items():
            wanted = [[1, 2], [3, 1], [2, 2], [0.1, 1000]]
            summed = limit == 0 and length == 3
            if summed:  # four rows are more than three
                assert indices.tolist() == [0, 1, 2]
                wanted = [[2, 2], [4.1, 1003], [0, 0]]
            else:
                assert indices.tolist() == [1, 1, 3 % length, 1]
            atol = {None: 1e-6, "fp16": 5e-3 if not summed else 1}[compression]
            np.testing.assert_allclose(values, wanted, atol=atol)
            assert telemetry["exchanges"] == 1
            assert telemetry["seconds_communication"] > 0


def sum_through_horovod(compression: str | None) -> np.ndarray:
    import tensorflow as tf
    from mpi4py import MPI

    from hvdkeras.rank.sums import OverHorovod

    over, rank = OverHorovod(MPI.COMM_WORLD, compression), MPI.COMM_WORLD.rank
    rows = tf.IndexedSlices(tf.fill([1, 2], 1.0 + rank), tf.constant([rank]), tf.constant([4, 2]))
    total = tf.function(over.total)(tf.constant([1.0, 2.0, 3.0]) * (1.0 + rank)).numpy()
    return total, tf.convert_to_tensor(tf.function(over.rows)(rows)).numpy()


@pytest.mark.skipif(
    not gpu.horovod_is_compiled(), reason="needs a compiled Horovod, which only environments for GPUs have"
)
@pytest.mark.parametrize("compression", [None, "fp16"])
def test_horovod_sums_over_the_ranks(on_new_ranks, compression):
    for total, rows in on_new_ranks(2, sum_through_horovod, compression):
        np.testing.assert_array_equal(total, [3, 6, 9])
        np.testing.assert_array_equal(rows, [[1, 1], [2, 2], [0, 0], [0, 0]])
