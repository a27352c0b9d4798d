"""The dataset that Keras reads: the very batches of the rows, in the nesting that the model wants."""

import itertools
import tracemalloc
import warnings

import keras
import numpy as np
import pytest

from hvdkeras.callbacks.feed import Feed
from hvdkeras.data import rows as rows_module
from hvdkeras.data.columns import Column
from hvdkeras.data.rows import Rows
from hvdkeras.data.writing import write_arrays
from hvdkeras.models import windows
from hvdkeras.models.targets import Batch, batch, targets
from hvdkeras.models.windows import end_with_the_data

from batching import batches_of

PAIR = Batch(0, 1, None)


def shards_of(folder, rows, *columns):
    """Shards with float32 scalars in these columns; row r holds r."""
    arrays = {name: np.arange(rows) for name in columns}
    return write_arrays(arrays, [Column(name, (), "float32") for name in columns], folder)


def linear() -> keras.Model:
    return keras.Sequential(
        [keras.Input(()), keras.layers.Reshape((1,)), keras.layers.Dense(1, use_bias=False)]
    )


def assert_same(fed, batches):
    for one, other in itertools.zip_longest(fed, batches):
        for tensor, array in zip(one, other, strict=True):
            np.testing.assert_array_equal(tensor, array)


@pytest.mark.parametrize("block_bytes", [1, 100, 4 << 20])
@pytest.mark.parametrize(("batch_size", "size"), [(7, 1), (1, 2), (128, 2)])
def test_gives_the_very_batches_of_each_epoch(tmp_path, monkeypatch, block_bytes, batch_size, size):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", block_bytes)
    shards = shards_of(tmp_path, 257, "x", "y")
    for rank in range(size):
        rows = Rows(shards, rank, size, batch_size, seed=3, shuffle=True)
        feed = Feed(rows, PAIR)
        dataset = feed.dataset()
        assert dataset.cardinality() == rows.steps
        for epoch in (0, 1, 5):
            feed.begin(epoch)
            assert_same(dataset, batches_of(rows, epoch))


def test_an_epoch_is_given_once(tmp_path):
    feed = Feed(Rows(shards_of(tmp_path, 10, "x", "y"), 0, 1, 4, seed=0), PAIR)
    dataset = feed.dataset()
    assert len(list(dataset)) == 3
    assert len(list(dataset)) == 0
    assert feed.begin(1) == 3
    assert len(list(dataset)) == 3


def test_a_reading_keeps_its_epoch_when_another_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 100)
    rows = Rows(shards_of(tmp_path, 500, "x", "y"), 0, 1, 4, seed=0)
    feed = Feed(rows, PAIR)
    dataset = feed.dataset()
    first = iter(dataset)
    begun = [next(first)]
    feed.begin(1)
    second = iter(dataset)
    other = [next(second)]
    assert_same([*begun, *first], batches_of(rows, 0))
    assert_same([*other, *second], batches_of(rows, 1))


@pytest.mark.parametrize("first_step", [1, 2, 7, 13])
def test_starts_in_the_middle_of_an_epoch(tmp_path, monkeypatch, first_step):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 100)
    rows = Rows(shards_of(tmp_path, 55, "x", "y"), 0, 1, 4, seed=0)
    feed = Feed(rows, PAIR, first_epoch=2, first_step=first_step)
    dataset = feed.dataset()
    assert feed.begin(2) == rows.steps - first_step
    assert_same(dataset, itertools.islice(batches_of(rows, 2), first_step, None))
    assert feed.begin(3) == rows.steps
    assert_same(dataset, batches_of(rows, 3))


@pytest.mark.parametrize("first_step", [-1, 3])
def test_an_epoch_has_no_such_step(tmp_path, first_step):
    rows = Rows(shards_of(tmp_path, 10, "x", "y"), 0, 1, 4, seed=0)
    with pytest.raises(ValueError, match=f"first_step must be from 0 to 2, .* Received: {first_step}"):
        Feed(rows, PAIR, first_step=first_step)


