"""Shards of Spark DataFrames: the same rows as the DataFrame's, whatever its columns and partitions are."""

import decimal
import gc
import os
import sys

import numpy as np
import pyarrow as pa
import pyspark
import pytest
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions
from pyspark.sql.types import StructType

from hvdkeras.data import frames, parts, sources
from hvdkeras.data.columns import Column, DataError, Form
from hvdkeras.data.rows import Rows
from hvdkeras.data.shards import open_shards
from hvdkeras.data.writing import write_dataframe
from hvdkeras.transformers import StandardTransformerModel

from batching import batches_of

pytestmark = pytest.mark.spark

COLUMNS = (Column("x", (3,), "float32"), Column("y", (), "int32", classes=10))
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch, tmp_path_factory):
    """All private folders of the driver in one place, which must be empty in the end."""
    folder = tmp_path_factory.mktemp("private")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert os.listdir(folder) == []


@pytest.fixture
def numbers(spark):
    """Rows x = (i, i + 0.5, 0), y = i % 10 of a given number, in four partitions."""

    def make(rows):
        i = functions.col("id").cast("double")
        x = functions.array(i, i + 0.5, functions.lit(0.0))
        return spark.range(0, rows, 1, 4).select(x.alias("x"), (functions.col("id") % 10).alias("y"))

    return make


def all_rows(shards, ranks=1):
    """All rows as a rank or several see them in an epoch, sorted; the shards are removed."""
    seen = []
    for rank in range(ranks):
        seen += [
            (*x.ravel().tolist(), *y.ravel().tolist())
            for batch in batches_of(Rows(shards, rank, ranks, batch_size=4, seed=0), 0)
            for x, y in zip(*batch, strict=True)
        ]
    shards.remove()
    return sorted(seen)


def expected(rows):
    return [(i, i + 0.5, 0.0, i % 10) for i in range(rows)]


def test_partitions_empty_ones_and_more_or_fewer_than_ranks(spark, numbers, monkeypatch):
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 3)
    df = numbers(29)
    uneven = df.coalesce(1).union(df.limit(0)).union(df.where("y = 3"))
    assert uneven.rdd.getNumPartitions() > 2
    before = spark.conf.get(BATCH_ROWS)
    shards = write_dataframe(uneven, COLUMNS)
    assert [part.rows for part in shards.parts] == [29, 1, 1, 1]
    assert all_rows(shards, ranks=4) == sorted(expected(29) + [row for row in expected(29) if row[-1] == 3])
    shards = write_dataframe(df, COLUMNS)
    assert len(shards.parts) == 4
    assert all_rows(shards, ranks=3) == expected(29)
    assert spark.conf.get(BATCH_ROWS) == before


def test_very_many_partitions_are_written_by_fewer_tasks(numbers, monkeypatch, caplog):
    monkeypatch.setattr(frames, "_MOST_WAVES", 2)
    with caplog.at_level("INFO", "hvdkeras"):
        shards = write_dataframe(numbers(40).repartition(30, "y").where("y > 0"), COLUMNS)
    assert len(shards.parts) == 4
    assert "the DataFrame has 4 partitions or more" in caplog.text
    assert all_rows(shards, ranks=2) == [row for row in expected(40) if row[-1] > 0]
    caplog.clear()
    with caplog.at_level("INFO", "hvdkeras"):
        shards = write_dataframe(numbers(40).coalesce(2), COLUMNS)
    assert (len(shards.parts), caplog.text) == (2, "")
    assert all_rows(shards) == expected(40)


@pytest.mark.parametrize(
    ("local", "growing", "tasks"), [(True, "false", 32), (False, "false", 256), (False, "true", 1024)]
)
def test_few_slots_of_several_machines_get_more_tasks(spark, monkeypatch, local, growing, tasks):
    monkeypatch.setattr(frames, "is_local", lambda context: local)
    monkeypatch.setattr(spark.conf, "get", lambda name, default: growing)
    assert frames._most_tasks(spark) == tasks


def test_later_tasks_of_a_python_worker_read_no_archive_and_collect_no_modules(spark, numbers):
    def ask(batches):
        list(batches)
        archives = [type(one).__name__ for one in sys.path_importer_cache.values()].count("zipimporter")
        yield pa.RecordBatch.from_pydict({"archives": [archives], "spared": [gc.get_freeze_count()]})

    write_dataframe(numbers(40), COLUMNS).remove()
    seen = numbers(8).mapInArrow(ask, "archives long, spared long").collect()
    # Spark gives tasks to its idle workers in turn; other jobs may have left some that wrote nothing.
    spared = [row.archives for row in seen if row.spared > 10_000]
    assert spared
    assert sys.version_info >= (3, 12) or set(spared) == {0}


