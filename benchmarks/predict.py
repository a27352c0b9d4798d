"""What ModelPredictor costs: rows a second on Spark against Keras alone, and the memory of a Python worker.

The model is an MLP 784-256-128-10, the rows come from Parquet files, Spark has two slots.

1. `ModelPredictor.transform`, written to nowhere, on features as arrays of floats and as vectors of doubles,
   against `model.predict` of the same rows in memory at Keras's batch size of 32 and at the predictor's.
   All of Spark is counted: reading, the way to Python and back, and keeping the other columns. What Spark
   takes for that alone is what a UDF takes that gets the same rows and computes nothing: no predictor that
   is a UDF can be faster.
2. The same against one row a call on Spark, as dist-keras (`predict`) and Horovod (`predict_on_batch`) do it,
   measured on a few rows.
3. The highest resident memory of a Python worker after a partition of a tenth of the rows and after one of
   all rows.

Everything is measured in alternation in one run; the tables have medians. Processor time says more than
rows a second where the machine is busy with other things.

    python benchmarks/predict.py
    python benchmarks/predict.py --rows 50000 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from local_spark import local_session

WIDTH, CLASSES, FILES = 784, 10, 8
# How many rows are enough to measure what takes a call for each.
SINGLE_ROWS = {"predict": 200, "predict_on_batch": 4000}


def make_model() -> Any:
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((WIDTH,)),
            layers.Dense(256, "relu"),
            layers.Dense(128, "relu"),
            layers.Dense(CLASSES, "softmax"),
        ]
    )


def make_images(rows: int) -> np.ndarray:
    """Images like handwritten digits: four of five values are 0, the others multiples of 1/255."""
    random = np.random.default_rng(0)
    images = np.empty((rows, WIDTH), np.float32)
    for part in np.array_split(images, FILES):
        pixels = random.integers(0, 256, part.shape, np.uint8)
        pixels[random.random(part.shape, np.float32) < 0.8] = 0
        np.divide(pixels, np.float32(255), out=part)
    return images


def write(images: np.ndarray, folder: str) -> None:
    os.makedirs(folder)
    first = 0
    for number, part in enumerate(np.array_split(images, FILES)):
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), WIDTH).cast(pa.list_(pa.float32()))
        ids = np.arange(first, first + len(part))
        pq.write_table(pa.table({"id": ids, "features": lists}), f"{folder}/{number}.parquet")
        first += len(part)


def cpu_seconds() -> float:
    """Processor time of this process, of Spark and of its Python workers so far."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [own, *own.children(recursive=True)])