class Steps(keras.callbacks.Callback):
    """What Keras says of each epoch: its steps, and the last batch of every call."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append((epoch, self.params["steps"], []))

    def on_train_batch_end(self, batch, logs=None):
        self.seen[-1][-1].append(batch)


def fit(rows, start, steps_per_execution, **where):
    """The weight after training to epoch 4, and what Keras said."""
    model = linear()
    model.set_weights([start])
    model.compile(keras.optimizers.SGD(1e-4), "mse", steps_per_execution=steps_per_execution)
    end_with_the_data(model)
    feed, steps = Feed(rows, PAIR, **where), Steps()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")
        epochs = {"initial_epoch": where.get("first_epoch", 0), "epochs": 4}
        model.fit(feed.dataset(), callbacks=[feed, steps], verbose=0, shuffle=False, **epochs)
    return model.get_weights()[0], steps.seen


@pytest.mark.parametrize("steps_per_execution", [1, 4, 14, 20])
@pytest.mark.parametrize("first_step", [3, 4, 13])
def test_keras_goes_on_where_a_training_stopped(tmp_path, first_step, steps_per_execution):
    rows = Rows(shards_of(tmp_path, 55, "x", "y"), 0, 1, 4, seed=0)
    assert rows.steps == 14
    whole, _ = fit(rows, np.zeros((1, 1)), steps_per_execution)

    # By hand: gradient descent on (w x - y)^2 up to the point where it stopped.
    weight = 0.0
    for epoch, stop in ((0, None), (1, None), (2, first_step)):
        for x, y in itertools.islice(batches_of(rows, epoch), stop):
            weight -= 1e-4 * 2 * np.mean(x * (weight * x - y))
    again, seen = fit(
        rows, np.full((1, 1), weight), steps_per_execution, first_epoch=2, first_step=first_step
    )
    np.testing.assert_allclose(again, whole, rtol=1e-5)
    assert [(epoch, steps) for epoch, steps, _ in seen] == [(2, 14 - first_step), (3, 14)]
    for _, steps, batches in seen:
        # Keras names a call by its last batch, as if the last call were a full one; before 3.11 by its first.
        first = list(range(0, steps, steps_per_execution))
        assert batches in (first, [each - 1 + steps_per_execution for each in first])


@pytest.mark.parametrize("eagerly", [False, True])
def test_the_window_for_old_keras_ends_with_the_data(tmp_path, monkeypatch, eagerly):
    monkeypatch.setattr(windows, "FIRST", (99, 0))
    rows = Rows(shards_of(tmp_path, 55, "x", "y"), 0, 1, 4, seed=0)
    results = []
    for steps_per_execution in (1, 4):
        model = linear()
        model.set_weights([np.zeros((1, 1))])
        where = {"steps_per_execution": steps_per_execution, "run_eagerly": eagerly}
        model.compile(keras.optimizers.SGD(1e-4), "mse", metrics=["mae"], **where)
        end_with_the_data(model)
        model.fit(Feed(rows, PAIR).dataset(), verbose=0, shuffle=False)
        results.append(
            [*model.get_weights()[0].ravel(), *model.evaluate(Feed(rows, PAIR).dataset(), verbose=0)]
        )
    np.testing.assert_allclose(*results, rtol=1e-5)
    assert results[0][0] != 0


def test_memory_holds_blocks_not_the_epoch(tmp_path):
    rows, width = 20_000, 784
    arrays = {"x": np.ones((rows, width), np.float32), "y": np.ones(rows, np.float32)}
    shards = write_arrays(arrays, [Column("x", (width,), "float32"), Column("y", (), "float32")], tmp_path)
    feed = Feed(Rows(shards, 0, 1, 128, seed=0), PAIR)
    dataset = feed.dataset()
    tracemalloc.start()
    seen = sum(len(x) for x, _ in dataset)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == rows
    # 60 MiB of data, in blocks of 4 MiB: one being cut, one waiting and one being gathered.
    assert 4 << 20 < peak < 20 << 20


def named(inputs, outputs) -> keras.Model:
    """A model of inputs b and a, and outputs d and c."""
    b, a = keras.Input((), name="b"), keras.Input((), name="a")
    joined = keras.layers.Concatenate()([keras.layers.Reshape((1,))(tensor) for tensor in (a, b)])
    d, c = keras.layers.Dense(1, name="d")(joined), keras.layers.Dense(2, name="c")(joined)
    return keras.Model(inputs(b, a), outputs(d, c))


@pytest.mark.parametrize(
    ("model", "columns", "structure"),
    [
        (named(lambda b, a: [b, a], lambda d, c: [d, c]), "badc", (("b", "a"), ("d", "c"))),
        (
            named(lambda b, a: {"b": b, "a": a}, lambda d, c: {"D": d, "C": c}),
            "abcd",
            ({"a": "a", "b": "b"}, {"C": "c", "D": "d"}),
        ),
        (named(lambda b, a: (b, a), lambda d, c: {"D": d}), "bad", (("b", "a"), {"D": "d"})),
        (named(lambda b, a: [b, a], lambda d, c: [c]), "bac", (("b", "a"), "c")),
        (named(lambda b, a: [b, a], lambda d, c: c), "bacw", (("b", "a"), "c", "w")),
        (
            named(lambda b, a: [b, a], lambda d, c: [d, c]),
            "badcw",
            (("b", "a"), ("d", "c"), ("w", "w")),
        ),
        (
            named(lambda b, a: [b, a], lambda d, c: {"D": d, "C": c}),
            "bacdvw",
            (("b", "a"), {"C": "c", "D": "d"}, {"C": "v", "D": "w"}),
        ),
    ],
)
def test_batches_are_nested_as_the_model_wants(tmp_path, model, columns, structure):
    names = sorted(set(columns))
    arrays = {name: np.full(2, number) for number, name in enumerate(names)}
    shards = write_arrays(arrays, [Column(name, (), "float32") for name in columns], tmp_path)
    first = len(model.inputs)
    last = first + len(model.outputs)
    weights = list(columns[last:])
    read = targets(
        model, "mse", list(columns[first:last]), weights[0] if len(weights) == 1 else weights or None
    )
    [fed] = Feed(Rows(shards, 0, 1, 2, seed=0), batch(model, read)).dataset()
    assert keras.tree.map_structure(lambda tensor: names[int(tensor[0])], fed) == structure
