"""Which rows of an embedding are exchanged: those that an optimizer, a layer or a callback has changed."""

import keras
import numpy as np
import pytest

from hvdkeras import trainers
from hvdkeras.algorithm import settles
from hvdkeras.center.local import LocalCenter
from hvdkeras.models.tables import SMALLEST, Layout, Selection, Table, tables_of
from hvdkeras.models.touched import RowWeights
from hvdkeras.models.vector import FlatWeights

ROWS, WIDTH = 6, 2
WITH_CENTER = [name for name in trainers.__all__ if getattr(trainers, name).mode.has_center]
SETTLING = {"DOWNPOUR", "AdaptiveDOWNPOUR", "ADAG", "DynSGD"}
LAYOUT = Layout(ROWS * WIDTH + WIDTH + 1, (Table(0, ROWS, WIDTH),))


def embedding(rows: int, width: int, **arguments) -> keras.Model:
    layers = [keras.layers.Embedding(rows, width, **arguments), keras.layers.Flatten(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((1,), dtype="int32"), *layers])


def changed_by(optimizer: object, **arguments: object) -> list[int] | None:
    """The rows that count as changed after two steps on the rows 1 and 4; checked against those that are."""
    model = embedding(ROWS, WIDTH, **arguments)
    weights = RowWeights(model.trainable_variables, FlatWeights(model.trainable_variables), LAYOUT)
    # What is traced is not made in another way; two optimizers are enough for it.
    model.compile(optimizer, "mse", run_eagerly=optimizer.name not in ("sgd", "adam"))
    before = model.layers[0].get_weights()[0]
    model.fit(np.array([[4], [1], [4]]), np.ones((3, 1)), batch_size=2, epochs=1, shuffle=False, verbose=0)
    flags = weights.touched[0].rows()
    changed = (model.layers[0].get_weights()[0] != before).any(axis=1)
    assert changed.any()
    if flags is None:
        return None
    assert not (changed & ~flags).any()
    return np.flatnonzero(flags).tolist()


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop"])
def test_an_optimizer_that_changes_single_rows(name):
    assert changed_by(keras.optimizers.get(name)) == [1, 4]


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (lambda: keras.optimizers.Adam(0.1), {}),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9, name="own"), {}),
        (lambda: keras.optimizers.SGD(0.1, weight_decay=0.1, name="own"), {}),
        (lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=1, name="own"), {}),
        (lambda: keras.optimizers.SGD(0.1, global_clipnorm=1.0, name="own"), {}),
        (lambda: keras.optimizers.SGD(0.1, name="own"), {"embeddings_constraint": "unit_norm"}),
        (lambda: keras.optimizers.SGD(0.1, name="own"), {"embeddings_regularizer": "l2"}),
    ],
)
def test_what_changes_all_rows_counts_for_all(optimizer, arguments):
    assert changed_by(optimizer(), **arguments) is None


def test_selected_rows_are_read_and_written():
    model = embedding(ROWS, WIDTH)
    weights = RowWeights(model.trainable_variables, FlatWeights(model.trainable_variables), LAYOUT)
    before = FlatWeights(model.trainable_variables).read()
    selection = Selection(LAYOUT, [np.array([1, 4])])
    assert not selection.is_whole
    compact = weights.read(selection)
    assert compact.tolist() == before[[2, 3, 8, 9, 12, 13, 14]].tolist()
    assert compact.tolist() == selection.gathered(before).tolist()
    weights.write(selection, compact + 1)
    expected = before.copy()
    selection.scatter(compact + 1, expected)
    assert FlatWeights(model.trainable_variables).read().tolist() == expected.tolist()
    # What the exchange itself writes does not count.
    assert not weights.touched[0].rows().any()
    model.layers[0].set_weights([np.zeros((ROWS, WIDTH))])
    assert weights.touched[0].rows() is None
    with pytest.raises(ValueError, match=r"shape \(7,\). Received: \(15,\)"):
        weights.write(selection, before)


def test_most_rows_are_all_rows():
    assert Selection(LAYOUT, [np.arange(3)]).size == 3 * WIDTH + 3
    whole = Selection(LAYOUT, [np.arange(4)])
    assert (whole.is_whole, whole.size) == (True, LAYOUT.size)


def test_large_embeddings_alone_are_tables():
    large = SMALLEST // 4
    assert tables_of(embedding(large, 4)) == Layout(4 * large + 5, (Table(0, large, 4),))
    assert tables_of(embedding(large - 1, 4)).tables == ()
    assert tables_of(embedding(large, 4, dtype="bfloat16")).tables == ()
    assert tables_of(keras.Sequential(embedding(large, 4).layers[:1])).tables == ()


@pytest.mark.parametrize("name", WITH_CENTER)
def test_an_exchange_that_settles_leaves_weights_at_rest(name):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    trainer = getattr(trainers, name)(model, loss="mse", learning_rate=0.01).algorithm()
    random = np.random.default_rng(0)
    first, change = random.normal(size=(2, 1000)).astype(np.float32)
    center = LocalCenter(first, trainer.center_slots)
    # Another rank has changed the center meanwhile.
    state = trainer.begin(first)
    center.push(change)
    local, state = trainer.exchange(first - 3 * change, center, state, 4)
    contents = center.contents()
    again, state_again = trainer.exchange(local, center, state, 4)
    rests = (
        (again == local).all()
        and (center.contents().center == contents.center).all()
        and (center.contents().slots == contents.slots).all()
        and all((state_again[key] == value).all() for key, value in state.items())
    )
    assert rests or not settles(trainer)
    assert settles(trainer) == (name in SETTLING)


def test_a_subclass_does_not_inherit_that_it_settles():
    class Own(trainers.DOWNPOUR):
        pass

    assert not settles(Own(None).algorithm())
