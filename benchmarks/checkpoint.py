"""What a checkpoint costs: the seconds that it takes from the training, and where they go.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --parameters 50 --folder /mnt/shared

Two ranks on this machine with one TensorFlow thread each, Adam, a network of dense layers with 10 million
parameters, an evaluation of the center after each epoch. Trainings with and without checkpoints take turns.
In both, a rank's seconds in `Attendance` (reports, evaluations, saving, waiting for the decision) are added
up and divided by the number of evaluations; the difference is the cost of a checkpoint. The table has the
medians over the repetitions, of the rank that loses most, and which part of a minute they are. Below are the
medians of the parts: what each rank writes of its own state, and what rank 0 writes of the center while, in a
synchronous training, the others wait.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from hvdkeras.launch import local

AIM = 0.02
ALGORITHMS = ("EASGD", "AsynchronousEASGD")
PARTS = ("RankState.write", "CheckpointWriter.complete")
CLASSES, INPUTS = 10, 64


def timed(owner: type, name: str, times: dict[str, list[float]]) -> None:
    """Replaces a method by one that adds the seconds of each call to `times`."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def call(self, *arguments, **named):
        begin = time.perf_counter()
        try:
            return method(self, *arguments, **named)
        finally:
            times[f"{owner.__name__}.{name}"].append(time.perf_counter() - begin)

    setattr(owner, name, call)


def network(parameters: int):
    """Four equal dense layers with so many parameters together, about."""
    import keras

    width = round((parameters / 4) ** 0.5)
    hidden = [keras.layers.Dense(width, "relu") for _ in range(5)]
    return keras.Sequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(CLASSES, "softmax")])


def train(algorithm: str, parameters: int, epochs: int, checkpoint: str | None) -> tuple[int, int]:
    """Returns the model's parameters, and the number of evaluations of the center."""
    import keras

    import hvdkeras

    random = np.random.default_rng(0)
    data = {"features": random.random((320, INPUTS), np.float32), "label": random.integers(0, CLASSES, 320)}
    model = network(parameters)
    trainer = getattr(hvdkeras, algorithm)(
        model,
        loss="sparse_categorical_crossentropy",
        worker_optimizer=keras.optimizers.Adam(1e-4),
        num_epoch=epochs,
        communication_window=5,
        callbacks=[keras.callbacks.Callback()],  # so that there are evaluations without checkpoints, too
        checkpoint=checkpoint,
        threads=1,
        verbose=0,
    )
    trainer.train(data)
    return model.count_params(), len(trainer.history.center)


def measure(algorithm: str, options: argparse.Namespace, folder: str) -> dict[str, list]:
    """What a rank measures, by name: a list for each repetition, or each call."""
    from hvdkeras.checkpoint.rank_state import RankState
    from hvdkeras.checkpoint.writer import CheckpointWriter
    from hvdkeras.coordination.attendance import Attendance

    times: dict[str, list[float]] = defaultdict(list)
    callbacks = ("on_train_batch_end", "on_epoch_end", "finish")
    for name in callbacks:
        timed(Attendance, name, times)
    timed(RankState, "write", times)
    timed(CheckpointWriter, "complete", times)
    found: dict[str, list] = defaultdict(list)
    for repetition in range(options.repetitions):
        for checkpoint in (None, f"{folder}/{algorithm}-{repetition}"):
            for name in callbacks:
                times[f"Attendance.{name}"].clear()
            found["parameters"], evaluations = train(
                algorithm, options.parameters * 10**6, options.epochs, checkpoint
            )
            seconds = sum(sum(times[f"Attendance.{name}"]) for name in callbacks)
            found["with" if checkpoint else "without"].append(seconds / evaluations)
    found["bytes"] = sum(file.stat().st_size for file in newest(checkpoint).iterdir())
    return {**found, **{part: times[part] for part in PARTS}}


def newest(checkpoint: str) -> Path:
    return max(folder for folder in Path(checkpoint).iterdir() if folder.name.isdigit())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=int, default=10, help="of the model, in millions")
    parser.add_argument("--folder", help="where the checkpoints go (default: a temporary folder)")
    parser.add_argument("--epochs", type=int, default=6, help="checkpoints of each training")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    folder = tempfile.mkdtemp(prefix="hvdkeras-benchmark-", dir=options.folder)
    try:
        found = {name: local.run(measure, (name, options, folder), num_proc=2) for name in ALGORITHMS}
    finally:
        shutil.rmtree(folder)
    one = found[ALGORITHMS[0]][0]
    print(f"{one['parameters']:,} parameters, {one['bytes'] / 1e6:.0f} MB a checkpoint")
    print(f"{'':20}{'a checkpoint':>14}{'of a minute':>13}   (target: <= {AIM:.0%})")
    for name, ranks in found.items():
        pairs = [list(zip(rank["with"], rank["without"], strict=True)) for rank in ranks]
        seconds = max(statistics.median(one - other for one, other in rank) for rank in pairs)
        print(f"{name:20}{seconds:12.2f} s{seconds / 60:13.1%}")
    print("parts of it, medians in seconds")
    for name, ranks in found.items():
        for part in PARTS:
            of_ranks = [statistics.median(rank[part]) for rank in ranks if rank[part]]
            print(f"  {name:18}{part:28}", *(f"{seconds:6.2f}" for seconds in of_ranks))


if __name__ == "__main__":
    main()
