"""What does a training cost before it trains?

    python benchmarks/launch.py

`train` on 64 rows against a bare `horovod.spark.run` of a function that imports TensorFlow and builds and
compiles the same model, on one local Spark session; and `train` on the same rows as arrays, with ranks on
this machine, against one process that imports TensorFlow, builds the model and fits. All in alternation; the
first round warms up. The table has the medians of the seconds and of the rounds' ratios. Targets: at most 0.8
and 1.1.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import horovod.spark
import numpy as np
from pyspark.sql import SparkSession

import hvdkeras
from hvdkeras.launch import environment

LOSS, RANKS = "sparse_categorical_crossentropy", 2


def build():
    import keras

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
    model.compile("sgd", LOSS)
    return model


def rank() -> int:
    return build().count_params()


def bare() -> None:
    horovod.spark.run(
        rank, num_proc=RANKS, use_mpi=True, env={**os.environ, **environment.variables()}, verbose=0
    )


ALONE = """
import keras
import numpy as np
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)])
model.compile("sgd", "sparse_categorical_crossentropy")
model.fit(np.ones((64, 64), np.float32), np.ones(64), verbose=0)
"""


def alone() -> None:
    subprocess.run([sys.executable, "-c", ALONE], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    spark = SparkSession.builder.master(f"local[{RANKS}]").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    random = np.random.default_rng(0)
    rows = [(random.normal(size=64).tolist(), int(label)) for label in random.integers(0, 10, 64)]
    frame = spark.createDataFrame(rows, "features array<float>, label int")
    trainer = hvdkeras.EASGD(build(), loss=LOSS, num_workers=RANKS, verbose=0)
    features, labels = (np.array(column) for column in zip(*rows, strict=True))
    arrays = {"features": features.astype(np.float32), "label": labels}
    ways = {
        "horovod.spark.run": bare,
        "train on Spark": lambda: trainer.train(frame),
        "one process": alone,
        "train here": lambda: trainer.train(arrays),
    }
    seconds = {name: [] for name in ways}
    for _ in range(repetitions + 1):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    counted = {name: values[1:] for name, values in seconds.items()}
    for name, values in counted.items():
        print(f"{name:20} {statistics.median(values):6.1f} s")
    for name, base, target in (
        ("train on Spark", "horovod.spark.run", 0.8),
        ("train here", "one process", 1.1),
    ):
        ratio = statistics.median(a / b for a, b in zip(counted[name], counted[base], strict=True))
        print(f"{name} / {base:17} {ratio:6.2f}   (target: at most {target})")
    spark.stop()


if __name__ == "__main__":
    main()
