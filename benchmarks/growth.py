"""How do the seconds and the memory of a training grow with its data, its ranks and its model?

    python benchmarks/growth.py
    python benchmarks/growth.py --only rows --most 10_000_000
    python benchmarks/growth.py --only weights --most 100_000_000

One axis grows at a time, and every training has a process of its own:

- rows: of a Parquet file with 10 numbers in a row;
- columns: of a Parquet file of 1,000 rows, which features_col stacks; frame_columns: the same file as a Spark
  DataFrame;
- ranks: on 8,192 rows of NumPy;
- partitions: of a Spark DataFrame of 20,000 rows; counted_partitions: Spark only counts the same rows, which
  is the least that so many partitions cost;
- weights: of a model that learns 256 rows.

The tables have the seconds of `train` (or of `count`), the processor's seconds in the driver, in all ranks
and in the other processes (Spark, mpirun), and the largest private memory of the driver and of a rank. Below
each figure from the third on is its slope: the first figure is taken for what a training costs however small
it is, and the slope is the exponent with which the rest grows, 1 for what grows as its input. `*` marks
slopes above 1.2, except of the seconds, which depend on what else the machine does. Target: no mark.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_spark import local_session

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

AXES = {
    "rows": [10_000, 100_000, 1_000_000],
    "columns": [10, 100, 1000, 10_000],
    "frame_columns": [10, 100, 1000, 10_000],
    "ranks": [1, 2, 4, 8, 16],
    "partitions": [1, 10, 100, 1000, 10_000],
    "counted_partitions": [1, 10, 100, 1000, 10_000],
    "weights": [10_000, 100_000, 1_000_000, 10_000_000],
}
FIGURES = ["seconds", "driver s", "ranks s", "others s", "driver MB", "rank MB"]
# What the first figure may differ from another one by chance: seconds and megabytes.
NOISE = {"s": 1.5, "MB": 40.0}
STEEP, PAUSE = 1.2, 0.1


def parquet(folder: Path, rows: int, names: list[str] | None) -> str:
    """Writes random rows of 10 numbers, or of one number in each of some columns."""
    import numpy as np
    import pyarrow.parquet as pq

    random, path = np.random.default_rng(0), str(folder / "rows.parquet")
    with pq.ParquetWriter(path, _table(random, 1, names).schema) as file:
        for begin in range(0, rows, 100_000):
            file.write_table(_table(random, min(100_000, rows - begin), names))
    return path


def _table(random, rows: int, names: list[str] | None):
    import pyarrow as pa

    label = random.integers(0, 2, rows)
    if names is None:
        values = pa.array(random.random(rows * 10, "float32"))
        return pa.table({"features": pa.FixedSizeListArray.from_arrays(values, 10), "label": label})
    return pa.table({**{name: random.random(rows, "float32") for name in names}, "label": label})


def frame(partitions: int):
    from pyspark.sql import functions

    rows = local_session().range(0, 20_000, 1, partitions)
    numbers = functions.array(*(functions.rand(number).cast("float") for number in range(10)))
    label = (functions.col("id") % 2).cast("int").alias("label")
    return rows.select(numbers.alias("features"), label)


def arrays(rows: int) -> dict:
    import numpy as np

    random = np.random.default_rng(0)
    return {"features": random.random((rows, 10), "float32"), "label": random.integers(0, 2, rows)}


def model(width: int, weights: int):
    from keras import Input, Sequential, layers

    units = max(8, round(math.sqrt(weights)))
    hidden = [layers.Dense(8, "relu")] if weights == 0 else [layers.Dense(units, "relu") for _ in range(2)]
    return Sequential([Input((width,)), *hidden, layers.Dense(2)])


def case(axis: str, value: int, folder: Path) -> tuple[object, object, dict]:
    """Returns the model, the data and further arguments of the trainer."""
    if axis == "rows":
        return model(10, 0), parquet(folder, value, None), {}
    if axis in ("columns", "frame_columns"):
        names = [f"x{number}" for number in range(value)]
        path = parquet(folder, 1000, names)
        data = path if axis == "columns" else local_session().read.parquet(path)
        return model(value, 0), data, {"features_col": names}
    if axis == "ranks":
        return model(10, 0), arrays(8192), {"num_workers": value}
    if axis in ("partitions", "counted_partitions"):
        return model(10, 0), frame(value), {}
    return model(10, value), arrays(256), {}


def point(axis: str, value: int) -> None:
    """Trains or counts once, in this process; prints when that begins and what it took."""
    import hvdkeras

    with tempfile.TemporaryDirectory(prefix="hvdkeras-benchmark-") as folder:
        keras_model, data, further = case(axis, value, Path(folder))
        given = {"num_workers": 2, "batch_size": 32, "communication_window": 8, **further}
        loss = "sparse_categorical_crossentropy"
        trainer = hvdkeras.AsynchronousEASGD(keras_model, loss=loss, threads=1, verbose=0, **given)
        print("begin", flush=True)
        begun = time.perf_counter()
        if axis == "counted_partitions":
            data.count()
        else:
            trainer.train(data)
        print(json.dumps(time.perf_counter() - begun), flush=True)
        if hasattr(data, "sparkSession"):
            data.sparkSession.stop()


class Watch:
    """What the processes of a training use, by kind: driver, ranks, others."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._psutil, self._driver = psutil, psutil.Process(pid)
        self._kinds: dict[int, str] = {}
        self.seconds: dict[int, float] = {}
        self.most = {"driver": 0.0, "ranks": 0.0, "others": 0.0}

    def look(self) -> None:
        for process in [self._driver, *self._driver.children(recursive=True)]:
            try:
                kind = self._kind(process)
                used = process.cpu_times()
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (self._psutil.Error, OSError):
                continue
            self.seconds[process.pid] = used.user + used.system
            private = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            self.most[kind] = max(self.most[kind], sum(private) / 1024)

    def by_kind(self) -> dict[str, float]:
        """Returns the processor's seconds so far."""
        total = dict.fromkeys(self.most, 0.0)
        for pid, seconds in self.seconds.items():
            total[self._kinds[pid]] += seconds
        return total

    def _kind(self, process) -> str:
        if process.pid not in self._kinds or self._kinds[process.pid] == "others":
            is_rank = "OMPI_COMM_WORLD_RANK" in process.environ() and "python" in process.name()
            other = "ranks" if is_rank else "others"
            self._kinds[process.pid] = "driver" if process == self._driver else other
        return self._kinds[process.pid]