def alternate(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median seconds and processor seconds of each; a first round warms up and is not counted."""
    measured = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started, cpu = time.perf_counter(), cpu_seconds()
            run()
            measured[name].append((time.perf_counter() - started, cpu_seconds() - cpu))
    return {
        name: tuple(statistics.median(kind) for kind in zip(*every[1:], strict=True))
        for name, every in measured.items()
    }


def nothing(features: pd.Series) -> pd.Series:
    """What a UDF does at least: it gets the rows and gives back a number for each."""
    return pd.Series(np.zeros(len(features), np.float32))


def nowhere(frame: Any) -> None:
    frame.write.format("noop").mode("overwrite").save()


def measure_speed(spark: Any, model: Any, images: np.ndarray, folder: str, rounds: int) -> None:
    from pyspark.sql import functions

    from hvdkeras.predictors import ModelPredictor

    predictor, idle = ModelPredictor(model), functions.pandas_udf(nothing, "float")
    arrays, vectors = (spark.read.parquet(f"{folder}/{kind}") for kind in ("arrays", "vectors"))
    batch = predictor.getOrDefault("batch_size")
    medians = alternate(
        {
            "reading arrays alone": lambda: nowhere(arrays),
            "a UDF that does nothing": lambda: nowhere(arrays.withColumn("prediction", idle("features"))),
            "ModelPredictor, arrays": lambda: nowhere(predictor.transform(arrays)),
            "ModelPredictor, vectors": lambda: nowhere(predictor.transform(vectors)),
            "model.predict, batch 32": lambda: model.predict(images, verbose=0),
            f"model.predict, batch {batch}": lambda: model.predict(images, batch_size=batch, verbose=0),
        },
        rounds,
    )
    rates = {name: len(images) / seconds for name, (seconds, _) in medians.items()}
    print(f"predicting {len(images)} rows of {WIDTH}")
    for name, (_, cpu) in medians.items():
        print(f"  {name:28s} {rates[name]:10.0f} rows/s  {cpu / len(images) * 1e6:8.1f} us of a core a row")
    keras, best = rates["model.predict, batch 32"], rates[f"model.predict, batch {batch}"]
    for kind in ("arrays", "vectors"):
        rate = rates[f"ModelPredictor, {kind}"]
        print(f"  ratio {kind + ' to batch 32':22s} {rate / keras:10.2f}   (target: >= 0.5)")
        print(f"  ratio {f'{kind} to batch {batch}':22s} {rate / best:10.2f}", flush=True)
    most = rates["a UDF that does nothing"]
    print(f"  ratio {'arrays to that UDF':22s} {rates['ModelPredictor, arrays'] / most:10.2f}", flush=True)


def one_row_a_call(
    saved: bytes, method: str, spent: Any, spent_cpu: Any
) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """What Horovod's KerasModel does for a partition, and with "predict" what dist-keras does."""

    def score(rows: Iterator[Any]) -> Iterator[Any]:
        from hvdkeras.models.serialization import model_from_bytes

        model = model_from_bytes(saved)
        options = {"verbose": 0} if method == "predict" else {}
        getattr(model, method)(np.zeros((1, WIDTH), np.float32), **options)
        # Without the start of TensorFlow and the loading, which would dominate so few rows.
        started, cpu = time.perf_counter(), time.process_time()
        for row in rows:
            prediction = getattr(model, method)(np.array(row.features).reshape(-1, WIDTH), **options)
            yield (row.id, row.features, prediction[0].tolist())
        spent.add(time.perf_counter() - started)
        spent_cpu.add(time.process_time() - cpu)

    return score


def measure_single_rows(spark: Any, model: Any, folder: str, rows: int, rounds: int) -> None:
    from hvdkeras.models.serialization import model_to_bytes
    from hvdkeras.predictors import ModelPredictor

    saved, predictor = model_to_bytes(model), ModelPredictor(model)
    everything = spark.read.parquet(f"{folder}/arrays")
    few = {name: everything.limit(n).repartition(2).cache() for name, n in SINGLE_ROWS.items()}
    schema = "id long, features array<float>, prediction array<float>"
    measured = {name: [] for name in ("ModelPredictor", *few)}
    for _ in range(rounds + 1):
        started, cpu = time.perf_counter(), cpu_seconds()
        nowhere(predictor.transform(everything))
        taken = time.perf_counter() - started, cpu_seconds() - cpu
        measured["ModelPredictor"].append((rows / taken[0], taken[1] / rows * 1e6))
        for method, data in few.items():
            data.count()
            spent, spent_cpu = spark.sparkContext.accumulator(0.0), spark.sparkContext.accumulator(0.0)
            scored = data.rdd.mapPartitions(one_row_a_call(saved, method, spent, spent_cpu))
            nowhere(spark.createDataFrame(scored, schema))
            count = SINGLE_ROWS[method]
            measured[method].append((count / (spent.value / 2), spent_cpu.value / count * 1e6))
    medians = {
        name: [statistics.median(kind) for kind in zip(*every[1:], strict=True)]
        for name, every in measured.items()
    }
    print("one row a call, two Python workers at once; their JVM is not counted")
    for name, (rate, cpu) in medians.items():
        print(f"  {name:28s} {rate:10.0f} rows/s  {cpu:8.1f} us of a core a row")
    batched_rate, batched_cpu = medians.pop("ModelPredictor")
    for name, (rate, cpu) in medians.items():
        ratios = f"{batched_rate / rate:8.0f}, of processor time {cpu / batched_cpu:.0f}"
        print(f"  ratio to {name:19s} {ratios}   (target: >= 20)", flush=True)


def highest_memory(ids: pd.Series) -> pd.Series:
    """Megabytes that this Python worker has held at most, if it has held a model."""
    from hvdkeras.ml import scoring

    with open("/proc/self/status") as status:
        highest = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    return pd.Series([highest if scoring._models else 0.0] * len(ids))


def measure_memory(spark: Any, model: Any, folder: str, rows: int) -> None:
    from pyspark.sql import functions

    from hvdkeras.predictors import ModelPredictor

    data = spark.read.parquet(f"{folder}/arrays")
    predictor = ModelPredictor(model)
    print("highest memory of a Python worker after one partition of")
    highest = []
    for part in (rows // 10, rows):
        nowhere(predictor.transform(data.where(data.id < part).coalesce(1)))
        # A UDF, for Spark has other workers for RDDs.
        probe = functions.pandas_udf(highest_memory, "double")
        highest.append(spark.range(0, 8, 1, 8).agg(functions.max(probe("id"))).first()[0])
        print(f"  {part:7d} rows ({part * WIDTH * 4 / 2**20:5.0f} MB)        {highest[-1]:10.0f} MB")
    print(f"  ratio                        {highest[1] / highest[0]:10.2f}   (target: 1, it does not grow)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    images = make_images(arguments.rows)
    folder = tempfile.mkdtemp(prefix="hvdkeras-benchmark-")
    spark = local_session()
    try:
        from pyspark.ml.functions import array_to_vector
        from pyspark.sql import functions

        write(images, f"{folder}/arrays")
        arrays = spark.read.parquet(f"{folder}/arrays")
        doubles = functions.col("features").cast("array<double>")
        arrays.select("id", array_to_vector(doubles).alias("features")).write.parquet(f"{folder}/vectors")
        model = make_model()
        # First, while no worker has done anything else.
        measure_memory(spark, model, folder, arguments.rows)
        measure_speed(spark, model, images, folder, arguments.rounds)
        measure_single_rows(spark, model, folder, arguments.rows, arguments.rounds)
    finally:
        spark.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
