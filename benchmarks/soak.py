"""Does a training that is broken again and again end with its model?

    python benchmarks/soak.py --minutes 20

Two ranks train on scikit-learn's digits on this machine, with a checkpoint every two seconds and many
restarts allowed. At random times a rank or mpirun is killed, or a rank is stopped, for a while or for good.
The result: the model's accuracy, the restarts, the rows of each epoch, and what is left of processes and
files. It ends with 1 if a row is missing or something is left.

Links are not cut here: that needs two hosts, which are built from namespaces by root, and Spark on them,
whose launches would fill the time. tests/cluster/test_broken_links.py and test_bad_links.py do it.
"""

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
import psutil
from sklearn.datasets import load_digits

import hvdkeras
from hvdkeras.launch import mpirun, remains

RANKS, TIMEOUT = 2, 15
LOSS = "sparse_categorical_crossentropy"
# A stop that is shorter than the timeout is no fault; a longer one is a rank that is lost.
FAULTS = {
    "rank killed": ("rank.main", signal.SIGKILL, None),
    "mpirun killed": ("mpirun ", signal.SIGKILL, None),
    "rank stopped for 3 s": ("rank.main", signal.SIGSTOP, 3.0),
    "rank stopped for good": ("rank.main", signal.SIGSTOP, None),
}


class Until(keras.callbacks.Callback):
    """Stops the training at a time."""

    def __init__(self, end: float):
        super().__init__()
        self.end = end

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = time.time() > self.end


def family() -> list[psutil.Process]:
    """The processes of this driver's launches."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if mpirun.MARK in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def strike(word: str, number: int, seconds: float | None) -> bool:
    """Sends a signal to one process of the launch, and a SIGCONT after so many seconds."""
    victims = []
    for process in family():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if word in line and "keeper.py" not in line and not line.startswith("/bin/sh"):
            victims.append(process)
    if not victims:
        return False
    victim = random.choice(victims)
    try:
        victim.send_signal(number)
        if seconds is not None:
            time.sleep(seconds)
            victim.send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return False
    return True


def disturb(pause: tuple[float, float], end: float, over: threading.Event, done: collections.Counter) -> None:
    while not over.wait(random.uniform(*pause)) and time.time() < end:
        name = random.choice(list(FAULTS))
        done[name] += strike(*FAULTS[name])


def left() -> list[str]:
    files = [
        path
        for folder in ("/dev/shm", tempfile.gettempdir())
        for path in Path(folder).glob(f"{remains.PREFIX}*")
    ]
    return [str(path) for path in files if not remains.is_locked(path)] + [
        str(process) for process in family()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--pause", type=float, nargs=2, default=(10, 40), help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    digits = load_digits()
    data = {"features": (digits.data / 16).astype("float32"), "label": digits.target}
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10, "softmax")]
    )
    before, done, over = set(left()), collections.Counter(), threading.Event()
    begin = time.time()
    end = begin + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        trainer = hvdkeras.DOWNPOUR(
            model,
            loss=LOSS,
            num_workers=RANKS,
            num_epoch=1_000_000,
            checkpoint=folder,
            checkpoint_minutes=2 / 60,
            max_restarts=1_000,
            timeout=TIMEOUT,
            callbacks=[Until(end)],
            verbose=0,
        )
        disturbing = threading.Thread(target=disturb, args=(arguments.pause, end, over, done), daemon=True)
        disturbing.start()
        trained = trainer.train(data)
        over.set()
        disturbing.join()
    seconds, history = time.time() - begin, trainer.history
    accuracy = float(np.mean(trained.predict(data["features"], verbose=0).argmax(1) == data["label"]))
    rows = history.rows_seen()
    # The ranks were stopped in different epochs: those before the slower rank's last one are complete.
    complete = min(len(rank.rows) for rank in history.ranks) - 1
    missing = [(epoch, count) for epoch, count in enumerate(rows[:complete]) if count < len(data["label"])]
    remaining = sorted(set(left()) - before)
    computing = max(sum(map(sum, rank.seconds.values())) for rank in history.ranks)
    print(f"{seconds:8.0f} s, {len(rows)} epochs, accuracy {accuracy:.3f}, {len(history.restarts)} restarts")
    for name, count in sorted(done.items()):
        print(f"{count:8} times: {name}")
    print(f"{computing:8.0f} s of training are in the result, {seconds - computing:.0f} s are lost")
    print(f"epochs with too few rows: {missing}")
    print(f"left: {remaining}")
    return 1 if missing or remaining else 0


if __name__ == "__main__":
    sys.exit(main())
