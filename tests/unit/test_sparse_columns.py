"""Sparse vectors are stored as indices and values, and read as the dense rows that they are."""

import os

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from hvdkeras.callbacks.feed import Feed
from hvdkeras.data import mapping, parts
from hvdkeras.data import rows as rows_module
from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.rows import Rows, read_column
from hvdkeras.data.shards import Shards, open_shards
from hvdkeras.data.writing import write_arrays, write_parquet
from hvdkeras.models.targets import batch, targets

from batching import batches_of

WIDTH, ROWS = 300, 60
FEATURES, LABEL = Column("x", (WIDTH,), "float32"), Column("y", (), "int32")
VECTOR = pa.struct(
    [
        ("type", pa.int8()),
        ("size", pa.int32()),
        ("indices", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),
    ]
)


def sparse(row):
    (at,) = np.nonzero(row)
    return {"type": 0, "size": len(row), "indices": at.tolist(), "values": row[at].tolist()}


def dense(row):
    return {"type": 1, "size": None, "indices": None, "values": row.tolist()}


def data(rows=ROWS):
    """Rows of zero to four numbers, every tenth of many."""
    random = np.random.default_rng(3)
    x = np.zeros((rows, WIDTH))
    for number, row in enumerate(x):
        at = random.choice(WIDTH, 150 if number % 10 == 7 else number % 5, replace=False)
        row[at] = random.normal(size=len(at))
    return x


def table(forms):
    """Rows whose forms repeat `forms`."""
    x = data()
    vectors = [forms[number % len(forms)](row) for number, row in enumerate(x)]
    return pa.table({"x": pa.array(vectors, VECTOR), "y": np.arange(ROWS)})


def in_parts(folder, rows, cuts, columns=(FEATURES, LABEL)):
    """Shards with a part for each piece between two cuts."""
    written = []
    for number, (low, high) in enumerate(zip([0, *cuts], [*cuts, len(rows)], strict=True)):
        piece = rows.slice(low, high - low)
        blocks = [[batch["x"], batch["y"]] for batch in piece.combine_chunks().to_batches(7)]
        outcome = parts.write_part(str(folder), f"part-{number}", columns, blocks)
        assert outcome.problems == ()
        written.append(outcome.part)
    return Shards(str(folder), columns, tuple(written))


def everything(shards, shuffle=False, ranks=2):
    """All batches of all ranks in two epochs, the second from its middle."""
    for rank in range(ranks):
        rows = Rows(shards, rank, ranks, 7, seed=5, shuffle=shuffle)
        for epoch, first_step in ((0, 0), (1, 2)):
            yield from batches_of(rows, epoch, first_step)


@pytest.mark.parametrize(
    "forms",
    [[sparse], [dense], [sparse, dense], [dense] * 20 + [sparse] * 40, [sparse] * 20 + [dense] * 40],
    ids=["sparse", "dense", "in turn", "dense first", "sparse first"],
)
@pytest.mark.parametrize("memory", [1, 4 << 20])
def test_batches_are_those_of_the_dense_rows(tmp_path, monkeypatch, forms, memory):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", memory)
    wanted = write_arrays({"x": data(), "y": np.arange(ROWS)}, (FEATURES, LABEL), tmp_path)
    shards = in_parts(tmp_path, table(forms), [4, 31])
    for shuffle in (False, True):
        for got, expected in zip(everything(shards, shuffle), everything(wanted, shuffle), strict=True):
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)
    np.testing.assert_array_equal(read_column(shards, FEATURES), data().astype(np.float32))


def test_only_the_stored_values_take_room(tmp_path):
    shards = in_parts(tmp_path, table([sparse]), [20])
    x = data()
    few = (x != 0).sum(axis=1) < 5
    sizes = {file: os.path.getsize(tmp_path / file) - 128 for part in shards.parts for file in part.files}
    assert sum(size for file, size in sizes.items() if "indices" in file) == 4 * (x[few] != 0).sum()
    values = (x[few] != 0).sum() + x[~few].size
    assert sum(size for file, size in sizes.items() if "values" in file) == 4 * values
    (tmp_path / "dense").mkdir()
    (plain,) = in_parts(tmp_path / "dense", table([dense]), []).parts
    assert len(plain.files) == 2


def sparse_model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((WIDTH,), sparse=True), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=3)
    return model