def test_dense_and_sparse_vectors_and_arrays_are_equal(spark):
    rows = [((i, i + 0.5, 0.0), i % 10) for i in range(20)]

    def sparse(x):
        return Vectors.sparse(3, [(at, value) for at, value in enumerate(x) if value])

    for form in (list, Vectors.dense, sparse, lambda x: sparse(x) if x[0] % 3 else Vectors.dense(x)):
        df = spark.createDataFrame([(form([float(one) for one in x]), y) for x, y in rows], ["x", "y"])
        assert all_rows(write_dataframe(df, COLUMNS)) == expected(20)
    tokens = (Column("x", (3,), "int64"), COLUMNS[1])
    with pytest.raises(DataError, match=r"20 rows with fractions \(the first is row 0 of partition 0: 0.5\)"):
        write_dataframe(df, tokens)


def test_a_retried_task_doubles_no_row(numbers, monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "_BLOCK_ROWS", 3)

    def fail_first(batches):
        task = pyspark.TaskContext.get()
        for number, batch in enumerate(batches):
            if number == 1 and task.partitionId() == 1 and task.attemptNumber() == 0:
                open(f"{tmp_path}/failed", "x").close()
                raise OSError("the first attempt fails after it has passed on rows")
            yield batch

    df = numbers(40)
    shards = write_dataframe(df.mapInPandas(fail_first, df.schema), COLUMNS, tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["failed", "store"]
    listed = {"manifest.json"}.union(*(part.files for part in shards.parts))
    assert set(os.listdir(shards.url)) == listed
    assert all_rows(shards, ranks=2) == expected(40)


def test_a_job_that_fails_leaves_nothing(numbers, tmp_path):
    def fail(batches):
        raise OSError("this fails always")
        yield

    df = numbers(8)
    with pytest.raises(Exception, match="this fails always"):
        write_dataframe(df.mapInPandas(fail, df.schema), COLUMNS, tmp_path)
    assert os.listdir(tmp_path) == []


def test_several_inputs_and_outputs_of_many_types(spark):
    df = spark.createDataFrame(
        [(i, [[i, 1], [2, 3]], bytes([i, 255]), decimal.Decimal(i) / 4, i % 2 == 0, i % 3) for i in range(9)],
        "id long, `an image` array<array<int>>, raw binary, `a.b` decimal(10,2), `c``d` boolean, kind byte",
    )
    columns = (
        Column("an image", (2, 2, 1), "float32"),
        Column("raw", (2,), "uint8"),
        Column("a.b", (1,), "float32"),
        Column("c`d", (), "bool"),
        Column("kind", (3,), "float32", classes=3, one_hot=True),
        Column("id", (), "int64"),
    )
    shards = write_dataframe(df, columns)
    ((image, raw, price, flag, kind, number),) = batches_of(Rows(shards, 0, 1, batch_size=9, seed=0), 0)
    np.testing.assert_array_equal(image.reshape(9, 4), [[i, 1, 2, 3] for i in range(9)])
    np.testing.assert_array_equal(raw, [[i, 255] for i in range(9)])
    np.testing.assert_array_equal(price, [[i / 4] for i in range(9)])
    np.testing.assert_array_equal(flag, [i % 2 == 0 for i in range(9)])
    np.testing.assert_array_equal(kind, np.eye(3)[np.arange(9) % 3])
    np.testing.assert_array_equal(number, np.arange(9))
    assert [array.dtype.name for array in (image, raw, price, flag, kind, number)] == [
        column.dtype for column in columns
    ]
    shards.remove()


def test_rounded_integers_are_warned_of(spark, caplog):
    def warnings(values, kind):
        df = spark.createDataFrame([(value,) for value in values], f"x {kind}")
        write_dataframe(df, (Column("x", (1,), "float32"),)).remove()
        return caplog.text.count("integers of 'x' are rounded")

    assert warnings([2**24, 2**40], "bigint") == 0
    assert warnings([1, 2**24 + 1], "bigint") == 1
    assert warnings([[1], [2**24 + 1]], "array<int>") == 2


def test_bad_rows_are_counted_over_all_partitions(spark):
    rows = [([1.0, 2.0, 3.0], 1.0)] * 4
    rows[1:1] = [(None, 2.0), ([1.0, 2.0], 2.0)]
    rows += [([1.0, None, 3.0], 0.5), ([1.0, 2.0, float("nan")], 10.0), ([1.0, 2.0, 3.0], None)]
    two_partitions = spark.sparkContext.parallelize(rows + rows, 2)
    df = spark.createDataFrame(two_partitions, "x array<double>, y double")
    with pytest.raises(DataError) as error:
        write_dataframe(df, COLUMNS)
    assert str(error.value) == (
        "column 'x' must hold 3 finite numbers in every row (shape (3,), float32). "
        "Received: 4 rows with null values (the first is row 1 of partition 0), "
        "2 rows with another number of values (the first is row 2 of partition 0), "
        "2 rows with NaN (the first is row 7 of partition 0: nan); "
        "column 'y' must hold one class number from 0 to 9 in every row (shape (), int32). "
        "Received: 2 rows with null values (the first is row 8 of partition 0), "
        "2 rows with fractions (the first is row 6 of partition 0: 0.5)"
    )


def test_null_vectors_and_vectors_of_another_size(spark):
    df = spark.createDataFrame([(Vectors.dense(1, 2, 3), 1), (None, 1), (Vectors.dense(1), 1)], ["x", "y"])
    with pytest.raises(DataError, match=r"1 row with null values .* 1 row with another number of values"):
        write_dataframe(df.coalesce(1), COLUMNS)


def test_what_the_schema_tells_needs_no_job(spark, numbers):
    df = numbers(4)
    two = VectorAssembler(inputCols=["y", "y"], outputCol="z").transform(df).drop("x")
    bad = [
        (df.drop("x").withColumnRenamed("y", "z"), r"column 'x' is not in the data.* Received columns: z"),
        (
            df.withColumn("y", functions.lit("a")),
            r"column 'y' must hold numbers, .* Received: string .*StringInd",
        ),
        (df.withColumn("y", functions.current_date()), "column 'y' must hold numbers, .* Received: date"),
        (df.withColumn("x", functions.struct("y")), "column 'x' must hold numbers, .* Received: struct<y:"),
        (
            df.withColumn("x", functions.create_map("y", "y")),
            "column 'x' must hold numbers, .* Received: map<",
        ),
        (
            df.withColumn("x", functions.col("y")),
            "column 'x' must hold 3 finite numbers .* Received: bigint, 1 a",
        ),
        (two.withColumnRenamed("z", "x"), "column 'x' must hold 3 finite numbers .* Received: vectors of 2"),
    ]
    tracker = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup("schema", "checks of the schema")
    for frame, message in bad:
        with pytest.raises(DataError, match=message):
            write_dataframe(frame, COLUMNS)
    assert list(tracker.getJobIdsForGroup("schema")) == []
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


def test_look_ups_in_a_schema_are_not_more_in_a_wide_one(spark, monkeypatch):
    # Each takes as long as the schema is wide: one for each column would be quadratic.
    kind, found = type(spark.range(1)), []
    item, columns = StructType.__getitem__, kind.columns.fget
    monkeypatch.setattr(StructType, "__getitem__", lambda self, key: found.append(key) or item(self, key))
    monkeypatch.setattr(kind, "columns", property(lambda self: found.append("columns") or columns(self)))
    counts = []
    for width in (2, 30):
        names = [f"x{number}" for number in range(width)]
        df = spark.range(1).select(*(functions.lit(1.0).alias(name) for name in names))
        found.clear()
        chosen = frames.select(df, [Column("all", (width,), "float32", stacked=tuple(names))])
        assert len(frames.arrow_types(df, names)) == width
        scaled = StandardTransformerModel(names, "_scaled", [0.0] * width, [1.0] * width).transform(df)
        counts.append(len(found))
        assert (len(chosen.schema), len(scaled.schema)) == (1, 2 * width)
    assert counts[0] == counts[1]


def test_an_empty_dataframe(numbers):
    with pytest.raises(DataError, match=r"the data must have at least one row. Received: no rows"):
        write_dataframe(numbers(0), COLUMNS)


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_stores(numbers, tmp_path, scheme):
    shards = write_dataframe(numbers(12), COLUMNS, f"{scheme}{tmp_path}/a store")
    assert os.path.dirname(shards.url).endswith(f"{tmp_path}/a store")
    assert open_shards(shards.url) == shards
    assert all_rows(shards, ranks=2) == expected(12)
    assert os.listdir(tmp_path / "a store") == []


def test_hosts_that_do_not_see_the_store_write_nothing(numbers, tmp_path):
    # What an executor on another host finds in the place of a folder that only the driver has.
    selected = frames.select(numbers(8), COLUMNS)
    outcomes, blind = frames.write_partitions(selected, COLUMNS, str(tmp_path), f"{tmp_path}/missing")
    assert outcomes == []
    assert blind == [os.uname().nodename]
    assert os.listdir(tmp_path) == []


def test_labels_have_the_form_of_the_dataframes_rows(spark):
    import keras

    import hvdkeras

    i = functions.col("id")
    mask = functions.array(functions.array(i, i), functions.array(i, i), functions.array(i, i))
    df = spark.range(0, 12, 1, 2).select(
        functions.array(i.cast("double")).alias("features"),
        i.cast("byte").alias("class"),
        mask.cast("array<array<smallint>>").alias("a.mask"),
        functions.encode(functions.lit("abc"), "utf-8").alias("bytes"),
        functions.lit("text").alias("text"),
    )
    df = VectorAssembler(inputCols=["class"], outputCol="vector").transform(df)
    names = ["class", "a.mask", "vector", "bytes", "text", "absent"]
    assert sources.forms(df, names, {}) == {
        "class": Form((), "int8"),
        "a.mask": Form((3, 2), "int16"),
        "vector": Form((1,), "float32"),
        "bytes": Form((3,), "uint8"),
    }
    assert sources.forms(df.limit(0), ["a.mask"], {}) == {}

    def compared(truth, predicted):
        return keras.ops.mean(keras.ops.cast(truth, "float32") - predicted[:, None], axis=(1, 2))

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    trainer = hvdkeras.SynchronousSGD(model, loss=compared, label_col="a.mask", verbose=0)
    with pytest.raises(DataError, match=r"label 'a.mask' of shape \(5, 3, 2\), int16; .*Incompatible shapes"):
        trainer.fit(df)
