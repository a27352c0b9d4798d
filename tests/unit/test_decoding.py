"""Columns of bytes: stored at any length, taken back as they were, and decoded as the model wants them."""

import collections
import itertools
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hvdkeras.data import parts
from hvdkeras.data import rows as rows_module
from hvdkeras.data.columns import Column, DataError
from hvdkeras.data.decoding import DecodedRows, check_decode
from hvdkeras.data.parts import write_part
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import Shards, open_shards
from hvdkeras.data.writing import write_arrays, write_parquet

from batching import batches_of

IMAGE = Column("image", (3,), "float32", encoded=True)
LABEL = Column("y", (), "int32", classes=10)


def encoded(row):
    """A row's number in as many bytes as it has digits; none for row 0."""
    return str(row).encode() if row else b""


def to_array(data):
    return np.full(3, int(data or b"0"), np.int64)


def files(rows):
    return [encoded(row) for row in range(rows)]


def in_parts(folder, part_rows, columns=(IMAGE, LABEL)):
    """Shards with parts of these numbers of rows."""
    written, start = [], 0
    for number, rows in enumerate(part_rows):
        values = np.arange(start, start + rows)
        blocks = [[pa.array([encoded(row) for row in values], pa.binary()), values % 10]] if rows else []
        written.append(write_part(str(folder), f"part-{number}", columns, blocks).part)
        start += rows
    return Shards(str(folder), columns, tuple(part for part in written if part.rows))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows a block, so that small data has several."""
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 3)


def stored(shards, ranks=1):
    """(number, bytes) of every row, as the ranks take them."""
    return sorted(
        (value.row, bytes(value.data))
        for rank in range(ranks)
        for values, _ in batches_of(Rows(shards, rank, ranks, 4, seed=0), 0)
        for value in values
    )


def as_objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize("form", [list, as_objects])
def test_bytes_of_any_length_come_back(tmp_path, form):
    values = [b"", b"a", b"ends with zeros\0\0", bytes(range(256)) * 40, b"", b"b", b""]
    shards = write_arrays({"image": form(values), "y": np.arange(7)}, (IMAGE, LABEL), tmp_path)
    assert open_shards(shards.url) == shards
    assert stored(shards) == list(enumerate(values))
    assert sorted(os.listdir(shards.url)) == sorted(["manifest.json", *shards.parts[0].files])
    shards.check_columns((IMAGE, LABEL))
    with pytest.raises(DataError, match=r"'image' with 3 finite numbers .*Received: 'image' with bytes"):
        shards.check_columns((Column("image", (3,), "float32"), LABEL))


@pytest.mark.parametrize("values", [[b""] * 5, [b"abc"]])
@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_nothing_but_empty_rows_and_a_single_row(tmp_path, scheme, values):
    shards = write_arrays({"image": values, "y": [1] * len(values)}, (IMAGE, LABEL), f"{scheme}{tmp_path}")
    assert stored(shards) == list(enumerate(values))
    shards.remove()


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_in_a_store_behind_a_url(tmp_path, kind):
    for number, start in enumerate(range(0, 40, 16)):
        rows = range(start, min(start + 16, 40))
        table = pa.table({"image": pa.array([encoded(r) for r in rows], kind), "y": [r % 10 for r in rows]})
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=5)
    shards = write_parquet(tmp_path, (IMAGE, LABEL), f"memory://{tmp_path}")
    assert stored(shards, ranks=3) == list(enumerate(files(40)))
    shards.remove()


def test_ranks_that_begin_within_a_part(tmp_path):
    here = in_parts(tmp_path, [1, 0, 10, 19, 11])
    behind_url = Shards(f"local://{tmp_path}", here.columns, here.parts)
    for shards in (here, behind_url):
        assert stored(shards, ranks=4) == list(enumerate(files(41)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"a", None, b"c", None], r"bytes in every row .*Received: 2 rows with null values .* is row 1\)"),
        (
            [b"a", "b", b"c", 4],
            r"'image' must be a list or a NumPy array .*Received: bytes, int, str",
        ),
        (np.array([b"a"] * 4), r"Received: ndarray of \|S1"),
        (np.ones((4, 3)), r"Received: ndarray of float64"),
    ],
)
def test_what_is_not_bytes_is_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        write_arrays({"image": values, "y": np.arange(4)}, (IMAGE, LABEL), tmp_path)
    assert os.listdir(tmp_path) == []


def test_parquet_without_bytes_is_refused(tmp_path):
    path = str(tmp_path / "data.parquet")
    pq.write_table(pa.table({"image": ["a"], "y": [1]}), path)
    with pytest.raises(DataError, match=r"'image' must hold bytes, for decode. Received: string"):
        write_parquet(path, (IMAGE, LABEL))
    pq.write_table(pa.table({"image": [b"a"] * 8 + [None] * 2, "y": range(10)}), path)
    with pytest.raises(DataError, match=r"Received: 2 rows with null values \(the first is row 8\)"):
        write_parquet(path, (IMAGE, LABEL))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_batches_are_those_of_the_decoded_data(tmp_path, threads, shuffle):
    shards = in_parts(tmp_path, [1] * 20 + [30])
    plain = (Column("image", (3,), "float32"), LABEL)
    arrays = {"image": np.stack([to_array(file) for file in files(50)]), "y": np.arange(50) % 10}
    decoded_before = write_arrays(arrays, plain, tmp_path)
    for rank in range(2):
        wanted = Rows(decoded_before, rank, 2, 4, seed=5, shuffle=shuffle)
        source = Rows(shards, rank, 2, 4, seed=5, shuffle=shuffle)
        decoded = DecodedRows(source, {"image": to_array}, threads)
        assert (decoded.columns, decoded.rows, decoded.steps) == (plain, wanted.rows, wanted.steps)
        np.testing.assert_array_equal(decoded.batch_sizes, wanted.batch_sizes)
        for epoch in range(2):
            pairs = zip(batches_of(decoded, epoch), batches_of(wanted, epoch), strict=True)
            for (image, label), (wanted_image, wanted_label) in pairs:
                assert image.dtype == np.float32
                np.testing.assert_array_equal(image, wanted_image)
                np.testing.assert_array_equal(label, wanted_label)


def test_threads_decode_each_row_of_a_block_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 16 * 4)
    source = Rows(in_parts(tmp_path, [40]), 0, 1, 2, seed=0)
    calls, names = collections.Counter(), set()

    def counted(data):
        calls[bytes(data)] += 1
        names.add(threading.current_thread().name)
        return to_array(data)

    decoded = DecodedRows(source, {"image": counted}, 2)
    (images, _), sizes = decoded.block(0, 0)
    assert len(images) == sizes.sum() == len(calls) < 40
    assert len(list(batches_of(decoded, 0, len(sizes)))) == decoded.steps - len(sizes)
    assert set(calls.values()) == {1}
    assert len(calls) == 40
    assert threading.current_thread().name not in names


def test_an_image_that_is_its_own_label_is_decoded_once(tmp_path):
    shards = write_arrays({"image": files(4)}, (IMAGE, IMAGE), tmp_path)
    calls = []
    rows = DecodedRows(Rows(shards, 0, 1, 4, seed=0), {"image": lambda d: calls.append(d) or to_array(d)}, 1)
    ((inputs, outputs),) = batches_of(rows, 0)
    np.testing.assert_array_equal(inputs, outputs)
    assert calls == files(4)


def test_decoded_class_numbers_become_one_hot(tmp_path):
    column = Column("mask", (2, 3), "float32", classes=3, one_hot=True, encoded=True)
    shards = write_arrays({"mask": [b"\0\1", b"\2\2"]}, (column,), tmp_path)
    rows = Rows(shards, 0, 1, 2, seed=0)
    ((mask,),) = batches_of(DecodedRows(rows, {"mask": lambda data: np.frombuffer(data, np.uint8)}, 1), 0)
    np.testing.assert_array_equal(mask, np.eye(3)[[[0, 1], [2, 2]]])
    with pytest.raises(DataError, match=r"0 to 2.*Received: 1 row with values .* is row 1: 4\)"):
        list(batches_of(DecodedRows(rows, {"mask": lambda data: np.frombuffer(data, np.uint8) * 2}, 1), 0))


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (
            lambda data: to_array(data) if data != b"17" else 1 // 0,
            r"'image' can't be decoded in row 17 of the data \(2 bytes\): ZeroDivisionError: integer div",
        ),
        (
            lambda data: to_array(data)[: 3 - (data == b"17")],
            r"'image' must be decoded to numbers of shape \(3,\), for float32. "
            r"Received: shape \(2,\), int64, from row 17 of the data",
        ),
        (lambda data: to_array(data).reshape(3, 1), r"shape \(3,\), .*Received: shape \(3, 1\)"),
        (lambda data: to_array(data).astype(str), r"Received: shape \(3,\), <U"),
        (
            lambda data: np.where(to_array(data) == 17, np.inf, 0),
            r"must be decoded to 3 finite numbers .*1 row with infinite values .*is row 17: inf\)",
        ),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_row_that_can_not_be_decoded_is_named(tmp_path, decode, message, shuffle):
    shards = in_parts(tmp_path, [1] * 10 + [20])
    ranks = [DecodedRows(Rows(shards, rank, 2, 4, 0, shuffle), {"image": decode}, 2) for rank in range(2)]
    with pytest.raises(DataError, match=message):
        list(itertools.chain.from_iterable(batches_of(rank, 0) for rank in ranks))


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_the_first_row_is_checked_alone(tmp_path, scheme):
    shards = write_arrays({"image": files(9), "y": np.arange(9)}, (IMAGE, LABEL), f"{scheme}{tmp_path}")
    seen = []
    check_decode(shards, {"image": lambda data: seen.append(data) or to_array(data)})
    assert seen == [b""]
    with pytest.raises(DataError, match=r"can't be decoded in row 0 of the data \(0 bytes\): ValueError"):
        check_decode(shards, {"image": lambda data: np.full(3, int(data))})
    shards.remove()