@pytest.mark.parametrize("forms", [[sparse], [dense], [sparse, dense]], ids=["sparse", "dense", "in turn"])
@pytest.mark.parametrize("cuts", [[], [4, 31]], ids=["one part", "parts"])
def test_a_sparse_input_gets_sparse_tensors(tmp_path, forms, cuts):
    model, shards = sparse_model(), in_parts(tmp_path, table(forms), cuts)
    rows, wanted = Rows(shards, 0, 1, 7, seed=5), sparse_model()
    feed = Feed(rows, batch(model, targets(model, "mse", "y", None)))
    batches = list(feed.dataset())
    for (x, y), (expected, labels) in zip(batches, batches_of(rows, 0), strict=True):
        assert x.shape == expected.shape
        assert len(x.values) == np.count_nonzero(expected)
        np.testing.assert_array_equal(tf.sparse.to_dense(x), expected)
        np.testing.assert_array_equal(y, labels)
    feed.begin(0)
    model.fit(feed.dataset(), epochs=2, shuffle=False, verbose=0, callbacks=[feed])
    for epoch in range(2):
        feed.begin(epoch)
        own = tf.data.Dataset.from_generator(
            lambda: iter(list(feed.dataset())), output_signature=feed.dataset().element_spec
        )
        wanted.fit(own, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), wanted.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
def test_parquet_and_a_store_behind_a_url(tmp_path, monkeypatch, block):
    monkeypatch.setattr(parts, "_BLOCK_ROWS", block)
    pq.write_table(table([sparse, sparse, dense]), tmp_path / "data.parquet")
    shards = write_parquet(tmp_path / "data.parquet", (FEATURES, LABEL), f"memory://{tmp_path}")
    assert open_shards(shards.url) == shards
    wanted = write_arrays({"x": data(), "y": np.arange(ROWS)}, (FEATURES, LABEL), tmp_path)
    for got, expected in zip(everything(shards), everything(wanted), strict=True):
        np.testing.assert_array_equal(got[0], expected[0], strict=True)
    shards.remove()


def test_many_small_parts_are_read_as_few_pieces(tmp_path, monkeypatch):
    shards = in_parts(tmp_path, table([sparse, sparse, dense, dense]), range(1, ROWS))
    wanted = list(everything(shards))
    monkeypatch.setattr(mapping, "_MANY_PARTS", 10)
    for most_bytes, most_maps in ((100, 1000), (4000, 1000), (4 << 20, 1000), (100, 10)):
        monkeypatch.setattr(mapping, "_PIECE_BYTES", most_bytes)
        monkeypatch.setattr(mapping, "_MOST_MAPS", most_maps)
        bounds, pieces = mapping.map_columns(shards, 1, ROWS)
        assert bounds[-1] == ROWS - 1
        assert all(len(own) == len(bounds) - 1 for own in pieces.values())
        assert len(bounds) == 2 if most_bytes > 4000 or most_maps == 10 else len(bounds) > 2
        for got, expected in zip(everything(shards), wanted, strict=True):
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool"])
def test_other_numbers(tmp_path, dtype):
    x = np.zeros((20, WIDTH))
    x[np.arange(20), np.arange(20) * 3] = 1
    rows = pa.table({"x": pa.array(list(map(sparse, x)), VECTOR), "y": np.arange(20)})
    column = Column("x", (WIDTH // 3, 3), dtype)
    shards = in_parts(tmp_path, rows, [], (column, LABEL))
    np.testing.assert_array_equal(
        read_column(shards, column), x.astype(dtype).reshape(20, -1, 3), strict=True
    )


def changed(row, **fields):
    vectors = list(map(sparse, data(10)))
    vectors[row] = None if fields.get("null") else {**vectors[row], **fields}
    return pa.array(vectors, VECTOR)


@pytest.mark.parametrize(
    ("column", "rows", "message"),
    [
        (FEATURES, changed(3, null=True), r"1 row with null values \(the first is row 3\)"),
        (FEATURES, changed(4, size=301), r"1 row with another number of values \(the first is row 4\)"),
        (FEATURES, changed(2, values=[1.0, np.nan]), r"1 row with NaN \(the first is row 2: nan\)"),
        (FEATURES, changed(2, values=[np.inf, 1]), r"1 row with infinite values \(the first is row 2: inf\)"),
        (
            Column("x", (WIDTH,), "int8"),
            changed(1, values=[300.0]),
            r"7 rows with fractions \(the first is row 2",
        ),
    ],
)
def test_rows_that_do_not_fit_are_named_as_dense_ones_are(tmp_path, column, rows, message):
    pq.write_table(pa.table({"x": rows}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=message):
        write_parquet(tmp_path / "data.parquet", [column], tmp_path / "store")
    assert os.listdir(tmp_path / "store") == []


def test_nan_is_stored_where_it_is_a_value(tmp_path):
    pq.write_table(pa.table({"x": changed(2, values=[1.0, np.nan])}), tmp_path / "data.parquet")
    column = Column("x", (WIDTH,), "float32", nan=True)
    shards = write_parquet(tmp_path / "data.parquet", [column], tmp_path)
    assert np.isnan(read_column(shards, column)).sum(axis=1).tolist() == [0, 0, 1, *[0] * 7]
    shards.remove()


def test_an_index_outside_the_vector_is_refused(tmp_path):
    pq.write_table(pa.table({"x": changed(2, indices=[5, 300])}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"must be from 0 to their size - 1. Received: 300"):
        write_parquet(tmp_path / "data.parquet", [FEATURES], tmp_path)
