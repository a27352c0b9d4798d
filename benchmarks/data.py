"""What the data's way costs: writing shards, feeding a model from them, and a rank's memory.

1. Writing shards of a Spark DataFrame against Spark's own `write.parquet` of it.
2. `model.fit` fed from shards against `model.fit` of arrays in memory (MLP 784-256-128-10, batch 128,
   steps_per_execution 16, one TensorFlow thread).
3. Private (anonymous) memory of a process that trains from shards, at a tenth of the rows and at all of them.

Everything is measured in alternation in one run; the table has medians.

    python benchmarks/data.py
    python benchmarks/data.py --rows 20000 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hvdkeras.data.columns import Column
from hvdkeras.data.shards import Shards
from hvdkeras.data.writing import write_arrays, write_dataframe

from local_spark import local_session

WIDTH, CLASSES, BATCH, WINDOW = 784, 10, 128, 16
COLUMNS = (Column("features", (WIDTH,), "float32"), Column("label", (), "int32", classes=CLASSES))


def make_arrays(rows: int) -> dict[str, np.ndarray]:
    """Images like handwritten digits: four of five values are 0, the others multiples of 1/255."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, WIDTH), np.uint8)
    pixels[random.random((rows, WIDTH), np.float32) < 0.8] = 0
    return {"features": pixels / np.float32(255), "label": random.integers(0, CLASSES, rows, np.int32)}


def alternate(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each; a first round warms up and is not counted."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(all_seconds[1:]) for name, all_seconds in seconds.items()}


def measure_writing(arrays: dict[str, np.ndarray], folder: str, rounds: int) -> None:
    from pyspark.ml.functions import array_to_vector

    rows = len(arrays["label"])
    source, target = f"{folder}/source", f"{folder}/target"
    os.makedirs(source)
    for number, (x, y) in enumerate(zip(*(np.array_split(arrays[name], 4) for name in arrays), strict=True)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH).cast(pa.list_(pa.float32()))
        pq.write_table(pa.table({"features": lists, "label": y}), f"{source}/{number}.parquet")
    spark = local_session()
    spark.read.parquet(source).select(array_to_vector("features").alias("features"), "label").write.parquet(
        f"{folder}/vectors"
    )
    for kind, path in (("array<float>", source), ("vector", f"{folder}/vectors")):
        df = spark.read.parquet(path)
        medians = alternate(
            {
                "read": lambda df=df: df.write.format("noop").mode("overwrite").save(),
                "parquet": lambda df=df: df.write.mode("overwrite").parquet(target),
                "shards": lambda df=df: write_dataframe(df, COLUMNS).remove(),
            },
            rounds,
        )
        print(f"writing {rows} rows of {WIDTH} ({kind})")
        print(f"  reading alone            {medians['read']:8.2f} s")
        print(f"  df.write.parquet         {medians['parquet']:8.2f} s")
        print(f"  shards                   {medians['shards']:8.2f} s")
        print(
            f"  ratio shards/parquet     {medians['shards'] / medians['parquet']:8.2f}   (target: <= 1)",
            flush=True,
        )
    spark.stop()


def make_model():
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    model = keras.Sequential(
        [
            keras.layers.Input((WIDTH,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", steps_per_execution=WINDOW)
    return model


def fit_shards(model, shards: Shards, epochs: int = 1) -> None:
    from hvdkeras.callbacks.feed import Feed
    from hvdkeras.data.rows import Rows
    from hvdkeras.models.targets import Batch

    feed = Feed(Rows(shards, 0, 1, BATCH, seed=0), Batch(0, 1, None))
    model.fit(feed.dataset(), epochs=epochs, callbacks=[feed], shuffle=False, verbose=0)


def measure_feeding(arrays: dict[str, np.ndarray], rounds: int) -> None:
    rows = len(arrays["label"])
    model = make_model()
    shards = write_arrays(arrays, COLUMNS)
    medians = alternate(
        {
            "arrays": lambda: model.fit(arrays["features"], arrays["label"], batch_size=BATCH, verbose=0),
            "shards": lambda: fit_shards(model, shards),
        },
        rounds,
    )
    shards.remove()
    print(f"fit, an epoch of {rows} rows")
    print(f"  from arrays in memory    {rows / medians['arrays']:8.0f} samples/s")
    print(f"  from shards              {rows / medians['shards']:8.0f} samples/s")
    print(
        f"  ratio shards/arrays      {medians['arrays'] / medians['shards']:8.2f}   (target: >= 0.9)",
        flush=True,
    )


def private_memory(shards: Shards) -> float:
    """Megabytes of this process that no file backs, after two epochs."""
    fit_shards(make_model(), shards, epochs=2)
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))


def measure_memory(arrays: dict[str, np.ndarray], rounds: int) -> None:
    total = len(arrays["label"])
    medians = {}
    print("private memory of a process that trains from shards")
    for rows in (total // 10, total):
        shards = write_arrays({name: array[:rows] for name, array in arrays.items()}, COLUMNS)
        measured = []
        for _ in range(rounds):
            with get_context("spawn").Pool(1) as pool:
                measured.append(pool.apply(private_memory, (shards,)))
        shards.remove()
        medians[rows] = statistics.median(measured)
        data = sum(array[:rows].nbytes for array in arrays.values()) / 2**20
        print(f"  {rows:7d} rows ({data:4.0f} MB)   {medians[rows]:8.0f} MB")
    ratio = medians[total] / medians[total // 10]
    print(f"  ratio                    {ratio:8.2f}   (target: 1, it does not grow)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    arrays = make_arrays(arguments.rows)
    folder = tempfile.mkdtemp(prefix="hvdkeras-benchmark-")
    try:
        measure_writing(arrays, folder, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    measure_feeding(arrays, arguments.rounds)
    measure_memory(arrays, min(arguments.rounds, 3))


if __name__ == "__main__":
    main()