def measured(axis: str, value: int) -> list[float]:
    """Trains once in a process of its own; returns the figures."""
    command = [sys.executable, __file__, "--point", axis, str(value)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while (line := process.stdout.readline()) != "begin\n":
            if not line:
                raise SystemExit(f"the training of {axis} = {value} ended with an error")
        watch = Watch(process.pid)
        watch.look()
        before = watch.by_kind()
        os.set_blocking(process.stdout.fileno(), False)
        while not (line := process.stdout.readline()):
            if process.poll() is not None:
                raise SystemExit(f"the training of {axis} = {value} ended with an error")
            watch.look()
            time.sleep(PAUSE)
        used = {kind: seconds - before[kind] for kind, seconds in watch.by_kind().items()}
    return [json.loads(line), *used.values(), watch.most["driver"], watch.most["ranks"]]


def slope(values: list[int], figures: list[float], noise: float) -> float | None:
    """The exponent with which the newest figure grows beyond the first; None where chance may decide it."""
    first, before, last = figures[0], figures[-2], figures[-1]
    if last - first < noise:
        return None
    # Where the figure before is not above chance, the slope is at least this.
    ratio = (last - first) / max(before - first, noise / 4)
    return math.log(ratio) / math.log((values[-1] - values[0]) / (values[-2] - values[0]))


def grow(axis: str, values: list[int]) -> None:
    print(f"\n{axis:>14}" + "".join(f"{name:>12}" for name in FIGURES), flush=True)
    rows: list[list[float]] = []
    for number, value in enumerate(values):
        rows.append(measured(axis, value))
        print(f"{value:14,}" + "".join(f"{figure:12.1f}" for figure in rows[-1]), flush=True)
        if number >= 2:
            slopes = [
                slope(
                    values[: number + 1],
                    [row[place] for row in rows],
                    NOISE["MB" if name.endswith("MB") else "s"],
                )
                for place, name in enumerate(FIGURES)
            ]
            print(f"{'slope':>14}" + "".join(map(shown, FIGURES, slopes)), flush=True)


def shown(figure: str, found: float | None) -> str:
    if found is None:
        return f"{'-':>12}"
    return f"{found:11.2f}{'*' if found > STEEP and figure != 'seconds' else ' '}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--most", type=int, help="go on in steps of ten, or end earlier (ranks: of two)")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        point(options.point[0], int(options.point[1]))
        return
    for axis in options.only:
        values = AXES[axis]
        while options.most and values[-1] * 10 <= options.most and axis != "ranks":
            values = [*values, values[-1] * 10]
        grow(axis, [value for value in values if not options.most or value <= options.most])


if __name__ == "__main__":
    main()
