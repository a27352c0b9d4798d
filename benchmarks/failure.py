"""How long after a rank's failure does the driver have its error?

    python benchmarks/failure.py

Two ranks train, on this machine and on the executors of a local Spark; in the middle of it rank 1 raises,
leaves by os._exit, or is killed. The table has the seconds from there to the TrainingError: the medians and
the longest. Target: 15 at most.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
from pyspark.sql import SparkSession

import hvdkeras
from hvdkeras.launch import environment


class Fail(keras.callbacks.Callback):
    """Has rank 1 fail after some batches, and writes down when."""

    def __init__(self, how: str, file: Path):
        super().__init__()
        self.how, self.file = how, file

    def on_train_batch_end(self, batch, logs=None):
        if environment.job().rank != 1 or batch < 200:
            return
        self.file.write_text(repr(time.time()))
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "os._exit":
            os._exit(3)
        raise RuntimeError("as it was told to")


def seconds(trainer: type, how: str, data) -> float:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "when"
        used = trainer(
            model, loss="mse", num_workers=2, num_epoch=1_000, verbose=0, callbacks=[Fail(how, file)]
        )
        try:
            used.train(data)
        except hvdkeras.TrainingError:
            return time.time() - float(file.read_text())
    raise AssertionError(f"the training must fail: {how}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    random = np.random.default_rng(0)
    arrays = {"features": random.normal(size=(20_000, 8)).astype("float32"), "label": np.zeros(20_000)}
    spark = SparkSession.builder.master("local[2]").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    frame = spark.createDataFrame(
        [(row.tolist(), 0.0) for row in arrays["features"]], "features array<float>, label float"
    )
    print(f"{'':8} {'trainer':18} {'rank 1':10} {'median':>7} {'longest':>8}")
    for where, data in {"local": arrays, "Spark": frame}.items():
        for trainer in (hvdkeras.EASGD, hvdkeras.AsynchronousEASGD):
            for how in ("raises", "os._exit", "killed"):
                times = [seconds(trainer, how, data) for _ in range(repetitions)]
                median = statistics.median(times)
                print(
                    f"{where:8} {trainer.__name__:18} {how:10} {median:5.1f} s {max(times):6.1f} s",
                    flush=True,
                )
    spark.stop()


if __name__ == "__main__":
    main()
