"""How fast is the simulator, and does it predict real runs?

    OPENBLAS_NUM_THREADS=1 python benchmarks/simulate.py
    OPENBLAS_NUM_THREADS=1 python benchmarks/simulate.py --only speed scale
    python benchmarks/simulate.py --only real --workers 2 4

Speed: 1,000 workers make 100 exchanges each, with an MLP of 9,910 weights and windows of one batch of
32 rows, on one core. Aim: less than 60 seconds.

Scale: simulated seconds until the MLP knows 90% of the test digits, for 1 to 1,000 workers whose step takes
10 ms and whose exchange occupies the center for 1 ms; also with one worker that is four times slower.

Real: the MLP learns scikit-learn's handwritten digits (1,437 rows four times an epoch, 360 to test) on ranks
of this machine, and in the simulator. The seconds of a step, their spread, and those of an exchange are
measured on the same ranks (`measure`) before and after each training, and their means simulated; so they are
those of a machine whose cores are shared in the same way. The table has the medians of the repetitions and of
their ratios. Throughput is that of the epochs without the first, which compiles, and the last, in which some
ranks have ended. Aims: 15% in throughput, 2 points in accuracy.
"""

import argparse
import os
import statistics
import time

import numpy as np

import hvdkeras
from hvdkeras.simulation import Times, simulate
from hvdkeras.simulation.measuring import measure

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

SCALED = ["SynchronousSGD", "EASGD", "AsynchronousEASGD", "DOWNPOUR", "ADAG", "DynSGD"]
LOSS, BATCH_SIZE = "sparse_categorical_crossentropy", 32
PARTS = ["speed", "scale", "real"]
ALGORITHMS = ["AsynchronousEASGD", "DOWNPOUR", "EASGD"]


def mlp():
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(132, "relu"), keras.layers.Dense(10, "softmax")]
    return keras.Sequential([keras.Input((64,)), *layers])


def digits():
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    features = (found.data / 16).astype("float32")[order]
    labels = found.target.astype("int32")[order]
    return ({"features": part, "label": names} for part, names in _cut(features, labels, 1437))


def _cut(features, labels, at):
    return (features[:at], labels[:at]), (features[at:], labels[at:])


