"""Shards of NumPy arrays and Parquet files: what is written, opened, refused and left behind."""

import json
import os
import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hvdkeras.data import parts, sources, store
from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import open_shards
from hvdkeras.data.writing import write_arrays, write_parquet

from batching import batches_of

COLUMNS = (Column("x", (2,), "float32"), Column("y", (), "int32", classes=10))


def data(rows):
    return {"x": np.arange(rows * 2.0).reshape(rows, 2), "y": np.arange(rows) % 10}


def all_rows(shards):
    """All rows in the data's order, one array a column."""
    batches = list(batches_of(Rows(shards, 0, 1, batch_size=shards.rows, seed=0), 0))
    assert len(batches) == 1
    return batches[0]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows a block, so that small data has several."""
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 3)


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch, tmp_path_factory):
    """All private folders in one place, which must be empty in the end."""
    folder = tmp_path_factory.mktemp("private")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []


def test_arrays_come_back_as_the_model_wants_them(own_temporary_folder):
    shards = write_arrays(data(10), COLUMNS)
    x, y = all_rows(shards)
    np.testing.assert_array_equal(x, np.arange(20.0, dtype=np.float32).reshape(10, 2))
    np.testing.assert_array_equal(y, np.arange(10, dtype=np.int32))
    assert (x.dtype, y.dtype, shards.rows) == (np.float32, np.int32, 10)
    assert os.path.dirname(shards.url) == str(own_temporary_folder)
    shards.remove()
    shards.remove()


def test_files_are_plain_npy(tmp_path):
    shards = write_arrays(data(7), COLUMNS, tmp_path)
    (part,) = shards.parts
    np.testing.assert_array_equal(np.load(os.path.join(shards.url, part.files[0])), data(7)["x"])


def test_a_given_store_is_kept_and_opened_again(tmp_path):
    shards = write_arrays(data(10), COLUMNS, tmp_path)
    assert os.path.dirname(shards.url) == str(tmp_path)
    assert open_shards(shards.url) == shards
    assert sorted(os.listdir(shards.url)) == sorted(["manifest.json", *shards.parts[0].files])
    shards.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest["parts"][0][1].__setitem__(0, "../secret.npy"),
            "of the folder. Received: '../s",
        ),
        (
            lambda manifest: manifest["parts"][0][1].__setitem__(0, "/etc/passwd"),
            "of the folder. Received: '/etc/p",
        ),
        (lambda manifest: manifest["parts"][0][1].__setitem__(0, ".."), "of the folder. Received: '..'"),
        (lambda manifest: manifest["parts"][0][1].__setitem__(0, 7), "TypeError"),
        (lambda manifest: manifest["parts"][0][1].clear(), "a file for each of"),
        (lambda manifest: manifest["parts"][0].__setitem__(0, -1), "must have rows"),
        (lambda manifest: manifest.pop("columns"), "KeyError: 'columns'"),
        (lambda manifest: manifest["columns"][0].update(more=1), "TypeError"),
    ],
)
def test_a_manifest_of_somebody_else_is_refused(tmp_path, change, message):
    shards = write_arrays(data(3), COLUMNS, tmp_path)
    path = os.path.join(shards.url, "manifest.json")
    with open(path) as file:
        manifest = json.load(file)
    change(manifest)
    with open(path, "w") as file:
        json.dump(manifest, file)
    with pytest.raises(ValueError, match=message):
        open_shards(shards.url)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"a folder of shards with a manifest.json as hvdkeras writes it"):
        open_shards(tmp_path)


def test_two_writers_share_a_store(tmp_path):
    one, two = (write_arrays(data(rows), COLUMNS, tmp_path) for rows in (3, 4))
    assert (all_rows(one)[1].size, all_rows(two)[1].size) == (3, 4)


def test_a_relative_store_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards = write_arrays(data(3), COLUMNS, "here")
    monkeypatch.chdir("/")
    assert len(all_rows(shards)[1]) == 3


@pytest.mark.parametrize("scheme", ["memory://", "local://", "file://"])
def test_a_store_behind_a_url(tmp_path, scheme):
    shards = write_arrays(data(10), COLUMNS, f"{scheme}{tmp_path}/a b")
    assert open_shards(shards.url) == shards
    x, y = all_rows(shards)
    np.testing.assert_array_equal(x, data(10)["x"])
    seen = [
        row
        for rank in range(3)
        for _, labels in batches_of(Rows(shards, rank, 3, 2, seed=1), 0)
        for row in labels
    ]
    assert sorted(seen) == list(y)
    shards.remove()
    with pytest.raises(ValueError, match=r"url must be a folder of shards with a manifest.json. Received"):
        open_shards(shards.url)


def test_shards_are_small_and_pickle():
    shards = write_arrays(data(100), COLUMNS)
    assert len(pickle.dumps(shards)) < 1000
    assert pickle.loads(pickle.dumps(shards)) == shards
    shards.remove()


def test_a_pandas_dataframe_is_its_columns():
    frame = pd.DataFrame({"x": list(np.arange(20.0).reshape(10, 2)), "y": pd.array(range(10), "Int64")})
    shards = sources.write(sources.by_column(frame), COLUMNS, None)
    for received, wanted in zip(all_rows(shards), data(10).values(), strict=True):
        np.testing.assert_array_equal(received, wanted)
    shards.remove()
    frame.loc[3, "y"] = None
    with pytest.raises(DataError, match=r"'y' must hold .*NaN.*row 3"):
        sources.write(sources.by_column(frame), COLUMNS, None)
    with pytest.raises(ValueError, match="different names. Received: x$"):
        sources.by_column(pd.DataFrame(np.zeros((2, 3)), columns=["x", "y", "x"]))


def test_a_column_that_serves_twice_is_stored_once():
    column = Column("x", (2,), "float32")
    shards = write_arrays(data(5), (column, COLUMNS[1], column))
    assert len(shards.parts[0].files) == 2
    first, _, again = all_rows(shards)
    np.testing.assert_array_equal(first, again)
    shards.remove()


def test_several_inputs_and_outputs():
    columns = (
        Column("image", (2, 2, 1), "uint8"),
        Column("age", (1,), "float32"),
        Column("kind", (3,), "float32", classes=3, one_hot=True),
        Column("price", (), "float64"),
    )
    arrays = {
        "image": np.arange(20, dtype=np.uint8).reshape(5, 4),
        "age": np.arange(5),
        "kind": np.arange(5) % 3,
        "price": np.arange(5) / 3,
        "unused": np.array(["a"] * 5),
    }
    shards = write_arrays(arrays, columns)
    image, age, kind, price = all_rows(shards)
    np.testing.assert_array_equal(image, arrays["image"].reshape(5, 2, 2, 1))
    np.testing.assert_array_equal(age, np.arange(5)[:, None])
    np.testing.assert_array_equal(kind, np.eye(3)[np.arange(5) % 3])
    np.testing.assert_array_equal(price, arrays["price"])
    assert [array.dtype for array in (image, age, kind, price)] == ["uint8", "float32", "float32", "float64"]
    shards.remove()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": np.ones((10, 3))}, r"'x' must hold 2 finite numbers in every row .*shape \(10, 3\)"),
        ({"x": np.array([["a", "b"]] * 10)}, "'x' must be an array of numbers.*dtype <U1"),
        ({"x": np.array(1.0)}, r"'x' must be an array of numbers.*shape \(\)"),
        ({"y": np.arange(9)}, "arrays must have equally many rows. Received: {'x': 10, 'y': 9}"),
        (
            {"y": np.arange(10) + 3},
            "'y' must hold one class number from 0 to 9 in every row .* "
            r"Received: 3 rows with values out of range \(the first is row 7: 10\)",
        ),
        ({"y": np.zeros(10) + 0.5}, r"10 rows with fractions \(the first is row 0: 0.5\)"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, "the data must have at least one row. Received: no rows"),
    ],
)
def test_bad_arrays_are_refused_and_leave_nothing(changed, message, tmp_path):
    with pytest.raises(DataError, match=message):
        write_arrays({**data(10), **changed}, COLUMNS)
    with pytest.raises(DataError, match=message):
        write_arrays({**data(10), **changed}, COLUMNS, tmp_path)
    assert os.listdir(tmp_path) == []


def test_problems_of_several_columns_come_in_one_error():
    arrays = data(10)
    arrays["x"][[4, 8]] = np.nan
    arrays["y"][5] = -1
    with pytest.raises(DataError) as error:
        write_arrays(arrays, COLUMNS)
    assert str(error.value) == (
        "column 'x' must hold 2 finite numbers in every row (shape (2,), float32). "
        "Received: 2 rows with NaN (the first is row 4: nan); "
        "column 'y' must hold one class number from 0 to 9 in every row (shape (), int32). "
        "Received: 1 row with values out of range (the first is row 5: -1)"
    )


def test_a_missing_column_is_refused():
    with pytest.raises(DataError, match=r"'label' is not in the data.*Received columns: x, y"):
        write_arrays(data(3), [Column("label", (), "int32")])


def test_fewer_rows_than_ranks():
    shards = write_arrays(data(3), COLUMNS)
    shards.check_rows(3)
    with pytest.raises(ValueError, match=r"num_workers must be at most the number of rows, 3. Received: 4"):
        shards.check_rows(4)
    with pytest.raises(ValueError, match=r"num_workers must be at most the number of rows, 2. Received: 3"):
        shards.check_rows(3, rows=2)
    shards.remove()


def test_shards_of_other_columns_are_refused():
    shards = write_arrays(data(3), COLUMNS)
    shards.check_columns(COLUMNS)
    with pytest.raises(
        DataError,
        match=r"must have the columns that the model requires: 'x' with 3 finite.*Received: 'x' with 2",
    ):
        shards.check_columns([Column("x", (3,), "float32"), COLUMNS[1]])
    shards.remove()


def test_a_store_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"store must be a folder or URL that can be written. Received"):
        write_arrays(data(3), COLUMNS, file / "store")
    with pytest.raises(ValueError, match=r"store must be a local path or a URL that pyarrow or fsspec opens"):
        write_arrays(data(3), COLUMNS, "nonsense://store")


def test_a_store_that_fails_while_written_leaves_nothing(tmp_path, monkeypatch):
    def append(file, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.ColumnFile, "append", append)
    with pytest.raises(OSError, match=r"No space left"):
        write_arrays(data(3), COLUMNS, tmp_path)
    assert os.listdir(tmp_path) == []


def vectors(rows):
    kind = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    values = [
        {"type": 0, "size": 2, "indices": [1], "values": [2.0 * row + 1]}
        if row == 0
        else {"type": 1, "size": None, "indices": None, "values": [2.0 * row, 2.0 * row + 1]}
        for row in range(rows)
    ]
    return pa.array(values, kind)


@pytest.mark.parametrize("form", [lambda rows: pa.array(data(rows)["x"].tolist()), vectors])
def test_parquet_files_come_in_their_order(tmp_path, form):
    table = pa.table({"x": form(11), "y": data(11)["y"], "text": ["a"] * 11})
    for number, start in enumerate(range(0, 11, 4)):
        pq.write_table(table.slice(start, 4), tmp_path / f"part-{number}.parquet", row_group_size=3)
    (tmp_path / "_SUCCESS").write_text("")
    shards = write_parquet(tmp_path, COLUMNS)
    x, y = all_rows(shards)
    np.testing.assert_array_equal(x, data(11)["x"])
    np.testing.assert_array_equal(y, data(11)["y"])
    shards.remove()


def test_parquet_in_folders_by_label_and_by_url(tmp_path):
    table = pa.table({"x": data(10)["x"].tolist(), "y": data(10)["y"]})
    pq.write_to_dataset(table, tmp_path / "data", partition_cols=["y"])
    shards = write_parquet(f"file://{tmp_path}/data", COLUMNS)
    x, y = all_rows(shards)
    np.testing.assert_array_equal(x[np.argsort(y)], data(10)["x"])
    shards.remove()


def test_the_memory_does_not_grow_with_the_size_of_a_parquet_file(tmp_path, monkeypatch):
    """Of a file of 32 row groups of a megabyte, Arrow's memory holds some at a time: 9 to 11 MB were seen."""
    path, rows = tmp_path / "rows.parquet", 1 << 18
    numbers = np.random.default_rng(0).random(32 * rows, "float32")
    pq.write_table(pa.table({"x": numbers}), path, row_group_size=rows, compression="none")
    before, held = pa.total_allocated_bytes(), []

    def write(url, name, columns, blocks):
        def watched():
            for block in blocks:
                held.append(pa.total_allocated_bytes() - before)
                yield block

        return parts.write_part(url, name, columns, watched())

    monkeypatch.setattr(parts, "_BLOCK_ROWS", 1 << 16)
    monkeypatch.setattr("hvdkeras.data.writing.write_part", write)
    assert write_parquet(path, [Column("x", (), "float32")], tmp_path).rows == 32 * rows
    assert max(held) < 20e6


def test_bad_parquet_is_refused(tmp_path):
    path = str(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"path must name Parquet data. Received"):
        write_parquet(path, COLUMNS)
    pq.write_table(pa.table({"x": ["a"], "y": [1]}), path)
    with pytest.raises(
        DataError, match=r"'x' must hold numbers, arrays of numbers or vectors. Received: string"
    ):
        write_parquet(path, COLUMNS)
    with pytest.raises(DataError, match=r"Did you mean 'y'"):
        write_parquet(path, [Column("Y", (), "int32")])
    pq.write_table(pa.table({"x": [[1.0, 2.0]] * 8 + [None] * 2, "y": range(10)}), path)
    with pytest.raises(DataError, match=r"Received: 2 rows with null values \(the first is row 8\)"):
        write_parquet(path, COLUMNS)
