"""How much of the machine's training speed is left when ranks exchange weights?

    python benchmarks/throughput.py

The limit is as many independent processes doing plain `model.fit` at the same time on arrays in memory, with
the same `steps_per_execution` and no exchange. Each repetition measures the limit and the trainers one after
the other; the table has the medians of the repetitions' samples/s and of their ratios. The first epoch of
every run is left out: it compiles.

The last comparison is of rank 0's speed beside a worker that waits for its data, with and without that wait.

MLP 784-256-128-10, batch 128, window 16, one TensorFlow thread a process, no binding to cores.
"""

import argparse
import os
import statistics
import time
from multiprocessing import get_context

import numpy as np

import hvdkeras
from hvdkeras.launch import environment

WINDOW, BATCH_SIZE = 16, 128
LOSS = "sparse_categorical_crossentropy"
# What is compared: name, trainer, processes, and the part of the limit that is aimed at.
RUNS = [
    ("one rank", "SingleTrainer", 1, 0.95),
    ("two ranks, EASGD", "EASGD", 2, 0.85),
    ("two ranks, AsynchronousEASGD", "AsynchronousEASGD", 2, 0.95),
    ("two ranks, DOWNPOUR", "DOWNPOUR", 2, 0.95),
]


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(rows, 784)).astype("float32"), random.integers(0, 10, rows).astype("int32")


def mlp():
    import keras

    layers = [
        keras.layers.Dense(256, "relu"),
        keras.layers.Dense(128, "relu"),
        keras.layers.Dense(10, "softmax"),
    ]
    return keras.Sequential([keras.Input((784,)), *layers])


def plain(barrier, results, rows: int, epochs: int) -> None:
    """One of several independent processes."""
    from hvdkeras.launch import gpu

    gpu.limit_threads(1, threads=1)
    import keras

    features, labels = data(rows)
    model = mlp()
    model.compile(keras.optimizers.SGD(0.01), LOSS, metrics=["accuracy"], steps_per_execution=WINDOW)
    begins, seconds = [], []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                barrier.wait(120)
            begins.append(time.perf_counter())

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.perf_counter() - begins[-1])

    model.fit(features, labels, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, callbacks=[Clock()])
    results.put(rows / statistics.median(seconds[1:]))


def limit(processes: int, rows: int, epochs: int) -> float:
    context = get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    started = [context.Process(target=plain, args=(barrier, results, rows, epochs)) for _ in range(processes)]
    for process in started:
        process.start()
    speeds = [results.get(timeout=600) for _ in started]
    for process in started:
        process.join(60)
    return sum(speeds)


def speeds(trainer: type, processes: int, rows: int, epochs: int) -> list[float]:
    """Samples/s of each rank."""
    features, labels = data(rows * processes)
    arguments = {"loss": LOSS, "metrics": ["accuracy"], "batch_size": BATCH_SIZE, "num_epoch": epochs}
    if processes > 1:
        arguments |= {"num_workers": processes, "communication_window": WINDOW}
    used = trainer(mlp(), learning_rate=0.01, threads=1, verbose=0, **arguments)
    used.train({"features": features, "label": labels})
    table = used.history.to_pandas().query("epoch > 1")
    table["speed"] = table["rows"] / table.filter(like="seconds_").sum(axis=1)
    return table.groupby("rank")["speed"].median().tolist()


class WithASlowWorker(hvdkeras.AsynchronousEASGD):
    """Rank 1 sleeps for each of its batches."""

    def exchange(self, local, center, state, steps):
        if environment.job().rank == 1:
            time.sleep(0.005 * steps)
        return super().exchange(local, center, state, steps)


def compare_slow_worker(rows: int, epochs: int, repetitions: int) -> None:
    trainers = hvdkeras.AsynchronousEASGD, WithASlowWorker
    pairs = [[speeds(each, 2, rows, epochs) for each in trainers] for _ in range(repetitions)]
    before, beside, slow = (
        statistics.median(values)
        for values in zip(*((usual[0], late[0], late[1]) for usual, late in pairs), strict=True)
    )
    ratio = statistics.median(late[0] / usual[0] for usual, late in pairs)
    print(
        f"{'rank 0 beside a slow worker':30} {before:10,.0f} {beside:10,.0f}             {ratio:.2f} (0.95)"
    )
    print(f"{'  (the slow one)':30} {'':10} {slow:10,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=40_000, help="rows of one process")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", help="a part of the name of what to compare")
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    print(f"{'':30} {'limit':>10} {'trained':>10}  samples/s  ratio (aim)")
    for name, trainer, processes, aim in RUNS:
        if options.only and options.only not in name:
            continue
        pairs = [
            (
                limit(processes, options.rows, options.epochs),
                sum(speeds(getattr(hvdkeras, trainer), processes, options.rows, options.epochs)),
            )
            for _ in range(options.repetitions)
        ]
        bound, reached = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratio = statistics.median(speed / most for most, speed in pairs)
        print(f"{name:30} {bound:10,.0f} {reached:10,.0f}             {ratio:.2f} ({aim})", flush=True)
    if not options.only or options.only in "slow worker":
        compare_slow_worker(options.rows, options.epochs, options.repetitions)


if __name__ == "__main__":
    main()
