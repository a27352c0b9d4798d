"""What do sparse vectors cost on their way to a rank, and what did they as dense rows?

    python benchmarks/sparse_columns.py

Rows of words through HashingTF, 262,144 wide, a few numbers in each. They are written from a Spark DataFrame
and read in batches by one rank; the dense way gets the same vectors as arrays (`vector_to_array`). The table
has the bytes of the shards, the seconds of writing and of reading an epoch, and the most private memory of a
process that reads them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from multiprocessing import get_context

import numpy as np

from hvdkeras.data.columns import Column
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import write_dataframe

from local_spark import local_session

WIDTH, WORDS, BATCH = 1 << 18, 20, 32
COLUMNS = (Column("features", (WIDTH,), "float32"), Column("label", (), "float32"))


def documents(rows: int):
    """The two DataFrames, in Spark's memory: of vectors and of arrays."""
    from pyspark.ml.feature import HashingTF
    from pyspark.ml.functions import vector_to_array

    spark = local_session()
    random = np.random.default_rng(0)
    words = [
        ([f"w{word}" for word in random.integers(0, 5000, WORDS)], float(row % 2)) for row in range(rows)
    ]
    frame = spark.createDataFrame(words, ["words", "label"]).repartition(4)
    hashing = HashingTF(numFeatures=WIDTH, inputCol="words", outputCol="features")
    vectors = hashing.transform(frame).select("features", "label").cache()
    vectors.count()
    return vectors, vectors.select(vector_to_array("features", "float32").alias("features"), "label")


def read(shards: Shards) -> tuple[float, float]:
    """Seconds of an epoch, and the most megabytes of this process that no file backs, beside those before."""
    from hvdkeras.data.rows import Rows

    before, most = private(), 0.0
    started = time.perf_counter()
    rows = Rows(shards, 0, 1, BATCH, seed=0)
    for step in range(0, rows.steps, rows.block_steps):
        columns, _ = rows.block(0, step)
        most = max(most, private())
        del columns
    return time.perf_counter() - started, most - before


def private() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def measure(frame, folder: str) -> tuple[float, float, float, float]:
    started = time.perf_counter()
    shards = write_dataframe(frame, COLUMNS, folder)
    writing = time.perf_counter() - started
    size = sum(os.path.getsize(f"{shards.url}/{file}") for part in shards.parts for file in part.files)
    with get_context("spawn").Pool(1) as pool:
        reading, memory = pool.apply(read, (shards,))
    shards.remove()
    return size / 1e6, writing, reading, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    vectors, arrays = documents(options.rows)
    folder = tempfile.mkdtemp(prefix="hvdkeras-benchmark-")
    try:
        found = {"vectors": [], "arrays": []}
        # The first round warms up and is not counted.
        for _ in range(options.rounds + 1):
            found["vectors"].append(measure(vectors, folder))
            found["arrays"].append(measure(arrays, folder))
    finally:
        shutil.rmtree(folder)
    print(f"{options.rows} rows of {WIDTH} values, {WORDS} of which are not 0, in batches of {BATCH}")
    print(f"{'':10} {'MB of shards':>13} {'s to write':>11} {'s to read':>10} {'private MB':>11}")
    for name, runs in found.items():
        size, writing, reading, memory = (statistics.median(one) for one in zip(*runs[1:], strict=True))
        print(f"{name:10} {size:13.2f} {writing:11.2f} {reading:10.2f} {memory:11.1f}", flush=True)


if __name__ == "__main__":
    main()
