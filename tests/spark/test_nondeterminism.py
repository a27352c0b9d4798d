"""Each row is trained once an epoch, whatever order, partitions and failures the data has."""

import collections
import itertools

import numpy as np
import pyspark
import pytest
from pyspark.sql import functions

from hvdkeras.data.columns import Column
from hvdkeras.data.rows import Rows
from hvdkeras.data.writing import write_dataframe

from batching import batches_of

pytestmark = pytest.mark.spark

ROWS = 1000


def fails_once(frame, folder):
    """The frame; the first attempt of a task fails after it has passed on rows."""

    def fail(batches):
        task = pyspark.TaskContext.get()
        for number, batch in enumerate(batches):
            yield batch
            if number == 0 and task.partitionId() == 1 and task.attemptNumber() == 0:
                open(f"{folder}/failed", "x").close()
                raise OSError("the first attempt fails")

    return frame.mapInPandas(fail, frame.schema)


def skewed(spark):
    """Partitions of 990 rows, of 10, and of none."""
    small = spark.range(990, ROWS, 1, 1)
    return spark.range(0, 990, 1, 1).union(small).union(small.where("id < 0"))


CASES = {
    "one partition": lambda spark, folder: spark.range(0, ROWS, 1, 1),
    "many partitions": lambda spark, folder: spark.range(0, ROWS, 1, 30),
    "a skew of 99 to 1": lambda spark, folder: skewed(spark),
    "ordered by rand()": lambda spark, folder: spark.range(0, ROWS, 1, 4).orderBy(functions.rand()),
    "dealt out by rand()": lambda spark, folder: spark.range(0, ROWS, 1, 4).repartition(3, functions.rand()),
    "a task that fails once": lambda spark, folder: fails_once(
        spark.range(0, ROWS, 1, 4).withColumn("drawn", functions.rand()), folder
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_row_is_trained_once_an_epoch(spark, tmp_path, case):
    shards = write_dataframe(CASES[case](spark, tmp_path), (Column("id", (), "int64"),))
    try:
        assert shards.rows == ROWS
        for shuffle, epoch in itertools.product((False, True), (0, 1)):
            ranks = [Rows(shards, rank, 3, 32, seed=0, shuffle=shuffle) for rank in range(3)]
            seen = [batch[0] for rows in ranks for batch in batches_of(rows, epoch)]
            assert sorted(np.concatenate(seen).tolist()) == list(range(ROWS))
            assert max(rows.rows for rows in ranks) - min(rows.rows for rows in ranks) <= 1
            assert len({rows.steps for rows in ranks}) == 1
    finally:
        shards.remove()
    assert (tmp_path / "failed").exists() == (case == "a task that fails once")


def test_a_limit_without_an_order_gives_so_many_different_rows(spark):
    shards = write_dataframe(spark.range(0, ROWS, 1, 7).limit(300), (Column("id", (), "int64"),))
    try:
        ranks = [Rows(shards, rank, 2, 32, seed=0) for rank in range(2)]
        seen = collections.Counter(
            np.concatenate([batch[0] for rows in ranks for batch in batches_of(rows, 0)]).tolist()
        )
        assert (shards.rows, len(seen), set(seen.values())) == (300, 300, {1})
    finally:
        shards.remove()
