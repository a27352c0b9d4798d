"""What does a step cost when it touches few rows of a large embedding?

    python benchmarks/sparse.py
    python benchmarks/sparse.py --trainer DOWNPOUR --communication-window 16

An embedding of 1,000,000 x 32, of which a batch of a rank touches 128 rows. The limit is plain `model.fit` in
one process, with the same batch, one TensorFlow thread and `steps_per_execution`. Each repetition measures
the limit and the trainer on two ranks one after the other; the table has the medians of the repetitions'
seconds a step and of their ratios. The first epoch of every run is left out: it compiles, and its first
exchange has all rows.
"""

import argparse
import os
import statistics
import time
from multiprocessing import get_context

import numpy as np

import hvdkeras

BATCH_SIZE, STEPS, EPOCHS, AIM = 128, 48, 3, 1.3


def data(rows: int, words: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"features": random.integers(0, words, (rows, 1)), "label": random.normal(size=(rows, 1))}


def embedding(words: int):
    import keras

    layers = [keras.layers.Embedding(words, 32), keras.layers.Flatten(), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((1,), dtype="int32"), *layers])


def plain(results, words: int, window: int) -> None:
    from hvdkeras.launch import gpu

    gpu.limit_threads(1, threads=1)
    import keras

    seconds = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begun = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            seconds.append(time.perf_counter() - self.begun)

    model, rows = embedding(words), data(BATCH_SIZE * STEPS, words)
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=window)
    model.fit(
        rows["features"],
        rows["label"],
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[Clock()],
    )
    results.put(statistics.median(seconds[1:]) / STEPS)


def limit(words: int, window: int) -> float:
    """Seconds of a step of one process."""
    context = get_context("spawn")
    results = context.Queue()
    process = context.Process(target=plain, args=(results, words, window))
    process.start()
    seconds = results.get(timeout=600)
    process.join(60)
    return seconds


def trained(words: int, name: str, window: int) -> tuple[float, float]:
    """Seconds of a step of two ranks, and those of the exchange in it."""
    windows = {} if name == "SynchronousSGD" else {"communication_window": window}
    trainer = getattr(hvdkeras, name)(
        embedding(words),
        loss="mse",
        worker_optimizer="sgd",
        learning_rate=0.01,
        **windows,
        batch_size=BATCH_SIZE,
        num_epoch=EPOCHS,
        num_workers=2,
        threads=1,
        verbose=0,
    )
    trainer.train(data(2 * BATCH_SIZE * STEPS, words))
    table = trainer.history.to_pandas().query("epoch > 1")
    seconds = table.filter(like="seconds_").sum(axis=1)
    return seconds.median() / STEPS, table["seconds_communication"].median() / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=1_000_000, help="rows of the embedding")
    parser.add_argument("--trainer", default="SynchronousSGD", help="a class of hvdkeras")
    parser.add_argument("--communication-window", type=int, default=16, help="steps of one call")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    print(f"{'milliseconds a step':>20} {'plain':>8} {'two ranks':>10} {'exchange':>9}  ratio (aim)")
    words, window = options.words, options.communication_window
    runs = [
        (limit(words, window), *trained(words, options.trainer, window)) for _ in range(options.repetitions)
    ]
    one, two, exchange = (1000 * statistics.median(values) for values in zip(*runs, strict=True))
    ratio = statistics.median(run[1] / run[0] for run in runs)
    print(f"{'':20} {one:8.2f} {two:10.2f} {exchange:9.2f}  {ratio:.2f} ({AIM} at most)")


if __name__ == "__main__":
    main()
