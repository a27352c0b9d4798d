"""How well does every algorithm learn real data, for the samples and for the seconds that it takes?

    python benchmarks/accuracy.py --data FOLDER
    python benchmarks/accuracy.py --data FOLDER --sets mnist --workers 2 --algorithms EASGD DOWNPOUR

FOLDER holds mnist10k-{train,test}.parquet (features: list of 784 uint8, label) and
cifar10-{train,test}.parquet (image: JPEG bytes, label). Every row of the tables is one algorithm on so many
ranks, beside one process:

- accuracy on the test rows after `--epochs` epochs, that is after the same number of samples for all;
- the seconds that its ranks trained for them: the median epoch times the epochs, so without the launch;
- accuracy after as many whole epochs as fit into the seconds that one process took for `--epochs`.

The last table is about the claim of Zhang et al. 2015, section 5, that DOWNPOUR degrades or diverges with
windows of 16 and more while EASGD and EAMSGD do not.
"""

import argparse
import io
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

LEARNING_RATE, BATCH_SIZE = 0.05, 32
# Momentum 0.9 makes steps ten times as long.
MOMENTUM = {"momentum": 0.9, "learning_rate": LEARNING_RATE / 10}
ALGORITHMS = {
    "SynchronousSGD": {},
    "AveragingTrainer": {"communication_window": 16},
    "DiLoCo": {"communication_window": 16},
    "EASGD": {},
    "SynchronousEAMSGD": MOMENTUM,
    "AsynchronousEASGD": {},
    "EAMSGD": MOMENTUM,
    "DOWNPOUR": {},
    "AdaptiveDOWNPOUR": {"server_learning_rate": 0.005},
    "ADAG": {},
    "DynSGD": {},
    "EnsembleTrainer": {"merge_models": True},
}


def mnist(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(folder / f"mnist10k-{part}.parquet")
    images = table["features"].combine_chunks().values.to_numpy().reshape(-1, 784)
    return images.astype("float32") / 255, table["label"].to_numpy().astype("int32")


def cifar(folder: Path, part: str, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    table = pq.read_table(folder / f"cifar10-{part}.parquet")[:rows]
    images = [np.asarray(Image.open(io.BytesIO(image.as_py()))) for image in table["image"]]
    return np.stack(images).astype("float32") / 255, table["label"].to_numpy().astype("int32")


def mlp():
    from keras import Input, Sequential, layers

    return Sequential([Input((784,)), layers.Dense(128, "relu"), layers.Dense(10, "softmax")])


def convolutional():
    from keras import Input, Sequential, layers

    blocks = [
        layer
        for filters in (16, 32, 64)
        for layer in (layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D())
    ]
    return Sequential([Input((32, 32, 3)), *blocks, layers.Flatten(), layers.Dense(10, "softmax")])


class Trial:
    """Trainings on one data set.

    Args:
        model: makes the model.
        learn: features and labels to train on.
        test: features and labels that no training sees.
    """

    def __init__(self, model, learn, test) -> None:
        import keras

        keras.utils.set_random_seed(0)
        self._model, self._test = model(), test
        self._columns = {"features": learn[0], "label": learn[1]}

    def run(self, name: str, workers: int, epochs: int, arguments: dict) -> tuple[float, float]:
        """Returns the accuracy on the test rows and the seconds of training."""
        import hvdkeras

        arguments = {"learning_rate": LEARNING_RATE, **arguments}
        # The paper's moving rate: alpha = rho * learning_rate = 0.9 / ranks.
        if "EASGD" in name or "EAMSGD" in name:
            arguments["rho"] = 0.9 / workers / arguments["learning_rate"]
        if name == "EnsembleTrainer":
            arguments["num_models"] = workers
        trainer = getattr(hvdkeras, name)(
            self._model,
            loss="sparse_categorical_crossentropy",
            num_workers=workers,
            batch_size=BATCH_SIZE,
            num_epoch=epochs,
            threads=1,
            verbose=0,
            **arguments,
        )
        trained = trainer.train(self._columns)
        table = trainer.history.to_pandas()
        epoch = table.assign(seconds=table.filter(like="seconds_").sum(axis=1)).query("epoch > 1")
        predicted = trained.predict(self._test[0], batch_size=256, verbose=0).argmax(axis=-1)
        seconds = epoch.groupby("rank").seconds.median().max() * epochs if epochs > 1 else np.nan
        return float(np.mean(predicted == self._test[1])), seconds


def compare(trial: Trial, title: str, workers: list[int], epochs: int, names: list[str]) -> None:
    alone, budget = trial.run("SingleTrainer", 1, epochs, {})
    print(f"\n{title}, {epochs} epochs{'':10} ranks  accuracy  seconds   in {budget:.1f} s: epochs  accuracy")
    print(f"{'SingleTrainer':32} {1:5} {alone:9.4f} {budget:8.1f} {epochs:19} {alone:9.4f}", flush=True)
    for count in workers:
        for name in names:
            accuracy, seconds = trial.run(name, count, epochs, ALGORITHMS[name])
            fitting = max(1, int(epochs * budget / seconds))
            timed = accuracy if fitting == epochs else trial.run(name, count, fitting, ALGORITHMS[name])[0]
            print(f"{name:32} {count:5} {accuracy:9.4f} {seconds:8.1f} {fitting:19} {timed:9.4f}", flush=True)


def compare_windows(trial: Trial, title: str, workers: int, epochs: int, windows: list[int]) -> None:
    print(f"\n{title}, {workers} ranks, {epochs} epochs: accuracy by communication_window")
    print(f"{'':20}" + "".join(f"{window:9}" for window in windows))
    for name in ("DOWNPOUR", "AsynchronousEASGD", "EAMSGD"):
        arguments = ({**ALGORITHMS[name], "communication_window": window} for window in windows)
        accuracies = [trial.run(name, workers, epochs, each)[0] for each in arguments]
        print(f"{name:20}" + "".join(f"{accuracy:9.4f}" for accuracy in accuracies), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=["mnist", "cifar"], default=["mnist", "cifar"])
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--windows", nargs="*", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--cifar-rows", type=int, default=10_000, help="rows of CIFAR-10 to train on")
    options = parser.parse_args()
    for name in options.sets:
        if name == "mnist":
            trial = Trial(mlp, mnist(options.data, "train"), mnist(options.data, "test"))
        else:
            learn = cifar(options.data, "train", options.cifar_rows)
            trial = Trial(convolutional, learn, cifar(options.data, "test"))
        compare(trial, name, options.workers, options.epochs, options.algorithms)
        if options.windows:
            compare_windows(trial, name, max(options.workers), options.epochs, options.windows)


if __name__ == "__main__":
    main()