def speed(workers: int, exchanges: int, names: list[str]) -> None:
    learn, test = digits()
    repeated = -(-workers * BATCH_SIZE // len(learn["label"]))
    rows = {
        name: np.concatenate([values] * repeated)[: workers * BATCH_SIZE] for name, values in learn.items()
    }
    print(f"{'':20} workers  exchanges  simulated s  accuracy  staleness  CPU seconds (aim)  seconds")
    for name in names:
        arguments = {"rho": 0.9 / workers / 0.05} if "EASGD" in name else {}
        trainer = getattr(hvdkeras, name)(
            mlp(),
            loss=LOSS,
            communication_window=1,
            batch_size=BATCH_SIZE,
            num_epoch=exchanges,
            learning_rate=0.05,
            **arguments,
        )
        times = Times(step=0.01, exchange=1e-5, spread=0.2)
        begin, busy = time.perf_counter(), time.process_time()
        found = simulate(trainer, rows, workers, times, validation_data=test)
        seconds, busy = time.perf_counter() - begin, time.process_time() - busy
        print(
            f"{name:20} {workers:7,} {found.exchanges.sum():10,} {found.seconds:12.2f} "
            f"{found.evaluations[-1].metrics['accuracy']:9.3f} {found.staleness_mean.mean():10.1f} "
            f"{busy:12.1f} (60) {seconds:8.1f}",
            flush=True,
        )


def scale(counts: list[int], names: list[str]) -> None:
    learn, test = digits()
    learn = {column: np.concatenate([values] * 45) for column, values in learn.items()}
    window = 8
    usual, slow = Times(0.01, 0.001, spread=0.2), Times(0.01, 0.001, spread=0.2, slow={0: 4.0})
    knee = usual.knee(window, 9910)
    print(
        f"\n{'':20} workers  s to 90%  with a slow one    rows/s  center busy  staleness  (knee: {knee:.0f})"
    )
    for name in names:
        arguments = {} if name == "SynchronousSGD" else {"communication_window": window}
        for workers in counts:
            # From 64 workers on, those that learn have learned in two seconds.
            seconds = 10.0 if workers < 64 else 2.0
            rho = {"rho": 0.9 / workers / 0.05} if "EASGD" in name else {}
            trainer = getattr(hvdkeras, name)(
                mlp(),
                loss=LOSS,
                batch_size=BATCH_SIZE,
                num_epoch=1000,
                learning_rate=0.05,
                **arguments,
                **rho,
            )
            found = [
                simulate(trainer, learn, workers, each, validation_data=test, seconds=seconds, evaluations=40)
                for each in (usual, slow)
            ]
            print(
                f"{name:20} {workers:7,} {_reached(found[0]):>9} {_reached(found[1]):>16} "
                f"{found[0].throughput:9,.0f} {found[0].utilization:12.2f} "
                f"{found[0].staleness_mean.mean():10.1f}",
                flush=True,
            )


def _reached(found) -> str:
    seconds, accuracy = found.curve("accuracy")
    return (
        f"{seconds[np.argmax(accuracy >= 0.9)]:.2f}" if (accuracy >= 0.9).any() else f"> {found.seconds:.0f}"
    )


def trained(trainer, learn, test) -> tuple[float, float]:
    """Rows a second of all ranks, and the accuracy."""
    model = trainer.train(learn)
    total = 0.0
    for rank in trainer.history.ranks:
        # A rank's epoch is what it computed, exchanged and waited.
        seconds = np.sum(list(rank.seconds.values()), axis=0)
        total += rank.rows[1] / np.median(seconds[1:-1])
    predicted = model.predict(test["features"], verbose=0).argmax(axis=1)
    return total, float(np.mean(predicted == test["label"]))


def real(workers: int, name: str, epochs: int, repetitions: int) -> None:
    learn, test = digits()
    learn = {column: np.concatenate([values] * 4) for column, values in learn.items()}
    arguments = {"rho": 0.9 / workers / 0.01} if "EASGD" in name else {}
    trainer = getattr(hvdkeras, name)(
        mlp(),
        loss=LOSS,
        num_workers=workers,
        batch_size=BATCH_SIZE,
        communication_window=8,
        num_epoch=epochs,
        learning_rate=0.01,
        threads=1,
        verbose=0,
        **arguments,
    )
    rows = []
    before = measure(trainer, learn, workers)
    for _ in range(repetitions):
        speed, accuracy = trained(trainer, learn, test)
        after = measure(trainer, learn, workers)
        times = Times(
            (before.step + after.step) / 2,
            (before.exchange + after.exchange) / 2,
            spread=(before.spread + after.spread) / 2,
        )
        found, before = simulate(trainer, learn, workers, times, validation_data=test), after
        simulated = found.evaluations[-1].metrics["accuracy"]
        ratio = found.throughput / speed
        rows.append(
            (times.step * 1e3, times.exchange * 1e3, speed, found.throughput, ratio, accuracy, simulated)
        )
    ratios = [row[4] for row in rows]
    step, exchange, *speeds, ratio, accuracy, simulated = (
        statistics.median(values) for values in zip(*rows, strict=True)
    )
    print(
        f"{name:20} {workers:5} {step:8.2f} {exchange:8.3f} {speeds[0]:9,.0f} {speeds[1]:9,.0f} {ratio:6.2f} "
        f"({min(ratios):.2f}-{max(ratios):.2f}) {100 * accuracy:7.1f} {100 * simulated:9.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scaled", nargs="+", choices=SCALED, default=SCALED)
    parser.add_argument("--scale", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1000], help="workers")
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4, 8], help="ranks of the real runs")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--simulated-workers", type=int, default=1000)
    parser.add_argument("--exchanges", type=int, default=100)
    options = parser.parse_args()
    if "speed" in options.only:
        speed(options.simulated_workers, options.exchanges, options.algorithms)
    if "scale" in options.only:
        scale(options.scale, options.scaled)
    if "real" in options.only:
        print(f"\n{'':20} ranks     step exchange    rows/s simulated  ratio    (range) accuracy simulated")
        print(f"{'':20}             ms       ms                     (0.85-1.15)             %  (2 points)")
        for workers in options.workers:
            with hvdkeras.Workers(workers, verbose=0):
                for name in options.algorithms:
                    real(workers, name, options.epochs, options.repetitions)


if __name__ == "__main__":
    main()
